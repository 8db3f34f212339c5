"""Draws shards on a Ray cluster. The driver hands out shard numbers, and hands out those of lost workers again."""

import logging
import os
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jdiff.bulk import job as jobs
from jdiff.bulk.job import Job, Made, Options
from jdiff.bulk.prompts import scan

LOCAL = "local"
RETRIES = 3  # how often a shard is handed out again after its worker was lost
PATIENCE = 1.0  # seconds between two checks of the workers
CONNECT = 10.0  # seconds to wait for an answer from a cluster's address
CPU, GPU, TPU = "CPU", "GPU", "TPU"  # Ray's names for resources


class Worker:
    """A worker process, placed by Ray. It loads the model once and then draws shards.

    Args:
        options: of the job. Its paths must be the same on all machines.
        half: folder for unfinished files.
    """

    def __init__(self, options: Options, half: str):
        self._options, self._half = options, Path(half) / uuid.uuid4().hex
        self._job: Job | None = None

    def start(self) -> int:
        """Loads the model and checks the folder's settings; returns the id of the process."""
        self._job = jobs.start(self._options, scan(self._options.prompts))
        self._half.mkdir()
        return os.getpid()

    def make(self, shard: int) -> Made:
        """Draws a shard and writes it."""
        assert self._job is not None
        return jobs.make(self._job, [shard], self._half)


def lacking() -> str:
    """Returns what has to be installed before Ray can be used; empty if nothing."""
    return "pip install ray" if find_spec("ray") is None else ""


def run(
    options: Options,
    numbers: Sequence[int],
    half: Path,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    environment: Mapping[str, str] | None = None,
    told: Callable[[int], None] = lambda done: None,
    started: Callable[[int], None] = lambda process: None,
) -> Made:
    """Draws shards on a Ray cluster, with one worker on each device.

    If a worker is lost, because its process or its machine ended, a new worker starts and makes its shard again.

    Args:
        options: of the job. The folder must be one that all machines share.
        numbers: of the shards.
        half: folder for unfinished files, in the job's folder.
        address: of the cluster, or "local" for a new cluster of this machine that ends with this call.
        workers: number of workers. If None, one on each GPU, or on each machine with TPUs, or on each machine.
        environment: environment variables of the workers.
        told: called with the number of pictures done.
        started: called with the process id of each worker that is ready.

    Raises:
        ValueError: the job's settings are wrong, as in `job.start`.
        OSError: there is no such cluster, a shard cannot be written, or the worker of a shard was lost more than
            `RETRIES` times.
    """
    import ray  # pyright: ignore[reportMissingImports]  # of the extra `ray`

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray must leave the devices of a worker that asks for none as they are
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    how = {"logging_level": logging.ERROR, "log_to_driver": False}
    _check(address)
    try:
        if address == LOCAL:
            ray.init(include_dashboard=False, num_cpus=max(workers or 1, os.cpu_count() or 1), **how)
        else:
            ray.init(address, **how)
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:  # Ray ends a process that finds none
        raise OSError(f"there is no Ray cluster at {address} ({' '.join(str(error).split())[:200]})") from error
    try:
        asked, count = _resources([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        kind = ray.remote(**asked, runtime_env={"env_vars": dict(environment or {})}, max_restarts=0)(Worker)
        absolute = {name: os.path.abspath(getattr(options, name)) for name in ("prompts", "folder")}
        if options.embeddings is not None:
            absolute["embeddings"] = os.path.abspath(options.embeddings)
        options = Options(**{**vars(options), **absolute})
        new = lambda: kind.remote(options, os.path.abspath(half))
        return _hand_out(ray, new, min(count, max(len(numbers), 1)), numbers, told, started)
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Raises OSError if nothing answers at HOST:PORT. Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT).close()
        except (OSError, OverflowError) as error:
            raise OSError(f"there is no Ray cluster at {address} ({error})") from error


def _resources(machines: Sequence[Mapping[str, float]], workers: int | None) -> tuple[dict[str, Any], int]:
    """What each worker asks Ray for, and how many workers there are, from the resources of each machine."""
    having = lambda name: [int(machine[name]) for machine in machines if machine.get(name, 0) >= 1]
    if gpus := having(GPU):
        return {"num_gpus": 1, "num_cpus": 1}, workers or sum(gpus)
    if tpus := having(TPU):
        return {"resources": {TPU: min(tpus)}, "num_cpus": 1}, workers or len(tpus)
    cpus = having(CPU) or [1]
    workers = workers or len(cpus)
    on_each = -(-workers // len(cpus))
    return {"num_cpus": max(1, min(cpus) // on_each)}, workers


def _hand_out(
    ray: Any,  # the module, which is imported late
    new: Callable[[], Any],
    count: int,
    numbers: Sequence[int],
    told: Callable[[int], None],
    started: Callable[[int], None],
) -> Made:
    waiting, lost = deque(numbers), Counter[int | None]()
    starting = {worker.start.remote(): worker for worker in (new() for _ in range(count))}
    idle: list[Any] = []
    running: dict[Any, tuple[Any, int]] = {}
    checked, made = False, Made(0, 0, [])
    while waiting or running or not checked:  # one worker at least compares the settings
        while idle and waiting:
            worker, shard = idle.pop(), waiting.popleft()
            running[worker.make.remote(shard)] = worker, shard
        for ref in ray.wait([*starting, *running], timeout=PATIENCE)[0]:
            worker, shard = (starting.pop(ref), None) if ref in starting else running.pop(ref)
            try:
                found = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                lost[shard] += 1
                if lost[shard] > RETRIES:
                    what = "a worker" if shard is None else f"the worker of shard {shard}"
                    raise OSError(f"{what} was lost {lost[shard]} times; see Ray's logs for why") from error
                if shard is not None:
                    waiting.appendleft(shard)
                worker = new()
                starting[worker.start.remote()] = worker
                time.sleep(PATIENCE * (shard is None))
                continue
            idle.append(worker)
            if shard is None:
                checked = True
                lost[None] = 0
                started(found)
            else:
                made = Made(made.shards + found.shards, made.pictures + found.pictures, made.broken + found.broken)
                told(made.pictures)
    return made
