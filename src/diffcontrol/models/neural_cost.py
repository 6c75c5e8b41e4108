r"""Networks as costs: never below zero, and with curvature for the solver to hold on to.

    1/2 |network(normalised v)|^2 + least/2 |normalised v|^2

The sum of squares bounds the cost from below, and gives it a positive semidefinite Gauss-Newton
Hessian; the quadratic makes the cost grow without limit where the data end and a smooth network
goes flat, so that the problem keeps a solution while the network is being learned.
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._cost import AbstractStageCost
from .normalisation import Normalisation


class _SumOfSquares(eqx.Module):
    network: eqx.nn.MLP
    inputs: Normalisation
    least: float = eqx.field(static=True)

    def __init__(self, size: int, outputs, width, depth, activation, inputs, least, key):
        self.inputs = Normalisation.none(size) if inputs is None else inputs
        if self.inputs.mean.shape != (size,):
            raise ValueError(
                f"`inputs` must normalise {size} numbers, but normalises "
                f"{self.inputs.mean.shape[0]}."
            )
        if not least > 0:
            raise ValueError(f"`least` must be positive, got {least}.")
        self.network = eqx.nn.MLP(size, outputs, width, depth, activation, key=key)
        self.least = float(least)

    def __call__(self, v: Array) -> Array:
        v = self.inputs.apply(v)
        out = self.network(v)
        return 0.5 * (out @ out + self.least * v @ v)


class NeuralStageCost(AbstractStageCost):
    """Stage cost `(x, u, t) -> scalar`, the same at all times; add known parts with `+`.

    Args:
        state_size, control_size: n and m.
        outputs: number of squares that are summed.
        width, depth: of the hidden layers, and their number.
        activation: smooth, for the solver's sake.
        inputs: normalisation of `[x; u]`; None leaves them as they are.
        least: curvature of the quadratic [cost / normalised unit^2], fixed.
        key: random key of the first weights.

    Raises:
        ValueError: for a normalisation of another size, and a `least` that is not positive.
    """

    squares: _SumOfSquares

    def __init__(
        self,
        state_size: int,
        control_size: int,
        *,
        outputs: int = 8,
        width: int = 32,
        depth: int = 2,
        activation: Callable = jnp.tanh,
        inputs: Normalisation | None = None,
        least: float = 1e-3,
        key: Array | PRNGKeyArray,
    ):
        self.squares = _SumOfSquares(
            state_size + control_size, outputs, width, depth, activation, inputs, least, key
        )

    def __call__(self, x: Float[Array, " n"], u: Float[Array, " m"], t) -> Float[Array, ""]:
        return self.squares(jnp.concatenate([x, u]))

    def at_stage(self, k):
        return self


class NeuralTerminalCost(eqx.Module):
    """Terminal cost `(x) -> scalar`: a learned cost-to-go.

    Args:
        state_size: n.
        outputs, width, depth, activation, least, key: as for `NeuralStageCost`.
        inputs: normalisation of the state; None leaves it as it is.

    Raises:
        ValueError: as for `NeuralStageCost`.

    Source: Tamar, Thomas, Zhang, Levine and Abbeel, "Learning from the Hindsight Plan", ICRA 2017,
    for a short horizon that a learned cost makes act like a long one.
    """

    squares: _SumOfSquares

    def __init__(
        self,
        state_size: int,
        *,
        outputs: int = 8,
        width: int = 32,
        depth: int = 2,
        activation: Callable = jnp.tanh,
        inputs: Normalisation | None = None,
        least: float = 1e-3,
        key: Array | PRNGKeyArray,
    ):
        self.squares = _SumOfSquares(
            state_size, outputs, width, depth, activation, inputs, least, key
        )

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        return self.squares(x)
