"""Models by name from a hub that stands on this machine: what is asked for, who asks, and what fails how."""

import hashlib
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_cli import main
from test_text import pieces  # noqa: F401, a fixture

import jdiff
from jdiff.checkpoints import convert, hub
from jdiff.text import encoder

hf = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
pytest.importorskip("torch", reason="the oracle is not installed")
pytest.importorskip("diffusers", reason="the oracle is not installed")
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import parity_rungs as parity  # noqa: E402  # pyright: ignore[reportMissingImports]

NAME = "Deep/Small-v1.0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A pipeline's folder as it lies on the hub: two variants, pickles, an encoder in shards, other files."""
    folder = tmp_path_factory.mktemp("source")
    two = {
        "down_block_types": (parity.PLAIN_DOWN, parity.CROSS_DOWN),
        "up_block_types": (parity.CROSS_UP, parity.PLAIN_UP),
    }
    two["block_out_channels"] = parity.COMMON["block_out_channels"][:2]
    unet = parity.UNet2DConditionModel(**parity.STAGE1 | two)
    unet.save_pretrained(folder / "unet")
    unet.half().save_pretrained(folder / "unet", variant="fp16")
    encoder = parity.encoder("", dict(parity.T5, vocab_size=256)).module.float()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    encoder.half().save_pretrained(folder / "text_encoder", max_shard_size="20KB", variant="fp16")
    for path in ("scheduler/scheduler_config.json", "safety_checker/config.json", "unet/pickle.bin", "README.md"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("{}")
    (folder / "tokenizer").mkdir()
    for name in convert.TOKENIZER:
        (folder / "tokenizer" / name).write_text(json.dumps({"name": name}))  # one blob each
    return folder


@pytest.fixture
def server(source, tmp_path, monkeypatch):
    """That folder behind HTTP, as huggingface_hub asks for it; what was asked, and by whom; what it answers instead."""
    told = SimpleNamespace(asked=[], tokens=set(), refuse=None, commit=COMMIT, files=source, folder=tmp_path / "hub")

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body, status=200, **headers):
            self.send_response(status)
            sent = {"Content-Length": str(len(body)), "X-Repo-Commit": told.commit, **headers}
            for name, value in sent.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            listing = path.startswith("/api/")
            if told.refuse and (refused := told.refuse(listing)):
                status, code = refused
                return self.answer(b"{}", status, **({"X_Error_Code": code} if code else {}))
            files = sorted(p for p in told.files.rglob("*") if p.is_file())
            names = [str(p.relative_to(told.files)) for p in files]
            if path.startswith(f"/api/models/{NAME}/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": hashlib.sha1(n.encode()).hexdigest()}
                    for n, p in zip(names, files, strict=True)
                ]
                return self.answer(json.dumps(tree).encode())
            if listing:
                siblings = [{"rfilename": n} for n in names]
                return self.answer(json.dumps({"id": NAME, "sha": told.commit, "siblings": siblings}).encode())
            name = path.removeprefix(f"/{NAME}/resolve/{told.commit}/")
            if name not in names:
                return self.answer(b"{}", 404, X_Error_Code="EntryNotFound")
            body = (told.files / name).read_bytes()
            if self.command == "GET":
                told.asked.append(name)
                told.tokens.add(self.headers.get("Authorization"))
            return self.answer(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    told.page = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(hf.constants, "ENDPOINT", told.page)
    monkeypatch.setattr(
        hf.constants, "HUGGINGFACE_CO_URL_TEMPLATE", told.page + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hf.constants, "HF_HUB_CACHE", str(told.folder))
    monkeypatch.setattr(hf.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_ours")
    monkeypatch.chdir(tmp_path)
    yield told
    served.shutdown()
    served.server_close()
    thread.join()


UNET = ["scheduler/scheduler_config.json", "unet/config.json"]
FULL, HALF = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.mark.parametrize(("dtype", "weights"), [("float32", FULL), ("bfloat16", HALF)])
def test_only_the_wanted_variant_is_fetched_and_loads_as_converted(server, source, tmp_path, dtype, weights):
    loaded = jdiff.load(NAME, dtype=dtype)
    assert sorted(server.asked) == sorted([*UNET, weights]) and server.tokens == {"Bearer hf_ours"}
    assert loaded.name == "Small-v1.0"
    alone = shutil.copytree(source, tmp_path / "alone", ignore=lambda folder, names: [Path(n).name for n in names
        if n.endswith(".safetensors") and "diffusion" in n and n != Path(weights).name] + ["text_encoder"])  # fmt: skip
    same = jdiff.load(convert.convert(alone, tmp_path / "ours", dtype), dtype=dtype)
    assert same.hash == loaded.hash and same.config == loaded.config
    for a, b in zip(jax.tree.leaves(same.network), jax.tree.leaves(loaded.network), strict=True):
        assert a.dtype == b.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(a, b)
    server.asked.clear()
    jdiff.load(NAME, dtype=dtype)
    assert server.asked == []


def test_where_there_is_one_variant_it_is_taken(server, source, tmp_path):
    server.files = shutil.copytree(source, tmp_path / "fewer")
    (server.files / FULL).unlink()
    assert jdiff.load(NAME).name == "Small-v1.0"
    assert sorted(server.asked) == sorted([*UNET, HALF])
    (server.files / HALF).unlink()
    server.commit = COMMIT[::-1]
    with pytest.raises(
        ValueError, match="has no unet/diffusion_pytorch_model.safetensors on http.*/Deep/Small-v1.0; give"
    ):
        jdiff.load(NAME)


def test_the_encoder_is_a_name_of_its_own_to_convert(server, capsys):
    assert main("convert", f"{NAME}/text_encoder", "t5", "--dtype", "int8") == 0
    beside = {"text_encoder/config.json", *(f"tokenizer/{name}" for name in convert.TOKENIZER)}
    weights = set(server.asked) - beside
    assert set(server.asked) > beside and all("text_encoder/model" in name and "fp16" in name for name in weights)
    names = {p.name for p in Path("t5/text_encoder").iterdir()}
    assert names == {"config.json", "model.safetensors", *convert.TOKENIZER}
    assert encoder.find("t5").width == 24 and capsys.readouterr().out == "wrote t5\n"


@pytest.mark.parametrize(("dtype", "variant"), [("float32", False), ("float16", True)])
def test_an_encoder_on_the_hub_is_used_without_a_conversion(server, source, pieces, tmp_path, dtype, variant):  # noqa: F811
    server.files = shutil.copytree(source, tmp_path / "files")
    shutil.rmtree(server.files / "tokenizer")
    shutil.copytree(pieces, server.files / "tokenizer")
    found = encoder.find(f"{NAME}/text_encoder", dtype=dtype)
    weights = [name for name in server.asked if name.endswith(".safetensors")]
    assert weights and all(("fp16" in name) == variant and "text_encoder/" in name for name in weights)
    here = encoder.find(server.files if not variant else Path(found.folder), dtype=dtype)
    np.testing.assert_array_equal(found.encode(["a red three"]), here.encode(["a red three"]))
    assert found.hash == here.hash
    server.asked.clear()
    with pytest.raises(ValueError, match="embeddings must be 48 wide for this model, got 24"):
        jdiff.load(NAME, encoder=f"{NAME}/text_encoder").embed(["a red three"])
    assert not any("text_encoder" in name for name in server.asked) or variant


def test_commands_take_an_encoder_by_its_name_on_the_hub(server, source, pieces, tmp_path, monkeypatch, capsys):  # noqa: F811
    server.files = shutil.copytree(source, tmp_path / "files")
    shutil.rmtree(server.files / "tokenizer")
    shutil.copytree(pieces, server.files / "tokenizer")
    monkeypatch.setenv("JDIFF_CACHE", "")
    assert main("embed", "a red three", "--encoder", f"{NAME}/text_encoder", "-o", "hub.safetensors") == 0
    assert main("embed", "a red three", "--encoder", server.files, "-o", "here.safetensors") == 0
    found, here = (jdiff.text.embeddings.read(f"{name}.safetensors")["a red three"] for name in ("hub", "here"))
    np.testing.assert_array_equal(found, here)
    assert any("text_encoder/model" in name for name in server.asked)
    assert main("embed", "a red three", "--encoder", NAME, "-o", "b.safetensors") == 2
    assert capsys.readouterr().err.endswith(f"got {NAME!r}; add /text_encoder\n")


@pytest.mark.parametrize(
    "refused",
    [
        lambda listing: (401, "RepoNotFound"),
        lambda listing: (403, None),
        lambda listing: None if listing else (401, "GatedRepo"),
        lambda listing: None if listing else (403, "GatedRepo"),
    ],
)
def test_without_access_the_page_of_the_licence_is_shown(server, refused, capsys):
    server.refuse = refused
    with pytest.raises(ValueError) as caught:
        jdiff.load(NAME)
    said = str(caught.value)
    assert f"accept its licence on {server.page}/{NAME}, and log in" in said
    assert "$HF_TOKEN" in said and "\n" not in said
    assert "hf_ours" not in said
    assert main("generate", "a", "--model", NAME) == 2
    err = capsys.readouterr().err
    assert f"{server.page}/{NAME}" in err and "Traceback" not in err


def test_a_hub_that_fails_is_said(server):
    server.refuse = lambda listing: None if listing else (409, None)
    with pytest.raises(
        ValueError, match="Deep/Small-v1.0 cannot be downloaded .status 409 of http.*Small-v1.0.; try again"
    ):
        jdiff.load(NAME)


def test_without_a_network_what_is_in_the_cache_is_taken(server, monkeypatch):
    want = jdiff.load(NAME, dtype="float16")
    monkeypatch.setattr(hf.constants, "HF_HUB_OFFLINE", True)
    assert jdiff.load(NAME, dtype="float16").hash == want.hash
    with pytest.raises(
        ValueError,
        match="Deep/Other cannot be downloaded, because there is no connection, and .*hub does not have all of it",
    ):
        jdiff.load("Deep/Other")


def test_no_extra_no_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError, match=r"Deep/Small-v1.0 needs huggingface_hub to be downloaded: pip install huggingface_hub"
    ):
        jdiff.load(NAME)
    with pytest.raises(ValueError, match="model must be letters, mini, .* or OWNER/NAME on the hub, got 'a/b/c'"):
        jdiff.load("a/b/c")


def test_what_is_a_name():
    assert hub.is_name("a/b") and hub.is_name("a/b/text_encoder")
    assert not any(map(hub.is_name, ("jdiff/mnist", "jdiff/minst")))  # the first part is a folder here
    assert not any(map(hub.is_name, ("a", "a/", "/a", "a/b/unet", "a/b/c/d", "../b", "./b", "~/b", "a b/c", "")))
