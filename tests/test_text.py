"""Prompts to tokens: bytes as ByT5's, pieces as T5's; prompts cleaned as diffusers cleans them."""

import io
import json
import random
import shutil
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
        tokens, mask = text.piece_tokens(pieces)(prompts)
    want = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    wrong = np.flatnonzero((tokens != want["input_ids"]).any(-1) | (mask != want["attention_mask"]).any(-1))
    assert [prompts[i] for i in wrong] == []
    assert (mask.sum(-1) == 77).sum() > 500 and (tokens >= want["input_ids"].max() - 99).any()
    assert tokens.dtype == mask.dtype == np.int32 and tokens.shape == mask.shape == (len(prompts), 77)


@pytest.mark.parametrize("prompt", ["a\x85", "\u2005\u0300cat", "½\u0346"])
def test_where_transformers_5_normalises_otherwise_pieces_are_sentencepieces(pieces, theirs, prompt):
    import sentencepiece

    own = [*sentencepiece.SentencePieceProcessor(model_file=str(pieces / text.PIECES)).encode(prompt), text.END]
    tokens, mask = text.piece_tokens(pieces)([prompt])
    assert tokens[0, : mask.sum()].tolist() == own != theirs(prompt)["input_ids"]


# Tokens that a folder adds.

EXTRAS = [f"<extra_id_{i}>" for i in range(100)]


def token(content, **flags):
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content, "special": True} | plain | flags


def decoder(n, *added):
    """`added_tokens_decoder` as transformers 4 writes it: T5's own tokens, then those that are added from number n."""
    tokens = dict(zip(map(str, range(3)), map(token, ("<pad>", "</s>", "<unk>")), strict=True))
    tokens |= {str(n - 1 - i): token(content) for i, content in enumerate(EXTRAS)}
    return tokens | {str(n + i): one for i, one in enumerate(added)}


# Contents of the tokenizer's files, given the first number after T5's own tokens.
READ = {
    "nothing": lambda n: {},
    "added_tokens.json": lambda n: {"added_tokens": {"<sks>": n, "New": n + 1, "new": n + 2}},
    "added and listed": lambda n: {
        "added_tokens": {"<sks>": n, "<b>": n + 1},
        "special_tokens_map": {"additional_special_tokens": [*EXTRAS, "<sks>"], "eos_token": token("</s>")},
        "tokenizer_config": {"additional_special_tokens": [*EXTRAS, "<sks>"], "extra_ids": 100},
    },
    "decoder": lambda n: {
        "tokenizer_config": {
            "additional_special_tokens": EXTRAS,
            "added_tokens_decoder": decoder(
                n, token("<sks>"), token("new", normalized=True, single_word=True, special=False),
                token("<l>", lstrip=True), token("<r>", rstrip=True), token("<sk", single_word=True), token("½"),
            ),
            "pad_token": "<pad>",
            "eos_token": "</s>",
        },
        "added_tokens": {"<sks>": n},
    },
    "decoder, stripped": lambda n: {
        "tokenizer_config": {
            "added_tokens_decoder": {k: v | {"lstrip": True, "rstrip": True} for k, v in decoder(n).items()}
        }
    },
    "additional_special_tokens": lambda n: {"tokenizer_config": {"additional_special_tokens": [*EXTRAS, "<sks>", "a"]}},
    "extra_special_tokens": lambda n: {"tokenizer_config": {"extra_special_tokens": [*EXTRAS, "<sks>"]}},
    "fewer extra ids": lambda n: {"tokenizer_config": {"extra_ids": 10}},
}  # fmt: skip
FINE = [
    "a <sks> dog",
    "a<sks>dog",
    "  <sks>  ",
    "<sks><sks>",
    "x<sks>",
    "<sks",
    "sks>",
    "\u3000<sks>\u3000dog",
    "é<sks>é",
]
FINE += ["new cat", "a New cat newt", "ｎｅｗ cat", "new, cat", "(new)", "snew new_ news", "the Ｎｅｗ", "new new new"]
FINE += [
    "a <l> x <r> y",
    "<L> <l>y z<r>",
    "½new½",
    "new½",
    "",
    "a <extra_id_0> b <extra_id_9>c",
    "a<b>b",
    "a</s>b<pad>",
]


def tokenizer(pieces, folder, contents):
    """A folder with the pieces and what `contents` makes of the first number after T5's tokens."""
    import sentencepiece

    shutil.copytree(pieces, folder, dirs_exist_ok=True)
    size = sentencepiece.SentencePieceProcessor(model_file=str(pieces / text.PIECES)).vocab_size()
    for name, value in contents(size + 100).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("name", READ)
