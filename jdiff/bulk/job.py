"""A job: its settings, its model, and how its shards are drawn."""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jdiff
from jdiff import checks, combine, sample
from jdiff import mesh as meshes
from jdiff.bulk import embedded, manifest, shards, workers, write
from jdiff.bulk.prompts import Prompts
from jdiff.keys import fold_in_each
from jdiff.model import Model, load
from jdiff.text import embeddings
from jdiff.types import Array, Combiner, Level, Solver

# Pixels that a device draws in one call unless told otherwise: 64 pictures of 32 x 32, or 16 of 64 x 64.
AT_ONCE = 2**16
# Batches that a shard is split into by default, at least. So up to this many devices can share a shard.
SPREAD = 8
# Threads that encode PNGs.
THREADS = 8
# Packages whose version may change a picture, or its bytes, jdiff aside.
PACKAGES = ("jax", "flax", "numpy", "pillow")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a job, as plain values that can be sent to other machines. None is the model's default.

    Attributes:
        prompts: path of the prompt file.
        folder: of the pictures.
        model: name or folder of the model.
        n: pictures of each prompt.
        steps: of the sampler.
        guidance: guidance scale.
        negative: negative prompt.
        sampler: its name.
        seed: random seed.
        dtype: of the network.
        encoder: text encoder, for prompts that `embeddings` does not have.
        embeddings: file of prompt embeddings.
        shard_size: pictures in a shard.
        batch: pictures that a device draws in one call; of about `AT_ONCE` pixels if None.
        format: parquet or png.
        cache: folder that remembers digests of large files.
    """

    prompts: str
    folder: str
    model: str = "mini"
    n: int = 1
    steps: int | None = None
    guidance: float | None = None
    negative: str = ""
    sampler: str | None = None
    seed: int = 0
    dtype: str = "float32"
    encoder: str | None = None
    embeddings: str | None = None
    shard_size: int = 1000
    batch: int | None = None
    format: str = "parquet"
    cache: str | None = None


class Job(NamedTuple):
    """A job that is ready to draw shards."""

    folder: Path
    settings: manifest.Settings
    layout: shards.Layout
    prompts: Prompts
    embedded: embedded.Embedded
    model: Model  # with its network on all devices of the mesh
    levels: Level
    solver: Solver
    mesh: Mesh | None


# Called with (what is being done, items done, items in all).
Told = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Tells nothing."""


def start(options: Options, prompts: Prompts, told: Told = silent) -> Job:
    """Loads the model, checks the settings against the folder's, and embeds the prompts if no other process has.

    Args:
        options: what is asked for.
        prompts: the prompt file, scanned.
        told: called as the work goes on.

    Raises:
        ValueError: an option is of the wrong kind or out of range, or the folder is of other settings.
        OSError: a file cannot be read or written.
    """
    layout = shards.layout(prompts.count, options.n, options.shard_size)
    path, cache = options.embeddings, None if options.cache is None else Path(options.cache)
    table = embeddings.NONE if path is None or embedded.exist(options.folder) else embeddings.read(path)
    model = load(options.model, dtype=options.dtype, known=table, encoder=options.encoder, cache=cache)
    if model.config.upscales:
        raise ValueError(f"model must be one of stage 1, got {options.model!r}, which is of stage 2")
    sampler = sample.find_sampler(options.sampler or model.defaults.sampler)
    steps = options.steps or (sampler.steps if options.sampler else model.defaults.steps)
    guidance = model.defaults.guidance if options.guidance is None else options.guidance
    side = model.config.sample_size
    settings = manifest.Settings(
        prompts_sha256=prompts.sha256, n=layout.n, model=model._replace(encoder=None).hash, steps=steps,
        guidance=checks.number("guidance", guidance), negative=options.negative,
        sampler=options.sampler or model.defaults.sampler, seed=checks.whole("seed", options.seed, 0, 2**32 - 1),
        dtype=options.dtype, encoder=options.encoder, embeddings_sha256=_sha256(path), shard_size=layout.shard_size,
        batch=_batch(options.batch, layout, side), format=options.format,
    )  # fmt: skip
    levels = sampler.table(model.schedule, steps)
    if advice := sample.start_advice(levels):
        warnings.warn(advice, stacklevel=2)
    about = {
        "pictures": layout.pictures, "shards": layout.shards, "model": model.name,
        "prompts": str(options.prompts), "device": jax.devices()[0].device_kind,
        "versions": {"jdiff": jdiff.__version__} | {name: version(name) for name in PACKAGES},
    }  # fmt: skip
    wait = lambda holder: told(f"waiting for {holder}, which embeds the prompts", 0, prompts.count)
    with workers.locked(Path(options.folder) / ".prepare.lock", waiting=wait):
        new = manifest.agree(options.folder, settings, about)
        if not embedded.exist(options.folder):
            try:
                _embed(options, prompts, model, table, told)
            except ValueError:  # bad input: a folder with nothing in it must not fix the settings
                if new:
                    embedded.remove(options.folder)
                    manifest.remove(options.folder)
                raise
    mesh = meshes.over_local_devices()
    model = model if mesh is None else model._replace(network=meshes.replicate(mesh, model.network))
    found = embedded.Embedded(options.folder)
    return Job(
        Path(options.folder), settings, layout, prompts, found, model, levels, sampler.solver(model), mesh
    )  # fmt: skip


