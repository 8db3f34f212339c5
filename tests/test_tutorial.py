"""The tutorial's chapters run from top to bottom, and their notebooks are what the export makes of them."""

import ast
import importlib.util
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))


def cells(chapter: Path) -> list[str]:
    """The code cells of a chapter."""
    return re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", chapter.read_text(), re.S | re.M)


def shown(code: str, names: dict, where: str) -> object:
    """Runs a cell, and returns the value of its last line, if that is an expression, as a notebook shows it."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), names)


def differences(printed: str) -> list[float]:
    """The numbers that a chapter prints of its own checks, such as `largest difference: 1.5e-03`."""
    return [float(number) for number in re.findall(r"difference[^:\n]*: ([0-9.e+-]+)", printed)]


def export() -> types.ModuleType:
    pytest.importorskip("jupytext", reason="jupytext is not installed; pip install -e '.[docs]'")
    spec = importlib.util.spec_from_file_location("export_tutorial", ROOT / "scripts" / "export_tutorial.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_seven_chapters_and_the_index_names_them():
    index = (ROOT / "docs" / "tutorial" / "index.md").read_text()
    assert [chapter.stem[0] for chapter in CHAPTERS] == list("1234567")
    assert all(f"\n{chapter.stem}\n" in index for chapter in CHAPTERS)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_the_notebook_is_what_the_export_makes_of_the_chapter(chapter):
    made = export().exported(chapter)
    assert chapter.with_suffix(".ipynb").read_text() == made, "run python scripts/export_tutorial.py"
    assert '"outputs": []' in made and '"execution_count": null' in made and "image/png" not in made


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_every_cell_compiles(chapter):
    assert len(cells(chapter)) > 5
    for code in cells(chapter):
        compile(code, chapter.name, "exec")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_runs_and_shows_pictures(chapter, capsys):
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # JAX's default, which readers have
        values = [shown(code, names, chapter.name) for code in cells(chapter)]
    pictures = [value for value in values if isinstance(value, Image.Image)]
    assert len(pictures) >= 4
    assert all(np.asarray(picture).std() > 5 for picture in pictures)  # none is blank
    assert all(difference < 5e-3 for difference in differences(capsys.readouterr().out))
