"""The named samplers, and the tasks: what a user asks of a model, each a value of the one scan."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import combine, schedule, step, views
from jdiff.scan import (
    Samples,
    denoise_once,
    forward,
    from_row,
    image_keys,
    iterative_denoise,
    one,
    prepare,
    sample,
    start,
)
from jdiff.types import Array, Combiner, Level, Solver

if TYPE_CHECKING:
    from jdiff.model import Model

LOW = 2**31 - 3  # what an image's key is folded with for the noise of the low-res image


class Sampler(NamedTuple):
    """A way of sampling, as data: which timesteps, where the last one leads, which solver."""

    timesteps: Callable[[int], np.ndarray]
    end: Callable[[np.ndarray], float]  # abar -> abar where the last step arrives
    solver: Callable[[Callable], Solver]  # the model's rule for clean estimates -> solver
    steps: int  # how many, unless told


def _clean(abar: np.ndarray) -> float:
    del abar
    return 1.0


def _least_noise(abar: np.ndarray) -> float:
    return float(abar[0])


def _even(steps: int) -> np.ndarray:
    schedule.check_count("steps", steps, 1000)
    return schedule.respaced([steps])


def _section(counts: Sequence[int], steps: int) -> np.ndarray:
    if steps != sum(counts):
        raise ValueError(f"steps is {steps}, accepted for this sampler is its own {sum(counts)}")
    return schedule.respaced(counts)


def _thresholded(rule: Callable) -> Solver:
    return step.ddpm(x0_rule=rule)


def _as_it_is(rule: Callable) -> Solver:
    del rule
    return step.ddpm()


def _implicit(rule: Callable) -> Solver:
    return step.ddim(x0_rule=rule)


SAMPLERS: dict[str, Sampler] = {
    "diffusers": Sampler(schedule.leading, _clean, _thresholded, 100),
    "deepfloyd": Sampler(_even, _clean, _thresholded, 100),
    "course": Sampler(schedule.course, _least_noise, _as_it_is, 33),
    "ddim": Sampler(_even, _clean, _implicit, 50),
    **{
        name: Sampler(partial(_section, counts), _clean, _thresholded, sum(counts))
        for name, counts in schedule.SECTIONS.items()
    },
}


def generate(
    model: "Model",
    prompts: Sequence[str] | Combiner | Sequence[Combiner],
    key: Array,
    *,
    n: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    size: tuple[int, int] | None = None,
    keep: int = 0,
    branch_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """`n` images of each prompt: images [p n h w 3] in [-1, 1], and of the way [p n m h w 3] with m about `keep`.

    Image j of prompt i has the key fold_in(fold_in(key, i), j). What is not given is as the model's card has it.

    Args:
        model: from `jdiff.load`.
        prompts: what to draw, one or more; or a Combiner, or several of one structure, for what no prompt can say: an
            anagram, a hybrid.
        key: of everything random.
        n: images a prompt.
        steps: network calls (two evaluations each with guidance).
        guidance: guidance scale of prompts; 1 is none.
        negative: prompt that guidance leads away from.
        sampler: a name in `SAMPLERS`, or a Sampler.
        size: height and width, multiples of what the network's levels divide by; the model's own unless given.
        keep: about how many images of the way to keep.
        branch_batch: as in `sample`.
        progress: as in `sample`.

    Raises ValueError for no prompts, and for numbers that are out of range.

    Source: Saharia et al. 2022 (Imagen), section 2; course 0, 1.5, 1.6, 1.8 and 1.9.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    x = start(plan.keys, (*_size(model, size), 3))
    _low_res(model, None, plan, n, 0, (0, 0))  # a stage-2 model is for `upscale`
    return _draw(model, plan, x, plan.levels, plan.solver, keep=keep, branch_batch=branch_batch, progress=progress)


