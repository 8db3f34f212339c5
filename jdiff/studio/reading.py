"""How well a judge reads pictures as their prompts, where a shipped model drew them."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from jdiff.letters import captions as letters
from jdiff.mnist import captions as digits


def chances(model: str, texts: Sequence[str], seen: np.ndarray) -> np.ndarray | None:
    """Returns how likely a judge reads pictures as their prompts.

    Args:
        model: its name.
        texts: prompts [p].
        seen: pictures of each prompt, as they look in its view [p n h w c] in [-1, 1].

    Returns:
        Chances [p n] in [0, 1]; None where no judge knows the model's pictures, or a prompt is not in its grammar.
    """
    asked = [_asked(model, text) for text in texts]
    if any(one is None for one in asked):
        return None
    p, n = seen.shape[:2]
    read = _judge(model)(seen.reshape(p * n, *seen.shape[2:])).reshape(p, n, -1)
    return (read * np.stack([one for one in asked if one is not None])[:, None]).sum(axis=-1)


def _asked(model: str, text: str) -> np.ndarray | None:
    """Which classes of the judge a prompt asks for: ones and zeros [classes]."""
    if model == "mini":
        digit = _digits().get(text)
        return None if digit is None else np.eye(10)[digit]
    if model == "letters" and text and text[-1] in letters.CHARACTERS and text[-2:-1] in ("", " "):
        from jdiff.letters import judge

        return judge.accepted(text[-1])
    return None


@cache
def _digits() -> dict[str, int]:
    return {caption.text: caption.digit for caption in digits.captions()}


@cache
def _judge(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """Pictures [n h w c] -> chances [n classes]."""
    import jax

    if model == "letters":
        from jdiff.letters import judge as reader

        read, compute = reader.load_judge(), jax.jit(lambda judge, x: judge(x))
        return lambda pictures: np.asarray(compute(read, pictures))
    from jdiff.mnist import judge

    params, apply = judge.load_params(), judge.network()[0]
    compute = jax.jit(lambda params, x: jax.nn.softmax(apply(params, judge.strokes(x))))
    return lambda pictures: np.asarray(compute(params, pictures))
