"""Runs thousands of bad command lines. Each must end with status 2 and a message of one line, and change no file.

    python scripts/fuzz_commands.py --count 1000

A bad command line is a good one with one mistake and some more good flags, in any order. The commands run in this
process, in a folder with pictures, masks and damaged files.
"""

import argparse
import contextlib
import io
import json
import os
import stat
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jdiff import images
from jdiff.cli import main as cli
from jdiff.images.read import KEY

# A good command line of each command, without optional flags.
BASES = {
    "generate": ["generate", "a red three"],
    "edit": ["edit", "in.png", "a red three"],
    "inpaint": ["inpaint", "in.png", "a red three", "--mask", "mask.png"],
    "anagram": ["anagram", "a red six", "a red nine", "--view", "flip"],
    "hybrid": ["hybrid", "--low", "a red six", "--high", "a blue two"],
    "upscale": ["upscale", "in.png", "a red three"],
    "ambigram": ["ambigram", "swims"],
    "embed": ["embed", "a red three", "--encoder", "none"],
    "convert": ["convert", "weights", "new"],
    "mnist train": ["mnist", "train", "class"],
    "mnist sample": ["mnist", "sample", "class", "-o", "out.png"],
    "bulk": ["bulk", "prompts.txt", "-o", "made", "--format", "png"],
    "studio": ["studio"],
}
DRAWING = ("generate", "edit", "inpaint", "anagram", "hybrid", "upscale")
# A prompt with a character that is not valid Unicode. Python makes such characters of bytes that are not UTF-8.
NO_TEXT = "a\udcff"


# Checks of hypothesis that fail for slow examples.
SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


class Case(NamedTuple):
    """A bad command line."""

    command: str
    flag: str  # the flag with the mistake, or the kind of mistake
    args: list[str]


def no_number(read: type) -> st.SearchStrategy[str]:
    """Draws words that are not numbers of this type. They do not start with a hyphen, which would make them flags."""

    def is_none(word: str) -> bool:
        try:
            for part in word.split(","):  # a ladder
                read(part)
        except ValueError:
            return not word.startswith("-") and "\0" not in word
        return False

    return st.text(max_size=12).filter(is_none) | st.sampled_from(["", " ", "1.5.2", "0x10", "1e", "--", "³", "None"])


def outside(least: int, most: int) -> st.SearchStrategy[str]:
    """Draws whole numbers that are too small or too large, and words that are not whole numbers."""
    below, above = st.integers(max_value=least - 1), st.integers(min_value=most + 1)
    wide = st.sampled_from(["9" * 40, "-" + "9" * 40, "9" * 5000])
    return (below | above).map(str) | no_number(int) | wide


def beyond(least: float, most: float, *, open_below: bool = False) -> st.SearchStrategy[str]:
    """Draws numbers outside of [least, most], NaN, and words that are not numbers."""
    below = st.floats(max_value=least, exclude_max=not open_below, allow_nan=False)
    above = st.floats(min_value=most, exclude_min=True, allow_nan=False)
    return (below | above).map(str) | no_number(float) | st.sampled_from(["nan", "-nan"])


NOT_FINITE = st.sampled_from(["nan", "inf", "-inf", "1e999", "-1e999"]) | no_number(float)
NO_WORD = st.text(min_size=1, max_size=8).filter(lambda word: not word.startswith("-") and "\0" not in word)
SEED = outside(0, 2**32 - 1)
STEPS = outside(1, 1000)
NO_PICTURE = st.sampled_from(
    ["gone.png", "text.png", "cut.png", "empty.png", "huge.png", "folder.png", "pipe.png", "gone/in.png", "", ".", "/",
     "in.png/x", "a" * 300, NO_TEXT + ".png", "file:///in.png", "ftp://example.org/a.png", "http://", "https://[::1]/a.png",
     "http://127.0.0.1/in.png", "http://10.0.0.1:99999/a.png", "https://user:word@example.org/a.png"]
)  # fmt: skip
NO_SETTINGS = NO_PICTURE | st.sampled_from(["in.png", "old.png", *(f"like-{i}.png" for i in range(50))])
NO_FOLDER = st.sampled_from(["gone", "in.png", "", "folder.png", "a" * 300, "./gone/deeper"])


