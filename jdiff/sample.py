"""The named samplers, and the tasks, such as generation, edits and inpainting. All run the scan of `jdiff.scan`."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jdiff import checks, combine, images, schedule, step, views
from jdiff import mesh as meshes
from jdiff.keys import as_key, fold_in, fold_in_each, image_keys
from jdiff.scan import Samples, Watch, denoise_once, forward, from_row, iterative_denoise, one, prepare, sample, start
from jdiff.types import Array, Combiner, Images, Level, Network, Solver, as_network, as_partial, unchanged

if TYPE_CHECKING:
    from jdiff.model import Model

# Folded into an image's key for the noise on the low-res image, and into the key of a cascade for its second stage.
LOW, STAGE2 = 2**31 - 3, 2
# A first level with a larger share of signal gets a warning, because sampling starts from pure noise. t = 803 in IF.
LARGEST_FIRST_SIGNAL = 0.3
# Shares of signal between which a single step makes a picture. In IF, 0.014 is t = 990.
FAINT, CLEAN = 0.001, 0.9
# Settings of `cascade` for its second stage.
STAGE2_SETTINGS = ("steps", "guidance", "sampler", "noise_level", "branch_batch")


class Sampler(NamedTuple):
    """A table of levels, a solver, and a default number of steps."""

    table: Callable[[np.ndarray, int], Level]  # (abar, steps) -> levels
    solver: Callable[["Model"], Solver]  # model -> solver with the model's rules
    steps: int  # default number of steps


def discrete(timesteps: Callable[[int], np.ndarray], course: bool = False) -> Callable[[np.ndarray, int], Level]:
    """Returns the `table` of a Sampler that uses a model's own noise schedule.

    Args:
        timesteps: function from the number of steps to falling timesteps.
        course: whether the last step ends at t = 0 with its noise, as in the course; otherwise at a clean image.

    Returns:
        `(abar, steps) -> levels`.

    Example:
        >>> discrete(schedule.leading)(schedule.cosine(), 4).t.tolist()
        [750.0, 500.0, 250.0, 0.0]
    """
    return partial(_discrete, timesteps, course)


def _discrete(timesteps: Callable[[int], np.ndarray], course: bool, abar: np.ndarray, steps: int) -> Level:
    return schedule.levels(abar, timesteps(steps), float(abar[0]) if course else 1.0)


def _even(steps: int) -> np.ndarray:
    steps = checks.whole("steps", steps, 1, 1000)
    return schedule.respaced([steps]) if steps > 1 else np.array([999])  # one step starts from pure noise, too


def _section(name: str, steps: int) -> np.ndarray:
    counts = schedule.SECTIONS[name]
    if steps != sum(counts):
        raise ValueError(f"steps must be {sum(counts)} for the sampler {name!r}, got {steps}")
    return schedule.respaced(counts)


def _thresholded(model: "Model") -> Solver:
    return step.ddpm(model.variance, x0_rule=model.x0_rule, predicts=model.predicts)


def _untouched(model: "Model") -> Solver:
    return step.ddpm(model.variance, predicts=model.predicts)


def _implicit(model: "Model") -> Solver:
    return step.ddim(x0_rule=model.x0_rule, predicts=model.predicts)


def _second_order(model: "Model") -> Solver:
    return step.dpmpp_2m(x0_rule=model.x0_rule, predicts=model.predicts)


def _third_order(model: "Model") -> Solver:
    return step.unipc(3, x0_rule=model.x0_rule, predicts=model.predicts)


SAMPLERS: dict[str, Sampler] = {
    "diffusers": Sampler(discrete(schedule.leading), _thresholded, 100),
    "deepfloyd": Sampler(discrete(_even), _thresholded, 100),
    "course": Sampler(discrete(schedule.course, course=True), _untouched, 33),
    "ddim": Sampler(discrete(_even), _implicit, 50),
    "dpmpp_2m": Sampler(discrete(_even), _second_order, 25),
    "unipc": Sampler(discrete(_even), _third_order, 20),
    **{
        name: Sampler(discrete(partial(_section, name)), _thresholded, sum(counts))
        for name, counts in schedule.SECTIONS.items()
    },
}


class How(TypedDict, total=False):
    """Settings of the tasks that do not change the images. `generate` explains them."""

    keep: int
    branch_batch: int | None
    images_at_once: int | None
    mesh: Mesh | None
    progress: "Progress | None"
    watch: Watch | None


# What the tasks take besides lists of prompts, such as an anagram.
Combining = Combiner | Callable
Prompts = Sequence[str] | Combining | Sequence[Combiner]
Progress = Callable[[int, int], None]
# The pictures that the tasks take: one picture for all prompts, one for each prompt, or one for each sample.
Pictures = images.Pictures


def generate(
    model: "Model",
    prompts: Prompts,
    key: Array,
    *,
    n: int = 1,
    steps: int | None = None,
    guidance: combine.Scale | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    size: tuple[int, int] | None = None,
    keep: int = 0,
    branch_batch: int | None = None,
    images_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Samples:
    """Draws images from prompts.

    Image j of prompt i gets the key fold_in(fold_in(key, i), j), so it does not depend on the other images.

    Args:
        model: from `jdiff.load`.
        prompts: a list of one prompt or more. It can also be a Combiner, a list of Combiners of one structure, or a
            function `(denoise, x, level) -> Prediction`.
        key: random key.
        n: images for each prompt.
        steps: steps of the sampler; with guidance, each step evaluates the network twice. If None, the named sampler's
            default, or the model's if `sampler` is None too.
        guidance: guidance scale of prompts, or a function of the level such as `combine.between`; 1 is no guidance.
            The model's default if None.
        negative: prompt that guidance leads away from.
        sampler: a name in `SAMPLERS`, or a Sampler. The model's default if None.
        size: height and width, multiples of `model.config.divisor`. The model's default if None.
        keep: about how many intermediate images to keep.
        branch_batch: how many branches of an image the network evaluates at a time; all of them if None.
        images_at_once: how many images are drawn in one call, to bound memory; all of them if None.
        mesh: devices from `jdiff.mesh.make` to split the images over. If None, the device that holds the model.
        progress: called with (rows done, rows in all) every few rows.
        watch: called with (rows done, rows in all, current images [m h w 3]) after every row. The images are those of
            one call, in the order of the prompts. An exception that it raises ends the drawing.

    Returns:
        Samples: images [p n h w 3] in [-1, 1], and the intermediate images [p n m h w 3] if any are kept.

    Raises:
        ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> import jdiff
        >>> model = jdiff.load("mini")
        >>> generate(model, ["a red three"], jax.random.key(0), n=2, steps=2).images.shape
        (1, 2, 32, 32, 3)

    Reference:
        Saharia et al. 2022 (Imagen), section 2; the course's 0, 1.5, 1.6, 1.8 and 1.9.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    _warn(plan.levels)
    x = start(plan.keys, (*_size(model, size), plan.channels), level=one(plan.levels, 0))
    _low_res(model, None, plan, 0, (0, 0))  # refuses a stage-2 model
    how = _How(keep, branch_batch, images_at_once, mesh, progress, watch)
    return _draw(model, plan, x, plan.levels, plan.solver, how)


