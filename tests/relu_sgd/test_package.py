"""The surface of the package: what `import relu_sgd` gives, and what it does not import before it is used."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import relu_sgd
import relu_sgd.theory
from relu_sgd import initialization, laws, problem

ROOT = Path(relu_sgd.__path__[0]).parent


@pytest.mark.parametrize("package", [relu_sgd, relu_sgd.theory])
def test_every_public_submodule_is_an_attribute(package):
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    assert len(names) >= 8
    for name in names:
        assert getattr(package, name).__name__ == f"{package.__name__}.{name}"
    assert set(names) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_laws_are_those_of_data_and_weights():
    assert set(laws.__all__) == {*problem.__all__, *initialization.__all__} - {"Problem"}
    for name in laws.__all__:
        assert getattr(laws, name) is getattr(initialization if hasattr(initialization, name) else problem, name)


def public_modules():
    """All modules of relu_sgd whose path has no underscore. What is in `proofs` is reached by the package itself."""
    modules = pkgutil.walk_packages(relu_sgd.__path__, "relu_sgd.")
    names = [module.name for module in modules if "._" not in module.name]
    return ["relu_sgd", *(name for name in names if not name.startswith("relu_sgd.proofs."))]


@pytest.mark.parametrize("name", public_modules())
def test_what_is_public_is_documented(name):
    """The module has a place on the site, and whatever it says is public a docstring."""
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    assert f"::: {name}\n" in pages
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        assert not (inspect.isfunction(value) or inspect.isclass(value)) or value.__doc__, public


def test_helpers_are_private():
    for helper in ("matmul", "normalize", "outer_gram", "gram_of_factor", "loss_scale", "relu_with_slopes"):
        for module in (relu_sgd, relu_sgd.network, relu_sgd.activation, relu_sgd.differentials):
            assert helper not in module.__all__


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
        relu_sgd.problem.sphere_rows, relu_sgd.laws.sphere_rows, relu_sgd.laws.normal_hidden, relu_sgd.loss
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
