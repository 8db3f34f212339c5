"""Many pictures in shards: the same bytes however they are laid out, killed or shared; and all bad input."""

import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import moments
import numpy as np
import pytest
import tiny_model
from PIL import Image

import jdiff
from jdiff import combine, images, keys, sample, step
from jdiff import mesh as meshes
from jdiff.bulk import cluster, embedded, job, manifest, prompts, shards, workers, write
from jdiff.bulk.job import Options
from jdiff.cli import main as cli
from jdiff.types import Prediction, as_network

pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra `bulk`")

TEXTS = ["an A", "a bold B", "a thin C", "an A", "a serif E"]
ROOT = Path(__file__).resolve().parents[1]
IS_ROOT = os.name == "posix" and os.geteuid() == 0


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a model of 8 x 8 pixels with its own text encoder."""
    return tiny_model.write(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A cache that the processes of all tests share, so that one of them compiles."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, with a prompt file, and without a cache."""
    monkeypatch.setenv("JDIFF_CACHE", "")
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return tmp_path


def options(tiny, folder="out", **more):
    given = {"n": 3, "shard_size": 4, "batch": 2, "model": str(tiny), "seed": 7} | more
    return Options(prompts="prompts.txt", folder=str(folder), **given)


def run(options, numbers=None):
    """Makes shards of a job, all of them unless told otherwise, in this process."""
    folder = Path(options.folder)
    folder.mkdir(exist_ok=True)
    begun = job.start(options, prompts.scan(options.prompts))
    with workers.holding(folder, workers.Share()) as half:
        return job.make(begun, range(begun.layout.shards) if numbers is None else numbers, half)


