"""Kills `jdiff bulk` by SIGKILL at random moments in one folder, and checks that it ends with the same bytes.

    python scripts/fuzz_bulk.py --kills 20

A third of the kills come while the command starts, a third when it starts to write a shard, and a third a random time
after that. A table shows what each kill left. At the end the command runs without a kill, and every file is compared
with that of a run without kills.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [f"a {colour} {digit}" for colour in ("red", "green", "blue") for digit in ("one", "two", "three", "four")]
# Seconds after which a run counts as hanging.
LONGEST = 600
SHARDS = 48
MOST = 2  # shards that a run may complete


def start(folder: Path, name: str, model: str) -> subprocess.Popen:
    """Starts the command: 96 pictures in 48 shards."""
    command = [sys.executable, "-m", "jdiff", "bulk", "prompts.txt", "-n", "8", "--shard-size", "2", "--batch", "2"]
    command += ["--steps", "4", "--model", model, "--quiet", "-o", name]
    environment = os.environ | {"JDIFF_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> str:
    """Waits for a command that must succeed, and returns its output."""
    out, error = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise SystemExit(f"the command failed with {process.returncode}: {error.decode()}")
    return out.decode().strip()


def half_written(folder: Path) -> set[Path]:
    """Returns the unfinished shards."""
    return set(folder.glob(".share-*.part/.jdiff-*"))


def shards(folder: Path) -> int:
    """Returns the number of complete shards."""
    return len(list(folder.glob("shard-*")))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns {name: bytes} of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left(folder: Path) -> str:
    """Returns the progress of the work, as text."""
    if not (folder / "manifest.json").exists():
        return "no manifest"
    if not (folder / "embeddings" / "embeddings.json").exists():
        return "not all embeddings"
    done = shards(folder)
    return f"{done} shards" + (", one half written" if half_written(folder) else "")


def begun(process: subprocess.Popen, folder: Path) -> float:
    """Waits until the process starts to write a shard, or ends; returns the seconds until then."""
    began, before = time.perf_counter(), half_written(folder)
    while process.poll() is None and not half_written(folder) - before:
        time.sleep(0.001)
    return time.perf_counter() - began


def kill(process: subprocess.Popen, folder: Path, moment: float, drawing: bool) -> float:
    """Kills a command `moment` seconds after its start, or after the start of a shard; returns the seconds it ran.

    It is killed earlier if it has completed two shards, so that the next run has work left.
    """
    began, before = time.perf_counter(), shards(folder)
    if drawing:
        moment += begun(process, folder)
    while process.poll() is None and time.perf_counter() - began < moment and shards(folder) < before + MOST:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return time.perf_counter() - began


def main(kills: int, seed: int, model: str) -> None:
    """Kills the command, compares the files, and exits with 1 if a byte differs."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.txt").write_text("".join(f"{word}\n" for word in WORDS))
        finish(start(folder, "warm", model))  # compiles
        process, began = start(folder, "whole", model), time.perf_counter()
        starts = begun(process, folder / "whole")
        print(finish(process))
        each = (time.perf_counter() - began - starts) / SHARDS
        wanted, out = contents(folder / "whole"), folder / "killed"
        print(f"undisturbed: {starts:.1f} s until the first shard begins, {each:.2f} s a shard\n")
        print("| kill | meant | after | left |\n|---|---|---|---|")
        killed = 0
        for i in range(kills):
            kind, moment = i % 3, rng.uniform(0, starts if i % 3 == 0 else 2 * each) * (i % 3 != 1)
            process = start(folder, out.name, model)
            after = kill(process, out, moment, drawing=kind > 0)
            killed += process.returncode == -signal.SIGKILL
            meant = f"{moment:.1f} s after {'a shard has begun' if kind else 'the start'}"
            ended = "" if process.returncode == -signal.SIGKILL else ", it had ended"
            print(f"| {i + 1} | {meant} | {after:.1f} s | {left(out)}{ended} |", flush=True)
        print(f"\n{finish(start(folder, out.name, model))}")
        found = contents(out)
        same = [name for name in wanted if found.get(name) == wanted[name]]
        print(f"{killed} of {kills} runs were killed; {len(same)} of {len(wanted)} files have the same bytes, "
              f"{len(found.keys() - wanted.keys())} are left over")  # fmt: skip
    sys.exit(found != wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    main(args.kills, args.seed, args.model)
