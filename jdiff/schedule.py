"""Noise schedules, lists of timesteps, and the table of levels that a sampler walks; float64 numpy, outside jit."""

from collections.abc import Sequence

import numpy as np

from jdiff.types import Level

# How many timesteps each of equally long sections has, from t = 0 upwards.
# Source: deep-floyd/IF's `sample_timestep_respacing` names; equal to diffusers' pipelines/deepfloyd_if/timesteps.py.
SECTIONS: dict[str, tuple[int, ...]] = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}


def cosine(steps: int = 1000) -> np.ndarray:
    """abar [steps] in float64: the share of signal power that is left at each timestep, from near 1 to near 0.

    >>> cosine()[[0, 500, 999]].round(7).tolist()
    [0.9999587, 0.4922852, 0.0]

    Source: Nichol and Dhariwal 2021 (Improved DDPM), eq. 17; diffusers' "squaredcos_cap_v2".
    """
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """abar [steps] in float64 of betas that grow evenly from `first` to `last`.

    >>> linear(300)[-1].round(3).item()
    0.048

    Source: Ho et al. 2020 (DDPM), section 4; course part B with 300 steps.
    """
    return np.cumprod(1 - np.linspace(first, last, steps))


def leading(steps: int, total: int = 1000) -> np.ndarray:
    """Timesteps [steps], falling to 0 in strides of total // steps; the highest ones are left out.

    >>> leading(4).tolist()
    [750, 500, 250, 0]

    Source: diffusers' timestep_spacing "leading", IF's.
    """
    check_count("steps", steps, total)
    return np.arange(steps)[::-1] * (total // steps)


def course(steps: int = 33) -> np.ndarray:
    """Timesteps [steps] from 990 down in even strides, 0 left out: that is where the last step arrives.

    >>> course()[[0, 1, -1]].tolist(), course().size
    ([990, 960, 30], 33)

    Source: course part A, 1.4 (`strided_timesteps`).
    """
    check_count("steps", steps, 990)
    return 990 - np.arange(steps) * (990 // steps)


def respaced(counts: Sequence[int], total: int = 1000) -> np.ndarray:
    """Timesteps, falling: `counts[i]` even points, both ends included, in section i of len(counts) from t = 0 upwards.

    >>> respaced([3, 2]).tolist()
    [999, 500, 499, 250, 0]

    Source: Nichol and Dhariwal 2021 (Improved DDPM), section 4; deep-floyd/IF, names in `SECTIONS`.
    """
    size, rest = divmod(total, len(counts))
    points, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < rest)
        check_count("counts", count, length)
        strides = [0.0] + [(length - 1) / max(count - 1, 1)] * (count - 1)
        points += [start + round(p) for p in np.cumsum(strides)]  # summed: super40 has 49.4999 where j * stride is 49.5
        start += length
    return np.array(points[::-1])


def levels(abar: np.ndarray, timesteps: Sequence[int] | np.ndarray, end: float = 1.0) -> Level:
    """The table [n ...] of one call at each of `timesteps` (falling), in float64.

    `end` is abar where the last step arrives: 1 for a clean image, abar[0] for the course's way of ending.
    Raises ValueError for timesteps that do not fall or lie outside the schedule.

    >>> table = levels(cosine(), leading(4))
    >>> table.t.tolist(), table.signal_to[-1].item(), table.noise_to[-1].item()
    ([750.0, 500.0, 250.0, 0.0], 1.0, 0.0)

    Source: Ho et al. 2020 (DDPM), eq. 4: signal = sqrt(abar), noise = sqrt(1 - abar).
    """
    t = np.asarray(timesteps)
    if t.size == 0 or not np.issubdtype(t.dtype, np.integer) or t.min() < 0 or t.max() >= len(abar):
        raise ValueError(f"timesteps are {t.tolist()}, accepted are whole numbers from 0 to {len(abar) - 1}")
    if (np.diff(t) >= 0).any():
        raise ValueError(f"timesteps are {t.tolist()}, accepted is a falling list")
    here = np.asarray(abar, np.float64)[t]
    there = np.append(here[1:], end)
    n = len(t)
    return Level(
        i=np.arange(n),
        t=t.astype(np.float64),
        signal=np.sqrt(here),
        noise=np.sqrt(1 - here),
        signal_to=np.sqrt(there),
        noise_to=np.sqrt(1 - there),
        again=np.ones(n),
        live=np.ones(n, bool),
    )


def flow(times: Sequence[float] | np.ndarray) -> Level:
    """The table [n ...] of a flow model along rising `times` [n + 1] in [0, 1], 0 noise and 1 the image, in float64.

    Signal is t and noise 1 - t; the network is told t, unless the column `t` is replaced.

    >>> table = flow(np.linspace(0, 1, 3))
    >>> table.t.tolist(), table.signal_to.tolist(), table.noise_to.tolist()
    ([0.0, 0.5], [0.5, 1.0], [0.5, 0.0])

    Source: Lipman et al. 2023 (flow matching), eq. 20 to 23 with sigma_min = 0; course part B, flow edition.
    """
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or t.size < 2 or not (t[0] >= 0 and t[-1] <= 1 and (np.diff(t) > 0).all()):  # NaN too
        raise ValueError(f"times are {t.tolist()}, accepted is a rising list of two or more numbers in [0, 1]")
    here, there, n = t[:-1], t[1:], t.size - 1
    return Level(np.arange(n), here, here, 1 - here, there, 1 - there, np.ones(n), np.ones(n, bool))


def resample(levels: Level, jump_length: int, resamplings: int) -> Level:
    """The table with jumps: every `jump_length` rows back up by as many, `resamplings` - 1 times, and down again.

    A jump of j single forward steps is one Gaussian, in the column `again`; j = 1 or resamplings = 1 can be given.

    >>> [resample(levels(cosine(), course()), n, n).t.size for n in (1, 5, 10)]
    [33, 153, 303]
    >>> resample(levels(cosine(250), range(249, -1, -1)), 10, 10).t.size
    2410

    Source: Lugmayr et al. 2022 (RePaint), algorithm 1 and appendix; its line 5 has a typo, the deviation is
    sqrt(1 - abar).
    """
    n = len(levels.t)
    check_count("jump_length", jump_length, n)
    check_count("resamplings", resamplings, 1000)
    left = {n - 1 - above: resamplings - 1 for above in range(0, n - jump_length, jump_length)}  # at row: jumps to make
    order, again, row = [], [], 0
    while row < n:
        order.append(row)
        row += 1
        jump = left.get(row, 0) > 0
        if jump:
            left[row] -= 1
        abar = levels.signal**2
        again.append(abar[row - jump_length] / abar[row] if jump else 1.0)
        row -= jump_length if jump else 0
    picked = Level(*(np.asarray(column)[order] for column in levels))
    return picked._replace(i=np.arange(len(order)), again=np.array(again))


def check_count(name: str, value: int, most: int) -> None:
    """Nothing; raises ValueError unless `value` is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value}, accepted is a whole number from 1 to {most}")