def edit(
    model: "Model",
    image: Array | np.ndarray,
    prompts: Sequence[str] | Combiner | Sequence[Combiner],
    key: Array,
    *,
    strength: float | None = None,
    i_start: int | None = None,
    low_res: Array | np.ndarray | None = None,
    noise_level: int | None = None,
    n: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    **settings: Any,
) -> Samples:
    """`image` noised and denoised again under each prompt: [p n h w 3].

    `image` is [h w 3], or one for each prompt [p h w 3], or for each picture [p n h w 3]. The table is entered at row
    `i_start`, or where the share `strength` in (0, 1] of its rows is left (0.7 unless one is given). A stage-2 model
    needs `low_res` and takes `noise_level`, as `upscale` has them; the rest is `generate`'s.

    Source: Meng et al. 2022 (SDEdit), algorithm 1; course 1.7; diffusers' IFImg2ImgPipeline.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    images = _images("image", image, plan, n)
    _size(model, images.shape[1:3])
    rows = from_row(plan.levels, _row(plan.levels, strength, i_start, 0.7))
    low = _low_res(model, low_res, plan, n, noise_level, images.shape[1:3])
    return _draw(model, plan, forward(plan.keys, images, one(rows, 0)), rows, plan.solver, low=low, **settings)


def inpaint(
    model: "Model",
    image: Array | np.ndarray,
    mask: Array | np.ndarray,
    prompts: Sequence[str] | Combiner | Sequence[Combiner],
    key: Array,
    *,
    noised: bool = True,
    jump_length: int = 10,
    resamplings: int = 1,
    strength: float = 1.0,
    low_res: Array | np.ndarray | None = None,
    noise_level: int = 0,
    n: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    **settings: Any,
) -> Samples:
    """`image` made new where `mask` is 1 (white), as each prompt says: [p n h w 3].

    `image` as `edit` has it; `mask` [h w] or [p h w] in [0, 1]. With `noised` what is known is put in at the noise
    of every level (RePaint, the course), and the table jumps back up by `jump_length` rows, `resamplings` - 1 times
    every so many rows. Without it what is known stays clean throughout (diffusers, deep-floyd). `strength`, `low_res`,
    `noise_level` are `edit`'s, and the rest is `generate`'s. Samplers whose last step is clean keep what is known
    exactly; the course's leaves it with the noise of t = 0.

    Source: Lugmayr et al. 2022 (RePaint), algorithm 1; course 1.7.2; diffusers' IFInpaintingPipeline.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    images = _images("image", image, plan, n)
    _size(model, images.shape[1:3])
    mask = jnp.asarray(mask, images.dtype)
    if mask.shape not in ((*images.shape[1:3],), (plan.p, *images.shape[1:3])):
        raise ValueError(f"mask has shape {mask.shape}, accepted is the image's {images.shape[1:3]}, or one a prompt")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"mask has values from {mask.min()} to {mask.max()}, accepted are 0 (kept) to 1 (made new)")
    masks = jnp.repeat(jnp.broadcast_to(mask, (plan.p, *images.shape[1:3])), n, axis=0)[..., None]
    first = _row(plan.levels, strength, None, 1.0)
    rows = from_row(plan.levels, first)
    fresh = noised and first == 0
    x = start(plan.keys, images.shape[1:]) if fresh else forward(plan.keys, images, one(rows, 0))
    known = lambda reference, mask: step.condition(plan.solver, reference, views.unmasked(mask), noised=noised)
    solver = jax.vmap(known)(images, masks)._replace(table=known(images[0], masks[0]).table)
    if resamplings > 1:
        rows = schedule.resample(rows, jump_length, resamplings)
    low = _low_res(model, low_res, plan, n, noise_level, images.shape[1:3])
    return _draw(model, plan, x, rows, solver, solver_axes=0, low=low, **settings)


