r"""Planning in a learned subspace: a decoder turns a few numbers into a sequence of controls.

    minimise over z in a box    cost of the roll-out of decode(z) from x0

is a control problem of one stage, whose control is z and whose state stays: every solver and every
planner knows what to do with it. Where a planner has a derivative, such as CEM with a temperature,
the decoder can be trained by the cost of the plans that are found with it.

Source: Amos and Yarats, The differentiable cross-entropy method (2020), section 4.2.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._control_problem import Bounds, ControlProblem, stage_problem
from .._plan_cost import plan_cost
from .._types import check_counts, check_key


class ControlDecoder(eqx.Module):
    """A network from a latent `(k,)` to numbers `(T, m)`, which `LatentProblem` takes into the
    control bounds.

    Args:
        latent_size: k.
        horizon, control_size: T and m.
        width, depth: of the hidden layers, and their number.
        activation: between them.
        key: random key of the first weights, whose standard deviation is
            `2 / sqrt(inputs + outputs)` of each layer; biases are zero.
    """

    weights: list[Array]
    biases: list[Array]
    horizon: int = eqx.field(static=True)
    activation: Callable = eqx.field(static=True)

    def __init__(
        self,
        latent_size: int,
        horizon: int,
        control_size: int,
        *,
        width: int = 256,
        depth: int = 3,
        activation: Callable = jax.nn.elu,
        key: Array | PRNGKeyArray,
    ):
        check_counts("ControlDecoder", least=0, depth=depth)
        counts = dict(latent_size=latent_size, horizon=horizon, control_size=control_size)
        check_counts("ControlDecoder", **counts, width=width)
        check_key(key)
        sizes = [latent_size, *[width] * depth, horizon * control_size]
        keys = jax.random.split(key, len(sizes) - 1)
        self.weights = [
            2.0 / jnp.sqrt(inputs + outputs) * jax.random.normal(key, (outputs, inputs))
            for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        self.biases = [jnp.zeros(outputs) for outputs in sizes[1:]]
        self.horizon = horizon
        self.activation = activation

    def __call__(self, z: Float[Array, " k"]) -> Float[Array, "T m"]:
        latent_size = self.weights[0].shape[1]
        if z.shape != (latent_size,):
            raise ValueError(
                f"ControlDecoder: takes a latent of shape {(latent_size,)}, but was given {z.shape}"
                " (of a solution of a LatentProblem it is `controls[0]`)."
            )
        *hidden, (weight, bias) = zip(self.weights, self.biases, strict=True)
        for inner, offset in hidden:
            z = self.activation(inner @ z + offset)
        return (weight @ z + bias).reshape(self.horizon, -1)


class DecodedCost(eqx.Module):
    """`(x, z, t) -> cost` of the roll-out of the decoded controls from `x`, from time `t` on."""

    problem: ControlProblem
    decoder: Callable

    def controls(self, z: Float[Array, " k"]) -> Float[Array, "T m"]:
        """The decoder's numbers a, taken into the control bounds: where both are finite
        `lower + (upper - lower) sigmoid(a)`, else cut off."""
        bounds = self.problem.control_bounds or Bounds()
        numbers = self.decoder(z)
        shape = (self.problem.horizon, self.problem.control_size)
        if numbers.shape != shape:
            raise ValueError(
                f"LatentProblem: `decoder` must return controls of shape (T, m) = {shape}, but "
                f"returns shape {numbers.shape}."
            )
        free = ~(jnp.isfinite(bounds.lower) & jnp.isfinite(bounds.upper))
        # Zero times infinity is NaN in a derivative even where it is not chosen.
        low, high = (jnp.where(free, 0.0, side) for side in (bounds.lower, bounds.upper))
        inside = low + (high - low) * jax.nn.sigmoid(numbers)
        return jnp.where(free, jnp.clip(numbers, bounds.lower, bounds.upper), inside)

    def __call__(self, x: Float[Array, " n"], z: Float[Array, " k"], t) -> Float[Array, ""]:
        stages, x = stage_problem(self.problem, x, t)
        return plan_cost(stages, x, self.controls(z).astype(x.dtype))


class LatentProblem(ControlProblem):
    """A control problem seen through a decoder: one stage, whose control is a latent `z`.

    `solution.controls[0]` is the best latent found, `latent.decode` of it the controls, and
    `solution.cost` their cost. An `MPC` of it returns controls, decoded. All arrays of the problem
    and the decoder are parameters: to train the decoder alone, differentiate by it alone,
    `lambda decoder: solve(LatentProblem(problem, decoder, k), x0, ...).cost`.

    Where both bounds of a control are finite the decoder's number a gives
    `lower + (upper - lower) sigmoid(a)`, else it is cut off: an untrained decoder, whose numbers
    are near zero, starts from the middle of the bounds.

    Args:
        problem: whose controls are decoded.
        decoder: `z -> (T, m)`; any callable, such as a `ControlDecoder`.
        latent_size: number of latents.
        latent_bounds: of each, -1 and 1 where not given; the spread of a planner's first samples is
            half their range.

    Raises:
        TypeError: for something that is not a problem or not callable.
        ValueError: when used, for a decoder of another shape.
    """

    def __init__(
        self,
        problem: ControlProblem,
        decoder: Callable,
        latent_size: int,
        latent_bounds: Bounds | None = None,
    ):
        if not isinstance(problem, ControlProblem):
            raise TypeError(
                f"LatentProblem: `problem` must be a ControlProblem, got {type(problem).__name__}."
            )
        if latent_bounds is not None and not isinstance(latent_bounds, Bounds):
            raise TypeError(
                "LatentProblem: `latent_bounds` must be a `Bounds` or None, got "
                f"{type(latent_bounds).__name__}."
            )
        check_counts("LatentProblem", latent_size=latent_size)
        if not callable(decoder):
            raise TypeError(
                "LatentProblem: `decoder` must be a callable z -> (T, m), got "
                f"{type(decoder).__name__}."
            )
        super().__init__(
            dynamics=_stay,
            stage_cost=DecodedCost(problem, decoder),
            horizon=1,
            control_size=latent_size,
            control_bounds=Bounds(-1.0, 1.0) if latent_bounds is None else latent_bounds,
        )

    @property
    def decoder(self) -> Callable:
        """The decoder, for example of a trained problem."""
        return self.stage_cost.decoder  # type: ignore[attr-defined]

    def decode(self, z: Float[Array, " k"]) -> Float[Array, "T m"]:
        """Controls within their bounds."""
        return self.stage_cost.controls(z)  # type: ignore[attr-defined]


def _stay(x, z, t):
    return x
