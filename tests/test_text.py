"""Prompts to tokens."""

import numpy as np
import pytest

from jdiff import text

PROMPTS = ["", "a red three", "Ein grünes Ü, 数字", "the digit seven in magenta on white"]


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
