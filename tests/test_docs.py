"""The code on the site's pages runs: Python from top to bottom, and every command is one that jdiff knows."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from jdiff.cli.errors import BadInput
from jdiff.cli.parse import parse

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(DOCS / "howto").glob("*.md"), *(DOCS / "tutorial").glob("*.md")])
HOWTO = [page for page in sorted((DOCS / "howto").glob("*.md")) if page.stem != "index"]
COMMAND = re.compile(r"^(?:.*&& )?(jdiff [a-z].*)$", re.M)


def python(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def commands(page: Path) -> list[str]:
    """The command lines of a page, which stand in blocks without a language."""
    blocks = re.findall(r"^```(\S*)\n(.*?)^```", page.read_text().replace("\\\n", " "), re.S | re.M)
    return [line for language, block in blocks if not language for line in COMMAND.findall(block)]


def run(codes: list[str], page: Path, names: dict) -> dict:
    for code in codes:
        exec(compile(code, page.name, "exec"), names)
        if "model" in names and names["model"].defaults.steps > 6:  # what the pages say does not depend on the number
            names["model"] = names["model"]._replace(defaults=names["model"].defaults._replace(steps=6))
    return names


def finite(value) -> bool:
    return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(value))


def test_the_page_of_names_runs_from_top_to_bottom():
    page = DOCS / "course.md"
    names = run([re.sub(r"steps=(10|20)", "steps=4", code) for code in python(page)], page, {})
    assert names["pictures"].shape == (3, 1, 32, 32, 3) and names["large"].images.shape[-2:] == (64, 3)
    assert float(names["table"].t[10]) == 690 and len(names["table"].t) == 33
    assert len(names["ladder"]) == 6 and names["drawn"].shape == (4, 28, 28, 1)
    kept = np.asarray(names["image"])
    assert len(names["estimates"]) == 3 and names["estimates"][0].shape == (1, *kept.shape)
    np.testing.assert_allclose(names["grey"], 0, atol=1e-3)  # the denoiser that sees grey everywhere
    assert finite([names[name] for name in ("pictures", "plain", "ladder", "in_turn", "rescaled", "every_fifth")])


@pytest.mark.parametrize("page", HOWTO, ids=lambda page: page.stem)
def test_a_how_to_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(python(DOCS / "howto" / "index.md"), page, {})
    run(python(page), page, names)
    assert {"generate", "edit", "inpaint", "anagram", "hybrid", "upscale"} >= {page.stem}
    drawn = {name: value for name, value in names.items() if name in ("made", "edited", "new", "large", "many")}
    assert drawn and finite(drawn)


def test_the_quick_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(python(DOCS / "quickstart.md"), DOCS / "quickstart.md", {})
    assert names["illusions"].shape == (4, 32, 32, 3) and (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_every_command_is_one_that_jdiff_knows(page):
    for line in commands(page):
        words = shlex.split(re.sub(r"--like \S+", "", line), comments=True)[1:]  # such a picture would be read
        try:
            parse(words)
        except BadInput as error:
            pytest.fail(f"{line}: {error}")


def test_a_command_with_a_wrong_flag_is_found():
    with pytest.raises(BadInput):
        parse(["generate", "a red three", "--stepps", "3"])


def test_how_to_pages_have_a_command_and_python():
    assert all(commands(page) and python(page) for page in HOWTO)
