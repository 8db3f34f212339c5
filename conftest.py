"""Doctests of the studio's pages need Gradio, the extra `studio`; without it their modules are left out."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("gradio") else [f"jdiff/studio/{name}.py" for name in ("app", "canvas", "flow", "pages")]
)
