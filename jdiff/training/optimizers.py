"""Optimizers that several trainings share."""

import optax


def adam_with_cosine(rate: float, steps: int, warm_up: int = 200) -> optax.GradientTransformation:
    """Returns Adam with clipped gradients, a warm-up, and a cosine decay of the learning rate to a hundredth.

    Args:
        rate: highest learning rate.
        steps: total number of updates.
        warm_up: number of updates of the warm-up, which is at most a tenth of `steps`.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adam_with_cosine(0.1, 100)
        >>> change, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
        >>> change.tolist()  # the first rate is 0
        [-0.0, -0.0]
    """
    rates = optax.warmup_cosine_decay_schedule(0.0, rate, min(warm_up, steps // 10), steps, rate / 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates, b2=0.99))
