"""Letters: captions, what training draws, the judge's classes, ambigrams and their pages, on small networks."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jdiff import combine, model, schedule, step, views
from jdiff import mesh as meshes
from jdiff.letters import ambigrams, captions, data, judge, page, spelling
from jdiff.networks import unet
from jdiff.scan import one
from jdiff.training.augment import jitter
from jdiff.types import Prediction

KEY = jax.random.key(3)


def glyphs(fonts=3):
    """Fonts whose every glyph holds its own number, so that what is drawn can be told."""
    numbers = np.arange(fonts * 62).reshape(fonts, 62, 1, 1) % 251
    rows = [{"family": f"f{i}", "stem": 0.06 + 0.06 * i, "italic": i == 1, "mono": False, "serif": i == 0}
            for i in range(fonts)]  # fmt: skip
    return data.Glyphs(np.broadcast_to(numbers, (fonts, 62, 32, 32)).astype(np.uint8), rows)


def small_model():
    config = unet.Config(
        sample_size=32, in_channels=1, out_channels=1, patch=2, block_out_channels=(8, 8),
        down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN), up_block_types=(unet.CROSS_UP, unet.PLAIN_UP),
        layers_per_block=(1, 1), attention_head_dim=8, cross_attention_dim=32, encoder_hid_dim=8,
        addition_embed_type_num_heads=2, norm_num_groups=4,
    )  # fmt: skip
    params = jax.tree.map(lambda a: a + 0.05, unet.init(config, KEY))

    def embed(prompts):
        rows = [np.random.default_rng(list(prompt.encode())).normal(size=(4, 8)) for prompt in prompts]
        return jnp.asarray(np.stack(rows), jnp.float32)

    return model.Model(
        unet.unet(config).bind(params), embed, schedule.cosine(), config, step.untouched,
        model.Defaults("dpmpp_2m", 2, 2.0), "small", step.v_prediction,
    )  # fmt: skip


def of_size(side):
    """A grey model of another size."""
    made = small_model()
    return made._replace(config=dataclasses.replace(made.config, sample_size=side))


def half_read(images):
    """A judge that reads any glyph as each class alike, but the brightest a little better as everything."""
    n = len(captions.CHARACTERS)
    return jnp.ones((images.shape[0], len(judge.CLASSES))) / n + 0.001 * images.mean((1, 2, 3))[:, None]


def test_every_caption_fits_and_says_one_thing():
    texts = [captions.caption(character, style, spelled=spelled) for style in captions.styles()
             for spelled in (False, True) for character in captions.CHARACTERS]  # fmt: skip
    assert len(set(texts)) == len(texts) == 48 * 2 * 62
    assert max(map(len, texts)) < captions.LENGTH
    assert all(text.startswith(("a ", "an ")) for text in texts)


def test_a_style_is_read_from_its_words():
    for style in captions.styles():
        assert captions.read_style(" ".join(word for word in reversed(style) if word)) == style


@pytest.mark.parametrize(
    ("words", "message"),
    [("gothic", "--style must be words of thin, .*typewriter, got 'gothic'"), ("thin heavy", "got both")],
)
def test_a_style_that_the_model_does_not_know_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        captions.read_style(words)


def test_whole_families_are_held_out():
    many = data.Glyphs(np.zeros((60, 62, 32, 32), np.uint8), [{"family": f"f{i // 2}"} for i in range(60)])
    training, held = data.split(many)
    families = [{font["family"] for font in part.fonts} for part in (training, held)]
    assert not families[0] & families[1] and len(families[0] | families[1]) == 30
    assert 2 <= len(families[1]) <= 4 and len(training.images) == len(training.fonts)


def test_typefaces_of_signs_are_left_out(tmp_path):
    names = [("Plain", "Plain"), ("Semafor-Person", "Semafor"), ("[F500]", "[F500]"), ("X", "fonts-f500")]
    rows = [{"font": font, "family": family} for font, family in names]
    (tmp_path / "fonts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(tmp_path / "glyphs.npz", glyphs=np.zeros((4, 62, 64, 64), np.uint8))
    assert [row["font"] for row in data.read(tmp_path).fonts] == ["Plain"]


def test_a_batch_has_the_glyphs_that_its_captions_name():
    world = data.world(glyphs())
    batch = data.draw(world, KEY, 400, null=0.2, dropped=0.3)
    told = [captions.style_of(*(font[k] for k in ("stem", "italic", "mono", "serif"))) for font in glyphs().fonts]
    nulls = 0
    for image, tokens, labels in zip(*(np.asarray(a) for a in (batch.images, batch.tokens, batch.labels)), strict=True):
        text = bytes(int(t) - 3 for t in tokens if t >= 3).decode()
        number = int(np.rint((image[0, 0, 0] + 1) * 127.5))
        nulls += not text
        character = captions.CHARACTERS[labels[0]]
        fonts = [i for i in range(3) if (i * 62 + labels[0]) % 251 == number]
        assert fonts
        if text:
            assert text.split()[-1] == character
            style = captions.read_style(
                " ".join(w for w in text.split()[1:-1] if w not in ("capital", "small", "digit"))
            )
            assert all(word in (None, own) for word, own in zip(style, told[fonts[0]], strict=True))
            places = [group.index(word) for group, word in zip(captions.STYLE_WORDS, style, strict=True)]
            assert places == labels[1:].tolist()
    assert 40 < nulls < 120


def test_characters_that_look_alike_are_one_class():
    for alike in ("Oo0", "Ii1l", "Ss", "Ll"):
        classes = {judge.class_of(character) for character in alike if (alike, character) != ("Ll", "l")}
        assert len(classes) == 1, alike
    assert len(set(judge.LABELS.tolist())) == len(judge.CLASSES)
    for character in captions.CHARACTERS:
        assert judge.accepted(character)[judge.class_of(character)] == 1


@pytest.mark.parametrize("kind", judge.KINDS)
def test_a_judge_keeps_its_weights_under_their_names(kind):
    params = judge.init(kind, KEY)
    again = judge.unnamed(judge.named(params), judge.network(kind)[1])
    images = jnp.tanh(jax.random.normal(KEY, (3, 32, 32, 1)))
    chances = judge.chances(again, images, kind)
    np.testing.assert_array_equal(chances, judge.chances(params, images, kind))
    np.testing.assert_allclose(chances.sum(-1), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"images must have shape \[n 32 32 1\]"):
        judge.chances(params, images[:, :16], kind)


PLACES = [
    ("swims", "swims", "rotate_180", "s-s w-m i-i m-w s-s"),
    ("ab", "cd", "flip", "a-c b-d"),
    ("ab", "cd", "mirror", "a-d b-c"),
    ("corn", "abc", "flip", "c-a o-b rn-c"),
    ("abc", "corn", "rotate_180", "a-rn b-o c-c"),
]


@pytest.mark.parametrize(("word", "turned", "view", "wanted"), PLACES)
def test_places_of_two_words(word, turned, view, wanted):
    assert spelling.places(word, turned, view) == [tuple(pair.split("-")) for pair in wanted.split()]


WAYS = [
    ("barn", "barn", "flip", ["b-b a-a r-r n-n", "b-b a-a rn-rn"]),
    ("barn", "dune", "flip", ["b-d a-u r-n n-e"]),
    ("corn", "dog", "mirror", ["c-g o-o rn-d"]),
    ("Clan", "vvow", "rotate_180", ["C-w l-o a-v n-v", "cl-w a-o n-vv"]),
]


@pytest.mark.parametrize(("word", "turned", "view", "wanted"), WAYS)
def test_ways_to_set_two_words(word, turned, view, wanted):
    assert [" ".join(map("-".join, way)) for way in spelling.ways(word, turned, view)] == wanted


def test_ways_are_bounded():
    assert len(spelling.ways("v" * 20, "v" * 19, "flip")) == spelling.WAYS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spelling.check(""), "WORD must have at least one letter"),
        (lambda: spelling.check("naïve"), "letters A-Z, a-z and digits only, got 'ï' in 'naïve'"),
        (lambda: spelling.check("a b"), "got ' ' in 'a b'"),
        (lambda: spelling.check("a" * 40), "at most 20 letters, got 40"),
        (lambda: spelling.places("ab", "abcde", "flip"), "'ab' with 2 and 'abcde' with 5; two letters may stand"),
        (lambda: spelling.places("ab", "ab", "skew"), "--view must be rotate_180, flip, mirror, got 'skew'"),
        (lambda: page.colour("inky", "--ink"), "--ink must be a colour such as .*, got 'inky'"),
        (lambda: page.colour("rgb(300, 0, 0)", "--ink"), "--ink must be a colour such as .*, got 'rgb"),
        (lambda: page.colour("#ff000080", "--paper"), "--paper must be a colour such as .*, got '#ff000080'"),
        (lambda: ambigrams.draw(small_model(), [], KEY), "pairs must hold at least one pair, got none"),
        (
            lambda: ambigrams.draw(small_model(), [spelling.Pair("a", "b")], KEY, view="skew"),
            "view must be one of rotate_180, flip, mirror, got 'skew'",
        ),
        (
            lambda: ambigrams.ambigram(of_size(64), "a", key=KEY),
            "model must be a model of letters, 32 x 32 and grey, got one of 64 x 64 with 1 channels",
        ),
        (
            lambda: ambigrams.ambigram(small_model(), "a", key=KEY, n=1, steps=4, guidance=3e38, judged=half_read),
            "no candidate of a / a is finite; try less guidance than 3e\\+38",
        ),
    ],
)
def test_bad_words_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_two_letters_are_drawn_in_the_case_that_reads_best(monkeypatch):
    view = "rotate_180"
    scores = json.loads((model.shipped("letters") / "cases.json").read_text())[view]
    letters = captions.CHARACTERS[26:52]
    for a, b in itertools.combinations_with_replacement(letters, 2):
        [best] = spelling.best_cases(a, b, view)
        assert scores["".join(best)] == max(scores["".join(pair)] for pair in spelling.cases(a, b))
        assert spelling.kind_of(best) == (a, b)
        turned = [other[::-1] for other in spelling.best_cases(b.upper(), a, view)]
        assert turned == [best] or (a == b and scores["".join(turned[0])] == scores["".join(best)])
    drawn, draw = [], ambigrams.draw
    watched = lambda model, pairs, key, **how: drawn.extend(pairs) or draw(model, pairs, key, **how)
    monkeypatch.setattr(ambigrams, "draw", watched)
    ambigrams.ambigram(small_model(), "and", key=KEY, n=3, steps=2, judged=half_read)
    assert drawn == [*spelling.best_cases("a", "d", view) * 3, *spelling.best_cases("n", "n", view) * 3]


def test_a_pair_and_the_pair_turned_have_one_choice_of_case_where_scores_are_equal(monkeypatch):
    scores = {a + b: float(a.isupper() != b.isupper()) for a in captions.CHARACTERS for b in captions.CHARACTERS}
    monkeypatch.setattr(spelling, "_measured", lambda: {"rotate_180": scores})
    for a, b in itertools.combinations("abcdefghijklmnopqrstuvwxyz", 2):
        one, turned = (spelling.best_cases(*pair, "rotate_180") for pair in ((a, b), (b, a)))
        assert len(one) == 1 and one == [pair[::-1] for pair in turned]


@pytest.mark.parametrize(
    ("pair", "view"),
    [*[(pair, "rotate_180") for pair in (("7", "v"), ("v", "7"), ("rn", "b"), ("b", "vv"), ("1", "0"))],
     *[(("a", "v"), view) for view in ("flip", "mirror")]],
)  # fmt: skip
def test_what_was_not_measured_is_drawn_in_every_case(pair, view):
    assert spelling.best_cases(*pair, view) == spelling.cases(*pair)


@pytest.mark.parametrize("view", spelling.TURNS)
def test_a_word_that_reads_as_itself_is_itself_when_it_is_turned(view):
    made = ambigrams.ambigram(small_model(), "noon", key=KEY, view=view, n=3, judged=half_read)
    order = slice(None, None, -1) if spelling.TURNS[view] else slice(None)
    if spelling.TURNS[view]:
        np.testing.assert_array_equal(np.asarray(ambigrams.turn(view, made.glyphs))[order], made.glyphs)
        np.testing.assert_array_equal(page.turned(page.strip(made.glyphs)[0], view), page.strip(made.glyphs)[0])
        np.testing.assert_allclose(made.scores[order, ::-1], made.scores, atol=1e-6)
    assert [pair.upright.lower() for pair in made.pairs] == list("noon")
    assert [pair.turned.lower() for pair in made.pairs[order]] == list("noon")
    assert made.glyphs.shape == (4, 32, 32, 1) and np.abs(made.glyphs).max() <= 1


@pytest.mark.parametrize("view", spelling.TURNS)
@pytest.mark.parametrize(("known", "places"), [("abm", 3), ("abmnr", 4), ("", 4)])
def test_two_letters_stand_in_one_place_where_it_reads_better(known, places, view):
    """A judge that reads only these letters, and each in every glyph. Where the word itself is as good, it stays."""
    sure = jnp.asarray([float(name in known) for name in judge.CLASSES])
    reads = lambda glyphs: jnp.broadcast_to(sure, (len(glyphs), len(sure)))
    made = ambigrams.ambigram(small_model(), "barn", key=KEY, view=view, n=2, judged=reads)
    order = slice(None, None, -1) if spelling.TURNS[view] else slice(None)
    assert len(made.pairs) == len(made.glyphs) == len(made.scores) == places
    assert "".join(pair.upright for pair in made.pairs).lower() == "barn"
    assert "".join(pair.turned for pair in made.pairs[order]).lower() == "barn"
    assert made.verdict == ("readable" if known else "not readable") and made.word == made.turned == "barn"


def test_other_ways_leave_the_first_as_it_is_and_add_their_steps():
    told, seen = [], []
    never, always = (lambda x: jnp.zeros((len(x), len(judge.CLASSES)))), (lambda x: jnp.ones((len(x), 34)))
    how = {"key": KEY, "n": 1, "steps": 2}
    one = ambigrams.ambigram(small_model(), "barn", judged=always, **how)
    shown = {"progress": lambda *rows: told.append(rows), "watch": lambda *rows: seen.append(rows[:2])}
    other = ambigrams.ambigram(small_model(), "barn", judged=never, **how, **shown)
    np.testing.assert_array_equal(one.glyphs, other.glyphs)
    assert seen == [(1, 2), (2, 2), (3, 4), (4, 4)] and told == sorted(told) and told[-1] == (4, 4)


@pytest.mark.parametrize(("known", "more"), [("bm", []), ("abm", ["rn-rn"])])
def test_ways_that_cannot_be_better_are_not_drawn(known, more, monkeypatch):
    """Where no glyph reads as the a of "barn", "rn" in one place does not help."""
    drawn, draw = [], ambigrams.draw
    watched = lambda model, pairs, key, **how: drawn.extend(pairs) or draw(model, pairs, key, **how)
    monkeypatch.setattr(ambigrams, "draw", watched)
    sure = jnp.asarray([float(name in known) for name in judge.CLASSES])
    reads = lambda glyphs: jnp.broadcast_to(sure, (len(glyphs), len(sure)))
    ambigrams.ambigram(small_model(), "barn", key=KEY, view="flip", n=1, steps=2, judged=reads)
    assert sorted("-".join(spelling.kind_of(pair)) for pair in drawn) == ["a-a", "b-b", "n-n", "r-r", *more]


def test_a_jittered_judge_reads_every_glyph_changed_alike():
    """Whatever stands beside it."""
    images = jnp.tanh(jax.random.normal(KEY, (3, 32, 32, 1)))
    pixels = lambda x: x.reshape(len(x), -1)
    found = judge.jittered(pixels, 3)(images)
    for i, image in enumerate(images):
        keys = jax.random.split(jax.random.key(0), 3)
        changed = [jitter(key, (image[None, ..., 0] + 1) / 2, degrees=8.0, scale=0.15) for key in keys]
        np.testing.assert_allclose(found[i], 2 * np.mean(changed, axis=(0, 1)).ravel() - 1, atol=1e-5)


def test_candidates_are_ranked_by_the_mean_of_judges_that_do_not_measure():
    images = jnp.tanh(jax.random.normal(KEY, (2, 32, 32, 1)))
    each = [judge.jittered(judge.load_judge(kind=kind))(images) for kind in judge.RANKERS]
    np.testing.assert_allclose(judge.ranker()(images), np.mean(each, axis=0), atol=1e-6)
    assert len(set(judge.RANKERS)) == len(each) > 1 and not {"second-judge", "guide"} & set(judge.RANKERS)


@pytest.mark.parametrize("at", [0, 1])
def test_two_readings_are_combined_by_a_function_of_ones_own(at):
    small, pair, level = small_model(), spelling.Pair("A", "v"), one(schedule.levels(schedule.cosine(), [700]), 0)
    x, turn = jax.random.normal(KEY, (32, 32, 1)), [lambda x: x, views.rotate_180().apply][at]
    made = ambigrams.combiner(
        small, pair, "rotate_180", captions.PLAIN, guidance=2.0, push=0, together=lambda both: both[at]
    )
    alone = small.guided([captions.caption(pair[at], spelled=True)], 2.0)[0]
    drawn, wanted = (combine.denoiser(small.network, of)(a, level) for of, a in ((made, x), (alone, turn(x))))
    np.testing.assert_allclose(drawn.estimate, turn(wanted.estimate), atol=1e-6)


@pytest.mark.parametrize("predicts", [step.noise, step.clean, step.velocity, step.v_prediction])
@pytest.mark.parametrize(("t", "push"), [(700, 0.3), (700, 1.0), (50, 0.3)])
@pytest.mark.parametrize("pushes", [1, ambigrams.PUSHES])
def test_the_guide_pushes_the_clean_image_towards_both_readings(predicts, t, push, pushes, monkeypatch):
    """By a root mean square of `push` in one straight step, and of less in several, in any parametrisation.

    Not at all where there is little noise.
    """
    monkeypatch.setattr(ambigrams, "PUSHES", pushes)
    pair, level = spelling.Pair("A", "v"), one(schedule.levels(schedule.cosine(), [t]), 0)
    told = small_model()._replace(predicts=predicts)
    x, flat = (jax.random.normal(key, (32, 32, 1)) for key in jax.random.split(KEY))
    clean = {}
    for size in (0.0, push):
        made = ambigrams.combiner(told, pair, "rotate_180", captions.PLAIN, push=size)
        network = lambda x, t, conditioning: Prediction(jnp.broadcast_to(flat, x.shape))
        estimate = combine.denoiser(network, made)(x, level).estimate
        clean[size] = predicts(estimate, x, level)
    silent = level._replace(signal=jnp.ones(()), noise=jnp.zeros(()))  # where the clean image's slope can be 0
    assert jnp.isfinite(combine.denoiser(network, made)(x, silent).estimate).all()
    moved = clean[push] - clean[0.0]
    if t == 50:
        assert (moved == 0).all()
        return
    size = float(jnp.sqrt((moved**2).mean()))
    assert size == pytest.approx(push, rel=0.05) if pushes == 1 else 0.5 * push < size <= 1.001 * push
    look = judge.load_judge(kind="guide")
    few = clean[0.0] + 0.02 * moved / push  # a short way, along which the gradient is right
    before, after = (ambigrams.read(a[None], [pair], "rotate_180", look) for a in (clean[0.0], few))
    assert np.log(after).sum() > np.log(before).sum()


def test_candidates_are_the_same_in_any_word():
    few, many = (
        ambigrams.draw(small_model(), [spelling.Pair("a", "b")] * n, KEY, style=captions.read_style("bold"))
        for n in (2, ambigrams.AT_ONCE + 2)
    )
    np.testing.assert_allclose(few, many[:2], atol=5e-5)  # 1.1e-5 here
    assert np.abs(many[0] - many[1]).max() > 0.01


def test_the_candidates_that_are_watched_are_those_that_are_returned():
    seen = []
    n = ambigrams.AT_ONCE
    pairs = [spelling.Pair("a", "b")] * (n + 2)
    drawn = ambigrams.draw(
        small_model(), pairs, KEY, steps=2, watch=lambda done, total, x: seen.append((done, total, np.array(x)))
    )
    assert [(done, total, len(x)) for done, total, x in seen] == [(1, 4, n), (2, 4, n), (3, 4, 2), (4, 4, 2)]
    np.testing.assert_array_equal(np.concatenate([seen[1][2], seen[3][2]]).clip(-1, 1), drawn)


def test_candidates_are_the_same_on_many_devices():
    draw = lambda mesh: ambigrams.draw(small_model(), [spelling.Pair("a", "b")] * 3, KEY, steps=4, mesh=mesh)
    np.testing.assert_allclose(draw(meshes.make()), draw(None), atol=2e-4)  # 5.2e-5 here


def test_the_best_read_candidate_is_chosen_and_weights_agree():
    x = np.full((3, 3, 32, 32, 1), -1.0)
    for i, width in enumerate((4, 4, 12)):
        x[:, i, 6:26, 10 : 10 + width] = 1
    scores = np.full((3, 3, 2), 0.5)
    scores[:, 1] = 0.6
    assert ambigrams.choose(x, scores).tolist() == [1, 1, 1]
    scores[0, 2] = 0.62  # a little better, but three times as heavy
    assert ambigrams.choose(x, scores).tolist() == [1, 1, 1]
    scores[0, 2] = 0.99
    assert ambigrams.choose(x, scores).tolist() == [2, 1, 1]
    scores[0, 2, 1] = 0.1  # read well one way alone
    assert ambigrams.choose(x, scores).tolist() == [1, 1, 1]
    x[2, 1, 0] = np.nan
    assert ambigrams.choose(x, scores).tolist() == [1, 1, 0]


@pytest.mark.parametrize(("worst", "verdict"), [(0.9, "readable"), (0.3, "hard"), (0.01, "not readable")])
def test_the_worst_letter_decides_the_verdict(worst, verdict):
    scores = np.full((3, 2), 0.95)
    scores[1, 1] = worst
    made = ambigrams.Ambigram("abc", "abc", "flip", [spelling.Pair(*"aa")] * 3, np.zeros((3, 32, 32, 1)), scores)
    assert made.verdict == verdict


def bar_glyphs():
    x = np.full((2, 32, 32, 1), -1.0)
    x[0, 4:28, 6:9], x[1, 4:12, 10:22] = 1, 1
    return x


@pytest.mark.parametrize("view", spelling.TURNS)
def test_frames_turn_the_strip(view):
    made = ambigrams.Ambigram("ab", "ab", view, [spelling.Pair(*"ab")] * 2, bar_glyphs(), np.ones((2, 2)))
    shown = page.frames(made, ink=(200, 0, 0), count=5)
    assert len(shown) == 5 and len({frame.shape for frame in shown}) == 1
    first, last = (255 - frame[..., 1].astype(int) for frame in (shown[0], shown[-1]))
    assert np.abs(page.turned(first, view) - last).mean() < 2 and np.abs(first - last).mean() > 2
    sheet = page.page(made, paper=(10, 20, 30))
    assert (
        sheet[0, 0].tolist() == [10, 20, 30] and Image.fromarray(sheet).size[0] >= page.strip(bar_glyphs())[0].shape[1]
    )


def test_letters_stand_evenly():
    ink, middles = page.strip(bar_glyphs())
    columns = np.flatnonzero(ink.max(axis=0) > 0.5)
    gaps = np.diff(columns)[np.diff(columns) > 1]
    assert len(gaps) == 1 and abs(gaps[0] - 1 - round(page.GAP * page.HEIGHT)) <= 2
    assert abs(columns[0] - (ink.shape[1] - 1 - columns[-1])) <= 2 and len(middles) == 2
