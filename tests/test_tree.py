"""The tests lie as what they test does, and none needs another."""

import ast

from support import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
SHARED = {"support", "programs"}


def imported(path):
    """The modules that a file imports, wherever in it; what it takes from a package counts as a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_imports_a_test():
    tests = {path.stem for path in FILES if path.parent.name not in SHARED}
    assert len(tests) > 30
    for path in FILES:
        for module in imported(path):
            assert not tests & set(module.split(".")), (path, module)
            assert not module.startswith((".", "tests")), (path, module)


def test_folders_are_those_of_the_tree():
    folders = {path.parent.relative_to(TESTS) for path in FILES if path.name.startswith("test_")}
    assert len(folders) > 10
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder
    assert {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"} == SHARED | {
        folder.parts[0] for folder in folders if folder.parts
    }
