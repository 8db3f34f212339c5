"""Embeddings in files of every kind, kept on disk, and embedded before a network is in memory."""

import dataclasses
import gc
import io
import os
import pickle
import shutil
import sys
import warnings
import zipfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import main

import jdiff
from jdiff import images, model
from jdiff.checkpoints import digests, sources
from jdiff.scan import Samples
from jdiff.text import embeddings, encoder
from jdiff.text import kept as keeping

MINI = model.shipped("mini")
rng = np.random.default_rng(0)
COURSE = {
    prompt: rng.normal(size=(1, 77, 16)).astype(np.float16)
    for prompt in ("a rocket ship", "a photo of a dog", "an oil painting of a snowy mountain village", "")
}


def table(*prompts, dtype=np.float32):
    return {prompt: rng.normal(size=(5, 4)).astype(dtype) for prompt in prompts}


def write_npz(path, prompts):
    np.savez(path, **prompts)


def write_torch(path, prompts):
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    torch.save({prompt: torch.as_tensor(x) for prompt, x in prompts.items()}, path)


WRITERS = {
    "a.pth": write_torch,
    "a.pt": write_torch,
    "a.npz": write_npz,
    "a.safetensors": lambda path, prompts: save_file(dict(prompts), path),  # another's, names are prompts
    "ours.safetensors": lambda path, prompts: embeddings.write(path, {p: x[0] for p, x in prompts.items()}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_is_read_to_the_bit(name, tmp_path):
    WRITERS[name](tmp_path / name, COURSE)
    found = embeddings.read(tmp_path / name)
    assert found.keys() == COURSE.keys()
    for prompt, x in found.items():
        assert x.dtype == np.float16 and x.shape == (77, 16)
        np.testing.assert_array_equal(x, COURSE[prompt][0])
    embeddings.write(tmp_path / "b.safetensors", found)
    again = embeddings.read(tmp_path / "b.safetensors")
    assert list(again) == list(found) and all(again[p].tobytes() == found[p].tobytes() for p in found)
    assert not list(tmp_path.glob(".*"))  # nothing half-written


def test_bfloat16_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    x = torch.randn(1, 3, 4, requires_grad=True).to(torch.bfloat16)
    torch.save({"a": x}, tmp_path / "a.pth")
    np.testing.assert_array_equal(embeddings.read(tmp_path / "a.pth")["a"], x[0].detach().float().numpy())


def test_the_real_encoders_empty_prompt(data):
    path = data / "t5" / "zero_t5-v1_1-xxl_vector.npy"
    if not path.is_file():
        pytest.skip(f"no {path.name} there")
    found = embeddings.read(path)
    assert list(found) == [""] and found[""].shape == (77, 4096) and found[""].dtype == np.float16
    assert (found[""][1:] == found[""][1]).all() and (found[""][0] != found[""][1]).any()
    states = embeddings.embedder(found)(["", " "])
    assert states.shape == (2, 77, 4096) and states.dtype == np.float32
    np.testing.assert_array_equal(states[0], found[""])


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is not installed")

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"a": Runs()}, tmp_path / "zip.pth")
    for protocol in (2, 4):
        (tmp_path / f"plain{protocol}.pth").write_bytes(pickle.dumps({"a": Runs()}, protocol))
    np.save(tmp_path / "array.npy", np.array([Runs()]), allow_pickle=True)
    np.savez(tmp_path / "arrays.npz", a=np.array([Runs()]))
    for name in ("zip.pth", "plain2.pth", "plain4.pth", "array.npy", "arrays.npz"):
        with pytest.raises(ValueError, match=f"{name} is damaged, or no file of embeddings alone"):
            embeddings.read(tmp_path / name)
    assert not (tmp_path / "it ran").exists()
    pickle.loads((tmp_path / "plain2.pth").read_bytes())
    assert (tmp_path / "it ran").exists()  # as it does where it is not refused


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DAMAGED, SIZE = "is damaged, or no file of embeddings alone", r"must hold embeddings \[l d\], all of one size, got "
BAD = {
    "a.txt": (lambda path: path.write_text("a"), "must be a file of embeddings that ends in .safetensors, .pth"),
    "gone.npy": (lambda path: None, ": there is no such file"),
    "cut.npy": (lambda path: path.write_bytes(b"\x93NUMPY"), DAMAGED),
    "cut.npz": (lambda path: path.write_bytes(b"PK"), DAMAGED),
    "cut.safetensors": (lambda path: path.write_bytes(b"123"), "is missing or is not a complete safetensors file"),
    "cut.pth": (lambda path: path.write_bytes(b"123"), DAMAGED),
    "one.npy": (lambda path: np.save(path, np.zeros(3)), SIZE + r"\[3\] for ''"),
    "two.npy": (lambda path: np.save(path, np.zeros((2, 3, 4))), SIZE + r"\[2, 3, 4\] for ''"),
    "whole.npy": (lambda path: np.save(path, np.zeros((3, 4), int)), "must hold numbers of F64, .* got int64 for ''"),
    "nan.npy": (lambda path: np.save(path, np.full((3, 4), np.nan)), "must hold finite numbers, got others for ''"),
    "long.npy": (lambda path: path.write_bytes(npy(np.ones((3, 4))) + b"!"), "is damaged: 1 bytes follow an array"),
    "none.npz": (lambda path: np.savez(path), "must hold an embedding or more, got none"),
    "sizes.npz": (lambda path: np.savez(path, a=np.ones((3, 4)), b=np.ones((3, 5))), SIZE + r"\[3, 5\] for 'b'"),
    "more.npz": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "must hold NumPy arrays .* 'a.txt'"),
    "int.safetensors": (lambda path: save_file({"a": np.ones((3, 4), int)}, path), "must .* F64, .* got I64 for 'a'"),
    "few.safetensors": (
        lambda path: save_file({"0": np.ones((3, 4))}, path, {"prompts": '["a", "b"]'}),
        "must hold one tensor for each of its 2 prompts, got 1",
    ),
    "odd.safetensors": (
        lambda path: save_file({"0": np.ones((3, 4))}, path, {"prompts": "["}),
        "has no readable list of prompts",
    ),
    "twice.safetensors": (
        lambda path: save_file({"0": np.ones((3, 4)), "1": np.ones((3, 4))}, path, {"prompts": '["a", "a"]'}),
        "must hold each prompt once, got one twice",
    ),
    "unet.safetensors": (
        lambda path: shutil.copy(MINI / "unet" / "model.safetensors", path),
        "has no readable list of prompts",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said(name, tmp_path):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="the oracle is not installed")
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        embeddings.read(tmp_path / name)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / name)) and "\n" not in said and said.count(name) == 1


