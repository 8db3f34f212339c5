"""Noise schedules, lists of timesteps, and tables of levels, in float64 NumPy outside jit.

A table has one row for each network call. Its levels are Gaussian: at a level, x = signal x0 + noise eps. `transition`
gives the Gaussian between two levels of any table: variance-preserving (`levels`), flow (`flow`) or variance-exploding
(`exploding`, `karras`).
"""

from collections.abc import Sequence

import numpy as np

from jdiff import checks
from jdiff.types import Column, Level

# Named respacings: the number of timesteps in each of several sections of equal length, from t = 0 upwards.
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
    """Returns IF's noise schedule.

    Args:
        steps: number of timesteps.

    Returns:
        abar [steps] in float64: the share of signal power left at each timestep, falling from near 1 to near 0.

    Example:
        >>> cosine()[[0, 500, 999]].round(7).tolist()
        [0.9999587, 0.4922852, 0.0]

    Reference:
        Nichol and Dhariwal 2021 (Improved DDPM), eq. 17; "squaredcos_cap_v2" in diffusers.
    """
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """Returns the noise schedule whose betas grow linearly.

    Args:
        steps: number of timesteps.
        first: the first beta.
        last: the last beta.

    Returns:
        abar [steps] in float64.

    Example:
        >>> linear(300)[-1].round(3).item()
        0.048

    Reference:
        Ho et al. 2020 (DDPM), section 4; the course's part B with 300 steps.
    """
    return np.cumprod(1 - np.linspace(first, last, steps))


def leading(steps: int, total: int = 1000) -> np.ndarray:
    """Returns the timesteps (steps - 1) * stride, ..., stride, 0, where stride = total // steps.

    Args:
        steps: number of timesteps returned.
        total: number of timesteps of the noise schedule.

    Returns:
        Timesteps [steps].

    Raises:
        ValueError: `steps` is not between 1 and `total`.

    Example:
        >>> leading(4).tolist()
        [750, 500, 250, 0]

    Reference:
        diffusers' timestep_spacing "leading", which IF uses.
    """
    steps = checks.whole("steps", steps, 1, total)
    return np.arange(steps)[::-1] * (total // steps)


def course(steps: int = 33) -> np.ndarray:
    """Returns evenly spaced timesteps from 990 down. They do not include 0, because the last step ends there.

    Args:
        steps: number of timesteps returned.

    Returns:
        Timesteps [steps]. Where `steps` does not divide 990, they are rounded.

    Raises:
        ValueError: `steps` is not between 1 and 990.

    Example:
        >>> course()[[0, 1, -1]].tolist(), course(500)[[0, 1, -1]].tolist()
        ([990, 960, 30], [990, 988, 2])

    Reference:
        The course's part A, 1.4 (`strided_timesteps`).
    """
    steps = checks.whole("steps", steps, 1, 990)
    return np.floor(np.linspace(990, 0, steps + 1)[:-1] + 0.5).astype(int)


def respaced(counts: Sequence[int], total: int = 1000) -> np.ndarray:
    """Returns falling timesteps, evenly spaced within each section of the noise schedule.

    Args:
        counts: number of timesteps in each section, from t = 0 upwards. Sections have equal lengths, and both ends of
            a section are included.
        total: number of timesteps of the noise schedule.

    Returns:
        Timesteps [sum of counts].

    Raises:
        ValueError: there is no count, or one is below 1 or larger than its section.

    Example:
        >>> respaced([3, 2]).tolist()
        [999, 500, 499, 250, 0]

    Reference:
        Nichol and Dhariwal 2021 (Improved DDPM), section 4; deep-floyd/IF, whose names are in `SECTIONS`.
    """
    if not len(counts):
        raise ValueError("counts must have a number for each section, got none")
    size, rest = divmod(total, len(counts))
    points, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < rest)
        checks.whole("counts", count, 1, length)
        strides = [0.0] + [(length - 1) / max(count - 1, 1)] * (count - 1)
        # deep-floyd sums the strides, too. In super40, the sum is 49.4999, and j * stride would be 49.5.
        points += [start + round(p) for p in np.cumsum(strides)]
        start += length
    return np.array(points[::-1])