def edit(
    model: "Model",
    image: Pictures,
    prompts: Prompts,
    key: Array,
    *,
    strength: float | None = None,
    i_start: int | None = None,
    low_res: Pictures | None = None,
    noise_level: int | None = None,
    n: int = 1,
    steps: int | None = None,
    guidance: combine.Scale | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    **how: Unpack[How],
) -> Samples:
    """Noises images and denoises them again under each prompt (SDEdit).

    Args:
        model: as in `generate`.
        image: one image [h w 3], one for each prompt [p h w 3], or one for each sample [p n h w 3]: floats in [-1, 1],
            uint8, or PIL pictures.
        prompts: as in `generate`.
        key: random key.
        strength: share of the table's rows that is used, in (0, 1]; 0.7 if neither `strength` nor `i_start` is given.
        i_start: row of the table to start from, instead of `strength`.
        low_res: picture that a stage-2 model enlarges, as in `upscale`.
        noise_level: as in `upscale`.
        n: samples of each prompt.
        steps: as in `generate`.
        guidance: as in `generate`.
        negative: as in `generate`.
        sampler: as in `generate`.
        how: `keep`, `branch_batch`, `images_at_once`, `mesh`, `progress` and `watch` of `generate`.

    Returns:
        As `generate`.

    Raises:
        ValueError: as `generate`, and if an image has the wrong shape or range.

    Example:
        >>> import jdiff
        >>> model = jdiff.load("mini")
        >>> three = generate(model, ["a red three"], jax.random.key(0), steps=2).images[0, 0]
        >>> edit(model, three, ["a red eight"], jax.random.key(0), n=2, steps=2, strength=0.5).images.shape
        (1, 2, 32, 32, 3)

    Reference:
        Meng et al. 2022 (SDEdit), algorithm 1; the course's 1.7; diffusers' IFImg2ImgPipeline.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    originals = _images("image", image, plan)
    _sides(model, originals)
    rows = from_row(plan.levels, first_row(plan.levels, strength, i_start, 0.7))
    low = _low_res(model, low_res, plan, noise_level, originals.shape[1:3])
    return _draw(
        model, plan, forward(plan.keys, originals, one(rows, 0)), rows, plan.solver, _how("edit", how), low=low
    )


def inpaint(
    model: "Model",
    image: Pictures,
    mask: Pictures,
    prompts: Prompts,
    key: Array,
    *,
    noised: bool = True,
    jump_length: int = 10,
    resamplings: int = 1,
    strength: float = 1.0,
    low_res: Pictures | None = None,
    noise_level: int = 0,
    n: int = 1,
    steps: int | None = None,
    guidance: combine.Scale | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    **how: Unpack[How],
) -> Samples:
    """Inpaints images from each prompt, where a mask is white (1).

    Samplers whose last step ends at a clean image keep the rest of the image exactly. The course's sampler leaves the
    noise of t = 0 on it.

    Args:
        model: as in `generate`.
        image: as in `edit`.
        mask: one mask [h w], or one for each prompt [p h w], in [0, 1]: 0 is kept, 1 is inpainted.
        prompts: as in `generate`.
        key: random key.
        noised: whether the kept part is noised to the level of each step (RePaint, the course). Otherwise it stays
            clean in all steps (diffusers, deep-floyd).
        jump_length: rows that a jump of RePaint goes back, fewer than the rows that are used. No effect without jumps.
        resamplings: how often each stretch of `jump_length` rows is walked; 1 means no jumps.
        strength: share of the table's rows that is used, in (0, 1].
        low_res: picture that a stage-2 model enlarges, as in `upscale`.
        noise_level: as in `upscale`.
        n: samples of each prompt.
        steps: as in `generate`.
        guidance: as in `generate`.
        negative: as in `generate`.
        sampler: as in `generate`.
        how: `keep`, `branch_batch`, `images_at_once`, `mesh`, `progress` and `watch` of `generate`.

    Returns:
        As `generate`.

    Raises:
        ValueError: as `generate`, and if an image or a mask has the wrong shape or range.

    Example:
        >>> import jdiff
        >>> model, mask = jdiff.load("mini"), np.zeros((32, 32))
        >>> mask[:, 16:] = 1  # the right half is inpainted
        >>> inpaint(model, jnp.zeros((32, 32, 3)), mask, ["a red three"], jax.random.key(0), steps=2).images.shape
        (1, 1, 32, 32, 3)

    Reference:
        Lugmayr et al. 2022 (RePaint), algorithm 1; the course's 1.7.2; diffusers' IFInpaintingPipeline.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    originals = _images("image", image, plan)
    _sides(model, originals)
    resamplings = checks.whole("resamplings", resamplings, 1, 1000)
    jump_length = checks.whole("jump_length", jump_length, 1)
    masks = _masks(mask, plan, originals.shape[1:3])
    first = first_row(plan.levels, strength, None, 1.0)
    rows = from_row(plan.levels, first)
    fresh = noised and first == 0
    top = one(rows, 0)
    x = start(plan.keys, originals.shape[1:], level=top) if fresh else forward(plan.keys, originals, top)
    known = lambda reference, mask: step.condition(plan.solver, reference, views.unmasked(mask), noised=noised)
    solver = jax.vmap(known)(originals, masks)._replace(table=known(originals[0], masks[0]).table)
    if resamplings > 1:
        rows = schedule.resample(rows, jump_length, resamplings)
    if fresh:
        _warn(rows)
    low = _low_res(model, low_res, plan, noise_level, originals.shape[1:3])
    return _draw(model, plan, x, rows, solver, _how("inpaint", how), low=low, solver_axes=0)