def upscale(
    model: "Model",
    low_res: Array | np.ndarray,
    prompts: Sequence[str] | Combiner | Sequence[Combiner],
    key: Array,
    *,
    noise_level: int | None = None,
    side: int | None = None,
    n: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    **settings: Any,
) -> Samples:
    """`low_res` drawn anew by a stage-2 `model` at its size: [p n h' w' 3].

    `low_res` is one picture [h w 3], one for each prompt [p h w 3], or one for each picture [p n h w 3], such as what
    stage 1 made of the same prompts; give that another key. What the network sees of it is resized bilinearly (corners
    aligned) and noised to timestep `noise_level` (the model's own unless given), which the network is told: more lets
    it invent more. A picture keeps its shape: its shorter side gets `side` pixels, the model's size unless given. The
    rest is `generate`'s.

    Source: Ho et al. 2022 (Cascaded Diffusion), section 4.2; course 0; diffusers' IFSuperResolutionPipeline.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    h, w = jnp.shape(low_res)[-3:-1]
    side = model.config.sample_size if side is None else side
    size = tuple(side * length // min(h, w) for length in (h, w))
    low = _low_res(model, low_res, plan, n, noise_level, size)
    return _draw(model, plan, start(plan.keys, (*_size(model, size), 3)), plan.levels, plan.solver, low=low, **settings)


class _Plan(NamedTuple):
    combiners: Combiner  # [p ...]
    p: int
    n: int
    keys: Array  # [p n]
    levels: Level
    solver: Solver


def _plan(model, prompts, key, n, steps, guidance, negative, sampler) -> _Plan:
    """What all tasks share: combiners [p ...], keys [p n], the table, the solver."""
    if isinstance(prompts, str) or (not isinstance(prompts, Combiner) and not prompts):
        raise ValueError(f"prompts is {prompts!r}, accepted is a list of one prompt or more")
    if n < 1:
        raise ValueError(f"n is {n}, accepted is a whole number from 1 on")
    how = find_sampler(model.defaults.sampler if sampler is None else sampler)
    if steps is None:
        steps = model.defaults.steps if sampler is None else how.steps
    guidance = model.defaults.guidance if guidance is None else guidance
    if not np.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}, accepted is a finite number")
    levels = schedule.levels(model.schedule, how.timesteps(steps), how.end(model.schedule))
    if isinstance(prompts, Combiner) or isinstance(prompts[0], Combiner):
        given = [prompts] if isinstance(prompts, Combiner) else list(prompts)
        combiners = jax.tree.map(lambda *a: jnp.stack(a), *given)
    else:
        text = model.embed([negative, *prompts])
        guided = lambda t, u: combine.cfg(t, jnp.float32(guidance), u)
        combiners = jax.vmap(guided, in_axes=(0, None))(text[1:], text[0])
    p = jax.tree.leaves(combiners)[0].shape[0]
    keys = jax.vmap(lambda i: image_keys(jax.random.fold_in(key, i), n))(jnp.arange(p)).reshape(-1)
    return _Plan(combiners, p, n, keys, levels, how.solver(model.x0_rule))


def _draw(
    model, plan, x, levels, solver, *, low=None, keep=0, branch_batch=None, progress=None, solver_axes=None
) -> Samples:
    """Samples [p n ...] of x [p n h w c], flat, down `levels`."""
    combiners = plan.combiners
    if low is not None:
        branches, (pictures, level) = combiners.branches, low
        told = jnp.full(branches.text.shape[:2], level, x.dtype)
        combiners, low = combiners._replace(branches=branches._replace(noise_level=told)), pictures
    ready = prepare(model.denoise, combiners, 0)  # a prompt's part of the network once, not once an image
    samples = sample(
        model.denoise,
        plan.keys,
        x,
        levels,
        combiner=jax.tree.map(lambda a: jnp.repeat(a, plan.n, axis=0), ready),
        solver=solver,
        in_axes=0,
        solver_axes=solver_axes,
        low_res=low,
        keep_every=-(-len(levels.t) // keep) if keep else 0,
        branch_batch=branch_batch,
        progress=progress,
    )
    split = lambda a: a.reshape(plan.p, plan.n, *a.shape[1:])
    images = jnp.clip(split(samples.images), -1, 1)
    return Samples(images, None if samples.way is None else split(samples.way))


def _images(name: str, images: Any, plan: _Plan, n: int) -> Array:
    """[p n h w 3], flat, of one image, one a prompt, or all of them."""
    images = jnp.asarray(images, jnp.promote_types(jnp.asarray(images).dtype, jnp.float32))
    lead = (plan.p, n)[: max(images.ndim - 3, 0)]
    if images.ndim not in (3, 4, 5) or images.shape[:-3] != lead or images.shape[-1] != 3:
        many = f"[{plan.p} h w 3]: one a prompt, or [{plan.p} {n} h w 3]: one a picture"
        raise ValueError(f"{name} has shape {images.shape}, accepted is [h w 3], {many}")
    one_each = images.reshape(*lead, *(1,) * (2 - len(lead)), *images.shape[-3:])
    return jnp.broadcast_to(one_each, (plan.p, n, *images.shape[-3:])).reshape(-1, *images.shape[-3:])


def _low_res(model, low_res, plan, n, noise_level, size) -> tuple[Array, int] | None:
    """(pictures [p n h w 3], flat, resized to `size` and noised; their timestep), or None for stage 1."""
    wanted = model.config.in_channels > 3
    if low_res is None and not wanted:
        return None
    if low_res is None or not wanted:
        given, accepted = ("None", "a picture") if wanted else ("a picture", "None")
        raise ValueError(f"low_res is {given}, accepted for a stage-{2 if wanted else 1} model is {accepted}")
    noise_level = model.defaults.noise_level if noise_level is None else noise_level
    if not 0 <= noise_level < len(model.schedule):
        raise ValueError(f"noise_level is {noise_level}, accepted is a timestep, 0 to {len(model.schedule) - 1}")
    images = resized(_images("low_res", low_res, plan, n), size)
    level = one(schedule.levels(model.schedule, [noise_level]), 0)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, LOW))(plan.keys)
    return forward(keys, images, level), noise_level


def resized(images: Array, size: tuple[int, int]) -> Array:
    """Images [n h' w' c] of images [n h w c], bilinearly, corners on corners, as IF's stage 2 was trained.

    >>> resized(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 3)).ravel().tolist()
    [0.0, 0.5, 1.0]

    Source: diffusers' IFSuperResolutionPipeline, `interpolate(..., align_corners=True)`.
    """
    rows, columns = (_lines(old, new, images.dtype) for old, new in zip(images.shape[1:3], size, strict=True))
    return jnp.einsum("ij,njkc,lk->nilc", rows, images, columns)


def _lines(old: int, new: int, dtype: Any) -> np.ndarray:
    places = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(old)), 0).astype(dtype)


def _row(levels: Level, strength: float | None, i_start: int | None, default: float) -> int:
    """The row where an image comes in."""
    n = len(levels.t)
    if i_start is not None:
        if strength is not None:
            raise ValueError(f"strength is {strength} and i_start {i_start}, accepted is one of the two")
        return i_start
    strength = default if strength is None else strength
    if not 0 < strength <= 1 or int(n * strength) < 1:
        raise ValueError(f"strength is {strength}, accepted is from {1 / n:.3g} (one of {n} steps) to 1")
    return n - int(n * strength)


def _size(model: "Model", size: tuple[int, ...] | None) -> tuple[int, int]:
    """`size`, which has to suit the network, or the model's own."""
    side, divisor = model.config.sample_size, 2 ** (len(model.config.block_out_channels) - 1)
    h, w = (side, side) if size is None else size
    if h < divisor or w < divisor or h % divisor or w % divisor:
        raise ValueError(f"size is {h} x {w}, accepted are multiples of {divisor}, which the network's levels divide")
    return h, w


def rank(images: Array, scorer: Callable[[Array], Array]) -> tuple[Array, Array]:
    """(images, order): `images` [n ...] with the highest of `scorer(images)` [n] first, and where each was.

    >>> rank(jnp.array([[0.1], [0.9]]), lambda images: images[:, 0])[1].tolist()
    [1, 0]
    """
    order = jnp.argsort(-jnp.asarray(scorer(images)))
    return images[order], order


def find_sampler(sampler: str | Sampler) -> Sampler:
    """The Sampler of that name, or the one given.

    >>> find_sampler("course").steps
    33
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}, accepted are {', '.join(SAMPLERS)}")
        return SAMPLERS[sampler]
    return sampler


__all__ = [
    "Sampler",
    "Samples",
    "SAMPLERS",
    "denoise_once",
    "edit",
    "find_sampler",
    "forward",
    "generate",
    "image_keys",
    "inpaint",
    "iterative_denoise",
    "one",
    "prepare",
    "rank",
    "resized",
    "sample",
    "start",
    "upscale",
]