def contents(folder):
    """{name: bytes} of a folder, with hidden files. What the manifest says of this machine and run is left out."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    if "manifest.json" in found:
        told = json.loads(found["manifest.json"])
        found["manifest.json"] = {name: told.get(name) for name in ("settings", "hash", "pictures", "shards")}
    return found


def table(folder):
    """The rows of all shards, in order."""
    return [row for path in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)


def environment(compiled):
    return os.environ | {
        "JDIFF_CACHE": str(compiled), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip


def command(tiny, folder, *more, n=3):
    return [
        sys.executable, "-m", "jdiff", "bulk", "prompts.txt", "-n", str(n), "--shard-size", "4", "--batch", "2",
        "--seed", "7", "--model", str(tiny), "-o", str(folder), *more,
    ]  # fmt: skip


def main(*args):
    """Exit status of the command in this process, without a bar."""
    try:
        return cli.main(["bulk", *map(str, args), "--quiet"])
    except SystemExit as error:
        return error.code


# --- the numbers


@pytest.mark.parametrize(("count", "n", "size", "batch"), [*itertools.product((1, 5, 7), (1, 3), (1, 4, 100), (1, 3))])
def test_each_picture_is_in_one_shard_and_one_batch(count, n, size, batch):
    layout = shards.layout(count, n, size)
    whole = [k for shard in range(layout.shards) for k in layout.numbers(shard)]
    assert whole == list(range(count * n))
    found = [one for shard in range(layout.shards) for one in layout.batches(shard, batch)]
    assert [k for one in found for k in one.numbers[: one.wanted].tolist()] == whole
    assert {(one.numbers.shape, str(one.numbers.dtype)) for one in found} == {((batch,), "uint32")}


@pytest.mark.parametrize("shard", [-1, 4, 2.0, "1", None])
def test_a_number_outside_of_the_shards_is_refused(shard):
    with pytest.raises(ValueError, match="shard must be a whole number between 0 and 3, got "):
        shards.layout(5, 3, 4).numbers(shard)


def test_more_pictures_than_keys_are_refused():
    assert shards.layout(2**16, 2**16, 1000).pictures == 2**32
    with pytest.raises(ValueError, match="at most 4294967296 pictures, got 65537 prompts x 65536"):
        shards.layout(2**16 + 1, 2**16, 1000)


# --- who makes what


ARRAY = {"SLURM_ARRAY_TASK_COUNT": "6", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_STEP": "3"}
# how a place splits the work: --shards and the environment of each process
SPLITS = {
    "one": [(None, {})],
    "--shards i/n": [(f"{i}/6", {}) for i in range(6)],
    "an array": [(None, ARRAY | {"SLURM_ARRAY_TASK_ID": str(4 + 3 * i)}) for i in range(6)],
    "an array with --shards n": [("6", {"SLURM_ARRAY_TASK_ID": str(i)}) for i in range(6)],
    "processes": [(None, {"SLURM_PROCID": str(i), "SLURM_NTASKS": "6"}) for i in range(6)],
    "processes of a step": [
        (None, {"SLURM_PROCID": str(i), "SLURM_NTASKS": "9", "SLURM_STEP_NUM_TASKS": "6"}) for i in range(6)
    ],
    "one process of an array": [
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": str(4 + 3 * i), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
        for i in range(6)
    ],
    "processes of an array": [
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": str(4 + 3 * i), "SLURM_PROCID": str(j), "SLURM_NTASKS": "2"})
        for i in range(6)
        for j in range(2)
    ],
    "Kubernetes": [(None, {"JOB_COMPLETION_INDEX": str(i), "JOB_COMPLETIONS": "6"}) for i in range(6)],
    "Kubernetes with --shards n": [("6", {"JOB_COMPLETION_INDEX": str(i)}) for i in range(6)],
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("pictures", [1, 6, 100])
def test_every_split_has_each_shard_once(name, pictures):
    layout = shards.layout(pictures, 1, 1)
    found = [workers.share(*given) for given in SPLITS[name]]
    assert {share.count for share in found} == {len(found)}
    assert sorted(s for share in found for s in layout.mine(share.index, share.count)) == list(range(pictures))


BAD_SHARES = {
    ("8/8", ()): "--shards must be i/n with i from 0 to n - 1, got 8/8",
    ("0/0", ()): "--shards must be i/n with i from 0 to n - 1, got 0/0",
    ("a/b", ()): "--shards must be i/n, such as 0/8, or n, got 'a/b'",
    ("-1/8", ()): "--shards must be i/n, such as 0/8, or n, got '-1/8'",
    ("1/", ()): "--shards must be i/n, such as 0/8, or n, got '1/'",
    ("", ()): "--shards must be i/n, such as 0/8, or n, got ''",
    ("9" * 13 + "/8", ()): f"--shards must be i/n, such as 0/8, or n, got '{'9' * 13}/8'",
    ("8", ()): "--shards 8 needs the number of this share: give --shards i/8, or start by SLURM or Kubernetes",
    (None, (("JOB_COMPLETION_INDEX", "1"),)): "JOB_COMPLETION_INDEX needs the number of completions",
    ("2", (("JOB_COMPLETION_INDEX", "2"),)): "JOB_COMPLETION_INDEX must be from 0 to 1, got 2; give --shards i/n",
    (None, (("JOB_COMPLETION_INDEX", "x"),)): "JOB_COMPLETION_INDEX must be a whole number, got 'x'",
    (None, (("SLURM_ARRAY_TASK_ID", "1"),)): "SLURM_ARRAY_TASK_ID needs SLURM_ARRAY_TASK_COUNT",
    (None, (("SLURM_ARRAY_TASK_ID", "5"), ("SLURM_ARRAY_TASK_COUNT", "2"), ("SLURM_ARRAY_TASK_MIN", "3"))): (
        "SLURM_ARRAY_TASK_ID must be one of an even array of 2 from 3 by 1, got 5; give --shards n"
    ),
    ("4", (("SLURM_ARRAY_TASK_ID", "4"),)): "SLURM_ARRAY_TASK_ID must be from 0 to 3, got 4; give --shards i/n",
    (None, (("SLURM_PROCID", "1"),)): "SLURM_PROCID needs SLURM_NTASKS",
    (None, (("SLURM_PROCID", "4"), ("SLURM_NTASKS", "4"))): "SLURM_PROCID must be from 0 to 3, got 4",
}


@pytest.mark.parametrize(("given", "environment"), list(BAD_SHARES))
def test_shares_that_there_are_not(given, environment):
    with pytest.raises(ValueError) as error:
        workers.share(given, dict(environment))
    assert str(error.value).startswith(BAD_SHARES[given, environment])


def test_a_second_driver_of_a_share_is_told_and_one_of_another_share_is_not(here):
    first, second = workers.Share(0, 2), workers.Share(1, 2)
    with workers.holding(here, first) as half, workers.holding(here, second):
        (half / "half-written").touch()
        with pytest.raises(ValueError, match=f"share 0 of 2 is being made by process {os.getpid()} on .*; wait for it"):
            with workers.holding(here, first):
                pass
        assert (half / "half-written").exists()
    assert os.listdir(here) == ["prompts.txt"]


def test_the_lock_of_a_killed_process_holds_nobody_up(here):
    hold = f"""
import time
from jdiff.bulk import workers
with workers.holding({str(here)!r}, workers.Share()) as half:
    (half / "half-written").touch()
    print("held", flush=True)
    time.sleep(60)
