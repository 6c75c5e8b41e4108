"""What a fit learns: which arrays of a problem, their names, and where they start."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import ControlProblem
from ..learning import Parametrisation, parametrise
from .errors import UserError

# The learners of the papers (DiffMPC and DiLQR, published settings).
STARTS: Mapping[str, Mapping[str, float]] = {
    "pendulum": {"gravity": 15.0, "mass": 3.0, "length": 0.5},
    "cartpole": {"gravity": 9.8, "cart_mass": 3.0, "pole_mass": 0.1, "half_length": 1.0},
    "double_integrator": {"mass": 3.0},
}
START_WEIGHT = 0.5

_PARTS = {
    "dynamics": ("dynamics",),
    "cost": ("stage_cost", "terminal_cost"),
    "both": ("dynamics", "stage_cost", "terminal_cost"),
}
# Larger arrays (networks) are learned but not listed one by one.
_MOST_LISTED = 16


def parameter_paths(problem: ControlProblem, learn: str) -> dict[str, int]:
    """Names of the floating-point arrays in the part to be learned, and their leaf numbers.

    The name is the path in the problem, without `dynamics.` or `stage_cost.` in front where that
    leaves no doubt.

    Raises:
        UserError: if there are none.
    """
    found = {}
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(problem)):
        name = jax.tree_util.keystr(path).lstrip(".")
        if eqx.is_inexact_array(leaf) and name.split(".")[0].split("[")[0] in _PARTS[learn]:
            found[name] = number
    if not found:
        raise UserError(
            f"The problem has no floating-point array in its {learn} to be learned; make its "
            "callables eqx.Module objects whose fields are arrays."
        )
    short = lambda name: name.removeprefix("dynamics.").removeprefix("stage_cost.")
    times = Counter([*found, *map(short, found)])
    return {
        short(name) if times[short(name)] == 1 else name: number for name, number in found.items()
    }


def choose_parameters(
    problem: ControlProblem, learn: str, raw: bool
) -> tuple[Any, Parametrisation, list[str]]:
    """Coordinates, the map back, and the names of parameters learned through logarithms.

    Positive scalars of the dynamics and positive weights of costs are learned through their
    logarithms unless `raw`: they stay positive, and steps are shares of their size.
    """
    leaves = jax.tree.leaves(problem)
    paths = parameter_paths(problem, learn)

    def as_logarithm(name: str) -> bool:
        leaf = leaves[paths[name]]
        physical = leaf.ndim == 0 or name.endswith("weights")
        return not raw and physical and bool(np.all(np.asarray(leaf) > 0))

    logarithmic = [name for name in paths if as_logarithm(name)]
    at = lambda names: lambda model: [jax.tree.leaves(model)[paths[name]] for name in names]
    others = [name for name in paths if name not in logarithmic]
    coordinates, parametrisation = parametrise(problem, at(others), at(logarithmic))
    return coordinates, parametrisation, logarithmic


def values(problem: ControlProblem, learn: str) -> dict[str, float]:
    """The learned parameters as named numbers, small arrays entry by entry."""
    leaves, listed = jax.tree.leaves(problem), {}
    for name, number in parameter_paths(problem, learn).items():
        leaf = np.asarray(leaves[number])
        if leaf.ndim == 0:
            listed[name] = float(leaf)
        elif leaf.size <= _MOST_LISTED:
            for index in np.ndindex(leaf.shape):
                listed[f"{name}[{', '.join(map(str, index))}]"] = float(leaf[index])
    return listed


def with_starts(problem: ControlProblem, learn: str, starts: Mapping[str, float]) -> ControlProblem:
    """The problem with some parameters, named as `values` names them or as whole arrays, replaced.

    Raises:
        UserError: for a name that is not one of them.
    """
    paths = parameter_paths(problem, learn)
    leaves, structure = jax.tree.flatten(problem)
    for name, value in starts.items():
        whole, _, index = name.partition("[")
        if whole not in paths:
            raise UserError(
                f"There is no parameter `{name}` to start; choose from "
                f"{', '.join(values(problem, learn)) or ', '.join(paths)}."
            )
        leaf = leaves[paths[whole]]
        try:
            place = tuple(int(i) for i in index.rstrip("]").split(",")) if index else ...
            if place is not ... and np.asarray(leaf)[place].shape != ():
                raise IndexError
        except (ValueError, IndexError):
            raise UserError(
                f"`{name}` names no entry of an array of shape {leaf.shape}; choose from "
                f"{', '.join(values(problem, learn))}."
            ) from None
        leaves[paths[whole]] = jnp.asarray(leaf).at[place].set(value)
    return jax.tree.unflatten(structure, leaves)


def read_starts(texts: Sequence[str]) -> dict[str, float]:
    """`("mass=3", "length=0.5")` as a dictionary.

    Raises:
        UserError: for text of another form.
    """
    starts = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            starts[name] = float(number)
        except ValueError:
            starts[name] = math.nan
        if not name or not math.isfinite(starts[name]):
            raise UserError(f"`{text}` is no start value; write it as name=number, such as mass=3.")
    return starts
