"""Which arrays of a model are learned, and in which coordinates."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


class Parametrisation(eqx.Module):
    """Maps coordinates, which an optimiser may move anywhere, to a model.

    Attributes:
        rest: the model without its learned arrays.
        logarithmic: for each learned array whether its coordinate is its logarithm.
    """

    rest: PyTree
    logarithmic: PyTree = eqx.field(static=True)

    def model(self, coordinates: PyTree) -> Any:
        """The model at these coordinates."""
        learned = jax.tree.map(
            lambda is_log, value: jnp.exp(value) if is_log else value,
            self.logarithmic,
            coordinates,
        )
        return eqx.combine(learned, self.rest)


def parametrise(
    model: Any,
    raw: Callable[[Any], Any] | None = None,
    logarithmic: Callable[[Any], Any] | None = None,
) -> tuple[PyTree, Parametrisation]:
    """Choose what is learned.

    A positive parameter learned through its logarithm stays positive, and a step of Adam or
    RMSprop changes it by a share of itself rather than by an amount in its unit.

    Args:
        model: any pytree.
        raw: `model -> array or tuple of arrays`, as for `eqx.tree_at`: learned as they are.
        logarithmic: the same: learned through their logarithms. If neither is given, every
            floating-point array is learned as it is.

    Returns:
        The coordinates of `model`, and the map back. The map gives `model` back up to rounding of
        the logarithms.

    Raises:
        ValueError: if an array is to be learned through its logarithm but is not positive, if it
            is chosen twice, or if nothing is chosen.
    """
    if raw is None and logarithmic is None:
        is_raw = jax.tree.map(eqx.is_inexact_array, model)
        is_log = jax.tree.map(lambda _: False, model)
    else:
        is_raw, is_log = _chosen(model, raw), _chosen(model, logarithmic)
    is_learned = jax.tree.map(lambda a, b: a or b, is_raw, is_log)
    if not any(jax.tree.leaves(is_learned)):
        raise ValueError("parametrise: no array is chosen; `raw` or `logarithmic` must name one.")
    learned, rest = eqx.partition(model, is_learned)

    def coordinate(path, value, log, raw):
        name = jax.tree_util.keystr(path)
        if log and raw:
            raise ValueError(f"parametrise: `{name}` is both in `raw` and in `logarithmic`.")
        if not eqx.is_inexact_array(value):
            raise ValueError(f"parametrise: `{name}` is not a floating-point array.")
        # With an explicit type an array is strongly typed, as it will be after an optimiser's step.
        value = jnp.asarray(value, value.dtype)
        if not log:
            return value
        if not bool(np.all(np.asarray(value) > 0)):
            raise ValueError(
                f"parametrise: `{name}` is to be learned through its logarithm but is not "
                "positive; learn it raw, or start from a positive value."
            )
        return jnp.log(value)

    keep = lambda flags: jax.tree.map(lambda on, flag: flag if on else None, is_learned, flags)
    coordinates = jax.tree_util.tree_map_with_path(coordinate, learned, keep(is_log), keep(is_raw))
    return coordinates, Parametrisation(rest, keep(is_log))


def _chosen(model: Any, where: Callable[[Any], Any] | None) -> PyTree:
    nothing = jax.tree.map(lambda _: False, model)
    if where is None:
        return nothing
    return eqx.tree_at(where, nothing, replace_fn=lambda leaf: jax.tree.map(lambda _: True, leaf))