def test_added_tokens_are_read_as_transformers_reads_them(name, pieces, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    folder = tokenizer(pieces, tmp_path, READ[name])
    theirs = transformers.T5Tokenizer.from_pretrained(folder)
    prompts = [*FINE, *strings(300, seed=2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens, mask = text.piece_tokens(folder)(prompts)
    want = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    wrong = np.flatnonzero((tokens != want["input_ids"]).any(-1) | (mask != want["attention_mask"]).any(-1))
    assert [prompts[i] for i in wrong] == []
    plain = text.piece_tokens(pieces)(["a <sks> dog"])[0][0]
    assert (tokens[0] == plain).all() == (name in ("nothing", "decoder, stripped", "fewer extra ids"))


REFUSED = {
    "a gap": (lambda n: {"added_tokens": {"<sks>": n + 10}}, "must number its added tokens from .* without gaps"),
    "a piece": (lambda n: {"added_tokens": {"<sks>": 5}}, "must number its added tokens from .* without gaps"),
    "no number": (lambda n: {"added_tokens": {"<sks>": "5"}}, "added_tokens.json: '<sks>' must have a number, got '5'"),
    "T5's own": (
        lambda n: {"tokenizer_config": {"added_tokens_decoder": {str(n): token("</s>")}}},
        "gives '</s>' the number .*, but in T5's vocabulary it is 1",
    ),
    "two files": (
        lambda n: {"tokenizer_config": {"added_tokens_decoder": decoder(n)}, "added_tokens": {"<sks>": n}},
        "added_tokens.json has '<sks>', which added_tokens_decoder in tokenizer_config.json does not have",
    ),
    "no extras": (
        lambda n: {"tokenizer_config": {"additional_special_tokens": ["<sks>"]}},
        r"has special tokens \('<sks>'\) without the 100 <extra_id_...>",
    ),
    "in the map alone": (
        lambda n: {"special_tokens_map": {"additional_special_tokens": [*EXTRAS, "<sks>"]}},
        "special_tokens_map.json: additional_special_tokens has '<sks>', which no file gives a number",
    ),
    "another end": (lambda n: {"tokenizer_config": {"eos_token": "<end>"}}, "eos_token must be '</s>', got '<end>'"),
    "a name": (lambda n: {"tokenizer_config": {"bos_token": "<s>"}}, "bos_token must be one of the tokens added, got"),
    "names": (
        lambda n: {"tokenizer_config": {"extra_special_tokens": {"image": "<image>"}}},
        "image_token must be one of the tokens added, got '<image>'",
    ),
    "no list": (lambda n: {"tokenizer_config": {"additional_special_tokens": [3]}}, "must be a list of tokens, got 3"),
    "no token": (
        lambda n: {"tokenizer_config": {"added_tokens_decoder": {str(n): "<sks>"}}},
        "an added token must have a number and a content, got",
    ),
    "in tokenizer.json": (
        lambda n: {"tokenizer": {"added_tokens": [token("<sks>", id=n + 3)]}},
        "must number its added tokens from .* without gaps",
    ),
    "extra ids": (lambda n: {"tokenizer_config": {"extra_ids": -1}}, "extra_ids must be a whole number of at least 0"),
    "a piece's number": (
        lambda n: {"added_tokens": {"a": n}},
        "gives 'a' the number .*, but in T5's vocabulary it is",
    ),
    "no object": (lambda n: {"added_tokens": [1]}, "added_tokens.json must hold a JSON object, got a list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_added_tokens_that_transformers_would_read_otherwise_are_refused_by_name(name, pieces, tmp_path):
    contents, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        text.piece_tokens(tokenizer(pieces, tmp_path, contents))
    assert "\n" not in str(caught.value)


def test_a_prompt_of_too_many_pieces_is_cut_and_the_warning_shows_what_was_lost(pieces):
    read = text.piece_tokens(pieces)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = read(["a red three"], 4)[0]  # three words, three pieces, and the end
    with pytest.warns(UserWarning, match="cut at 3 tokens: 'seven</s> white' is lost of 'a red three seven</s> white'"):
        tokens, mask = read(["a red three seven</s> white"], 4)
    np.testing.assert_array_equal(tokens, whole)
    assert mask.sum() == 4


def test_what_is_no_t5_vocabulary_is_refused(tmp_path, pieces):
    import sentencepiece

    with pytest.raises(
        ValueError, match="nothing/spiece.model cannot be read as a SentencePiece model: .*No such file"
    ):
        text.piece_tokens(tmp_path / "nothing")
    (tmp_path / "spiece.model").write_text("no model")
    with pytest.raises(ValueError, match="spiece.model cannot be read as a SentencePiece model"):
        text.piece_tokens(tmp_path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 9), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"padding, end and unknown \(0, 1, 2\), as T5 does, got \(-1, 2, 0\)"):
        text.piece_tokens(tmp_path)


def test_without_the_libraries_it_is_said_what_to_install(monkeypatch, pieces):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"needs sentencepiece to be read: pip install sentencepiece"):
        text.piece_tokens(pieces)
    for name in ("ftfy", "bs4"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"needs {name}: pip install"):
            patch.setitem(sys.modules, name, None)
            cleaning.CLEANING["caption"]("a red three")


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
    assert [cleaning.CLEANING["caption"](prompt) for prompt in [*AWKWARD, *made]] == want
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
    assert cleaning.CLEANING["none"](" A <b> ") == " A <b> "
    assert cleaning.CLEANING["lower"](" A <b> ") == "a <b>"
    assert list(cleaning.CLEANING) == ["none", "lower", "caption"]


def test_what_an_html_parser_rejects_is_said():
    pytest.importorskip("ftfy", reason="the extra text is not installed")
    with pytest.raises(
        ValueError,
        match=r"the cleaning 'caption' needs a prompt that HTML allows, got '<!\[x\[y'; use 'lower' or 'none'",
    ):
        cleaning.CLEANING["caption"]("<![x[y")
