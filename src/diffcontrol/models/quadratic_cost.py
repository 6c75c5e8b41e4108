r"""Quadratic costs that stay convex while they are learned.

    1/2 |R (v - centre)|^2 + least/2 |v - centre|^2

`R'R + least I` is positive definite for every matrix `R`, so an optimiser may move `R` anywhere;
moving the Hessian itself would sooner or later make the problem unbounded.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._cost import AbstractStageCost
from .._types import Numbers, as_floats


class _ConvexQuadratic(eqx.Module):
    root: Float[Array, "k k"]
    centre: Float[Array, " k"]
    least: float = eqx.field(static=True)

    def __init__(self, name: str, root: Numbers, centre: Numbers | None, least: float):
        self.root = as_floats("root", root)
        k = self.root.shape[-1] if self.root.ndim else 0
        self.centre = jnp.zeros(k) if centre is None else as_floats("centre", centre)
        if self.root.shape != (k, k) or self.centre.shape != (k,):
            raise ValueError(
                f"{name}: `root` must have shape (k, k) and `centre` (k,), but they have shapes "
                f"{self.root.shape} and {self.centre.shape}."
            )
        if not least > 0:
            raise ValueError(f"{name}: `least` must be positive, got {least}.")
        self.least = float(least)

    def __call__(self, v: Array) -> Array:
        d = v - self.centre
        away = self.root @ d
        return 0.5 * (away @ away + self.least * d @ d)


class ConvexStageCost(AbstractStageCost):
    """Quadratic stage cost `(x, u, t) -> scalar`, convex whatever its arrays are.

    Args:
        root: R, `(n+m, n+m)`: the Hessian is `R'R + least I`.
        centre: `(n+m,)`, where the cost is zero; None is the origin.
        least: smallest curvature [cost / unit^2], fixed.

    Raises:
        ValueError: for other shapes, and a `least` that is not positive.
    """

    quadratic: _ConvexQuadratic

    def __init__(self, root: Numbers, centre: Numbers | None = None, least: float = 1e-4):
        self.quadratic = _ConvexQuadratic("ConvexStageCost", root, centre, least)

    def __call__(self, x: Float[Array, " n"], u: Float[Array, " m"], t) -> Float[Array, ""]:
        return self.quadratic(jnp.concatenate([x, u]))

    def at_stage(self, k):
        return self


class ConvexTerminalCost(eqx.Module):
    """Quadratic terminal cost `(x) -> scalar`, convex whatever its arrays are.

    Args:
        root: R, `(n, n)`: the Hessian is `R'R + least I`.
        centre: `(n,)`, where the cost is zero; None is the origin.
        least: smallest curvature [cost / unit^2], fixed.

    Raises:
        ValueError: for other shapes, and a `least` that is not positive.
    """

    quadratic: _ConvexQuadratic

    def __init__(self, root: Numbers, centre: Numbers | None = None, least: float = 1e-4):
        self.quadratic = _ConvexQuadratic("ConvexTerminalCost", root, centre, least)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        return self.quadratic(x)