def no_output(suffix: str) -> st.SearchStrategy[str]:
    """Draws paths that no file with this suffix can be written to."""
    fixed = [
        f"gone/x{suffix}", f"folder{suffix}", f"protected{suffix}", f"pipe{suffix}", f"in.png/x{suffix}",
        "x" * 300 + suffix, f"{NO_TEXT}{suffix}", "x.jpg", "x", "", ".", "/", suffix, f"link-to-folder{suffix}",
        f"link-to-nowhere{suffix}", f"x{suffix}.txt",
    ]  # fmt: skip
    return st.sampled_from(fixed)


# Bad values of each flag. Some of the file names exist in the folder that `furnish` makes, others do not.
BAD: dict[str, dict[str, st.SearchStrategy[str]]] = {
    "drawing": {
        "-n": outside(1, 10_000), "--steps": STEPS, "--guidance": NOT_FINITE, "--seed": SEED,
        "--size": st.sampled_from(["0", "31", "32x", "x32", "32x33", "4097", "1e2", "32x32x32", "-32", "", "9" * 99]),
        "--sampler": NO_WORD, "--dtype": NO_WORD, "--negative": st.just(NO_TEXT),
        "--model": NO_FOLDER, "--encoder": NO_FOLDER, "--prompts": st.sampled_from(
            ["gone.npy", "text.png", "text.npz", "text.safetensors", "text.pth", "text.npy", "folder.npz", "", "x"]
        ),
        "-o": no_output(".png"), "--gif": no_output(".gif"), "--mp4": no_output(".mp4"), "--npz": no_output(".npz"),
        "--like": NO_SETTINGS,
    },
    "generate": {"--stage2": NO_FOLDER | st.just("mini")},
    "edit": {
        "IMAGE": NO_PICTURE, "--strength": beyond(0, 1, open_below=True), "-o": st.just("in.png"), "--fit": NO_WORD,
    },
    "inpaint": {
        "IMAGE": NO_PICTURE, "--mask": NO_PICTURE | st.sampled_from(["wide.png", "black.png", "white.png", "in.png"]),
        "--resamplings": outside(1, 1000), "--jump-length": outside(1, 1000), "--fit": NO_WORD, "-o": st.sampled_from(
            ["in.png", "mask.png", "link-to-in.png"]
        ),
    },
    "anagram": {"--view": NO_WORD},
    "hybrid": {"--sigma": beyond(0, 7, open_below=True)},
    "upscale": {
        "IMAGE": NO_PICTURE, "--noise-level": outside(0, 999), "--model": NO_FOLDER | st.just("mini"), "--fit": NO_WORD,
    },
    "ambigram": {
        "WORD": st.sampled_from(["", " ", "na-me", "a" * 40, "ö", NO_TEXT]), "--view": NO_WORD, "--paper": NO_WORD,
        "--ink": NO_WORD, "--style": st.sampled_from(["gothic", "thin bold", "serif sans", NO_TEXT]),
        "-n": outside(1, 1024), "--steps": STEPS, "--guidance": NOT_FINITE, "--seed": SEED,
        "--model": NO_FOLDER | st.just("mini"), "-o": no_output(".png"), "--gif": no_output(".gif"),
        "--svg": no_output(".svg"), "--npz": no_output(".npz"), "--like": NO_PICTURE,
    },
    "embed": {
        "--encoder": NO_FOLDER, "--prompts": st.sampled_from(["gone.npy", "text.npz", "text.pth", "text.npy", ""]),
        "-o": no_output(".safetensors"), "--dtype": NO_WORD, "--clean": NO_WORD,
        "--list": st.sampled_from(["gone.npy", "text.safetensors", "in.png", "", "folder.npz"]),
    },
    "convert": {
        "SRC": NO_FOLDER, "DST": st.sampled_from(["weights", "in.png", "gone/new", ".", "", "/", "in.png/new"]),
        "--dtype": NO_WORD,
    },
    "mnist train": {
        "KIND": NO_WORD, "--recipe": NO_WORD, "--epochs": outside(1, 2**31 - 1), "--width": outside(1, 2**31 - 1),
        "--batch": outside(1, 2**31 - 1), "--rate": beyond(0, 2**31, open_below=True), "--dtype": NO_WORD,
        "--seed": SEED, "--keep-epochs": outside(1, 20), "--save-every": outside(1, 2**31 - 1),
        "--minutes": st.floats(max_value=0).map(str) | no_number(float) | st.just("nan"),
        "--first": outside(1, 2**31 - 1), "--run": st.sampled_from(["in.png", "in.png/run", NO_TEXT]),
        "--out": st.sampled_from(["in.png", "in.png/out", NO_TEXT]),
    },
    "mnist sample": {
        "KIND": NO_WORD | st.just("denoise"), "-n": outside(1, 1000), "--recipe": NO_WORD, "--model": NO_FOLDER,
        "--steps": STEPS, "--guidance": NOT_FINITE, "--seed": SEED, "-o": no_output(".png"),
        "--gif": no_output(".gif"), "--npz": no_output(".npz"),
    },
    "bulk": {
        "PROMPTS": st.sampled_from(["gone.txt", "folder.png", "in.png", "blank.txt", "empty.png", "", NO_TEXT]),
        "-n": outside(1, 10**6), "-o": st.sampled_from(["in.png", "gone/new", "full", "in.png/x", "", NO_TEXT]),
        "--format": NO_WORD, "--shard-size": outside(1, 10**6), "--workers": outside(1, 10**4) | st.just("3"),
        "--shards": st.sampled_from(["2/2", "-1/2", "0/0", "a/b", "1/", "/", "", "1.5", "3"]), "--ray": st.just(""),
        "--model": NO_FOLDER, "--steps": STEPS, "--guidance": NOT_FINITE, "--negative": st.just(NO_TEXT),
        "--sampler": NO_WORD, "--seed": SEED, "--dtype": NO_WORD, "--batch": outside(1, 1000),
        "--prompts": st.sampled_from(["gone.npy", "text.npz", "text.safetensors", "folder.npz", ""]),
        "--encoder": NO_FOLDER,
    },
    "studio": {"--model": NO_FOLDER, "--port": outside(1, 65_535)},
}  # fmt: skip
# Good flags that are added to a mistake.
GOOD = {
    "drawing": [
        ["-n", "3"], ["--steps", "5"], ["--guidance", "2"], ["--guidance", "2", "5"], ["--size", "64"],
        ["--negative", "blue"], ["--sampler", "course"], ["--seed", "7"], ["--dtype", "bfloat16"], ["--separate"],
        ["--gif", "good.gif"], ["--npz", "good.npz"], ["-o", "good.png"], ["--quiet"],
    ],
    "ambigram": [
        ["-n", "3"], ["--steps", "5"], ["--style", "bold"], ["--npz", "good.npz"], ["-o", "good.png"], ["--quiet"],
    ],
    "embed": [["-o", "good.safetensors"], ["--clean", "none"], ["--dtype", "float16"]],
    "convert": [["--dtype", "float16"]],
    "mnist train": [["--seed", "1"], ["--epochs", "20"], ["--quiet"]],
    "mnist sample": [["-n", "2"], ["--npz", "good.npz"], ["--seed", "3"], ["--quiet"]],
    "bulk": [["-n", "2"], ["--steps", "5"], ["--seed", "3"], ["--shard-size", "1000"], ["--quiet"]],
    "studio": [["--port", "8000"]],
}  # fmt: skip
POSITIONS = {"IMAGE": 1, "WORD": 1, "PROMPTS": 1, "SRC": 1, "DST": 2, "KIND": 2}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws bad command lines."""
    command = draw(st.sampled_from(sorted(BASES)))
    kind = "drawing" if command in DRAWING else command
    base, bad = list(BASES[command]), BAD.get(kind, {}) | BAD[command]
    good = draw(st.lists(st.sampled_from(GOOD[kind]), max_size=3, unique_by=lambda flag: flag[0]))
    kinds = ["no value", "unknown", "unknown command", *(["no argument"] if len(base) > 1 else [])]
    flag = draw(st.sampled_from([*sorted(bad), *kinds]))
    if flag == "no value":
        name = draw(st.sampled_from([name for name in sorted(bad) if name.startswith("-")]))
        return Case(command, flag, [*base, *_flat(good), name])
    if flag == "unknown":
        word = draw(st.sampled_from(["--nope", "--step", "-x", "--no-quiet", "--SEED", "--seed=x", "--quiet=maybe"]))
        return Case(command, flag, [*base, *_flat(good), word])
    if flag == "unknown command":
        return Case(command, flag, [draw(NO_WORD.filter(lambda word: word not in BASES)), *base[1:]])
    if flag == "no argument":
        first = 2 if command.startswith("mnist") else 1
        return Case(command, flag, [*base[:first], *_flat(one for one in good if one[0] != "-o")])
    value = draw(bad[flag])
    if flag == "--like":  # other flags would override the mistake in the picture
        return Case(command, flag, [command, flag, value])
    if flag in POSITIONS:
        base[POSITIONS[flag]] = value
        wrong: list[list[str]] = []
    else:
        wrong = [[flag, value]]
        if flag == "--view" and flag in base:
            base = base[: base.index("--view")]
    beside = [one for one in good if one[0] != flag]
    return Case(command, flag, [*base, *_flat(draw(st.permutations([*beside, *wrong])))])


def _flat(flags: object) -> list[str]:
    return [word for flag in flags for word in flag]  # type: ignore[attr-defined]


def furnish(folder: Path) -> None:
    """Fills a folder with the files that the command lines name: pictures, masks and damaged files."""
    rng = np.random.default_rng(0)
    images.save(folder / "in.png", rng.uniform(-1, 1, (16, 24, 3)))
    for name, size, pixels in (("mask", (24, 16), "half"), ("wide", (25, 16), "half"), ("black", (24, 16), 0),
                               ("white", (24, 16), 255)):  # fmt: skip
        mask = Image.new("L", size, 0 if pixels == "half" else pixels)
        if pixels == "half":
            mask.paste(255, (12, 0, *size))
        mask.save(folder / f"{name}.png")
    (folder / "cut.png").write_bytes((folder / "in.png").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    header = bytearray((folder / "in.png").read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    (folder / "huge.png").write_bytes(header)
    for suffix in ("png", "npz", "npy", "pth", "safetensors"):
        (folder / f"text.{suffix}").write_text("this is text")
    for suffix in (".png", ".gif", ".mp4", ".npz", ".svg", ".safetensors"):
        (folder / f"folder{suffix}").mkdir()
        (folder / f"protected{suffix}").write_bytes(b"keep")
        (folder / f"protected{suffix}").chmod(0o444)
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"link-to-folder{suffix}").symlink_to("weights")
        (folder / f"link-to-nowhere{suffix}").symlink_to(f"gone/x{suffix}")
    (folder / "prompts.txt").write_text("a red three\na blue two\n")
    (folder / "blank.txt").write_text("a red three\n\na blue two\n")
    (folder / "full").mkdir()
    (folder / "full" / "keep.txt").write_text("keep")
    (folder / "weights").mkdir()
    (folder / "link-to-in.png").symlink_to("in.png")
    images.save(folder / "old.png", np.zeros((2, 2, 3)), {"command": "convert"})
    _likes(folder)


def _likes(folder: Path) -> None:
    """Writes pictures whose settings have one mistake each."""
    good = {
        "command": "generate", "model": "mini", "hash": "0", "prompts": ["a"], "stage2": None, "n": 1, "steps": 2,
        "guidance": 2.0, "negative": "", "encoder": None, "embeddings": None, "embeddings_sha256": None,
        "sampler": "ddim", "seed": 0, "dtype": "float32", "keep": 0, "image": None, "device": "cpu", "versions": {},
    }  # fmt: skip
    wrong = [
        ("n", 0), ("n", 10**30), ("n", "1"), ("steps", 0), ("steps", 10**30), ("steps", 1.5), ("guidance", 1e999),
        ("guidance", "2"), ("seed", -1), ("seed", 2**70), ("sampler", "x"), ("sampler", None), ("dtype", "int8"),
        ("keep", -1), ("keep", 10**30), ("image", [0, 5]), ("image", [True, 0]), ("image", "x"), ("image", [0]),
        ("prompts", []), ("prompts", "a"), ("prompts", [1]), ("prompts", ["\ud800"]), ("negative", "\ud800"),
        ("model", ""), ("model", "\0"), ("model", "gone"), ("encoder", "\0"), ("encoder", "gone"),
        ("embeddings", "\0.npz"), ("embeddings", "gone.npz"), ("versions", []), ("device", None), ("hash", 3),
        ("stage2", 3), ("stage2", "gone"), ("stage2", "\0"), ("command", "edit"), ("command", None), ("dtype", None),
        ("size", 32), ("size", "x"), ("size", "0x0"), ("size", "31x32"), ("steps", [2]), ("steps", [2, "3"]),
        ("steps", [2, 0]), ("guidance", [1, 1e999]),
    ]  # fmt: skip
    for i, (name, value) in enumerate(wrong):
        info = PngInfo()  # not by `images.save`, which refuses bad settings
        info.add_itxt(KEY, json.dumps(good | {name: value}))
        Image.new("RGB", (2, 2)).save(folder / f"like-{i}.png", pnginfo=info)


def inventory(folder: Path) -> dict[str, object]:
    """Returns the content, mode and time of everything in a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(told.st_mode) else None
        found[str(path)] = (told.st_mode, told.st_mtime_ns, content)
    return found


