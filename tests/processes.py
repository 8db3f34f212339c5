"""One of two processes that tests/test_processes.py starts: `python processes.py TASK PROCESS PORT FOLDER`."""

import sys
from pathlib import Path

import jax

TASK, PROCESS, PORT, FOLDER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
PROCESSES = 1 if PORT == 0 else 2
jax.config.update("jax_num_cpu_devices", 8 // PROCESSES if TASK == "sample" else 2 // PROCESSES)
if PROCESSES == 2:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{PORT}", PROCESSES, PROCESS)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from jdiff import mesh, sample, schedule, step  # noqa: E402
from jdiff.model import Defaults, Model  # noqa: E402
from jdiff.networks import unet  # noqa: E402
from jdiff.training import loop  # noqa: E402
from jdiff.types import Network, Prediction  # noqa: E402

ROWS = np.array([3.0, 7.0, 0.0, 6.0], np.float32)  # their mean is 4, that of rows 0 and 2 is 1.5


def objective(params, key, batch):
    loss = jnp.mean((params - batch) ** 2)
    return loss, {"mean": batch.mean()}


def host_rows(first, n):
    """This process's rows of each batch."""
    share = len(ROWS) // PROCESSES
    mine = ROWS[PROCESS * share : (PROCESS + 1) * share]
    return np.stack([mine + i for i in range(first, first + n)])


def train(steps, per_process=True):
    told = []
    optimizer = optax.adam(0.1)
    batches = loop.Batches(host_rows, lambda key, ahead, i: ahead[i], per_process=per_process)
    state = loop.train(
        loop.start(jnp.zeros(()), optimizer, jax.random.key(0)), objective, batches, optimizer, steps=steps, every=5,
        save_every=10, checkpoints=FOLDER / "checkpoints", mesh=mesh.make(), report=lambda n, m: told.append((n, m)),
    )  # fmt: skip
    return state, told


def network(weights, x, t, told):
    return Prediction(jnp.tanh(x * weights + told.text.mean((-2, -1))[:, None, None, None]), 0.1 * x)


def draw():
    model = Model(
        Network(jnp.float32(0.7), network), lambda prompts: jnp.stack([jnp.full((2, 4), len(p)) for p in prompts]),
        schedule.cosine(), unet.Config(sample_size=8, block_out_channels=(4, 8)), step.threshold(),
        Defaults("deepfloyd", steps=4, guidance=2.0), "small", "",
    )  # fmt: skip
    made = sample.generate(model, ["a", "bcd"], jax.random.key(1), n=5, mesh=mesh.make()).images
    return multihost_utils.process_allgather(made, tiled=True) if PROCESSES == 2 else np.asarray(made)


if TASK == "sample":
    np.savez(FOLDER / f"sample-{PROCESSES}-{PROCESS}.npz", images=draw())
if TASK == "train":
    train(10)
    state, told = train(30)  # goes on from the checkpoint of update 10
    losses = np.concatenate([m["loss"] for _, m in told]) if told else np.zeros(0)
    means = np.concatenate([m["mean"] for _, m in told]) if told else np.zeros(0)
    np.savez(FOLDER / f"train-{PROCESSES}-{PROCESS}.npz", params=np.asarray(state.params), losses=losses, means=means)
if TASK == "differ":  # rows that differ between processes, though they are said to be the same
    try:
        train(5, per_process=False)
    except AssertionError as error:
        (FOLDER / f"differ-{PROCESS}.txt").write_text(str(error))
