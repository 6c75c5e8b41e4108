r"""Gradient descent on the controls, and through it.

    controls = clip(controls - step_size * d cost / d controls, lower, upper)

Differentiated through its steps it is the planner of universal planning networks, and, with the
guess or the step sizes as what is learned, meta-learning in the sense of MAML.

Source: Srinivas et al., Universal planning networks (2018); Finn, Abbeel and Levine,
Model-agnostic meta-learning (2017).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._plan_cost import plan_cost
from .._types import as_floats, check_counts
from .base import AbstractPlanner, Best, Planned, PlannerStats, check_positive, positive, scan


class GradientDescent(AbstractPlanner):
    """A fixed number of projected gradient steps from the guess; needs no random key.

    Derivatives with respect to the problem, the initial state, the guess and the step sizes, in
    both modes, through the steps.

    Args:
        iterations: steps.
        step_size: [unit of the control squared / cost]: a scalar, or one a step `(iterations,)`.

    Raises:
        ValueError, TypeError: for fewer than one step, or step sizes that are not positive or of
            another shape.
    """

    iterations: int = 50
    step_size: Array = eqx.field(default=0.1, converter=lambda value: as_floats("step_size", value))

    draws = False
    refuses = None

    def __check_init__(self):
        check_counts("GradientDescent", iterations=self.iterations)
        check_positive("GradientDescent", step_size=self.step_size)
        if self.step_size.shape not in ((), (self.iterations,)):
            raise ValueError(
                f"GradientDescent: `step_size` must have shape () or ({self.iterations},), but has "
                f"shape {self.step_size.shape}."
            )

    def sensible(self):
        return positive(self.step_size)

    def plan(self, problem, x0, start, key, checkpoint):
        def step(state, size):
            controls, best = state
            cost, gradient = jax.value_and_grad(plan_cost, argnums=2)(problem, x0, controls)
            best = best.of(controls[None], jnp.where(jnp.isfinite(cost), cost, jnp.inf)[None])
            moved = jnp.clip(controls - size * gradient, problem.lower, problem.upper)
            return (moved, best), jnp.isfinite(cost)

        sizes = jnp.broadcast_to(self.step_size, (self.iterations,)).astype(x0.dtype)
        state = (start.controls, Best.none(start.controls))
        (controls, best), finite = scan(step, state, sizes, checkpoint)
        stats = PlannerStats(
            iterations=jnp.asarray(self.iterations, jnp.int32),
            best_controls=best.controls,
            best_cost=best.cost,
            spread=jnp.zeros_like(controls),
            left_out=jnp.mean(~finite, dtype=x0.dtype),
        )
        return Planned(controls, start.kept, start.known, stats)
