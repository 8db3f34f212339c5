"""One of two processes that tests/test_processes.py starts: `python processes.py TASK PROCESS PORT FOLDER`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from jdiff import mesh, sample, schedule, step
from jdiff.model import Defaults, Model
from jdiff.networks import unet
from jdiff.training import loop
from jdiff.types import Network, Prediction

ROWS = np.array([3.0, 7.0, 0.0, 6.0], np.float32)  # their mean is 4, that of rows 0 and 2 is 1.5


def objective(params, key, batch):
    return jnp.mean((params - batch) ** 2), {"mean": batch.mean()}


def host_rows(first, n):
    """This process's rows of each batch."""
    share = len(ROWS) // jax.process_count()
    mine = ROWS[jax.process_index() * share : (jax.process_index() + 1) * share]
    return np.stack([mine + i for i in range(first, first + n)])


def train(folder, steps, per_process=True):
    told = []
    optimizer = optax.adam(0.1)
    batches = loop.Batches(host_rows, lambda key, ahead, i: ahead[i], per_process=per_process)
    state = loop.train(
        loop.start(jnp.zeros(()), optimizer, jax.random.key(0)), objective, batches, optimizer, steps=steps, every=5,
        save_every=10, checkpoints=folder / "checkpoints", mesh=mesh.make(), report=lambda n, m: told.append((n, m)),
    )  # fmt: skip
    return state, told


def network(weights, x, t, told):
    return Prediction(jnp.tanh(x * weights + told.text.mean((-2, -1))[:, None, None, None]), 0.1 * x)


def draw():
    model = Model(
        Network(jnp.float32(0.7), network), lambda prompts: jnp.stack([jnp.full((2, 4), len(p)) for p in prompts]),
        schedule.cosine(), unet.Config(sample_size=8, block_out_channels=(4, 8)), step.threshold(),
        Defaults("deepfloyd", steps=4, guidance=2.0), "small",
    )  # fmt: skip
    made = sample.generate(model, ["a", "bcd"], jax.random.key(1), n=5, mesh=mesh.make()).images
    return multihost_utils.process_allgather(made, tiled=True) if jax.process_count() == 2 else np.asarray(made)


def main(task, process, port, folder):
    processes = 1 if port == 0 else 2
    jax.config.update("jax_num_cpu_devices", (8 if task == "sample" else 2) // processes)
    if processes == 2:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    name = folder / f"{task}-{processes}-{process}"
    if task == "sample":
        np.savez(f"{name}.npz", images=draw())
    if task == "train":
        train(folder, 10)
        state, told = train(folder, 30)  # goes on from the checkpoint of update 10
        column = lambda key: np.concatenate([metrics[key] for _, metrics in told]) if told else np.zeros(0)
        np.savez(f"{name}.npz", params=np.asarray(state.params), losses=column("loss"), means=column("mean"))
    if task == "differ":  # rows that differ between processes, though they are said to be the same
        try:
            train(folder, 5, per_process=False)
        except AssertionError as error:
            (folder / f"differ-{process}.txt").write_text(str(error))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
