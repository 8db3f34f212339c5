"""DeepFloyd IF and its samplers in pure-function JAX.

A diffusion task is a scan of one pure step; what makes tasks differ is how noise estimates are combined.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jdiff import combine as combine
    from jdiff import sample as sample
    from jdiff import schedule as schedule
    from jdiff import step as step
    from jdiff import views as views
    from jdiff.model import Model as Model
    from jdiff.model import load as load
    from jdiff.types import Combiner as Combiner
    from jdiff.types import Conditioning as Conditioning
    from jdiff.types import Level as Level
    from jdiff.types import Prediction as Prediction
    from jdiff.types import Solver as Solver
    from jdiff.types import View as View

__version__ = "0.1.0"

_MODULES = (
    "checkpoints", "combine", "images", "keys", "letters", "mesh", "mnist", "model", "networks", "sample", "scan",
    "schedule", "step", "text", "training", "types", "views",
)  # fmt: skip
_NAMES = {"load": "model", "Model": "model"} | dict.fromkeys(
    ("Combiner", "Conditioning", "Info", "Level", "Prediction", "Row", "Solver", "State", "View"), "types"
)


def __dir__() -> list[str]:
    return sorted(["__version__", *_MODULES, *_NAMES])


def __getattr__(name: str) -> Any:  # imported when asked for, so that `jdiff --help` does not wait for JAX
    if name in _MODULES:
        return importlib.import_module(f"jdiff.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"jdiff.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'jdiff' has no attribute {name!r}")