"""
    held = subprocess.Popen(
        [sys.executable, "-c", hold], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert held.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"by process {held.pid} on "), workers.holding(here, workers.Share()):
        pass
    held.kill()
    held.communicate()
    assert (here / ".share-0-of-1.lock").exists()
    with workers.holding(here, workers.Share()) as half:
        assert os.listdir(half) == []
    assert os.listdir(here) == ["prompts.txt"]


def test_who_waits_for_a_lock_says_so_once_and_gets_it(here):
    told = []
    hold = "import sys, time\nfrom jdiff.bulk import workers\nfrom pathlib import Path\n"
    hold += "with workers.locked(Path('a.lock')):\n    print('held', flush=True)\n    sys.stdin.readline()"
    held = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    held.stdout.readline()

    def waiting(holder):
        told.append(holder)
        held.stdin.write(b"\n")
        held.stdin.close()

    with workers.locked(Path("a.lock"), waiting=waiting):
        assert len(told) == 1 and told[0].startswith(f"process {held.pid} on ")
    held.wait()
    held.stdout.close()


# --- prompt files


@pytest.mark.parametrize(
    "content", [b"one\ntwo\n", b"one\r\ntwo", b"\xef\xbb\xbfone\ntwo\n", b" one \ntwo\t\n"], ids=repr
)
def test_prompt_files_of_every_kind_of_line(content, here):
    Path("a.txt").write_bytes(content)
    Path("plain.txt").write_bytes(b"one\ntwo\n")
    found = prompts.scan("a.txt")
    assert list(found.each()) == ["one", "two"] and found.sha256 == prompts.scan("plain.txt").sha256


BAD_PROMPTS = {
    "empty": (b"", "must hold a prompt or more, one on each line, got an empty file"),
    "one empty line": (b"one\n\ntwo\n", "line 2 is empty; remove empty lines"),
    "a line of spaces": (b"one\n \t\r\ntwo\n", "line 2 is empty; remove empty lines"),
    "empty lines": (b"\none\n\n", "lines 1, 3 are empty; remove empty lines"),
    "many empty lines": (b"one" + b"\n" * 9, "lines 2, 3, 4, 5, 6 and more are empty"),
    "no UTF-8": (b"one\n\xff\xfe\n", r"line 2 must be in UTF-8, got b'\xff\xfe\n'"),
    "a long line": (b"one\n" + b"a" * 70_000, "line 2 must have at most 65536 bytes; shorten it"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompt_files_that_are_refused(name, here, capsys):
    content, message = BAD_PROMPTS[name]
    Path("a.txt").write_bytes(content)
    assert main("a.txt", "-o", "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("jdiff: a.txt") and message in error and error.count("\n") == 1
    assert not Path("out").exists()


def test_lines_are_found_by_their_numbers(here):
    texts = [f"{'long ' * (i % 7)}prompt {i}" for i in range(3000)]
    Path("a.txt").write_text("\n".join(texts))
    found = prompts.scan("a.txt")
    assert len(found.places) == 3
    for first, stop in ((0, 1), (1023, 1026), (2999, 3000), (500, 2500), (7, 7)):
        assert found.read(first, stop) == texts[first:stop]
    Path("a.txt").write_text("\n".join(texts[:1500]))
    with pytest.raises(ValueError, match="has been changed while it was in use"):
        found.read(1400, 1600)


STREAM = """
import resource, sys
import numpy as np
from jdiff.bulk import embedded, prompts
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
embed = lambda texts: np.zeros((len(texts), 1, 1), np.float32)
before = None
for name in ("small.txt", "large.txt"):
    found = prompts.scan(name)
    sys.modules["pathlib"].Path(name + "-out").mkdir()
    embedded.make(name + "-out", found, "", embed, lambda: None)
    before = before or peak()