def upscale(
    model: "Model",
    low_res: Pictures,
    prompts: Prompts,
    key: Array,
    *,
    noise_level: int | None = None,
    side: int | None = None,
    n: int = 1,
    steps: int | None = None,
    guidance: combine.Scale | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    **how: Unpack[How],
) -> Samples:
    """Enlarges images with a stage-2 model, which adds detail.

    Args:
        model: a stage-2 model.
        low_res: images to enlarge, as `image` in `edit`. The network gets them resized bilinearly (corners aligned)
            and noised.
        prompts: as in `generate`.
        key: random key, which must not be the one of stage 1. `cascade` takes care of that.
        noise_level: timestep to which `low_res` is noised, an input of the network. With a higher one, the network
            invents more. The model's default if None.
        side: pixels of the shorter side of the result, which has the aspect ratio of `low_res`. The model's default if
            None.
        n: samples of each prompt.
        steps: as in `generate`.
        guidance: as in `generate`.
        negative: as in `generate`.
        sampler: as in `generate`.
        how: `keep`, `branch_batch`, `images_at_once`, `mesh`, `progress` and `watch` of `generate`.

    Returns:
        Samples: images [p n h' w' 3] in [-1, 1], and the intermediate images [p n m h' w' 3] if any are kept.

    Raises:
        ValueError: as `generate`, and if an image has the wrong shape or range.

    Example:
        >>> import jdiff
        >>> model = jdiff.load("mini-upscaler")
        >>> upscale(model, jnp.zeros((16, 16, 3)), ["a red three"], jax.random.key(0), steps=2).images.shape
        (1, 1, 32, 32, 3)

    Reference:
        Ho et al. 2022 (Cascaded Diffusion), section 4.2; the course's 0; diffusers' IFSuperResolutionPipeline.
    """
    plan = _plan(model, prompts, key, n, steps, guidance, negative, sampler)
    small = _images("low_res", low_res, plan)
    h, w = small.shape[1:3]
    side = model.config.sample_size if side is None else checks.whole("side", side)
    size = _size(model, (side * h // min(h, w), side * w // min(h, w)))
    low = _low_res(model, small.reshape(plan.p, plan.n, h, w, plan.channels), plan, noise_level, size)
    _warn(plan.levels)
    x = start(plan.keys, (*size, plan.channels), level=one(plan.levels, 0))
    return _draw(model, plan, x, plan.levels, plan.solver, _how("upscale", how), low=low)


def cascade(
    stage1: "Model",
    stage2: "Model",
    prompts: Sequence[str],
    key: Array,
    *,
    n: int = 1,
    steps: int | None = None,
    guidance: combine.Scale | None = None,
    negative: str = "",
    sampler: str | Sampler | None = None,
    size: tuple[int, int] | None = None,
    stage2_settings: Mapping[str, Any] = MappingProxyType({}),
    images_at_once: int | None = None,
    mesh: Mesh | None = None,
    keep: int = 0,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> tuple[Samples, Samples]:
    """Draws images from prompts with both stages.

    Both stages use the prompt embeddings of stage 1.

    Args:
        stage1: model of stage 1.
        stage2: model of stage 2.
        prompts: a list of one prompt or more.
        key: random key.
        n: images for each prompt.
        steps: as in `generate`, for stage 1.
        guidance: as in `generate`, for stage 1.
        negative: as in `generate`, for both stages.
        sampler: as in `generate`, for stage 1.
        size: as in `generate`, for stage 1. Stage 2 keeps its aspect ratio.
        stage2_settings: `steps`, `guidance`, `sampler`, `noise_level` and `branch_batch` of `upscale`.
        images_at_once: as in `generate`.
        mesh: as in `generate`.
        keep: as in `generate`, for stage 1.
        progress: called with (rows done, rows in all) of both stages together.
        watch: as in `generate`, for both stages together.

    Returns:
        The samples of stage 1, and those of stage 2.

    Raises:
        ValueError: as `generate` and `upscale`.

    Example:
        >>> import jdiff
        >>> stages, how = map(jdiff.load, ("mini", "mini-upscaler")), {"steps": 2, "stage2_settings": {"steps": 2}}
        >>> small, large = cascade(*stages, ["a red three"], jax.random.key(0), **how)
        >>> small.images.shape, large.images.shape
        ((1, 1, 32, 32, 3), (1, 1, 64, 64, 3))

    Reference:
        Saharia et al. 2022 (Imagen), section 2; the course's 0.
    """
    given = dict(stage2_settings)
    if wrong := [name for name in given if name not in STAGE2_SETTINGS]:
        raise ValueError(f"stage2_settings must hold only {', '.join(STAGE2_SETTINGS)}, got {wrong[0]!r}")
    scale = given.pop("guidance", None)
    guided = stage1.guided(prompts, stage2.defaults.guidance if scale is None else scale, negative)
    wanted = ((stage1, steps, sampler), (stage2, given.get("steps"), given.get("sampler")))
    rows = [_steps(model, name) if n is None else checks.whole("steps", n) for model, n, name in wanted]
    small_size, large_size = second_size(stage2, _size(stage1, size))
    _check_second(stage2, large_size, rows[1], given)  # before stage 1 is drawn
    devices = 1 if mesh is None else mesh.shape[meshes.DATA]
    calls = sum(1 for _ in meshes.groups(checks.whole("n", n) * len(guided), images_at_once, devices))
    total = calls * sum(rows)

    def told(before: int) -> Progress | None:
        if progress is None:
            return None
        show = progress
        return lambda done, _: show(before + done, total)

    def seen(before: int) -> Watch | None:
        if watch is None:
            return None
        show = watch
        return lambda done, _, x: show(before + done, total, x)

    first = generate(
        stage1, prompts, key, n=n, steps=steps, guidance=guidance, negative=negative, sampler=sampler, size=size,
        keep=keep, images_at_once=images_at_once, mesh=mesh, progress=told(0), watch=seen(0),
    )  # fmt: skip
    small = first.images
    if small.shape[2:4] != small_size:
        small = jax.image.resize(small, (*small.shape[:2], *small_size, small.shape[-1]), "linear")
    key = jax.random.fold_in(as_key(key), STAGE2)  # otherwise both stages would start from the same noise
    second = upscale(
        stage2, small, guided, key, n=n, side=min(large_size), images_at_once=images_at_once, mesh=mesh,
        progress=told(calls * rows[0]), watch=seen(calls * rows[0]), **given,
    )  # fmt: skip
    return first, second


def second_size(stage2: "Model", size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the size to which images are reduced for stage 2, and the size that stage 2 enlarges them to.

    Args:
        stage2: a stage-2 model.
        size: height and width of the images.

    Example:
        >>> import jdiff
        >>> second_size(jdiff.load("mini-upscaler"), (64, 128))
        ((32, 64), (64, 128))
    """
    least, most = min(size), stage2.defaults.low_res
    h, w = size if least <= most else (most * size[0] // least, most * size[1] // least)
    side = max(stage2.config.sample_size, stage2.defaults.factor * min(h, w))
    return (h, w), (side * h // min(h, w), side * w // min(h, w))


def _check_second(stage2: "Model", size: tuple[int, int], steps: int, given: Mapping[str, Any]) -> None:
    """Raises ValueError for what `upscale` would refuse."""
    if not stage2.config.upscales:
        raise ValueError(f"stage2 must be a model of stage 2, got {stage2.name!r}, which is of stage 1")
    sampler = given.get("sampler")
    find_sampler(stage2.defaults.sampler if sampler is None else sampler).table(stage2.schedule, steps)
    _noise_level(stage2, given.get("noise_level"))
    _size(stage2, size)


def _noise_level(model: "Model", given: int | None) -> int:
    level = model.defaults.noise_level if given is None else given
    return checks.whole("noise_level", level, 0, len(model.schedule) - 1)


class _How(NamedTuple):
    """`How` with all defaults."""

    keep: int = 0
    branch_batch: int | None = None
    images_at_once: int | None = None
    mesh: Mesh | None = None
    progress: Progress | None = None
    watch: Watch | None = None


def _how(task: str, given: Mapping[str, Any]) -> _How:
    """Returns the settings that a task passes on, and refuses others by name."""
    if wrong := [name for name in given if name not in _How._fields]:
        raise TypeError(f"{task}() got an unexpected argument {wrong[0]!r}; it passes on {', '.join(_How._fields)}")
    return _How(**given)


class _Plan(NamedTuple):
    """What all tasks compute first."""

    combiner: Combining  # leaves [p ...] where it is a Combiner
    p: int
    n: int
    keys: Array  # [p n], flat
    levels: Level
    solver: Solver
    channels: int  # of the model's images: 3, or 1 for one that draws in grey


def _plan(
    model: "Model", prompts: Prompts, key: Array, n: int, steps: int | None, guidance: combine.Scale | None,
    negative: str, sampler: str | Sampler | None,
) -> _Plan:  # fmt: skip
    n, key = checks.whole("n", n), as_key(key)
    if not isinstance(negative, str):
        raise ValueError(f"negative must be a string, got {negative!r}")
    sampler_found = find_sampler(model.defaults.sampler if sampler is None else sampler)
    steps = _steps(model, sampler) if steps is None else checks.whole("steps", steps)
    levels = sampler_found.table(model.schedule, steps)
    combiner, p = _combining(model, prompts, guidance, negative)
    keys = fold_in_each(key, jnp.arange(p))
    keys = jax.vmap(lambda k: image_keys(k, n))(keys).reshape(p * n)
    return _Plan(combiner, p, n, keys, levels, sampler_found.solver(model), model.config.channels)


def _combining(
    model: "Model", prompts: Prompts, guidance: combine.Scale | None, negative: str
) -> tuple[Combining, int]:
    """Returns the combiner of the prompts, and the number of prompts."""
    many = prompts if isinstance(prompts, Sequence) and not isinstance(prompts, str | Combiner) else []
    if isinstance(prompts, np.ndarray) and prompts.ndim == 1:
        many = prompts.tolist()
    texts = [prompt for prompt in many if isinstance(prompt, str)]
    if texts and len(texts) == len(many):
        return _stacked(model.guided(texts, guidance, negative)), len(texts)
    if guidance is not None or negative:
        name, value = ("guidance", guidance) if guidance is not None else ("negative", negative)
        raise ValueError(f"{name} must be left out with a combiner, which has its own, got {value!r}")
    given = [prompts] if isinstance(prompts, Combiner) else [one for one in many if isinstance(one, Combiner)]
    if given and len(given) == max(len(many), 1):
        return _stacked(given), len(given)
    if callable(prompts):
        return as_partial(prompts), 1
    raise ValueError(
        "prompts must be a list of one prompt or more, such as ['a red three'], or Combiners, or a function "
        f"(denoise, x, level) -> Prediction, got {prompts!r}"
    )


def _steps(model: "Model", sampler: str | Sampler | None) -> int:
    return model.defaults.steps if sampler is None else find_sampler(sampler).steps


def _stacked(combiners: list[Combiner]) -> Combiner:
    structures = {jax.tree.structure(combiner) for combiner in combiners}
    if len(structures) > 1:
        raise ValueError(
            f"combiners must all have the same structure, got {len(structures)} structures; use one call for each"
        )
    return jax.tree.map(lambda *a: jnp.stack(a), *combiners)


def _draw(
    model: "Model", plan: _Plan, x: Array, levels: Level, solver: Solver, how: _How, *,
    low: tuple[Array, int] | None = None, solver_axes: int | None = None,
) -> Samples:  # fmt: skip
    """Draws samples [p n ...] from x [p*n h w c], in groups of one size over the devices of the mesh."""
    keep, mesh = checks.whole("keep", how.keep, 0), how.mesh
    whole = (lambda tree: tree) if mesh is None else partial(meshes.replicate, mesh)
    split = (lambda tree: tree) if mesh is None else partial(meshes.split_rows, mesh)
    network: Network = whole(as_network(model.network))
    shared = not isinstance(plan.combiner, Combiner)
    # what depends on the prompt alone is computed once per prompt, not once per image
    combiner = whole(plan.combiner) if shared else prepare(network, whole(plan.combiner), 0)
    network = network if shared else dataclasses.replace(network, prepare=unchanged)
    pictures, level = (None, None) if low is None else low
    all_groups = list(
        meshes.groups(plan.p * plan.n, how.images_at_once, 1 if mesh is None else mesh.shape[meshes.DATA])
    )
    made: list[Samples] = []
    for i, (rows, wanted) in enumerate(all_groups):
        take = lambda tree, rows=rows: split(_rows(tree, rows))
        image_solver = solver if solver_axes is None else solver._replace(
            init=take(solver.init), step=take(solver.step)
        )  # fmt: skip
        told = how.progress
        if told is not None:
            told = lambda done, n, i=i, told=told: told(i * n + done, len(all_groups) * n)
        seen = how.watch
        if seen is not None:
            seen = lambda done, n, x, i=i, wanted=wanted, seen=seen: seen(i * n + done, len(all_groups) * n, x[:wanted])
        samples = sample(
            network,
            take(plan.keys),
            take(x),
            levels,
            combiner=combiner if shared else take(combiner, rows // plan.n),
            solver=image_solver,
            in_axes=None if shared else 0,
            solver_axes=solver_axes,
            low_res=None if pictures is None else take(pictures),
            noise_level=level,
            keep_every=-(-len(levels.t) // keep) if keep else 0,
            branch_batch=how.branch_batch,
            progress=told,
            watch=seen,
        )
        made.append(jax.tree.map(lambda a, wanted=wanted: a[:wanted], samples))
    joined = made[0] if len(made) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *made)
    by_prompt = jax.tree.map(lambda a: a.reshape(plan.p, plan.n, *a.shape[1:]), joined)
    return by_prompt._replace(images=jnp.clip(by_prompt.images, -1, 1))


@jax.jit  # one program, and not one for each array
def _rows(tree: Any, rows: Array) -> Any:
    """Returns rows of all arrays of a tree."""
    return jax.tree.map(lambda a: jnp.asarray(a)[rows], tree)


def _images(name: str, given: Pictures, plan: _Plan) -> Array:
    """Returns images [p*n h w c] of one image, one per prompt, or one per sample; grey for a model of one channel."""
    found = images.as_picture(given, name)
    if plan.channels == 1 and found.ndim >= 3 and found.shape[-1] == 3:
        found = found.mean(axis=-1, keepdims=True)
    lead = (plan.p, plan.n)[: max(found.ndim - 3, 0)]
    if found.ndim not in (3, 4, 5) or found.shape[:-3] != lead or found.shape[-1] != plan.channels:
        c = plan.channels
        raise ValueError(
            f"{name} must have shape [h w {c}], [{plan.p} h w {c}] (one for each prompt), or "
            f"[{plan.p} {plan.n} h w {c}] (one for each sample), got {list(found.shape)}"
        )
    shape = found.shape[-3:]
    each = found.reshape(*lead, *(1,) * (2 - len(lead)), *shape)
    return jnp.broadcast_to(each, (plan.p, plan.n, *shape)).reshape(-1, *shape)


def _masks(given: Pictures, plan: _Plan, size: tuple[int, ...]) -> Array:
    """Returns masks [p*n h w 1] of one mask, or one for each prompt."""
    mask = jnp.asarray(images.as_mask(given, "mask"))
    if mask.shape not in (size, (plan.p, *size)):
        raise ValueError(
            f"mask must have the image's shape {list(size)}, or {[plan.p, *size]} (one for each prompt), got "
            f"{list(mask.shape)}"
        )
    return jnp.repeat(jnp.broadcast_to(mask, (plan.p, *size)), plan.n, axis=0)[..., None]


def _low_res(
    model: "Model", low_res: Pictures | None, plan: _Plan, noise_level: int | None, size: tuple[int, ...]
) -> tuple[Array, int] | None:
    """Returns the images [p*n h w c] resized to `size` and noised, and their timestep; None for stage 1."""
    if model.config.upscales != (low_res is not None):
        needs = "needs a low_res picture; use sample.upscale" if model.config.upscales else "takes no low_res picture"
        raise ValueError(f"{model.name!r} is a model of stage {1 + model.config.upscales}, which {needs}")
    if low_res is None:
        return None
    noise_level = _noise_level(model, noise_level)
    level = one(schedule.levels(model.schedule, [noise_level]), 0)
    keys = jax.vmap(lambda key: fold_in(key, LOW))(plan.keys)
    return forward(keys, resized(_images("low_res", low_res, plan), size), level), noise_level


def resized(pictures: Images, size: tuple[int, ...]) -> Float[Array, "n new_height new_width channels"]:
    """Resizes images bilinearly with aligned corners, as IF's stage 2 gets them.

    Args:
        pictures: [n h w c].
        size: new height and width (h', w').

    Returns:
        Images [n h' w' c].

    Example:
        >>> resized(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 3)).ravel().tolist()
        [0.0, 0.5, 1.0]

    Reference:
        diffusers' IFSuperResolutionPipeline, `interpolate(..., align_corners=True)`.
    """
    rows, columns = (
        _interpolation(old, new).astype(pictures.dtype) for old, new in zip(pictures.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ij,njkc,lk->nilc", rows, pictures, columns, precision=jax.lax.Precision.HIGHEST)


def _interpolation(old: int, new: int) -> np.ndarray:
    places = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(old)), 0)


def first_row(levels: Level, strength: float | None, i_start: int | None = None, default: float = 0.7) -> int:
    """Returns the row of the table where an edit starts.

    Args:
        levels: a table.
        strength: share of its rows, counted from the end; `default` if None.
        i_start: the row itself, in the place of `strength`.
        default: of `strength`.

    Raises:
        ValueError: both are given, or one is out of range.

    Example:
        >>> first_row(schedule.levels(schedule.cosine(), schedule.leading(20)), 0.7)
        6
    """
    n = len(levels.t)
    if i_start is not None:
        if strength is not None:
            raise ValueError(f"give strength or i_start, not both, got {strength} and {i_start}")
        return checks.whole("i_start", i_start, 0, n - 1)
    strength = checks.number("strength", default if strength is None else strength)
    if not 0 < strength <= 1 or int(n * strength) < 1:
        raise ValueError(f"strength must be between {1 / n:.3g} (one of {n} steps) and 1, got {strength}")
    return n - int(n * strength)


def _size(model: "Model", size: tuple[int, ...] | None) -> tuple[int, int]:
    """Returns a size that the network can draw; the model's default if None."""
    side, divisor = model.config.sample_size, model.config.divisor
    size = (side, side) if size is None else size
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(a, int | np.integer) for a in size)
    if not whole or any(a < divisor or a % divisor for a in size):
        raise ValueError(f"size must be (height, width), multiples of {divisor}, got {size!r}")
    return int(size[0]), int(size[1])


def _sides(model: "Model", pictures: Array) -> None:
    """Raises ValueError for pictures [n h w c] that the network cannot draw."""
    (h, w), divisor = pictures.shape[1:3], model.config.divisor
    if h % divisor or w % divisor:
        raise ValueError(f"image must have a height and a width that are multiples of {divisor}, got {h} x {w}")


def start_advice(levels: Level) -> str:
    """Returns what is wrong with starting a table from pure noise; empty if nothing.

    At an almost clean level, the noise stays in the picture. A single step from a level with almost no signal divides
    the error of the estimate by that signal.

    Args:
        levels: a table of any kind.

    Example:
        >>> start_advice(schedule.levels(schedule.cosine(), schedule.leading(20)))
        ''
    """
    first = one(levels, 0)
    share = first.signal / np.hypot(first.signal, first.noise)
    if len(levels.t) == 1 and (0 < share < FAINT or share > CLEAN):
        return f"one step from t = {first.t:g} returns noise; use more steps"
    if share <= LARGEST_FIRST_SIGNAL:
        return ""
    return (
        f"the first timestep, {first.t:g}, is not pure noise, but pictures start from pure noise; use another number "
        f"of steps than {len(levels.t)}, or the sampler 'deepfloyd'"
    )


def _warn(levels: Level) -> None:
    """Warns the caller of a task where its table does not start from pure noise."""
    if advice := start_advice(levels):
        warnings.warn(advice, stacklevel=3)


def rank(pictures: Float[Array, "n ..."], scorer: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Sorts images by a score, from high to low.

    Args:
        pictures: [n ...].
        scorer: function from images [n ...] to scores [n].

    Returns:
        The sorted images, and the index [n] of each in `pictures`.

    Example:
        >>> rank(jnp.array([[0.1], [0.9]]), lambda images: images[:, 0])[1].tolist()
        [1, 0]
    """
    order = jnp.argsort(-jnp.asarray(scorer(pictures)))
    return pictures[order], order


def find_sampler(sampler: str | Sampler) -> Sampler:
    """Returns the Sampler of a name.

    Args:
        sampler: a name in `SAMPLERS`; a Sampler is returned unchanged.

    Raises:
        ValueError: there is no such sampler.

    Example:
        >>> find_sampler("course").steps
        33
    """
    if isinstance(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    return SAMPLERS[sampler]


__all__ = [
    "SAMPLERS",
    "Sampler",
    "Samples",
    "cascade",
    "denoise_once",
    "discrete",
    "edit",
    "find_sampler",
    "first_row",
    "forward",
    "from_row",
    "generate",
    "image_keys",
    "inpaint",
    "iterative_denoise",
    "one",
    "prepare",
    "rank",
    "resized",
    "sample",
    "second_size",
    "start",
    "start_advice",
    "upscale",
]
