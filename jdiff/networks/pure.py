"""Flax modules as pure functions of their parameters."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

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


def pure(
    make: Callable[[], nnx.Module], made_of: Hashable, kinds: tuple[tuple[str, type], ...] = ()
) -> tuple[Apply, Params]:
    """Splits a Flax module into a pure function and the shapes of its parameters.

    Args:
        make: creates the module. It is only traced, so it uses no memory.
        made_of: as in `Apply`.
        kinds: (name, type of variable) for each part of the parameters, such as weights and statistics. If empty, the
            parameters are not divided.

    Returns:
        The module's `__call__` as a function, and the shapes as a nested dict of `jax.ShapeDtypeStruct`.

    Example:
        >>> apply, shapes = pure(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "a dense layer")
        >>> shapes["kernel"].shape
        (2, 3)
    """
    graphdef, *states = nnx.split(nnx.eval_shape(make), *(kind for _, kind in kinds))
    names = tuple(name for name, _ in kinds)
    dicts = [nnx.to_pure_dict(state) for state in states]
    return Apply(made_of, graphdef, states=names), dict(zip(names, dicts, strict=True)) if names else dicts[0]
