r"""Can this solution, and its gradient, be trusted? Measured at the returned point, per sample.

The error of an implicit gradient is first order in the distance to the exact solution, and it is
meaningless at a saddle, a weakly active bound or a kink. So beside the residuals of the
optimality conditions the certificate measures the gradient itself: how much does it change when
the point is moved by one Newton correction, and does it jump when the point is moved by next to
nothing?
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._adjoint.implicit import pullback
from ._captured import remembered_jit
from ._control_problem import ControlProblem, StageProblem, check_concrete_values, stage_problem
from ._expansion import exact_system
from ._kernel import riccati
from ._kernel.riccati import Unknowns
from ._optimality import (
    Clamped,
    Point,
    clamped,
    control_gradient,
    costates_of,
    linearise,
    optimality_residual,
    stationarity,
)
from ._solution import Solution
from ._tree import stop_gradient
from ._types import Numbers, as_floats

_INVERSE_ITERATIONS = 12


class Certificate(eqx.Module):
    """What is known about a solution. Under `jax.vmap` every field has a leading batch axis.

    The limits named are those of a trustworthy solution; where two are given, the first is that of
    float64 and the second that of float32.

    Attributes:
        stationarity: relative projected gradient, with costates recomputed at the point; at most
            1.5e-6 or 1e-3.
        stationarity_raw: the same before division by its scale [cost / unit of u].
        dynamics_gap: largest violation of the dynamics or the initial state, relative to `1 + |x|`;
            at most 1.5e-6 or 1e-3.
        bound_violation: largest violation of a control bound, relative to `1 + |u|`; at most
            1.5e-8 or 1e-5.
        constraint_violation: largest violation of other constraints; zero, there are none yet.
        complementarity: largest product of a multiplier and the distance of its control to the
            bound that holds it [cost].
        strict_complementarity_margin: how far the least clear control is from changing between
            free and clamped: the smaller, the closer to a kink of the solution map. The larger of
            its relative distance to the bounds and its relative multiplier; controls whose
            bounds are equal are left out; infinite without bounds. More than 1.5e-6 or 1e-3.
        smallest_curvature: smallest eigenvalue of the reduced Hessian on the free controls
            [cost / unit of u^2] where it is positive definite, else its most negative relative
            pivot. Infinite if no control is free. Positive.
        gradient_error: estimated relative error of gradients: the largest relative change of
            dJ/d(leaf), for a fixed random cotangent J on states and controls, and of the point
            itself, by one Newton correction; and the relative jump of that gradient and of the
            optimality conditions across the point, which reveals kinks of dynamics and costs. At
            most 1.5e-5 or 1e-3.
        trustworthy: whether all of this is as it should be.
    """

    stationarity: Float[Array, ""]
    stationarity_raw: Float[Array, ""]
    dynamics_gap: Float[Array, ""]
    bound_violation: Float[Array, ""]
    constraint_violation: Float[Array, ""]
    complementarity: Float[Array, ""]
    strict_complementarity_margin: Float[Array, ""]
    smallest_curvature: Float[Array, ""]
    gradient_error: Float[Array, ""]
    trustworthy: Bool[Array, ""]

    def __str__(self) -> str:
        if isinstance(self.trustworthy, jax.core.Tracer):
            return repr(self)
        if np.ndim(self.trustworthy) > 0:
            good, total = int(np.sum(self.trustworthy)), np.size(self.trustworthy)
            worst = float(np.max(np.asarray(self.gradient_error)))
            return (
                f"{good} of {total} samples are trustworthy; largest estimated gradient error "
                f"{worst:.1e}."
            )
        return _in_words(self)


def certify(problem: ControlProblem, x0: Numbers, solution: Solution) -> Certificate:
    """Measure whether `solution` solves `problem` from `x0`, and whether its gradient holds.

    The gradient is that of the optimality conditions. Of one by unrolling this says nothing, not
    even where the point is stationary: that depends on how it was reached.

    Args:
        problem, x0: as given to `solve`.
        solution: states and controls are judged; costates are recomputed.

    Returns:
        The certificate. Per sample under `jax.vmap`.

    Raises:
        ValueError, TypeError: as `solve` does for arguments that do not fit together.
    """
    check_concrete_values("problem", problem)
    return _certify(problem, as_floats("x0", x0), solution)


@remembered_jit
def _certify(problem: ControlProblem, x0: Array, solution: Solution) -> Certificate:
    stages, x0 = stage_problem(problem, x0)
    stages, x0, solution = stop_gradient((stages, x0, solution))
    x, u = solution.states, solution.controls
    linear = linearise(stages, x, u)
    costates = costates_of(linear, stages.state_size)
    point = Point(x, u, costates)
    parts = control_gradient(linear, costates, stages.state_size)
    gradient = parts[0] + parts[1]
    station = stationarity(stages, u, *parts)
    held = clamped(stages, u, gradient)

    system = exact_system(stages, point, held)
    factors = riccati.factor(system)
    residual = optimality_residual(stages, x0, point)
    gap = jnp.max(jnp.abs(residual.costates) / (1.0 + jnp.abs(x)))
    outside = jnp.maximum(stages.lower - u, u - stages.upper) / (1.0 + jnp.abs(u))
    violation = jnp.maximum(jnp.max(outside), 0.0)
    margin = _margin(stages, u, gradient / station.scale)
    curvature = _smallest_curvature(system, factors)
    error = _gradient_error(stages, x0, point, held, system, factors, residual)

    certificate = Certificate(
        stationarity=station.relative,
        stationarity_raw=station.raw,
        dynamics_gap=gap,
        bound_violation=violation,
        constraint_violation=jnp.zeros_like(gap),
        complementarity=_complementarity(stages, u, gradient, held),
        strict_complementarity_margin=margin,
        smallest_curvature=curvature,
        gradient_error=error,
        trustworthy=jnp.asarray(True),
    )
    trustworthy = jnp.all(jnp.stack(list(_requirements(certificate).values())))
    return eqx.tree_at(lambda c: c.trustworthy, certificate, trustworthy)


def _requirements(c: Certificate) -> dict[str, Bool[Array, ""]]:
    """What a trustworthy solution satisfies, by field. NaN satisfies nothing."""
    # What can be measured in this precision, but never more than can be tolerated in any.
    tolerance = min(100 * float(jnp.finfo(c.stationarity.dtype).eps) ** 0.5, 1e-3)
    return {
        "stationarity": c.stationarity <= tolerance,
        "dynamics_gap": c.dynamics_gap <= tolerance,
        "bound_violation": c.bound_violation <= 0.01 * tolerance,
        "strict_complementarity_margin": c.strict_complementarity_margin > tolerance,
        "smallest_curvature": c.smallest_curvature > 0,
        "gradient_error": c.gradient_error <= min(10 * tolerance, 1e-3),
    }


_COMPLAINTS = {
    "stationarity": "the point is not stationary (relative projected gradient {:.1e}); solve to a "
    "tighter tolerance",
    "dynamics_gap": "the states violate the dynamics by {:.1e} (relative)",
    "bound_violation": "a control bound is violated by {:.1e} (relative)",
    "strict_complementarity_margin": "a control is about to change between free and clamped "
    "(margin {:.1e}), where only one-sided derivatives exist",
    "smallest_curvature": "the curvature along some free direction is not positive ({:.1e}): a "
    "saddle, a maximum, or not unique",
    "gradient_error": "point or gradient move by {:.1e} (relative) under a Newton correction, or "
    "jump across the point: not converged, ill-conditioned, or at a kink",
}


def _complementarity(problem: StageProblem, u: Array, gradient: Array, held: Clamped) -> Array:
    # A control inside its bounds has no multiplier; what its gradient lacks to zero is counted
    # by the stationarity, not here.
    distance = u - held.of_bounds(problem.lower, problem.upper)
    return jnp.max(jnp.where(held.held, jnp.abs(gradient * distance), 0.0))


def _margin(problem: StageProblem, u: Array, gradient: Array) -> Array:
    distance = jnp.minimum(u - problem.lower, problem.upper - u) / (1.0 + jnp.abs(u))
    clear = jnp.maximum(distance, jnp.abs(gradient))
    return jnp.min(jnp.where(problem.lower == problem.upper, jnp.inf, clear))


def _smallest_curvature(system: riccati.System, factors: riccati.Factorisation) -> Array:
    """Smallest eigenvalue of the reduced Hessian by inverse iteration, each one Riccati solve."""
    zero = jnp.zeros_like(factors.V[:, :, 0])

    def iterate(v, _):
        solved = riccati.solve_rows(system, factors, Unknowns(zero, v, zero)).u
        solved = jnp.where(system.free, solved, 0.0)
        norm = jnp.linalg.norm(solved)
        return solved / jnp.maximum(norm, jnp.finfo(v.dtype).tiny), 1.0 / norm

    start = jnp.where(system.free, _random_like(factors.pivots, 0), 0.0)
    start = start / jnp.maximum(jnp.linalg.norm(start), jnp.finfo(start.dtype).tiny)
    _, eigenvalues = jax.lax.scan(iterate, start, length=_INVERSE_ITERATIONS)
    worst = jnp.min(factors.pivots)
    smallest = jnp.where(worst > 0, eigenvalues[-1], worst)
    return jnp.where(jnp.any(system.free), smallest, jnp.inf)


def _gradient_error(
    problem: StageProblem,
    x0: Array,
    point: Point,
    held: Clamped,
    system: riccati.System,
    factors: riccati.Factorisation,
    residual: Point,
) -> Array:
    x, u = point.states, point.controls
    rows = Unknowns(
        -residual.states, jnp.where(system.free, -residual.controls, 0.0), -residual.costates
    )
    d = riccati.solve_rows(system, factors, rows)
    corrected = Point(x + d.x, u + d.u, point.costates + d.costate)

    # A kink at the point makes the gradient jump by the same amount over any two small
    # distances; a smooth change is proportional to the distance. Of D(h) = g(+h) - g(-h) the
    # combination 2 D(h) - D(2h) keeps the first and cancels the second.
    h = jnp.finfo(x.dtype).eps ** 0.5
    away = Point(
        _random_like(x, 1) * (1.0 + jnp.abs(x)), _random_like(u, 2) * (1.0 + jnp.abs(u)), 0.0 * x
    )
    moved = lambda s: jax.tree.map(lambda a, b: a + s * h * b, point, away)
    points = [point, corrected, moved(1.0), moved(-1.0), moved(2.0), moved(-2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    cotangent = Point(_random_like(x, 3), _random_like(u, 4), jnp.zeros_like(x))
    gradients = jax.vmap(lambda point: pullback(problem, x0, point, held, cotangent))(stacked)

    leaves = jax.tree.leaves(gradients)
    sizes = jnp.stack([jnp.max(jnp.abs(leaf[0])) for leaf in leaves])
    scales = jnp.maximum(sizes, h * jnp.max(sizes))
    scales = jnp.maximum(scales, jnp.finfo(x.dtype).tiny)
    newton = [jnp.max(jnp.abs(leaf[1] - leaf[0])) for leaf in leaves]
    jump = [jnp.max(jnp.abs(2 * (leaf[2] - leaf[3]) - (leaf[4] - leaf[5]))) for leaf in leaves]
    error = jnp.max(jnp.maximum(jnp.stack(newton), jnp.stack(jump)) / scales)

    # The gradient of a linear-quadratic problem is the same everywhere, so how far the point
    # itself moves counts too; this does not depend on the unit of the cost, as stationarity does.
    relative = lambda d, at: jnp.max(jnp.abs(d) / (1.0 + jnp.abs(at)))
    error = jnp.maximum(error, jnp.maximum(relative(d.u, u), relative(d.x, x)))

    # A jump of the first derivatives themselves (|u|, dead zones) need not show in the second.
    G = jax.vmap(lambda point: optimality_residual(problem, x0, point))(stacked)
    first = [jnp.max(jnp.abs(2 * (g[2] - g[3]) - (g[4] - g[5]))) for g in jax.tree.leaves(G)]
    size = [jnp.max(jnp.abs(g)) for g in jax.tree.leaves((G, point.costates))]
    noise = jnp.maximum(jnp.max(jnp.stack(size)), jnp.finfo(x.dtype).tiny)
    error = jnp.maximum(error, jnp.max(jnp.stack(first)) / noise)

    # If the correction moves a control across its bound, or turns the sign of a multiplier, the
    # point does not even tell which controls are held.
    linear = linearise(problem, corrected.states, corrected.controls)
    d_corrected = sum(control_gradient(linear, corrected.costates, problem.state_size))
    slack = jnp.finfo(x.dtype).eps ** 0.75 * (1.0 + jnp.abs(u))
    outside = (corrected.controls < problem.lower - slack) | (
        corrected.controls > problem.upper + slack
    )
    fixed = problem.lower == problem.upper
    turned = ((held.at_lower > 0) & (d_corrected < 0)) | ((held.at_upper > 0) & (d_corrected > 0))
    consistent = ~jnp.any((system.free & outside) | (turned & ~fixed))
    return jnp.where(consistent & jnp.isfinite(error), error, jnp.inf)


def _random_like(array: Array, stream: int) -> Array:
    """Fixed pseudo-random numbers of size one, the same in every call and for every sample."""
    values = np.random.default_rng(stream).uniform(0.5, 1.0, array.shape)
    signs = np.random.default_rng(stream + 100).choice([-1.0, 1.0], array.shape)
    return jnp.asarray(values * signs, array.dtype)


def _in_words(c: Certificate) -> str:
    if bool(c.trustworthy):
        return (
            f"Trustworthy: stationarity {float(c.stationarity):.1e}, estimated relative gradient "
            f"error {float(c.gradient_error):.1e}, smallest curvature "
            f"{float(c.smallest_curvature):.1e}."
        )
    complaints = [
        _COMPLAINTS[name].format(float(getattr(c, name)))
        for name, holds in _requirements(c).items()
        if not holds
    ]
    return "Not trustworthy: " + "; ".join(complaints) + "."
