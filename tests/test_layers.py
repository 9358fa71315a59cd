"""Which part of the program knows which: the core no flag, store or plot, and what a worker loads no report."""

import ast
from pathlib import Path

import pytest
from support import ROOT

PLOTS_AND_TABLES = {"matplotlib", "pandas", "xarray", "PIL"}
LAUNCHERS = {"absl", "sweeps", "zarr", "filelock", "tqdm", *PLOTS_AND_TABLES}
REPORTING = {"report", "reporting", "figures", "tables", "page", "measure", "publish", "joined", "foreseeing"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("relu_sgd", "sweeps")
    for path in sorted((ROOT / package).rglob("*.py"))
}
CORE = [name for name in MODULES if name.split(".")[0] == "relu_sgd"]
WORKERS = [name for name in MODULES if name.split(".")[0] == "sweeps" and not REPORTING & set(name.split("."))]


def statements(node, at_load):
    """All of them; or those that run when the module is loaded, outside functions and TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        )
        if not (at_load and deferred):
            yield child
            yield from statements(child, at_load)


def imported(path: Path, at_load: bool) -> set[str]:
    """Modules, with the packages that hold them; relative imports are not used."""
    names = set()
    for node in statements(ast.parse(path.read_text()), at_load):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (path, ast.unparse(node))
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    return {".".join(name[:length]) for name in parts for length in range(1, len(name) + 1)}


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_no_flag_store_or_plot(name):
    assert not imported(MODULES[name], at_load=False) & LAUNCHERS


@pytest.mark.parametrize("name", WORKERS)
def test_what_a_worker_loads_knows_no_report(name):
    """Whatever it loads in turn; a report is loaded by its name, when there is something to report."""
    known, open_ = set(), {name}
    while open_:
        module = open_.pop()
        known.add(module)
        if module in MODULES:
            open_ |= imported(MODULES[module], at_load=True) - known
    assert not known & PLOTS_AND_TABLES
    assert not {module for module in known & set(MODULES) if REPORTING & set(module.split("."))}


def test_the_rules_see_what_they_forbid():
    report = MODULES["sweeps.convergence_map.report"]
    assert {"pandas", "sweeps.reporting"} & imported(report, at_load=True)
    assert "matplotlib" not in imported(MODULES["sweeps.study"], at_load=True)
    assert "matplotlib" in imported(MODULES["sweeps.study"], at_load=False)
    assert len(CORE) > 30
    assert len(WORKERS) > 20