def judge(case: Case, folder: Path) -> str:
    """Runs a command line, and returns what is wrong with its end, or an empty string."""
    out, err = io.StringIO(), io.StringIO()
    before, cwd = inventory(folder), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status: object = cli.main(case.args)
            except SystemExit as ended:
                status = f"SystemExit {ended.code}"
            except BaseException as error:  # any exception is a failure
                status = f"{type(error).__name__}: {error}"[:200]
    finally:
        os.chdir(cwd)
    told = err.getvalue()
    if inventory(folder) != before:
        return "something was written or changed"
    if status != 2:
        return f"status {status}, {told[-200:]!r}"
    lines = [line.rpartition("\r")[2] for line in told.split("\n")]  # without a bar that was cleared away
    lines = [line for line in lines if line and not line.startswith("jdiff: note: ")]
    if out.getvalue() or len(lines) != 1 or not lines[0].startswith("jdiff: ") or len(lines[0]) > 6000:
        return f"not one line: {out.getvalue()!r} {told!r}"
    return ""


def main() -> None:
    """Runs bad command lines and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of command lines")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = parser.parse_args()
    os.environ["JDIFF_CACHE"] = ""
    tried, wrong, began = Counter(), [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        furnish(Path(name))

        @seed(args.seed)
        @settings(max_examples=args.count, deadline=None, database=None, suppress_health_check=SLOW)
        @given(cases())
        def each(case: Case) -> None:
            tried[case.command] += 1
            if problem := judge(case, Path(name)):
                wrong.append((case, problem))

        each()
    for command, count in sorted(tried.items()):
        failed = sum(case.command == command for case, _ in wrong)
        print(f"{command:14s} {count:5d} bad command lines, {failed} failures")
    for case, problem in wrong[:40]:
        print(case, problem)
    print(f"{sum(tried.values())} in {time.monotonic() - began:.0f} s, {len(wrong)} failures")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
