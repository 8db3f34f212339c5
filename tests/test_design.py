"""The layers of docs/design.md: nothing imports upward."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jdiff"
# From the bottom up. A module or wing imports only from layers below its own, and within its wing.
LAYERS = (
    {"types", "parts"},
    {"checks", "keys", "progress", "results"},
    {"schedule", "views", "networks", "mesh", "images", "unipc", "combine"},
    {"step", "training"},
    {"scan", "checkpoints"},
    {"text"},
    {"model"},
    {"sample"},
    {"bulk", "mnist", "letters"},
    {"cli", "studio"},  # the command starts the page, and the page runs commands
)
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
TOP = len(LAYERS) - 1
ENTRANCES = {"__init__", "__main__"}  # what users import and start


def imported(path):
    """Names of the modules and wings of jdiff that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jdiff":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jdiff."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("jdiff."))


def wing(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("name", sorted(RANKS))
def test_nothing_imports_upward(name):
    files = [path for path in ROOT.rglob("*.py") if wing(path) == name]
    assert files
    for path in files:
        for other in set(imported(path)) - {name, "__version__"}:
            allowed = RANKS[other] < RANKS[name] or RANKS[other] == RANKS[name] == TOP
            assert allowed, f"{path.relative_to(ROOT.parent)} imports {other}, which is not below it"


def test_each_module_has_a_layer():
    assert {wing(path) for path in ROOT.rglob("*.py")} == set(RANKS) | ENTRANCES