def left(options: Options, layout: shards.Layout, mine: Sequence[int]) -> list[int]:
    """Returns those of the given shards that are not complete."""
    there = set(os.listdir(options.folder))
    return [s for s in mine if write.path_of("", layout, s, options.format).name not in there]


class Made(NamedTuple):
    """The result of `make`."""

    shards: int
    pictures: int
    broken: list[int]  # numbers of pictures that are not finite


def make(job: Job, numbers: Sequence[int], half: Path, told: Callable[[int], None] = lambda done: None) -> Made:
    """Draws shards and writes them. Complete shards are skipped.

    While the devices draw a batch, threads encode the batch before it.

    Args:
        job: from `start`.
        numbers: of the shards.
        half: folder for unfinished files, in the job's folder.
        told: called with the number of pictures done.

    Raises:
        ValueError: there is no such shard.
        OSError: a shard cannot be written. Those before it are complete.
    """
    about = write.About(job.settings.seed, job.settings.hash)
    done, complete, broken = 0, 0, []
    drawn = _ahead((batch, _draw(job, batch)) for batch in _batches(job, numbers))
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        following = next(drawn, None)
        while following is not None:
            shard = following[0].shard
            path = write.path_of(job.folder, job.layout, shard, job.settings.format)
            with write.shard(path, half, job.settings.format, about) as add:
                while following is not None and following[0].shard == shard:
                    batch, images = following
                    pngs = list(pool.map(write.encode, np.asarray(images, np.float32)[: batch.wanted]))
                    rows = _rows(job, batch, pngs)
                    add(rows)
                    broken += [row.index for row in rows if row.png is None]
                    done += batch.wanted
                    told(done)
                    following = next(drawn, None)
            complete += 1
    return Made(complete, done, broken)


def _batches(job: Job, numbers: Sequence[int]) -> Iterator[shards.Batch]:
    size = job.settings.batch * (1 if job.mesh is None else job.mesh.shape[meshes.DATA])
    for shard in numbers:
        if not write.path_of(job.folder, job.layout, shard, job.settings.format).exists():
            yield from job.layout.batches(shard, size)


def _ahead(drawn: Iterator[tuple[shards.Batch, Array]]) -> Iterator[tuple[shards.Batch, Array]]:
    """Yields the same items, each one after the drawing of the next has started."""
    before = next(drawn, None)
    for one in drawn:
        assert before is not None
        yield before
        before = one
    if before is not None:
        yield before


def _draw(job: Job, batch: shards.Batch) -> Array:
    """Starts to draw images [size h w c], and returns before they are drawn."""
    model, settings = job.model, job.settings
    split = (lambda tree: tree) if job.mesh is None else partial(meshes.split_rows, job.mesh)
    texts = job.embedded.of_prompts(batch.numbers // settings.n)
    side = (model.config.sample_size, model.config.sample_size, model.config.channels)
    keys = split(fold_in_each(jax.random.key(settings.seed), jnp.asarray(batch.numbers)))
    x = split(sample.start(keys, side, level=sample.one(job.levels, 0)))
    combiner = split(_guided(jnp.asarray(texts), jnp.asarray(job.embedded.negative()), settings.guidance))
    return sample.sample(
        model.network, keys, x, job.levels, combiner=combiner, solver=job.solver, in_axes=0
    ).images  # fmt: skip


@partial(jax.jit, static_argnames="guidance")
def _guided(texts: Array, negative: Array, guidance: float) -> Combiner:
    """Returns `combine.guided` of each text [n l d], with leaves [n ...]."""
    return jax.vmap(lambda text: combine.guided(text, guidance, negative))(texts)


def _rows(job: Job, batch: shards.Batch, pngs: Sequence[bytes | None]) -> list[write.Row]:
    numbers = batch.numbers[: batch.wanted].tolist()
    first, last = numbers[0] // job.settings.n, numbers[-1] // job.settings.n
    texts = job.prompts.read(first, last + 1)
    of = lambda k: k // job.settings.n
    return [write.Row(png, texts[of(k) - first], of(k), k) for k, png in zip(numbers, pngs, strict=True)]


def _batch(given: int | None, layout: shards.Layout, side: int) -> int:
    if given is not None:
        return checks.whole("batch", given, 1, layout.shard_size)
    return max(1, min(AT_ONCE // side**2, -(-min(layout.shard_size, layout.pictures) // SPREAD)))


def _embed(options: Options, prompts: Prompts, model: Model, table: Mapping[str, np.ndarray], told: Told) -> None:
    model.embed([options.negative])  # says what is wrong with the model's encoder, or with the width of embeddings
    # nothing is kept elsewhere: the folder has the embeddings
    embed = embeddings.embedder(table, model.encoder)
    identify = lambda: None if model.encoder is None else model.encoder.hash
    show = lambda done, total: told("embedding prompts", done, total)
    embedded.make(options.folder, prompts, options.negative, embed, identify, show)


def _sha256(path: str | None) -> str | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
