"""Parts of model cards and result pages: shares with intervals, Markdown tables, the description of the machine."""

import os
import platform
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from scipy.stats import binomtest


def share(right: np.ndarray) -> dict[str, float]:
    """Computes the share of True with its 95 % confidence interval, by Wilson's method.

    Args:
        right: [n] bool.

    Returns:
        A dict of percent (the share), low and high (ends of the interval, in per cent), and n.

    Example:
        >>> share(np.array([True, True, True, False]))
        {'percent': 75.0, 'low': 30.06, 'high': 95.44, 'n': 4}

    Reference:
        Wilson 1927, by `scipy.stats.binomtest`.
    """
    n, k = len(right), int(np.sum(right))
    if n == 0:
        return {"percent": 0.0, "low": 0.0, "high": 100.0, "n": 0}
    low, high = binomtest(k, n).proportion_ci(method="wilson")
    middle, low, high = (round(100 * float(part), 2) for part in (k / n, low, high))
    return {"percent": middle, "low": low, "high": high, "n": n}


def percent(found: dict[str, float], digits: int = 1) -> str:
    """Returns a share with its interval, as text.

    Args:
        found: from `share`.
        digits: decimals.

    Example:
        >>> percent(share(np.array([True, True, True, False])), 0)
        '75 % (30 to 95)'
    """
    middle, low, high = (f"{found[name]:.{digits}f}" for name in ("percent", "low", "high"))
    return f"{middle} % ({low} to {high})"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table.

    Args:
        head: column titles.
        rows: cells of each row.

    Example:
        >>> print(table(["digit", "right"], [[3, "99 %"]]))
        | digit | right |
        | --- | --- |
        | 3 | 99 % |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine() -> str:
    """Returns a description of this machine for a result page: the architecture, the CPU cores and JAX's device."""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores, JAX on {jax.devices()[0].device_kind}"
