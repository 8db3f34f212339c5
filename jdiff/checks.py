"""Checks of numbers that users give. Each raises a ValueError that says what is wrong, the value, and what to do."""

import math
from typing import Any

import numpy as np


def whole(name: str, value: object, least: int = 1, most: float = math.inf) -> int:
    """Returns a whole number as an int.

    Args:
        name: the number's name in the error.
        value: any value; wrong ones are refused.
        least: smallest accepted number.
        most: largest accepted number.

    Raises:
        ValueError: the value is not a whole number, or is out of range.

    Example:
        >>> whole("steps", np.int64(20), 1, 1000)
        20
        >>> whole("n", 2.5)
        Traceback (most recent call last):
        ...
        ValueError: n must be a whole number of at least 1, got 2.5
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        limits = f"of at least {least}" if math.isinf(most) else f"between {least} and {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}")
    return int(value)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Returns a finite number as a float. 0-d arrays are accepted too.

    Args:
        name: the number's name in the error.
        value: any value; wrong ones are refused.
        least: smallest accepted number.
        most: largest accepted number.

    Raises:
        ValueError: the value is not a finite number, or is out of range.

    Example:
        >>> number("strength", 0.7, 0, 1)
        0.7
        >>> number("guidance", "7")
        Traceback (most recent call last):
        ...
        ValueError: guidance must be a finite number, got '7'
    """
    numeric = isinstance(value, int | float | np.number | np.ndarray) or hasattr(value, "dtype")
    try:
        found = float(value) if numeric and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and least <= found <= most):
        limits = f" between {least} and {most}"
        if math.isinf(most):
            limits = "" if math.isinf(least) else f" of at least {least}"
        raise ValueError(f"{name} must be a finite number{limits}, got {value!r}")
    return found
