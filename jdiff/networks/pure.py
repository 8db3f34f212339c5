"""Flax modules as pure functions of their parameters."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, cast

import jax
from flax import nnx

from jdiff.types import Params


@dataclasses.dataclass(frozen=True)
class Apply:
    """A method of a Flax module as a pure function `(params, *inputs)`.

    Attributes:
        made_of: what defines the module, such as its class and config. `jax.jit` compiles once for equal values.
        graphdef: the module without its parameters, from `nnx.split`.
        method: name of the method.
        states: keys of `params` whose values are the module's states; empty if `params` is the only state.
    """

    made_of: Hashable
    graphdef: nnx.GraphDef = dataclasses.field(compare=False, repr=False)
    method: str = "__call__"
    states: tuple[str, ...] = ()

    def __call__(self, params: Params, *inputs: Any) -> Any:
        """Calls the method. The types of inputs and result are the module's."""
        states = [params[name] for name in self.states] if self.states else [params]
        return getattr(nnx.merge(self.graphdef, *states), self.method)(*inputs)

    def at(self, method: str) -> "Apply":
        """Returns another method of the same module as a pure function.

        Args:
            method: name of the method.
        """
        return dataclasses.replace(self, method=method)


class OneKey:
    """Stands in for `nnx.Rngs` where only the shapes of parameters matter: all of them have the same key.

    `nnx.Rngs` is slow in a trace: the time for each key grows with the length of the trace. See
    `python scripts/benchmark.py parts`.
    """

    def __init__(self):
        self.key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self.key


def abstract(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """Returns a module whose parameters are shapes without values.

    Args:
        make: creates the module. It is only traced, so it uses no memory.

    Example:
        >>> abstract(lambda rngs: nnx.Linear(2, 3, rngs=rngs)).kernel.shape
        (2, 3)
    """
    return nnx.eval_shape(lambda: make(cast(nnx.Rngs, OneKey())))


def pure(
    make: Callable[[nnx.Rngs], nnx.Module], made_of: Hashable, kinds: tuple[tuple[str, type], ...] = ()
) -> tuple[Apply, Params]:
    """Splits a Flax module into a pure function and the shapes of its parameters.

    Args:
        make: as in `abstract`.
        made_of: as in `Apply`.
        kinds: (name, type of variable) for each part of the parameters, such as weights and statistics. If empty, the
            parameters are not divided.

    Returns:
        The module's `__call__` as a function, and the shapes as a nested dict of `jax.ShapeDtypeStruct`.

    Example:
        >>> apply, shapes = pure(lambda rngs: nnx.Linear(2, 3, rngs=rngs), "a dense layer")
        >>> shapes["kernel"].shape
        (2, 3)
    """
    graphdef, *states = nnx.split(abstract(make), *(kind for _, kind in kinds))
    names = tuple(name for name, _ in kinds)
    dicts = [nnx.to_pure_dict(state) for state in states]
    return Apply(made_of, graphdef, states=names), dict(zip(names, dicts, strict=True)) if names else dicts[0]
