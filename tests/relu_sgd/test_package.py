"""The surface of the package: what `import relu_sgd` gives, and what it does not import before it is used."""

import pkgutil
import subprocess
import sys

import pytest

import relu_sgd
import relu_sgd.theory


@pytest.mark.parametrize("package", [relu_sgd, relu_sgd.theory])
def test_every_public_submodule_is_an_attribute(package):
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    assert len(names) >= 8
    for name in names:
        assert getattr(package, name).__name__ == f"{package.__name__}.{name}"
    assert set(names) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_one_import_is_enough():
    """In a process of its own, where no other test has imported anything; names that README.md uses."""
    code = """if True:
        import sys
        import relu_sgd
        heavy = {"flax", "diffrax", "scipy.optimize", "scipy.integrate", "matplotlib", "pandas", "relu_sgd.inclusion"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        relu_sgd.clarke.subdifferential, relu_sgd.clarke.hull.clarke_hull, relu_sgd.clarke.selections.random
        relu_sgd.inclusion.solve, relu_sgd.inclusion.event_driven.solve, relu_sgd.theory.certificate.certificate
        relu_sgd.theory.trajectory.slack, relu_sgd.theory.width_search.certified_widths, relu_sgd.theory.widths
        relu_sgd.theory.hidden_layer, relu_sgd.theory.related_work, relu_sgd.theory.gram, relu_sgd.theory.comparison
        relu_sgd.approximators.deep, relu_sgd.measurements.relative_error, relu_sgd.initialization.normal_hidden
        relu_sgd.problem.sphere_rows, relu_sgd.loss
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
