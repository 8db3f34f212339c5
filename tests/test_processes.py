"""Two processes on this machine, over gloo: they train and sample as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra `train`")
HERE = Path(__file__).resolve().parent


def run(task, folder, processes):
    """Runs processes.py in its own processes, and waits for them."""
    port = 0
    if processes == 2:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "processes.py"), task]
    started = [
        subprocess.Popen([*command, str(i), str(port), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, errors
    return errors


def test_two_processes_train_as_one(tmp_path):
    """Each reads its own rows: [3, 7] and [0, 6]. The run is stopped after ten updates and goes on."""
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        run("train", tmp_path / str(processes), processes)
    alone = np.load(tmp_path / "1" / "train-1-0.npz")
    first, second = (np.load(tmp_path / "2" / f"train-2-{i}.npz") for i in range(2))
    np.testing.assert_allclose(first["params"], alone["params"], rtol=1e-6)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-6)
    np.testing.assert_allclose(alone["means"], 4.0 + np.arange(10, 30))  # of all four rows
    np.testing.assert_array_equal(first["params"], second["params"])
    assert len(second["losses"]) == 0  # one process reports


def test_rows_that_differ_are_refused_unless_they_are_said_to(tmp_path):
    run("differ", tmp_path, 2)
    said = [(tmp_path / f"differ-{i}.txt").read_text() for i in range(2)]
    assert all("must return the same on every process" in text for text in said)


def test_two_processes_of_four_devices_draw_what_one_of_eight_does(tmp_path):
    for processes in (1, 2):
        run("sample", tmp_path, processes)
    alone = np.load(tmp_path / "sample-1-0.npz")["images"]
    assert alone.shape == (2, 5, 8, 8, 3)
    for i in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"sample-2-{i}.npz")["images"], alone, atol=2e-6)
