"""Writes the tutorial's chapters as notebooks without outputs, beside their Markdown: docs/tutorial/*.ipynb.

    python scripts/export_tutorial.py

Needs the extra `docs`. Links between pages become links to the repository, and each notebook starts with a badge that
opens it on Colab and a cell that installs jdiff there.
"""

import re
import tomllib
from pathlib import Path

import jupytext
from nbformat import NotebookNode, v4

from jdiff.parts import write_text

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorial"
# A link to a page or a picture of the repository: `](name.md)`, not `](https://...)` or `](#place)`.
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


def repository() -> str:
    """Returns the address of the public repository, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def chapters() -> list[Path]:
    """Returns the Markdown files of the chapters, in their order."""
    return sorted(TUTORIAL.glob("[0-9]*.md"))


def exported(chapter: Path) -> str:
    """Returns the notebook of a chapter, as the text of an .ipynb file.

    Args:
        chapter: a Markdown file of jupytext's MyST format.
    """
    address, path = repository(), chapter.relative_to(ROOT).with_suffix(".ipynb").as_posix()
    place = address.removeprefix("https://github.com/")
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    opened = f"https://colab.research.google.com/github/{place}/blob/main/{path}"
    install = (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("jdiff") is None:  # on Colab\n'
        f"    %pip install -q git+{address}"
    )
    notebook = jupytext.read(chapter)
    cells = [
        v4.new_markdown_cell(f"[![Open in Colab]({badge})]({opened})"),
        v4.new_code_cell(install),
        *(_with_addresses(cell, chapter.parent, address) for cell in notebook.cells),
    ]
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # the same in every export
        cell.metadata = NotebookNode()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return jupytext.writes(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), fmt="ipynb").rstrip() + "\n"


def _with_addresses(cell: NotebookNode, folder: Path, address: str) -> NotebookNode:
    """The cell with links to pages as links to the repository, since a notebook on Colab has no folder."""
    if cell.cell_type == "markdown":

        def addressed(found: re.Match) -> str:
            file = (folder / found[1]).resolve().relative_to(ROOT).as_posix()
            return f"]({address}/blob/main/{file})"

        cell.source = LINK.sub(addressed, cell.source)
    return cell


if __name__ == "__main__":
    for chapter in chapters():
        write_text(chapter.with_suffix(".ipynb"), exported(chapter))
        print(chapter.with_suffix(".ipynb").relative_to(ROOT))
