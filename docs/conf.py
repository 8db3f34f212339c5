"""How Sphinx builds the site: `python -m sphinx -W --keep-going -b html docs build/site`."""

import inspect
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
import jdiff  # noqa: E402

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "jdiff"
copyright = "the authors of jdiff, Apache-2.0"  # noqa: A001
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["tutorial/*.ipynb"]
html_theme = "furo"
html_title = "jdiff"
html_extra_path = ["part_a.html"]
html_static_path = ["static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
highlight_language = "text"  # of blocks that name no language: commands

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Notebooks run when the site is built. Outputs are kept in build/, so that pages that did not change do not run again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# The kernels import this checkout, on the CPU, and share the programs that they compile.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "build" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Reference", "notes_style")]
default_role = "literal"  # what docstrings have in single backticks, unless `link_names` makes it a link
napoleon_use_ivar = True

# A field of a NamedTuple: its name, type, default and comment.
FIELD = re.compile(r"^    (\w+): [^=#\n]+(?:= [^#\n]+)?(?:# (.*))?$", re.M)
# What a page includes: a card of weights.
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
# A pattern in a list of pages. Sphinx warns of one that no page matches.
OPTIONAL = re.compile(r"^(\w+)\*\n", re.M)
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)]*)?\)")
# Cards of weights that are pages of the site.
CARDS = {path.parent: f"cards/{path.parent.name}.md" for path in sorted(ROOT.glob("weights/*/README.md"))}


def prepare_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts included files in with their links mended, lists optional pages where they exist, and adds Colab's link."""
    here = (DOCS / name).parent
    source[0] = OPTIONAL.sub(lambda found: found[0] if any(here.glob(f"{found[1]}*.md")) else "", source[0])
    source[0] = INCLUDE.sub(lambda found: _included(found[1], here), source[0])
    source[0] = LINK.sub(lambda found: _to_card(found, here), source[0])
    if name.startswith("tutorial/") and not name.endswith("index"):
        path = f"docs/{name}.ipynb"
        place = REPOSITORY.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{place}/blob/main/{path}"
        line = f"\n\n[Run it on Colab]({colab}), or {{download}}`get the notebook <{Path(path).name}>`.\n"
        source[0] = re.sub(r"^(# .+)$", lambda found: found[1] + line, source[0], count=1, flags=re.M)


def _included(path: str, here: Path) -> str:
    file = (here / path).resolve()
    return LINK.sub(lambda found: f"]({_moved(found[1], file.parent, here)}{found[2] or ''})", file.read_text())


def _to_card(found: re.Match, here: Path) -> str:
    """A link to a card of weights, as a link to its page; another link as it is."""
    card = found[1].endswith("README.md") and (here / found[1]).resolve().parent in CARDS
    return f"]({_moved(found[1], here, here)}{found[2] or ''})" if card else found[0]


def _moved(link: str, source: Path, here: Path) -> str:
    """A link of a file in one folder, as a page in another folder has it."""
    target = (source / link).resolve()
    card = CARDS.get(target.parent) if target.name == "README.md" else None
    return os.path.relpath(DOCS / card if card else target, here)


def describe_fields(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Says of the fields of a NamedTuple what their comments say."""
    fields = getattr(thing, "_fields", None)
    if what != "class" or fields is None:
        return
    comments = {field: comment for field, comment in FIELD.findall(inspect.getsource(thing)) if field in fields}
    lines += ["", "Attributes:", *(f"    {field}: {comments.get(field, '')}" for field in fields), ""]


def shorten_types(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Writes an array's type as code has it, without the place where JAX keeps its class."""
    short = lambda text: text and text.replace("jaxlib._jax.Array", "Array").replace("jax.Array", "Array")
    return short(signature), short(returns)


def link_names(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turns `name` in a docstring into a link, where its module knows a function or class of that name."""
    module = inspect.getmodule(thing)

    def linked(found: re.Match) -> str:
        value: Any = module
        for part in found[1].removeprefix("jdiff.").split("."):
            value = getattr(value, part, None) or (getattr(jdiff, part, None) if value is module else None)
        if not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__module__.startswith("jdiff"):
            return found[0]
        place = "jdiff.views" if value.__module__.startswith("jdiff.views") else value.__module__
        place = "jdiff.images" if place.startswith("jdiff.images") else place
        return f":py:obj:`{found[1]} <{place}.{value.__qualname__}>`"

    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            line = re.sub(r"(?<![`:])`([\w.]+)`(?!`)", linked, line)
            lines[i] = re.sub(r"\|(\w+)\|", r"\\|\1\\|", line)  # an absolute value is no substitution


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what a NamedTuple makes of its fields, which `describe_fields` lists."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare_page)
    app.connect("autodoc-process-docstring", describe_fields, priority=400)  # before napoleon reads the sections
    app.connect("autodoc-process-docstring", link_names, priority=400)
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("autodoc-skip-member", skip_fields)