about = embedded.Embedded("large.txt-out").about
print(found.count, about.rows, peak() - before)
"""


def test_a_million_prompts_are_streamed(here):
    """The file has 127 MB; most of what is allowed is SQLite's cache, which does not grow with the file."""
    line = (
        "a photograph of an animal that sits on a wooden chair beside an open window in the evening, number {:010d}\n"
    )
    for name, n in (("small.txt", 1000), ("large.txt", 1_000_000)):
        with open(name, "w") as file:
            file.writelines(line.format(i % 700_000) for i in range(n))
    done = subprocess.run(
        [sys.executable, "-c", STREAM], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    count, rows, grown = done.stdout.split()
    assert (count, rows) == ("1000000", "700001")
    assert Path("large.txt").stat().st_size > 100e6 and float(grown) < 64, grown
    Path("large.txt").unlink()


def test_each_prompt_is_embedded_once_and_what_is_there_is_not_embedded_again(here, monkeypatch):
    monkeypatch.setattr(embedded, "MOST", 2)
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.stack([np.full((2, 3), hash(text) % 1000, np.float32) for text in texts])

    found = prompts.scan("prompts.txt")
    embedded.make(here, found, "no", embed, lambda: "e" * 64)
    assert asked == ["no", "no", *dict.fromkeys(TEXTS)]  # the first tells the size
    names = sorted(os.listdir(here / "embeddings"))
    assert names == ["00000.safetensors", "00001.safetensors", "00002.safetensors", "embeddings.json", "rows.npy"]
    before = contents(here / "embeddings")
    made = embedded.Embedded(here)
    assert made.about == embedded.About(5, 2, 2, 3, "e" * 64)
    np.testing.assert_array_equal(made.of_prompts(np.arange(5)), embed(TEXTS))
    np.testing.assert_array_equal(made.negative(), embed(["no"])[0])
    for name in ("embeddings.json", "rows.npy", "00001.safetensors"):  # as a killed process leaves it
        (here / "embeddings" / name).unlink()
    asked.clear()
    embedded.make(here, found, "no", embed, lambda: "e" * 64)
    assert asked == ["no", "a bold B", "a thin C"] and contents(here / "embeddings") == before
    (here / "embeddings" / "00001.safetensors").write_bytes(before["00001.safetensors"][:-1])
    with pytest.raises(ValueError, match="00001.safetensors is missing or is not"):
        embedded.Embedded(here).of_prompts(np.arange(5))


# --- the pictures


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A folder made at once, in this process, on eight devices: the files that all others must equal."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("made"))
    try:
        Path("prompts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
        assert run(options(tiny)) == job.Made(4, 15, [])
        yield contents("out")
    finally:
        os.chdir(before)


def test_a_shard_is_a_table_of_pictures_and_where_they_come_from(made, here):
    assert sorted(name for name in made if "/" not in name) == [
        "manifest.json", *(f"shard-0000{i}-of-00004.parquet" for i in range(4)),
    ]  # fmt: skip
    for name, content in made.items():
        if name.endswith(".parquet"):
            (here / name).write_bytes(content)
    rows = table(here)
    assert [row["index"] for row in rows] == list(range(15))
    assert [row["prompt_index"] for row in rows] == [k // 3 for k in range(15)]
    assert [row["prompt"] for row in rows] == [TEXTS[k // 3] for k in range(15)]
    assert {(row["seed"], row["settings"]) for row in rows} == {(7, made["manifest.json"]["hash"])}
    assert {pixels(row).shape for row in rows} == {(8, 8)}
    assert len({row["image"]["bytes"] for row in rows}) == 15  # two prompts are the same, and their keys are not
    schema = pq.read_schema(here / "shard-00000-of-00004.parquet")
    told = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(told) == schema.names and told["image"] == {"_type": "Image"}


def test_other_libraries_read_the_shards(made, here):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    for name in ("shard-00000-of-00004.parquet", "shard-00001-of-00004.parquet"):
        (here / name).write_bytes(made[name])
    frame = pandas.read_parquet(sorted(here.glob("*.parquet")), columns=["prompt", "index", "image"])
    assert frame["index"].tolist() == list(range(8)) and frame["image"][0]["path"] == "0000000000.png"
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    found = datasets.load_dataset("parquet", data_files="*.parquet", split="train", cache_dir="cache")
    assert found.num_rows == 8 and found[3]["image"].size == (8, 8) and found[3]["prompt"] == "a bold B"


def test_a_picture_is_that_of_its_own_key_drawn_alone(made, tiny, here):
    (here / "a.parquet").write_bytes(made["shard-00001-of-00004.parquet"])
    model = jdiff.load(tiny)
    levels = sample.find_sampler("deepfloyd").table(model.schedule, 3)
    for row in table(here):
        key = keys.fold_in(jax.random.key(7), row["index"])[None]
        nothing, text = model.embed(["", row["prompt"]])
        alone = sample.sample(
            model.network, key, sample.start(key, (8, 8, 1), level=sample.one(levels, 0)), levels,
            combiner=combine.cfg(text, 2.0, nothing), solver=sample.find_sampler("deepfloyd").solver(model),
        ).images[0]  # fmt: skip
        wanted = images.to_uint8(np.clip(alone, -1, 1))[..., 0].astype(int)
        assert np.abs(pixels(row) - wanted).max() <= 1


def over(devices):
    """What stands for `over_local_devices` where there are so many devices."""
    shape = {"axis_types": (jax.sharding.AxisType.Auto,) * 2, "devices": jax.devices()[:devices]}
    return lambda: None if devices == 1 else jax.make_mesh((devices, 1), (meshes.DATA, meshes.MODEL), **shape)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_bytes_do_not_depend_on_devices_order_or_shares(devices, made, tiny, here, monkeypatch):
    monkeypatch.setattr(meshes, "over_local_devices", over(devices))
    for numbers in ([3], [2, 0], [1, 2]):
        run(options(tiny), numbers)
    assert contents("out") == made


def test_another_layout_has_the_same_pictures(made, tiny, here, monkeypatch):
    monkeypatch.setattr(meshes, "over_local_devices", over(1))
    for name in [name for name in made if name.endswith(".parquet")]:
        (here / name).write_bytes(made[name])
    wanted = table(here)
    for i, layout in enumerate(({"shard_size": 15, "batch": 5}, {"shard_size": 1, "batch": 1})):
        run(options(tiny, f"out{i}", **layout))
        found = table(f"out{i}")
        assert [row | {"image": None} for row in found] == [row | {"image": None} for row in wanted]
        assert max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(found, wanted, strict=True)) <= 1


def test_the_next_batch_is_begun_before_one_is_waited_for():
    begun = []

    def drawn():
        for i in range(3):
            begun.append(i)
            yield i, None

    assert [(i, len(begun)) for i, _ in job._ahead(drawn())] == [(0, 2), (1, 3), (2, 3)]


def test_one_program_draws_all_batches(tiny, here):
    """Fifteen pictures in batches of two: full ones, and one that is padded."""
    from jdiff.scan import _run

    Path("out").mkdir()
    begun = job.start(options(tiny), prompts.scan("prompts.txt"))
    before = _run._cache_size()
    with workers.holding("out", workers.Share()) as half:
        job.make(begun, range(4), half)
    assert _run._cache_size() - before <= 1


def test_what_is_complete_is_not_made_again(made, tiny, here, monkeypatch, capsys):
    run(options(tiny))
    lost = Path("out/shard-00002-of-00004.parquet")
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
    drawn = []
    draw = job._draw
    monkeypatch.setattr(job, "_draw", lambda job, batch: drawn.append(batch.shard) or draw(job, batch))
    assert main("prompts.txt", "-n", 3, "--shard-size", 4, "--batch", 2, "--seed", 7, "--model", tiny, "-o", "out") == 0
    assert capsys.readouterr().out == "wrote 1 of 4 shards to out: 4 pictures; 3 were complete\n"
    assert set(drawn) == {2} and contents("out") == made
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_workers_never_load_the_encoder(made, tiny, here, monkeypatch, capsys):
    model = shutil.copytree(tiny, here / "model")
    flags = ["-n", 3, "--shard-size", 4, "--batch", 2, "--seed", 7, "--model", model, "-o", "out"]
    assert main("prompts.txt", *flags, "--shards", "0/2") == 0
    (model / "text_encoder" / "model.safetensors").unlink()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert main("prompts.txt", *flags) == 0
    said = "wrote 2 of 2 shards (share {} of 2, by {}) to out: {} pictures\n"
    assert capsys.readouterr().out == said.format(0, "--shards", 8) + said.format(1, "SLURM_PROCID", 7)
    assert contents("out") == made


def test_png_is_a_folder_of_pictures(made, tiny, here):
    for name in [name for name in made if name.endswith(".parquet")]:
        (here / name).write_bytes(made[name])
    rows = table(here)
    flags = ["-n", 3, "--shard-size", 4, "--batch", 2, "--seed", 7, "--model", tiny, "--format", "png"]
    assert main("prompts.txt", *flags, "-o", "out") == 0
    folders = sorted(path for path in Path("out").iterdir() if path.name.startswith("shard"))
    assert [path.name for path in folders] == [f"shard-0000{i}-of-00004" for i in range(4)]
    told = [json.loads(line) for path in folders for line in (path / "metadata.jsonl").read_text().splitlines()]
    for row, line in zip(rows, told, strict=True):
        assert line == {"file_name": row["image"]["path"]} | {name: row[name] for name in write.COLUMNS}
        assert (folders[row["index"] // 4] / line["file_name"]).read_bytes() == row["image"]["bytes"]
    before = contents("out")
    shutil.rmtree(folders[1])
    assert main("prompts.txt", *flags, "-o", "out") == 0 and contents("out") == before


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_pictures_that_are_not_finite_are_noted_and_cost_no_others(format, tiny, here, monkeypatch, capsys):
    monkeypatch.setattr(job, "load", lambda *args, **how: broken(jdiff.load(tiny)))
    flags = ["-n", 3, "--shard-size", 4, "--batch", 2, "-o", "out", "--format", format]
    assert main("prompts.txt", *flags) == 0
    said = "jdiff: note: 3 pictures are not finite and left out: 6, 7, 8; try a wider --dtype than float32"
    assert said in capsys.readouterr().err
    if format == "parquet":
        assert [row["index"] for row in table("out") if row["image"] is None] == [6, 7, 8]
    else:
        assert sorted(path.name for path in Path("out").glob("*/*.png")) == [
            write.file_name(k) for k in range(15) if k not in (6, 7, 8)
        ]


def broken(model):
    """That model, which draws NaN for "a thin C"."""
    thin = model.embed(["a thin C"])[0]

    def denoise(x, t, told):
        bad = (jnp.abs(told.text - thin[None]).max(axis=(-2, -1)) == 0)[:, None, None, None]
        return Prediction(jnp.where(bad, jnp.nan, 0.1 * x), None)

    return model._replace(network=as_network(denoise), x0_rule=step.untouched)


# --- folders of other settings


SETTINGS = manifest.Settings(
    "a" * 64, 3, "b" * 64, 20, 4.0, "", "ddim", 0, "float32", None, None, 1000, 64, "parquet"
)  # fmt: skip
OTHERS = {
    "prompts_sha256": ("c" * 64, "the prompt file's sha256 is"),
    "n": (4, "-n is 3 there, and 4 here"),
    "model": ("c" * 64, "the model's sha256 is"),
    "steps": (30, "--steps is 20 there, and 30 here"),
    "guidance": (4.5, "--guidance is 4.0 there, and 4.5 here"),
    "negative": ("fog", '--negative is "" there, and "fog" here'),
    "sampler": ("course", '--sampler is "ddim" there, and "course" here'),
    "seed": (1, "--seed is 0 there, and 1 here"),
    "dtype": ("bfloat16", '--dtype is "float32" there, and "bfloat16" here'),
    "encoder": ("t5", '--encoder is null there, and "t5" here'),
    "embeddings_sha256": ("c" * 64, "the sha256 of --prompts is null there"),
    "shard_size": (10, "--shard-size is 1000 there, and 10 here"),
    "batch": (8, "--batch is 64 there, and 8 here"),
    "format": ("png", '--format is "parquet" there, and "png" here'),
}
TOLD = {"versions": {"jax": "1"}, "device": "cpu"}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(manifest.Settings)])
def test_a_folder_of_other_settings_is_refused(name, here):
    value, message = OTHERS[name]
    manifest.agree(here, SETTINGS, TOLD)
    before = contents(here)
    manifest.agree(here, SETTINGS, TOLD)
    other = dataclasses.replace(SETTINGS, **{name: value})
    with pytest.raises(ValueError) as error:
        manifest.agree(here, other, TOLD)
    assert str(error.value).startswith(f"{here} is of other settings: {message}") and "\n" not in str(error.value)
    assert contents(here) == before
    assert (other.hash == SETTINGS.hash) == (name in manifest.LAYOUT)


def test_other_versions_are_a_warning(here):
    manifest.agree(here, SETTINGS, TOLD)
    with pytest.warns(UserWarning, match='was begun with versions {"jax": "1"}, and this is {"jax": "2"}'):
        manifest.agree(here, SETTINGS, TOLD | {"versions": {"jax": "2"}})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "other"}', b'{"kind": "jdiff bulk", "version": 1}'])
def test_a_damaged_manifest_is_refused(content, here, tiny, capsys):
    Path("out").mkdir()
    Path("out/manifest.json").write_bytes(content)
    assert main("prompts.txt", "--model", tiny, "-o", "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("jdiff: out/manifest.json ") and error.count("\n") == 1
    assert Path("out/manifest.json").read_bytes() == content


# --- bad input


Path_, Text = "out", "prompts.txt"
BAD = [
    ([], "PROMPTS.txt is missing; give a text file"),
    ([Text], "-o is missing; give the folder of the shards"),
    (["no.txt", "-o", Path_], "got no.txt, which does not exist"),
    ([".", "-o", Path_], "got ., which is a folder"),
    (["/dev/null", "-o", Path_], "got /dev/null, which is no regular file"),
    ([Text, "-o", "no/out"], "-o must be in a folder that exists, got no/out"),
    ([Text, "-o", Text], f"-o must be a folder, got {Text}, which is a file"),
    ([Text, "-o", "."], f"-o: . holds {Text} and no manifest.json; give a new or empty folder"),
    ([Text, "-o", Path_, "-n", 0], "-n must be between 1 and 1000000, got 0"),
    ([Text, "-o", Path_, "--shard-size", 0], "--shard-size must be between 1 and 1000000, got 0"),
    ([Text, "-o", Path_, "--steps", 2000], "--steps must be between 1 and 1000, got 2000"),
    ([Text, "-o", Path_, "--guidance", "nan"], "--guidance must be a finite number, got nan"),
    ([Text, "-o", Path_, "--seed", -1], "--seed must be between 0 and 4294967295, got -1"),
    ([Text, "-o", Path_, "--batch", 2000], "--batch must be between 1 and 1000, got 2000"),
    ([Text, "-o", Path_, "--batch", 0], "--batch must be between 1 and 1000, got 0"),
    ([Text, "-o", Path_, "--format", "jpg"], "--format must be one of parquet, png, got 'jpg'"),
    ([Text, "-o", Path_, "--shards", "8/8"], "--shards must be i/n with i from 0 to n - 1, got 8/8"),
    (
        [Text, "-o", Path_, "--workers", 2],
        "--workers needs --ray, got --workers 2 alone; add --ray local, or leave it out",
    ),
    ([Text, "-o", Path_, "--ray", ""], "--ray must be the address of a cluster, or local, got ''"),
    ([Text, "-o", Path_, "--model", ""], "--model must be the name or folder of a model, got ''"),
    ([Text, "-o", Path_, "--model", "no-model"], "got 'no-model', which does not exist"),
    ([Text, "-o", Path_, "--model", "a" * 300], "aaa', which does not exist"),
    ([Text, "-o", Path_, "--model", "mini-upscaler"], "model must be one of stage 1, got 'mini-upscaler'"),
    ([Text, "-o", Path_, "--sampler", "no"], "sampler must be one of diffusers, deepfloyd"),
    ([Text, "-o", Path_, "--negative", "\udc80"], "--negative must be text in UTF-8"),
    ([Text, "-o", Path_, "--prompts", "no.npz"], "no.npz: there is no such file"),
    ([Text, "-o", Path_, "--encoder", "no"], "the encoder must be "),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_line(args, message, here, capsys):
    before = sorted(os.listdir(here))
    assert main(*args) == 2
    error = capsys.readouterr().err
    assert error.startswith("jdiff: ") and message in error and error.count("\n") == 1, error
    assert not list(here.rglob("*.part")) and not list(here.rglob("*.parquet"))
    assert sorted(os.listdir(here)) == before


def test_a_folder_stays_free_for_other_settings_where_no_prompt_could_be_read(here, tiny, capsys, monkeypatch):
    def refuse(*args):
        raise ValueError("no text encoder")

    monkeypatch.setattr(job.embedded, "make", refuse)
    before = sorted(os.listdir(here))
    assert main("prompts.txt", "--model", tiny, "-o", "out") == 2
    assert capsys.readouterr().err == "jdiff: no text encoder\n" and sorted(os.listdir(here)) == before
    Path("out").mkdir()  # an empty folder of the user's stays
    assert main("prompts.txt", "--model", tiny, "-o", "out") == 2 and os.listdir("out") == []


def test_extras_that_are_not_installed(here, monkeypatch, capsys):
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert main("prompts.txt", "-o", "out") == 2
    assert "--format parquet needs pyarrow: pip install pyarrow, or give --format png" in capsys.readouterr().err
    assert main("prompts.txt", "-o", "out", "--format", "png", "--ray", "local") == 2
    assert capsys.readouterr().err == "jdiff: --ray needs Ray: pip install ray\n"


def test_a_second_driver_on_a_folder_is_told(here, tiny, capsys):
    Path("out").mkdir()
    with workers.holding("out", workers.Share()):
        assert main("prompts.txt", "--model", tiny, "-o", "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("jdiff: out: share 0 of 1 is being made by process ") and error.count("\n") == 1


@pytest.mark.parametrize("format", ["parquet", "png"])
@pytest.mark.skipif(not IS_ROOT, reason="only root mounts a small file system")
def test_a_full_disk_costs_one_shard_and_the_same_command_goes_on(format, here, tiny, capsys):
    small = here / "small"
    small.mkdir()
    size = {"parquet": "40k", "png": "120k"}[format]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system")
    flags = ["prompts.txt", "-n", 40, "--shard-size", 10, "--model", tiny, "--format", format]
    try:
        assert main(*flags, "-o", "small/out") == 1
        error = capsys.readouterr().err
        done = sum(not path.name.startswith(".") for path in (small / "out").glob("shard*"))
        assert 0 < done < 20 and error.count("\n") == 1 and "No space left on device" in error
        assert error.startswith("jdiff: small/out/shard-000")
        assert f"; {done} of 20 shards are complete, and the same command goes on from there" in error
        assert not [path for path in small.rglob("*") if ".part" in path.name]
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        assert main(*flags, "-o", "small/out") == 0 and main(*flags, "-o", "whole") == 0
        assert contents("small/out") == contents("whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="it takes a process without root's rights, by `setpriv`")
def test_a_folder_that_is_read_only(here, tiny, compiled):
    (here / "out").mkdir()
    (here / "out").chmod(0o555)
    as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if IS_ROOT else []
    done = subprocess.run(
        [*as_user, *command(tiny, "out")], env=environment(compiled), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 2 and os.listdir("out") == []
    assert done.stderr == "jdiff: -o must be a folder that you can write to, got out\n"


# --- processes that are killed


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(made, here, tiny, compiled):
    """Killed with the prompts embedded, in the first shard, and once some shards are complete."""
    _, _, _, *arguments = command(tiny, "out")
    env = environment(compiled)
    env["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")
    complete = []
    for uses in (17, 27, 26):
        code = moments.KILL.format(uses=uses, folder="out") + "from jdiff.cli.main import main\nmain()"
        killed = subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, timeout=120)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        complete.append(len(list(here.glob("out/shard*"))))
        assert list(here.glob("out/embeddings/*"))
    assert complete[:2] == [0, 0] and 0 < complete[2] < 4
    last = subprocess.run(command(tiny, "out"), env=env, capture_output=True, text=True, timeout=120)
    assert last.returncode == 0, last.stderr
    assert contents("out") == made


# --- Ray


class FakeRay:
    """What `_hand_out` uses of Ray. Each call of a worker ends as `outcomes` says, in turn: a value, or an error."""

    class exceptions:
        RayTaskError = type("RayTaskError", (Exception,), {})
        RayActorError = type("RayActorError", (Exception,), {})
        RaySystemError = type("RaySystemError", (Exception,), {})

    def __init__(self, outcomes=()):
        self.outcomes, self.made, self.workers = iter(outcomes), [], 0

    def worker(self):
        self.workers += 1
        number = self.workers

        class Method:
            def __init__(self, name):
                self.name = name

            def remote(self, *args):
                return self.name, args, number, object()

        class Worker:
            start, make = Method("start"), Method("make")

        return Worker()

    def wait(self, refs, timeout):
        return refs[:1], refs[1:]

    def get(self, ref):
        outcome = next(self.outcomes, None)
        if isinstance(outcome, Exception):
            raise outcome
        name, args, number, _ = ref
        if name == "start":
            return number
        self.made.append(args[0])
        return job.Made(1, 10, [])


@pytest.fixture
def hand_out(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)

    def run(fake, count, numbers, told=None):
        told = [] if told is None else told
        return cluster._hand_out(fake, fake.worker, count, numbers, told.append, lambda process: None)

    return run


LOST = FakeRay.exceptions.RayActorError("lost")


@pytest.mark.parametrize(
    "outcomes", [[], [None, LOST], [LOST, LOST, LOST, None], [None, None, LOST, LOST, None, LOST]], ids=str
)
@pytest.mark.parametrize("count", [1, 2])
def test_each_shard_is_made_once_whoever_is_lost(outcomes, count, hand_out):
    fake, told = FakeRay(outcomes), []
    assert hand_out(fake, count, [4, 7, 9], told) == job.Made(3, 30, [])
    assert sorted(fake.made) == [4, 7, 9] and told == [10, 20, 30]
    assert fake.workers == count + outcomes.count(LOST)


@pytest.mark.parametrize(
    ("outcomes", "what"), [([LOST] * 4, "a worker"), ([None, *[LOST, None] * 4], "the worker of shard 4")], ids=str
)
def test_a_worker_that_is_lost_again_and_again_is_an_error(outcomes, what, hand_out):
    with pytest.raises(OSError, match=f"^{what} was lost 4 times; see Ray's logs for why$"):
        hand_out(FakeRay(outcomes), 1, [4])


def test_what_a_worker_says_is_wrong_reaches_the_driver(hand_out):
    error = FakeRay.exceptions.RayTaskError("a remote traceback")
    error.cause = ValueError("the folder is of other settings")
    with pytest.raises(ValueError, match="^the folder is of other settings$"):
        hand_out(FakeRay([error]), 1, [])  # settings are compared even where nothing is left to do


@pytest.mark.parametrize(
    ("there", "workers", "wanted"),
    [
        ([{"CPU": 8.0}], None, ({"num_cpus": 8}, 1)),
        ([{"CPU": 8.0}], 2, ({"num_cpus": 4}, 2)),
        ([{"CPU": 1.0}], 2, ({"num_cpus": 1}, 2)),
        ([{"CPU": 8.0}, {"CPU": 64.0}], None, ({"num_cpus": 8}, 2)),  # fits on the smaller machine
        ([{"CPU": 8.0}, {"CPU": 8.0}], 3, ({"num_cpus": 4}, 3)),
        ([{"CPU": 0.0}, {"CPU": 8.0}], None, ({"num_cpus": 8}, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], None, ({"num_gpus": 1, "num_cpus": 1}, 8)),
        ([{"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}], None, ({"num_gpus": 1, "num_cpus": 1}, 8)),
        ([{"CPU": 32.0, "TPU": 4.0}] * 2, None, ({"resources": {"TPU": 4}, "num_cpus": 1}, 2)),
        ([{"CPU": 4.0}, *[{"CPU": 32.0, "TPU": 4.0}] * 2], None, ({"resources": {"TPU": 4}, "num_cpus": 1}, 2)),
    ],
)
def test_a_worker_has_a_device(there, workers, wanted):
    assert cluster._resources(there, workers) == wanted


needs_ray = pytest.mark.skipif(cluster.lacking() != "", reason="Ray is not installed: pip install ray")
KILLED = """
import os, signal, sys
from jdiff.bulk import cluster, workers
from jdiff.bulk.job import Options
ready = []
def started(process):
    ready.append(process)
    if len(ready) == 1:
        os.kill(process, signal.SIGKILL)
if __name__ == "__main__":
    options = Options(prompts="prompts.txt", folder="out", model=sys.argv[1], n=3, shard_size=4, batch=2, seed=7)
    with workers.holding("out", workers.Share()) as half:
        made = cluster.run(options, range(4), half, workers=2, started=started)
    print(made.shards, made.pictures, len(set(ready)))
"""


@needs_ray
def test_ray_makes_the_shards_of_a_worker_that_is_killed(made, here, tiny, compiled):
    """Two workers on a cluster of this machine. The first that is ready is killed."""
    Path("out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny)], env=environment(compiled), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards, pictures, workers = map(int, done.stdout.split("\n")[-2].split())
    assert (shards, pictures) == (4, 15) and workers >= 2  # another one may have taken its place
    assert contents("out") == made


@needs_ray
def test_an_address_where_nobody_answers_is_one_line(here, tiny, capsys):
    assert main("prompts.txt", "--model", tiny, "-o", "out", "--ray", "127.0.0.1:1") == 1
    error = capsys.readouterr().err
    assert error.startswith("jdiff: there is no Ray cluster at 127.0.0.1:1 (") and error.count("\n") == 1
