"""Glyphs drawn from fonts, and what measures the letters model."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
pytest.importorskip("fontTools", reason="fontTools is in the extra prepare-letters")

import letters_card  # noqa: E402
import measure_letters  # noqa: E402
import prepare_letters  # noqa: E402
import train_letters  # noqa: E402
from fontTools.fontBuilder import FontBuilder  # noqa: E402
from fontTools.pens.ttGlyphPen import TTGlyphPen  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

import jdiff  # noqa: E402
from jdiff import views  # noqa: E402
from jdiff.checkpoints.folder import first_weights  # noqa: E402
from jdiff.letters import ambigrams, data, folder, judge, spelling  # noqa: E402
from jdiff.letters.captions import CHARACTERS  # noqa: E402
from jdiff.networks import t5, unet  # noqa: E402
from jdiff.types import Conditioning, Prediction, Rule  # noqa: E402


def bar(stem, foot=0, top=700, lean=0):
    """An upright bar in font units, with feet of `foot` to each side, that leans by `lean` at its top."""
    pen = TTGlyphPen(None)
    edge = 60
    boxes = [(foot, 0, foot + stem, top)]
    if foot:
        boxes += [(0, y, 2 * foot + stem, y + edge) for y in (0, top - edge)]
    for left, low, right, high in boxes:
        a, b = (lean * y / top for y in (low, high))
        pen.moveTo((left + a, low))
        for point in ((left + b, high), (right + b, high), (right + a, low)):
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


def font(path, stem=140, foot=0, lean=0, without="", wide="", empty="", weight=400, italic=False, advance=100):
    """Writes a font whose characters are bars, each a little wider than the one before, but for the capital I."""
    names = {character: f"c{ord(character)}" for character in CHARACTERS if character not in without}
    glyphs = {".notdef": bar(100)}
    for i, (character, name) in enumerate(names.items()):
        size = 3000 if character in wide else stem if character == "I" else stem + 4 * i
        glyphs[name] = TTGlyphPen(None).glyph() if character in empty else bar(size, foot, lean=lean)
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    builder.setupGlyf(glyphs)
    starts = {name: getattr(glyph, "xMin", 0) for name, glyph in glyphs.items()}
    builder.setupHorizontalMetrics({name: (advance, start) for name, start in starts.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(
        {"familyName": path.stem, "styleName": "Regular", "copyright": "nobody", "fullName": path.stem}
    )
    builder.setupOS2(usWeightClass=weight, fsSelection=1 if italic else 64)
    builder.setupPost()
    builder.save(path)


def test_prepared_glyphs_are_what_training_reads(tmp_path):
    fonts = tmp_path / "fonts" / "deep"
    fonts.mkdir(parents=True)
    font(fonts / "Plain.ttf", weight=700)
    font(fonts / "Feet.ttf", stem=105, foot=150, italic=True)
    (fonts / "notes.txt").write_text("no font")
    prepare_letters.main(fonts.parent, tmp_path / "glyphs")
    found = data.read(tmp_path / "glyphs")
    assert found.images.shape == (2, len(CHARACTERS), 32, 32) and found.images.max() == 255
    feet, plain = found.fonts
    assert (feet["font"], feet["serif"], feet["italic"], feet["weight"]) == ("Feet", True, True, 400)
    assert (plain["font"], plain["serif"], plain["italic"], plain["weight"]) == ("Plain", False, False, 700)
    assert plain["mono"] and plain["copyright"] == "nobody"
    assert plain["stem"] == pytest.approx(140 / 700, abs=0.01) and feet["stem"] == pytest.approx(105 / 700, abs=0.01)


def test_a_glyph_is_centred_and_a_capital_has_one_height(tmp_path):
    font(tmp_path / "Plain.ttf")
    glyph = prepare_letters.drawn(tmp_path / "Plain.ttf")[CHARACTERS.index("H")]
    for axis in (0, 1):
        places = np.flatnonzero(glyph.max(axis=axis) > 127)
        assert abs((places[0] + places[-1]) / 2 - 31.5) <= 0.5
    rows = np.flatnonzero(glyph.max(axis=1) > 127)
    assert rows[-1] - rows[0] + 1 == pytest.approx(40, abs=1)  # 160 of 256


@pytest.mark.parametrize(
    "how, said",
    [
        ({"without": "Q"}, "it has no 'Q'"),
        ({"wide": "W"}, "its 'W' is larger"),
        ({"empty": "g"}, "its 'g' is empty"),
        ({"empty": "H"}, "its 'H' is empty"),
    ],
)
def test_typefaces_that_cannot_be_drawn_are_skipped(tmp_path, how, said, capsys):
    font(tmp_path / "Bad.ttf", **how)
    font(tmp_path / "Good.ttf")
    prepare_letters.main(tmp_path, tmp_path / "glyphs")
    assert [row["font"] for row in data.read(tmp_path / "glyphs").fonts] == ["Good"]
    assert f"skipped Bad.ttf: {said}" in "".join(capsys.readouterr())


def test_broken_files_and_copies_are_skipped(tmp_path, capsys):
    font(tmp_path / "A.ttf")
    (tmp_path / "B.ttf").write_bytes((tmp_path / "A.ttf").read_bytes())
    (tmp_path / "C.ttf").write_bytes(b"no font at all")
    (tmp_path / "D.ttc").write_bytes(b"no fonts at all")
    prepare_letters.main(tmp_path, tmp_path / "glyphs")
    assert len(data.read(tmp_path / "glyphs").fonts) == 1
    said = "".join(capsys.readouterr())
    assert "skipped B.ttf: another typeface looks the same" in said
    assert "skipped C.ttf: it cannot be read" in said and "skipped D.ttc: it cannot be read" in said


def test_a_folder_without_typefaces_is_one_line_and_writes_nothing(tmp_path):
    with pytest.raises(SystemExit, match="FOLDER must have typefaces with all of A-Z a-z 0-9, got none in"):
        prepare_letters.main(tmp_path, tmp_path / "glyphs")
    with pytest.raises(SystemExit, match="FOLDER must be a folder, got"):
        prepare_letters.main(tmp_path / "nowhere", tmp_path / "glyphs")
    assert not (tmp_path / "glyphs").exists()


@pytest.mark.parametrize("degrees", [-10, 0, 5, 12])
def test_slant_is_the_angle_of_the_stem(tmp_path, degrees):
    font(tmp_path / "I.ttf", lean=700 * np.tan(np.radians(degrees)))
    glyph = prepare_letters.drawn(tmp_path / "I.ttf")[CHARACTERS.index("I")][None, :, :, None] / 127.5 - 1
    assert measure_letters.slant(glyph)[0] == pytest.approx(degrees, abs=0.5)


def test_measured_typefaces_are_as_recorded(data):
    with np.load(data / "glyphs" / "glyphs.npz") as file:
        capitals = file["glyphs"][:, CHARACTERS.index("I")]
    rows = [json.loads(line) for line in (data / "glyphs" / "fonts.jsonl").read_text().splitlines()]
    stems, serifs = zip(*map(prepare_letters.stem_and_serif, capitals), strict=True)
    assert np.abs(np.array(stems) - [row["stem"] for row in rows]).max() < 0.03
    assert np.mean([a == row["serif"] for a, row in zip(serifs, rows, strict=True)]) > 0.99


def tiny():
    """Sizes of a small letters model."""
    sizes = unet.Config(
        sample_size=32, in_channels=1, out_channels=1, patch=2, block_out_channels=(8, 8), layers_per_block=(1, 1),
        down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN), up_block_types=(unet.CROSS_UP, unet.PLAIN_UP),
        attention_head_dim=4, cross_attention_dim=32, encoder_hid_dim=8, addition_embed_type_num_heads=2,
        norm_num_groups=4,
    )  # fmt: skip
    return sizes, t5.Config(vocab_size=259, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)


def test_a_written_model_is_read_again_at_half_the_size(tmp_path):
    sizes, text = tiny()
    params = jax.tree.map(lambda a: a + 0.05, unet.init(sizes, jax.random.key(0)))  # the last layer starts at 0
    words = t5.init(text, jax.random.key(1))
    folder.write(tmp_path, sizes, text, params, words)
    numbers = sum(a.size for a in jax.tree.leaves(params))
    assert (tmp_path / "unet" / "model.safetensors").stat().st_size < 2 * numbers + 65536
    loaded = jdiff.load(tmp_path)
    assert loaded.config.channels == 1 and loaded.config.sample_size == 32
    x, t = jax.random.normal(jax.random.key(2), (2, 32, 32, 1)), jnp.array([10.0, 900.0])
    told = Conditioning(loaded.embed(["a bold serif capital A", "an A"]))
    wanted = unet.unet(sizes).apply(params, x, t, told).estimate
    found = loaded.network(x, t, told).estimate
    assert found.dtype == jnp.float32 and float(jnp.abs(wanted).max()) > 0.1
    np.testing.assert_allclose(found, wanted, atol=0.01 * float(jnp.abs(wanted).max()))


def test_right_folds_what_looks_alike():
    chances = np.eye(len(judge.CLASSES))[[judge.CLASSES.index(c) for c in "oixa"]]
    assert measure_letters.right(chances, "0lXb").tolist() == [True, True, True, False]
    assert measure_letters.right(chances, "QIxA").tolist() == [False, True, True, True]


def candidates(worst, n=2):
    """n candidates of one pair, all read with one probability."""
    pair = spelling.Pair("a", "b")
    return measure_letters.Candidates(
        [pair] * n, np.zeros((n, 32, 32, 1)), {"ranker": np.full((n, 2), worst)}, np.zeros(n, bool), 1.0
    )


def test_a_choice_of_case_scores_as_its_candidates_do():
    """Two equal letters in the other order are one glyph turned, and share their candidates."""
    pairs = [spelling.Pair(*both) for both in ("AB", "aB", "AB", "aB")]
    chances = np.array([[0.5, 0.9], [0.2, 0.1], [0.9, 0.7], [0.3, 0.4]])
    made = candidates(0.0, 4)._replace(pairs=pairs, chances={"ranker": chances})
    assert measure_letters.case_scores({("a", "b"): made}) == {"AB": 0.6, "aB": 0.2}
    same = made._replace(pairs=[spelling.Pair(*both) for both in ("AA", "aA", "Aa", "aa")])
    assert measure_letters.case_scores({("a", "a"): same}) == {"AA": 0.5, "aA": 0.4, "Aa": 0.4, "aa": 0.3}


def test_only_the_worst_pair_of_a_word_gets_more_candidates():
    kinds = [("a", "b"), ("c", "d"), ("e", "f")]
    found = dict(zip(kinds, map(candidates, (0.9, 0.2, 0.5)), strict=True))
    more = {kinds[1]: candidates(0.7)}
    assert measure_letters.worst(found, kinds) == kinds[1]
    joined = measure_letters.with_more(found, more, kinds)
    assert joined[kinds[1]].chances["ranker"][:, 0].tolist() == [0.2, 0.2, 0.7, 0.7]
    assert joined[kinds[0]].chances["ranker"][:, 0].tolist() == [0.9] * 4
    assert [joined[kind].seconds for kind in kinds] == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("view", ["rotate_180", "mirror"])
def test_the_reading_that_lags_has_the_greater_weight(view):
    predicts = lambda estimate, x, level: estimate
    estimates = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))
    wanted = np.stack([judge.accepted("a"), judge.accepted("m")])
    clean = estimates.mean(0).clip(-1, 1)
    shown = jnp.stack([clean, views.VIEWS[view]().apply(clean)])
    look = judge.load_judge(kind="guide")
    chances = (np.asarray(look(shown)) * wanted).sum(-1)
    weights = 1 / chances / (1 / chances).sum()
    rule = Rule(2, jnp.asarray(wanted), measure_letters.by_lag(view, predicts))
    found = rule.join(rule, Prediction(estimates, None), estimates[0], None).estimate
    np.testing.assert_allclose(found, np.tensordot(weights, estimates, 1), rtol=1e-4, atol=1e-5)


def test_training_starts_from_a_model(tmp_path, monkeypatch):
    """With no update, the weights that are written are those that it started from, as they were."""
    sizes, text = tiny()
    monkeypatch.setattr(train_letters, "UNET", sizes)
    monkeypatch.setattr(train_letters, "TEXT", text)
    font(tmp_path / "A.ttf")
    prepare_letters.main(tmp_path, tmp_path / "glyphs")
    started = tmp_path / "model"
    folder.write(started, sizes, text, unet.init(sizes, jax.random.key(5)), t5.init(text, jax.random.key(6)))
    (started / "training.json").write_text('{"updates": 7}')
    how = {"data_folder": tmp_path / "glyphs", "run": tmp_path / "run", "start_from": started, "only_export": True}
    for out in (tmp_path / "new", started, started):  # the second time into the folder that it started from
        train_letters.main(out=out, steps=10, **how)
        for part in ("unet", "text_encoder"):
            written = [(at / part / "model.safetensors").read_bytes() for at in (tmp_path / "run" / "start", out)]
            assert written[0] == written[1]
        told = json.loads((out / "training.json").read_text())
        assert told["updates"] == 0 and told["before"] == {"updates": 7}


def test_a_folder_without_a_model_to_start_from_is_refused_and_not_kept(tmp_path):
    sizes, text = tiny()
    good, bad, copy = tmp_path / "model", tmp_path / "other", tmp_path / "start"
    with pytest.raises(ValueError, match="a model to start from must have unet/model.safetensors, got '.*other'"):
        first_weights(bad, copy, sizes, text)
    wide = dataclasses.replace(sizes, encoder_hid_dim=16)
    folder.write(bad, wide, text, unet.init(wide, jax.random.key(0)), t5.init(text, jax.random.key(1)))
    with pytest.raises(ValueError, match="encoder_hid_proj"):
        first_weights(bad, copy, sizes, text)
    folder.write(good, sizes, text, unet.init(sizes, jax.random.key(2)), t5.init(text, jax.random.key(1)))
    network, _ = first_weights(good, copy, sizes, text)
    wanted = jax.tree.map(lambda a: jnp.float32(jnp.float16(a)), unet.init(sizes, jax.random.key(2)))
    jax.tree.map(np.testing.assert_array_equal, network, wanted)


def test_the_card_has_every_run(tmp_path):
    sizes, text = tiny()
    folder.write(tmp_path, sizes, text, unet.init(sizes, jax.random.key(0)), t5.init(text, jax.random.key(1)))
    first = {"updates": 425, "batch": 2, "rate": 0.1, "decay": 0.9}
    first["curve"] = [{"update": 200.0, "loss": 0.6}, {"update": 400.0, "loss": 0.5}, {"update": 425.0, "loss": 0.25}]
    second = {"updates": 1400, "batch": 3, "rate": 0.2, "decay": 0.8, "curve": [{"update": 1200.0, "loss": 0.125}]}
    (tmp_path / "training.json").write_text(json.dumps(second | {"before": first}))
    rows = [{"font": name, "family": name, "package": "some fonts"} for name in "ABC"]
    (tmp_path / "fonts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(tmp_path / "glyphs.npz", glyphs=np.zeros((3, 62, 64, 64), np.uint8))
    letters_card.main(tmp_path, tmp_path, "a machine")
    card = (tmp_path / "README.md").read_text()
    for row in ("| 1 | 425 | 850 | 0.1 | 0.9 |", "| 2 | 1,400 | 4,200 | 0.2 | 0.8 |", "some-fonts (3)",
                "| 1 | 400 | 0.5000 |", "| 1 | 425 | 0.2500 |", "| 2 | 1,200 | 0.1250 |", "on a machine"):  # fmt: skip
        assert row in card
    assert "| 1 | 200 |" not in card


def test_styles_pairs_and_words_are_measured_and_added(tmp_path, monkeypatch):
    sizes, text = tiny()
    folder.write(tmp_path, sizes, text, unet.init(sizes, jax.random.key(0)), t5.init(text, jax.random.key(1)))
    (tmp_path / "defaults.json").write_text(json.dumps({"sampler": "ddim", "steps": 2, "guidance": 3.0}))
    for i, kind in enumerate(judge.KINDS):
        (tmp_path / kind).mkdir()
        weights = judge.named(jax.tree.map(np.asarray, judge.init(kind, jax.random.key(i))))
        save_file(weights, tmp_path / kind / "model.safetensors")
    (tmp_path / "quality.json").write_text('{"kept": 1}')
    monkeypatch.setattr(measure_letters, "EACH", 2)
    monkeypatch.setitem(ambigrams.CANDIDATES, "rotate_180", 1)
    monkeypatch.setattr(measure_letters, "OF_PAIRS", 1)
    how = {"model": tmp_path, "out": tmp_path / "out", "n": 1, "first": 2}
    measure_letters.main(("styles", "words"), **how)
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["kept"] == 1 and {"bold", "italic", "serif"} <= set(found["styles"])
    assert found["words rotate_180"]["words"] == 2 and 0 <= found["words rotate_180"]["letters right both ways"] <= 1
    assert (tmp_path / "out" / "words-rotate_180.png").is_file()

    (tmp_path / "out" / "words-rotate_180.png").unlink()
    measure_letters.main(("words",), **how, together="lagging", more_for_the_worst=True)
    measure_letters.main(("words",), **how | {"n": 2})
    monkeypatch.setattr(measure_letters, "LETTERS", "ab")
    measure_letters.main(("pairs",), **how)
    again = json.loads((tmp_path / "quality.json").read_text())
    assert again["words rotate_180"] == found["words rotate_180"]  # other settings have other names
    assert [*again][-3:] == ["words rotate_180, together lagging, more for the worst", "words rotate_180, 2 candidates",
                             "pairs rotate_180"]  # fmt: skip
    assert again["pairs rotate_180"]["pairs"] == 3
    assert (tmp_path / "out" / "pairs-rotate_180.csv").is_file()
    assert list(json.loads((tmp_path / "cases.json").read_text())["rotate_180"]) == ["AA", "AB", "BB"]  # n is 1
    assert not (tmp_path / "out" / "words-rotate_180.png").exists()  # the gallery is of the usual settings

    (tmp_path / "out" / "pairs-rotate_180.csv").unlink()
    (tmp_path / "cases.json").unlink()
    measure_letters.main(("pairs",), **how, push=0)
    measure_letters.main(("pairs",), **how | {"n": 2})
    assert json.loads((tmp_path / "quality.json").read_text())["pairs rotate_180"] == again["pairs rotate_180"]
    assert not (tmp_path / "cases.json").exists()
    assert not (tmp_path / "out" / "pairs-rotate_180.csv").exists()  # and so is the table