def levels(abar: np.ndarray, timesteps: Sequence[int] | np.ndarray, end: float = 1.0) -> Level:
    """Returns a variance-preserving table with one row for each timestep.

    Args:
        abar: noise schedule [steps].
        timesteps: falling timesteps [n].
        end: abar after the last step: 1 is a clean image; the course ends at abar[0].

    Returns:
        Levels [n], in float64.

    Raises:
        ValueError: the timesteps are not falling whole numbers within the schedule, or `end` is noisier than the last
            timestep.

    Example:
        >>> table = levels(cosine(), leading(4))
        >>> table.t.tolist(), table.signal_to[-1].item(), table.noise_to[-1].item()
        ([750.0, 500.0, 250.0, 0.0], 1.0, 0.0)

    Reference:
        Ho et al. 2020 (DDPM), eq. 4: signal = sqrt(abar), noise = sqrt(1 - abar).
    """
    t = np.asarray(timesteps)
    whole = t.ndim == 1 and t.size > 0 and np.issubdtype(t.dtype, np.integer)
    if not whole or t.min() < 0 or t.max() >= len(abar) or (np.diff(t) >= 0).any():
        raise ValueError(f"timesteps must be falling whole numbers between 0 and {len(abar) - 1}, got {t.tolist()}")
    here = np.asarray(abar, np.float64)[t]
    if not here[-1] <= end <= 1:
        raise ValueError(f"end must be between abar at the last timestep ({here[-1]:.6g}) and 1, got {end}")
    there = np.append(here[1:], end)
    return _table(t.astype(np.float64), np.sqrt(here), np.sqrt(1 - here), np.sqrt(there), np.sqrt(1 - there))


def flow(times: Sequence[float] | np.ndarray) -> Level:
    """Returns the table of a flow model, where signal = t and noise = 1 - t.

    Args:
        times: rising times [n + 1] in [0, 1]: 0 is noise and 1 is the image.

    Returns:
        Levels [n], in float64. The network gets the time; replace the column `t` to give it something else.

    Raises:
        ValueError: the times do not rise, or lie outside [0, 1].

    Example:
        >>> table = flow(np.linspace(0, 1, 3))
        >>> table.t.tolist(), table.signal_to.tolist(), table.noise_to.tolist()
        ([0.0, 0.5], [0.5, 1.0], [0.5, 0.0])

    Reference:
        Lipman et al. 2023 (flow matching), eq. 20 to 23 with sigma_min = 0; the course's part B, flow edition.
    """
    t = np.asarray(times, np.float64)
    if t.ndim != 1 or t.size < 2 or not (t[0] >= 0 and t[-1] <= 1 and (np.diff(t) > 0).all()):  # NaN fails too
        raise ValueError(f"times must be two or more rising numbers in [0, 1], got {t.tolist()}")
    return _table(t[:-1], t[:-1], 1 - t[:-1], t[1:], 1 - t[1:])


def exploding(sigmas: Sequence[float] | np.ndarray) -> Level:
    """Returns the variance-exploding table, where signal = 1 and noise = sigma.

    Args:
        sigmas: falling noise levels [n + 1]; the last one may be 0, a clean image.

    Returns:
        Levels [n], in float64. The network gets sigma; replace the column `t` to give it something else.

    Raises:
        ValueError: the noise levels do not fall, or are negative.

    Example:
        >>> table = exploding([80.0, 1.0, 0.0])
        >>> table.signal.tolist(), table.noise.tolist(), table.noise_to.tolist()
        ([1.0, 1.0], [80.0, 1.0], [1.0, 0.0])

    Reference:
        Song et al. 2021 (score-based SDEs), section 3.4; Karras et al. 2022 (EDM), table 1.
    """
    sigma = np.asarray(sigmas, np.float64)
    falls = sigma.ndim == 1 and sigma.size >= 2 and (np.diff(sigma) < 0).all() and sigma[-1] >= 0
    if not falls or not np.isfinite(sigma).all():
        raise ValueError(f"sigmas must be two or more falling numbers of at least 0, got {sigma.tolist()}")
    ones = np.ones(sigma.size - 1)
    return _table(sigma[:-1], ones, sigma[:-1], ones, sigma[1:])


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Level:
    """Returns the variance-exploding table with EDM's noise levels, which ends at a clean image.

    Args:
        steps: number of rows.
        sigma_min: the last noise level before the clean image.
        sigma_max: the first noise level.
        rho: a larger value puts more of the levels near `sigma_min`.

    Returns:
        Levels [steps], in float64.

    Raises:
        ValueError: `steps` is below 1, `rho` is not above 0, or the noise levels do not fall, such as for a `sigma_min`
            of 0.

    Example:
        >>> karras(3).noise.round(3).tolist()
        [80.0, 2.515, 0.002]

    Reference:
        Karras et al. 2022 (EDM), eq. 5.
    """
    share = np.arange(checks.whole("steps", steps)) / max(steps - 1, 1)
    if checks.number("rho", rho, 0) == 0:
        raise ValueError("rho must be above 0, got 0")
    least, most = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return exploding(np.append((most + share * (least - most)) ** rho, 0.0))


