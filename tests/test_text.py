"""Prompts to tokens: bytes as ByT5's, pieces as T5's; prompts cleaned as diffusers cleans them."""

import io
import random
import sys
import unicodedata
import warnings

import numpy as np
import pytest

from jdiff.text import cleaning
from jdiff.text import tokens as text

PROMPTS = ["", "a red three", "Ein grünes Ü, 数字", "the digit seven in magenta on white"]
WORDS = "a red three green seven on white the photo of an astronaut riding horse, cat dog's hat! école straße привет 12"


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
    """Folder with a small SentencePiece model that has T5's special tokens and normalisation."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra text is not installed")
    chance, model = random.Random(0), io.BytesIO()
    lines = [" ".join(chance.choices(WORDS.split(), k=chance.randint(3, 12))) for _ in range(2000)]
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=120, hard_vocab_limit=False, minloglevel=2, **ids
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / text.PIECES).write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="session")
def theirs(pieces):
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    return transformers.T5Tokenizer.from_pretrained(pieces)


def strings(count, seed):
    """Prompts of words, special tokens, runs of white space and characters of all planes; up to 200 tokens long."""
    chance = random.Random(seed)
    words = [
        *WORDS.split(),
        "</s>",
        "<pad>",
        "<unk>",
        "<extra_id_0>",
        "<extra_id_99>",
        "<extra_id_100>",
        "< /s>",
        "<s>",
    ]

    def one():
        kind = chance.random()
        if kind < 0.5:
            return chance.choice(words)
        if kind < 0.7:
            return "".join(chance.choices(" \t\n\r\u00a0\u3000\u2028\u200b\ufeff\u2581", k=chance.randint(1, 4)))
        top = chance.choice([0x7F, 0x250, 0x2FFF, 0xFFFF, 0x1FFFF])
        return "".join(c for c in map(chr, chance.choices(range(top), k=chance.randint(1, 4))) if _is_plain(c))

    yield from (
        "",
        " ",
        "</s>",
        "a cat</s>",
        "a cat </s>",
        "e\u0301cole",
        "ﬁ½ Ｆｕｌｌ",
        "日本🙂🙂x",
        "\u2581",
        "\x00a",
    )
    for _ in range(count):
        yield "".join(one() + chance.choice(["", " "]) for _ in range(chance.choice([2, 8, 8, 8, 60])))


def _is_plain(c):
    """Whether `c` is a character, not U+0085, and stands alone: see `piece_tokens` on what transformers 5 does else."""
    return unicodedata.category(c)[0] not in "CM" and c not in "\x85\u200c\u200d"


def test_bytes_are_those_of_byt5():
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    theirs = transformers.ByT5Tokenizer()(PROMPTS, padding="max_length", max_length=64, truncation=True)
    tokens, mask = text.byte_tokens(PROMPTS, 64)
    np.testing.assert_array_equal(tokens, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])


def test_a_long_prompt_is_cut_and_the_warning_shows_what_was_lost():
    with pytest.warns(UserWarning, match="cut at 5 bytes: 'three' is lost of 'a redthree'"):
        tokens, mask = text.byte_tokens(["a redthree"], 6)
    assert tokens[0, -1] == text.END and mask.sum() == 6


def test_pieces_are_those_of_t5(pieces, theirs):
    prompts = list(strings(10_000, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens, mask = text.piece_tokens(pieces / text.PIECES)(prompts)
    want = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    wrong = np.flatnonzero((tokens != want["input_ids"]).any(-1) | (mask != want["attention_mask"]).any(-1))
    assert [prompts[i] for i in wrong] == []
    assert (mask.sum(-1) == 77).sum() > 500 and (tokens >= want["input_ids"].max() - 99).any()
    assert tokens.dtype == mask.dtype == np.int32 and tokens.shape == mask.shape == (len(prompts), 77)


@pytest.mark.parametrize("prompt", ["a\x85", "\u2005\u0300cat", "½\u0346"])
def test_where_transformers_5_normalises_otherwise_pieces_are_sentencepieces(pieces, theirs, prompt):
    import sentencepiece

    own = [*sentencepiece.SentencePieceProcessor(model_file=str(pieces / text.PIECES)).encode(prompt), text.END]
    tokens, mask = text.piece_tokens(pieces / text.PIECES)([prompt])
    assert tokens[0, : mask.sum()].tolist() == own != theirs(prompt)["input_ids"]


def test_a_prompt_of_too_many_pieces_is_cut_and_the_warning_shows_what_was_lost(pieces):
    read = text.piece_tokens(pieces / text.PIECES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = read(["a red three"], 4)[0]  # three words, three pieces, and the end
    with pytest.warns(UserWarning, match="cut at 3 tokens: 'seven</s> white' is lost of 'a red three seven</s> white'"):
        tokens, mask = read(["a red three seven</s> white"], 4)
    np.testing.assert_array_equal(tokens, whole)
    assert mask.sum() == 4


def test_what_is_no_t5_vocabulary_is_refused(tmp_path, pieces):
    import sentencepiece

    with pytest.raises(ValueError, match="nothing is no SentencePiece model: .*No such file"):
        text.piece_tokens(tmp_path / "nothing")
    (tmp_path / "words").write_text("no model")
    with pytest.raises(ValueError, match="words is no SentencePiece model"):
        text.piece_tokens(tmp_path / "words")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 9), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "other").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"end and unknown at \(-1, 2, 0\), accepted are T5's \(0, 1, 2\)"):
        text.piece_tokens(tmp_path / "other")


def test_without_the_libraries_it_is_said_what_to_install(monkeypatch, pieces):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"needs sentencepiece to be read: pip install 'jdiff\[text\]'"):
        text.piece_tokens(pieces / text.PIECES)
    for name in ("ftfy", "bs4"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"needs {name}: pip install"):
            patch.setitem(sys.modules, name, None)
            text.CLEANING["caption"]("a red three")


AWKWARD = (
    "A Red Three|  a  |http://a.com/x|https://www.foo.org/bar?x=1&y=2|www.foo.co.uk|me@foo.com|foo.com@|"
    "<person>|<b>|</b>|<br/>|<!-- x -->|<a href='http://x.ru'>t</a>|<script>a<b</script>|@nick|@ nick_1|"
    "日本語|㈱|䷀|ㇰ|–|—|‒|-|_|«q»|“x”|‘y’|`|´|¨|&quot;|&quot|&amp;|&amp|&amp;amp;quot;|&lt;b&gt;|&#65;bc|"
    "&nbsp;|&hearts;|&|<|192.168.0.1|1:23 |\\n|\n|\t|\x85|#12|#1234|#12345|#123456|1234567|12345|pic.jpg|"
    "a.b.webp|.png|\"\"|''|\"|'|...|***|#TAG|(x)|[y]|{z}|\\|/| . |.hidden|this-is-my-cute-cat|a_b_c_d_e|"
    "jc6640|jc6640vc|6640vc231|j2d1a2a|IMG_1234|free shipping|worldwide free shipping|free download free|"
    "click for more|click on it|png images|page 12|1024x768|10х20|3×4.5| : |,|.|!|+|;|:|😀|👩\u200d🚀|"
    "schÃ¶n|â€œx|%20|%3Cb%3E|%zz|+a+|é|e\u0301|\u00ad|\u200b|™|½|ﬁ|：|İ|ß|ǅ|$5|50%|a,b|a.b|10.5.x|xxx|"
    "www:/a|it’s|‘’|1:23 <b>|a : b|page 12 of|"
).split("|")


def test_captions_are_cleaned_as_diffusers_cleans_them():
    pytest.importorskip("ftfy", reason="the extra text is not installed")
    pipelines = pytest.importorskip(
        "diffusers.pipelines.deepfloyd_if.pipeline_if", reason="the oracle is not installed"
    )
    once = lambda prompt: pipelines.IFPipeline._clean_caption(pipelines.IFPipeline, prompt)
    chance = random.Random(0)
    made = ["".join(chance.choice(AWKWARD) + chance.choice(["", " "]) for _ in range(chance.randint(2, 9)))
            for _ in range(1000)]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on what looks like a file's name
        want = [once(once(prompt)) for prompt in [*AWKWARD, *made]]
    assert [text.CLEANING["caption"](prompt) for prompt in [*AWKWARD, *made]] == want
    assert len(set(want)) > 800


def test_no_rule_of_the_cleaning_could_be_left_out(monkeypatch):
    pytest.importorskip("ftfy", reason="the extra text is not installed")
    captions = [frame.format(word) for word in AWKWARD for frame in ("{}", "a {}", "a {} b", "{}c")]
    want = [cleaning.caption(caption) for caption in captions]
    for name in ("ADDRESSES", "SIGNS", "WORDS"):
        rules = getattr(cleaning, name)
        for i, (pattern, _) in enumerate(rules):
            monkeypatch.setattr(cleaning, name, rules[:i] + rules[i + 1 :])
            pairs = zip(captions, want, strict=True)
            assert any(cleaning.caption(caption) != cleaned for caption, cleaned in pairs), pattern
        monkeypatch.setattr(cleaning, name, rules)


def test_the_other_two_ways():
    assert text.CLEANING["none"](" A <b> ") == " A <b> "
    assert text.CLEANING["lower"](" A <b> ") == "a <b>"
    assert list(text.CLEANING) == ["none", "lower", "caption"]


def test_what_an_html_parser_rejects_is_said():
    pytest.importorskip("ftfy", reason="the extra text is not installed")
    with pytest.raises(
        ValueError, match=r"prompt is '<!\[x\[y', accepted by the cleaning 'caption' is what HTML allows"
    ):
        text.CLEANING["caption"]("<![x[y")
