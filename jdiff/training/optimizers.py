"""Optimizers that several trainings share."""

import optax


def adam_with_cosine(rate: float, steps: int, warm_up: int = 200) -> optax.GradientTransformation:
    """Returns Adam on clipped gradients, with a warm-up of the learning rate and a cosine decay to a hundredth.

    Args:
        rate: the highest learning rate.
        steps: updates in all.
        warm_up: updates of the warm-up, or a tenth of all if that is less.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adam_with_cosine(0.1, 100)
        >>> change, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
        >>> change.tolist()  # the first rate is 0
        [-0.0, -0.0]
    """
    rates = optax.warmup_cosine_decay_schedule(0.0, rate, min(warm_up, steps // 10), steps, rate / 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates, b2=0.99))