@pytest.mark.parametrize("what", [[1], {1: 2}, {"a": 3}])
def test_a_torch_file_of_something_else(what, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    torch.save(what, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth must hold a dict of prompts and tensors, got "):
        embeddings.read(tmp_path / "a.pth")


def test_without_torch_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").touch()
    with pytest.raises(ValueError, match="a.pth needs torch to be read: pip install torch, or convert it on a"):
        embeddings.read(tmp_path / "a.pth")
    write_npz(tmp_path / "a.npz", COURSE)
    assert len(embeddings.read(tmp_path / "a.npz")) == 4


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.safetensors"
    embeddings.write(path, table("a"))
    before = path.read_bytes()
    for wrong in ({}, table("a") | {"b": np.ones((5, 3), np.float32)}):
        with pytest.raises(ValueError, match="table must hold "):
            embeddings.write(path, wrong)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_prompt_is_known_as_it_is_or_to_case(tmp_path):
    known = table("A dog", "a dog", "An Owl ")
    embed = embeddings.embedder(known)
    got = embed(["a dog", "A dog", " AN owl", "a dog"])
    want = [known["a dog"], known["A dog"], known["An Owl "], known["a dog"]]
    np.testing.assert_array_equal(got, want)


def test_one_error_shows_the_nearest_of_every_prompt_that_is_not_known():
    embed = embeddings.embedder({prompt: x[0] for prompt, x in COURSE.items()}, why="it has no encoder")
    with pytest.raises(ValueError) as caught:
        embed(["a rocket shp", "a photo of a dog", "photo of a frog"])
    said = str(caught.value)
    assert said.startswith("it has no encoder, and no embedding of 'a rocket shp' (nearest: 'a rocket ship', ")
    assert "'photo of a frog' (nearest: 'a photo of a dog', " in said and "\n" not in said
    assert said.endswith("give prompts that have an embedding, or an encoder")


def counted(encode=None, **changes):
    """The mini model's encoder, and the prompts it was asked for."""
    asked, found = [], encoder.find(MINI)

    def spied(prompts):
        asked.append(list(prompts))
        return (encode or found.encode)(prompts)

    if "hash" in changes:
        changes["identify"] = partial(str, changes.pop("hash"))
    return dataclasses.replace(found, encode=spied, **changes), asked


def test_the_encoder_is_asked_once_for_what_is_nowhere_else(tmp_path):
    known = {"a red three": np.full((40, 128), 7, np.float16)}
    found, asked = counted()
    first = embeddings.embedder(known, found, tmp_path)(["a red three", "a blue two", "A blue two ", "a", "a"])
    assert asked == [["a blue two", "a"]] and (first[0] == 7).all()
    np.testing.assert_array_equal(first[1], first[2])
    again = embeddings.embedder(cache=tmp_path, encoder=found)(["a", "a blue two"])
    assert len(asked) == 1
    np.testing.assert_array_equal(again, first[[3, 1]])
    np.testing.assert_array_equal(again, encoder.find(MINI).encode(["a", "a blue two"]))  # to the bit, in any company
    assert embeddings.embedder(cache=tmp_path, encoder=found)([]).shape == (0, 40, 128)


def test_what_an_encoder_made_is_remembered_up_to_a_size(monkeypatch):
    found, asked = counted()
    embed = embeddings.embedder(encoder=found)
    first = embed(["a red three", "a blue two"])
    first[:] = 0  # the caller's own
    again = embed(["A blue two ", "a red three"])
    assert len(asked) == 1 and (again != 0).any()
    np.testing.assert_array_equal(again, found.encode(["a blue two", "a red three"]))
    asked.clear()
    monkeypatch.setattr(keeping, "REMEMBERED", 2 * again[0].nbytes)
    embed(["a red three", "a tree"])
    embed(["a red three", "a tree"])
    assert asked == [["a tree"]]
    embed(["a blue two", "a tree"])  # was forgotten: used longest ago
    assert asked == [["a tree"], ["a blue two"]]


def test_a_model_reads_its_encoder_once(monkeypatch):
    read, whole = [], encoder._whole
    monkeypatch.setattr(encoder, "_whole", lambda *args: read.append(1) or whole(*args))
    loaded = jdiff.load("mini")
    for prompt in ("a red six", "a red nine", "a red six"):
        loaded.guided([prompt])
    assert len(read) == 2


@pytest.mark.parametrize("changes", [{"hash": "another"}, {"clean": "none"}])
def test_what_is_kept_is_of_one_encoder_and_one_way_of_cleaning(changes, tmp_path):
    told = []
    for which in ({}, changes, {}, changes):
        found, asked = counted(**which)
        embeddings.embedder(encoder=found, cache=tmp_path)(["a red three"])
        told.append((len(asked), len(list(tmp_path.iterdir()))))
    assert told == [(1, 1), (1, 2), (0, 2), (0, 2)]


def test_what_is_damaged_is_made_again_and_what_cannot_be_kept_is_not(tmp_path):
    found, asked = counted()
    want = embeddings.embedder(encoder=found, cache=tmp_path / "new")(["a"])
    (kept,) = (tmp_path / "new").iterdir()
    whole = kept.read_bytes()
    for damage in (whole[:-1], b"", whole.replace(b"[40, 128]", b"[128, 40]")):
        kept.write_bytes(damage)
        np.testing.assert_array_equal(embeddings.embedder(encoder=found, cache=tmp_path / "new")(["a"]), want)
        assert kept.read_bytes() == whole
    assert len(asked) == 4
    changed = bytearray(whole)
    changed[-1] ^= 1  # of the numbers
    kept.write_bytes(changed)
    np.testing.assert_array_equal(embeddings.embedder(encoder=found, cache=tmp_path / "new")(["a"]), want)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="the embedding of 'b' cannot be kept in .*file"):
        embeddings.embedder(encoder=found, cache=tmp_path / "file")(["b"])


def test_that_a_prompt_is_cut_is_said_each_time(tmp_path):
    for _ in range(2):
        found, asked = counted()
        for embed in [embeddings.embedder(encoder=found, cache=tmp_path)] * 2:
            with pytest.warns(UserWarning, match="cut at 39 bytes: 'bc' is lost of 'a") as said:
                embed(["a" * 39 + "bc"])
            assert len(said) == 1
    assert asked == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings.embedder(encoder=found, cache=tmp_path)(["short"])


def test_embeddings_are_made_and_freed_before_the_networks_weights_are_read(tmp_path, monkeypatch):
    held = lambda: sum(array.nbytes for array in jax.live_arrays())
    gc.collect()
    order, before = [], held()
    encode = encoder._whole
    monkeypatch.setattr(encoder, "_whole", lambda *a: order.append(("encoder", held() - before)) or encode(*a))

    arrays = sources.Source.arrays

    def spied(self, dtype):
        order.append(("network", held() - before))
        yield from arrays(self, dtype)

    monkeypatch.setattr(sources.Source, "arrays", spied)
    loaded = jdiff.load(MINI, texts=["a red three", ""], cache=tmp_path)
    assert order == [("encoder", 0), ("network", 0)]  # neither beside the other
    loaded.embed(["a red three"])
    assert len(order) == 2
    np.testing.assert_array_equal(
        loaded.embed(["a red three", ""]), jdiff.load(MINI, cache=tmp_path).embed(["a red three", ""])
    )
    assert [what for what, _ in order] == ["encoder", "network", "network"]


def test_a_model_takes_an_encoder_from_elsewhere_and_refuses_what_does_not_fit(tmp_path):
    bare = shutil.copytree(MINI, tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder"))
    own, other = jdiff.load(MINI, known=table("a")), jdiff.load(bare, encoder=MINI)
    np.testing.assert_array_equal(other.embed(["a red three"]), own.embed(["a red three"]))
    with pytest.raises(ValueError, match=r"of one size, .* got \[5, 4\] for 'a', \[40, 128\] for 'b'"):
        own.embed(["a", "b"])
    alone = jdiff.load(bare, known=table("a"))
    assert own.hash == other.hash != alone.hash  # the same contents, wherever they lie
    with pytest.raises(ValueError, match="embeddings must be 128 wide for this model, got 4"):
        alone.embed(["a"])
    with pytest.raises(ValueError, match="no text encoder that reads prompts, and no embedding of 'b' .nearest: 'a'."):
        alone.embed(["b"])


# The command.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, and in place of sampling the embeddings themselves as a picture."""

    def generate(model, prompts, key, *, n, negative, **_):
        texts = np.asarray(model.embed([negative, *prompts]))
        pages = np.tanh(texts[1:, None, :, :, None] - texts[0, ..., None]).repeat(3, -1).repeat(n, 1)
        return Samples(pages)

    monkeypatch.setattr("jdiff.sample.generate", generate)
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_embed_writes_what_the_encoder_says_and_every_command_knows_it(folder, capsys):
    prompts = ["a red three", "", "A blue two"]
    assert main("embed", *prompts, "--encoder", MINI, "-o", "p.safetensors") == 0
    assert main("embed", "--list", "p.safetensors") == 0
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (
        ["wrote p.safetensors: 3 prompts", *(f"{prompt!r} [40, 128] float32" for prompt in prompts)],
        "",
    )
    want = encoder.find(MINI).encode(prompts)
    np.testing.assert_array_equal(list(embeddings.read("p.safetensors").values()), want)

    bare = shutil.copytree(MINI, "bare", ignore=shutil.ignore_patterns("text_encoder"))
    flags = ["-n", 1, "--steps", 2, "--quiet"]
    knows = ["--model", bare, "--prompts", "p.safetensors"]
    assert main("generate", "a red three", *flags, *knows, "-o", "a.png") == 0
    assert main("generate", "a red three", *flags, "-o", "b.png") == 0
    np.testing.assert_array_equal(images.load("a.png"), images.load("b.png"))
    found = images.read_settings("a.png")
    assert found["embeddings"] == "p.safetensors" and found["encoder"] is None
    assert found["embeddings_sha256"] == digests.sha256("p.safetensors")
    assert main("generate", "--like", "a.png", "--quiet") == 0
    assert Path("a-again.png").read_bytes() == Path("a.png").read_bytes()
    capsys.readouterr()
    assert main("embed", *prompts, "--clean", "none", "--encoder", MINI, "-o", "p.safetensors") == 0
    assert main("generate", "--like", "a.png", "--quiet") == 0
    assert "jdiff: note: " in (err := capsys.readouterr().err) and "embeddings p.safetensors (sha256 " in err
    assert main("generate", "a red tree", *flags, *knows, "-o", "c.png") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no embedding of 'a red tree' (nearest: 'a red three'" in err
    assert not Path("c.png").exists()


def test_the_courses_file_becomes_safetensors(folder, capsys):
    write_torch("course.pth", COURSE)
    assert main("embed", "--prompts", "course.pth", "-o", "p.safetensors") == 0
    assert {p: x.dtype for p, x in embeddings.read("p.safetensors").items()} == dict.fromkeys(COURSE, np.float16)


def test_an_encoder_from_elsewhere_goes_into_the_settings(folder):
    bare = shutil.copytree(MINI, "bare", ignore=shutil.ignore_patterns("text_encoder"))
    flags = ["-n", 1, "--steps", 2, "--quiet", "--model", bare, "--encoder", MINI]
    assert main("generate", "a red three", *flags) == 0
    assert images.read_settings("out.png")["encoder"] == str(MINI)
    assert main("generate", "--like", "out.png", "--quiet") == 0
    assert Path("out-again.png").read_bytes() == Path("out.png").read_bytes()


def test_a_second_run_needs_no_encoder(folder, monkeypatch):
    monkeypatch.setattr("jdiff.cli.cache.keep_compilations", lambda: None)
    monkeypatch.setenv("JDIFF_CACHE", str(folder / "cache"))
    args = ["generate", "a red three", "-n", 1, "--steps", 2, "--quiet"]
    assert main(*args) == 0
    assert len(list((folder / "cache" / "prompts").iterdir())) == 2
    monkeypatch.setattr(encoder, "_whole", lambda *_: pytest.fail("loaded"))
    assert main(*args, "-o", "b.png") == 0
    assert Path("b.png").read_bytes() == Path("out.png").read_bytes()


WRONG = {
    "nothing": (["embed"], "no prompt is given; give one or more, such as jdiff embed"),
    "no encoder": (
        ["embed", "a"],
        "--encoder must be a folder that `jdiff convert` or transformers wrote of a T5 encoder, or OWNER/NAME"
        "/text_encoder on the hub, got none",
    ),
    "nowhere": (
        ["embed", "a", "--encoder", "nowhere"],
        "the encoder must be letters, mini, mini-upscaler, a folder that",
    ),
    "suffix": (
        ["embed", "a", "--encoder", "b", "-o", "a.pth"],
        "-o must be a file that ends in .safetensors, got a.pth",
    ),
    "bytes": (["embed", "a\udcff", "--encoder", "b"], r"a prompt must be text in UTF-8, got 'a\udcff'"),
    "over itself": (
        ["embed", "--prompts", "p.safetensors", "-o", "p.safetensors"],
        "-o must be another file than --prompts reads",
    ),
    "no list": (["embed", "--list", "gone.npy"], "--list: gone.npy: there is no such file; give"),
    "no file": (["generate", "a", "--prompts", "gone.npy"], "--prompts: gone.npy: there is no such file; give"),
    "no model's": (["generate", "a", "--encoder", "nowhere"], "got 'nowhere', which does not exist"),
    "empty": (["generate", "a", "--encoder", ""], "--encoder must be the folder of a text encoder, got ''"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line_and_writes_nothing(name, folder, capsys):
    embeddings.write("p.safetensors", table("a"))
    args, message = WRONG[name]
    assert main(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err and os.listdir() == ["p.safetensors"]