def transition(signal: Column, noise: Column, signal_to: Column, noise_to: Column) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Gaussian that leads from a less noisy level back to a noisier one: x = a x_to + sqrt(v) n.

    Args:
        signal: of the noisier level. All four are numbers, or arrays [n].
        noise: of the noisier level.
        signal_to: of the less noisy level.
        noise_to: of the less noisy level.

    Returns:
        (a, v): a = signal / signal_to and v = noise^2 - a^2 noise_to^2. Solvers invert this Gaussian by Bayes' rule.
        RePaint's jumps apply it directly.

    Raises:
        ValueError: the second level has a lower signal-to-noise ratio than the first.

    Example:
        >>> a, v = transition(0.0, 1.0, 0.5, 0.5)  # the first step of a flow
        >>> float(a), float(v)
        (0.0, 1.0)

    Reference:
        Kingma et al. 2021 (VDM), eq. 20 to 22; for variance-preserving tables v is DDPM's beta.
    """
    a = np.asarray(signal / np.asarray(signal_to, np.float64))
    v = np.asarray((noise - a * noise_to) * (noise + a * noise_to))
    wrong = (v < -1e-12 * np.asarray(noise) ** 2) | ~np.isfinite(v)
    if wrong.any():
        i = int(wrong.argmax())
        four = [np.broadcast_to(column, v.shape).ravel()[i] for column in (signal, noise, signal_to, noise_to)]
        raise ValueError(
            "every step of a table must lead to a level with a higher ratio of signal to noise, got signal "
            f"{four[0]:.6g} and noise {four[1]:.6g} to signal {four[2]:.6g} and noise {four[3]:.6g}, step {i}"
        )
    return a, np.maximum(v, 0.0)


def resample(levels: Level, jump_length: int, resamplings: int) -> Level:
    """Returns the table with RePaint's jumps. A jump adds noise to go back `jump_length` rows, which are then repeated.

    Args:
        levels: a table [n] of any kind.
        jump_length: rows that a jump goes back. Jumps are counted from the last row, which is not repeated.
        resamplings: how often each stretch of `jump_length` rows is walked; 1 means no jumps.

    Returns:
        Levels with the jumps in the columns `jump_scale` and `jump_noise`. A jump over j rows is one Gaussian.

    Raises:
        ValueError: `resamplings` is not between 1 and 1000, or there are jumps and `jump_length` is not between 1 and
            n - 1.

    Example:
        >>> [resample(levels(cosine(), course()), n, n).t.size for n in (1, 5, 10)]
        [33, 153, 303]
        >>> resample(levels(cosine(250), range(249, -1, -1)), 10, 10).t.size
        2410

    Reference:
        Lugmayr et al. 2022 (RePaint), algorithm 1 and appendix. Line 5 has a typo there: the deviation is
        sqrt(1 - abar).
    """
    n = len(levels.t)
    if checks.whole("resamplings", resamplings, 1, 1000) == 1:
        return levels
    if n == 1:
        raise ValueError(f"resamplings must be 1 for a table of one row, got {resamplings}; take more steps")
    checks.whole("jump_length", jump_length, 1, n - 1)
    left = {n - 1 - above: resamplings - 1 for above in range(0, n - jump_length, jump_length)}  # at row: jumps to make
    order, scales, noises, row = [], [], [], 0
    while row < n:
        order.append(row)
        row += 1
        scale, noise = 1.0, 0.0
        if left.get(row, 0) > 0:
            left[row] -= 1
            up = row - jump_length
            a, v = transition(levels.signal[up], levels.noise[up], levels.signal[row], levels.noise[row])
            scale, noise, row = float(a), float(np.sqrt(v)), up
        scales.append(scale)
        noises.append(noise)
    picked = Level(*(np.asarray(column)[order] for column in levels))
    return picked._replace(i=np.arange(len(order)), jump_scale=np.array(scales), jump_noise=np.array(noises))


def _table(t: np.ndarray, signal: np.ndarray, noise: np.ndarray, signal_to: np.ndarray, noise_to: np.ndarray) -> Level:
    """Returns a table without jumps."""
    n = len(t)
    return Level(np.arange(n), t, signal, noise, signal_to, noise_to, np.ones(n), np.zeros(n), np.ones(n, bool))
