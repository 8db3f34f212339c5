"""Checks the arrays of a call against the shapes in the function's annotations, for jaxtyping's import hook.

Other annotations are left alone: the library checks values itself, with errors of its own that tests ask for.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jax
import numpy as np
from jaxtyping import AbstractArray


def check(function: Any) -> Any:
    """Returns the function with its arrays checked."""
    if not callable(function) or inspect.isclass(function):
        return function
    hints = {name: of for name, hint in function.__annotations__.items() if (of := shapes(hint))}
    if not hints:
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named).arguments
        for name, hint in hints.items():
            if name in given:
                demand(function, name, given[name], hint)
        result = function(*args, **named)
        if "return" in hints:
            demand(function, "its result", result, hints["return"])
        return result

    return checked


def shapes(hint: Any) -> tuple[type, ...]:
    """The array types in an annotation such as `Text | None`."""
    found = [hint, *get_args(hint)]
    return tuple(one for one in found if inspect.isclass(one) and issubclass(one, AbstractArray))


def demand(function: Callable, name: str, value: Any, hints: tuple[type, ...]) -> None:
    """Raises TypeError for an array of another shape or kind."""
    if isinstance(value, jax.Array | np.ndarray) and not any(isinstance(value, hint) for hint in hints):
        wanted = " or ".join(hint.__name__ for hint in hints)
        raise TypeError(f"{function.__qualname__}: {name} must be {wanted}, got {value.dtype}{list(value.shape)}")
