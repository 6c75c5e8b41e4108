"""What differs from one closed loop to the next: starts, references, plants, disturbances."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Situation(eqx.Module):
    """One closed loop that a controller is judged by; several are stacked along a leading axis.

    Only arrays are held, so that situations stack. Those of `policy`, `plant` and `measure` stand
    in the structure of what they belong to, with None wherever nothing is replaced; `replacing`
    makes such a tree. A reference is an array of the policy's problem, and of the measure.

    Attributes:
        x0: initial state, `(n,)`.
        disturbances: `(steps, n)`: added to each next state of the plant; None is zero.
        policy: arrays that replace those of the policy, such as the goal of its problem.
        plant: arrays that replace those of the plant, such as its mass.
        measure: arrays that replace those of the measure, such as the goal of its cost.
    """

    x0: Float[Array, "*N n"]
    disturbances: Float[Array, "*N steps n"] | None = None
    policy: Any = None
    plant: Any = None
    measure: Any = None

    def place(self, policy: Any, plant: Any, measure: Any) -> tuple[Any, Any, Any]:
        """Policy, plant and measure, as they are in this situation.

        Raises:
            ValueError: for arrays in another structure than what they replace.
        """
        return (
            _placed("policy", self.policy, policy),
            _placed("plant", self.plant, plant),
            _placed("measure", self.measure, measure),
        )


def replacing(tree: PyTree, where: Callable[[Any], Any], values: PyTree) -> PyTree:
    """`values` where they belong in `tree`, and None everywhere else.

        goals = replacing(controller, lambda c: c.problem.stage_cost.goal, goals)

    Args:
        tree: the structure: a policy, a plant or a measure.
        where: picks a part of it, or several in a tuple, as for `eqx.tree_at`.
        values: what stands there, mostly with a leading axis for the situations.
    """
    nothing = jax.tree.map(lambda _: None, tree)
    return eqx.tree_at(where, nothing, values, is_leaf=lambda leaf: leaf is None)


def draw_situations(draw: Callable[[Array], Situation], key: Array, number: int) -> Situation:
    """Situations drawn from a distribution, stacked along axis 0.

    Args:
        draw: a random key -> one `Situation`.
        key: random key.
        number: how many.

    Raises:
        ValueError: for fewer than one.
    """
    if number < 1:
        raise ValueError(f"draw_situations: `number` must be at least 1, got {number}.")
    return jax.vmap(draw)(jax.random.split(key, number))


def scattered(tree: PyTree, key: Array, spread: float) -> PyTree:
    r"""The floating-point arrays of `tree`, each entry times `exp(spread * normal)`; else None.

    Signs stay and zero stays zero. The average of a task loss over plants drawn so makes a
    controller robust to parameters that are known to about a share `spread` of themselves.

    Args:
        tree: such as a plant.
        key: random key.
        spread: standard deviation of the logarithm.
    """
    leaves, structure = jax.tree.flatten(eqx.filter(tree, eqx.is_inexact_array))

    def drawn(number: int, leaf: Array) -> Array:
        normal = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
        return leaf * jnp.exp(spread * normal)

    return jax.tree.unflatten(structure, [drawn(*pair) for pair in enumerate(leaves)])


def _placed(name: str, arrays: Any, whole: Any) -> Any:
    if arrays is None:
        return whole
    # None is a leaf here, for it says that nothing is replaced.
    skeleton = lambda tree: jax.tree.map(lambda _: 0, tree, is_leaf=lambda leaf: leaf is None)
    if not eqx.tree_equal(skeleton(arrays), skeleton(whole)):
        raise ValueError(
            f"Situation: `{name}` must hold arrays in the structure of the {name}, "
            f"{type(whole).__name__}, but holds a {type(arrays).__name__} of another structure. "
            "Make it with `replacing`."
        )
    return eqx.combine(arrays, whole)
