"""What a solve can end in, in words."""

import equinox as eqx


class RESULTS(eqx.Enumeration):
    """Outcomes of a solve. The value of each is the sentence that the user is shown."""

    successful = ""
    fixed_iterations = "The requested number of iterations was run; no convergence test was made."
    not_converged = (
        "The solver stopped before its tolerance was met. Allow more iterations, start from a "
        "better guess, scale the cost, or smooth kinks in dynamics and cost; "
        "`solution.stats.stationarity` says how far it came."
    )
    precision_limit = (
        "The cost can no longer resolve progress at this floating-point precision while the "
        "stationarity is still above the tolerance. Use float64 (jax_enable_x64), scale the "
        "cost, or loosen the tolerance."
    )
    indefinite = (
        "The point is stationary but the curvature along some free direction is negative: it is "
        "a saddle or a maximum, not a minimum. Start from another guess; for a linear-quadratic "
        "problem, make the cost convex."
    )
    non_finite = (
        "The cost, the dynamics or their derivatives are NaN or infinite along the initial "
        "trajectory, so no step can be computed. Start from a guess whose roll-out is finite."
    )
    invalid_input = (
        "The problem holds NaN, or a lower bound lies above its upper bound, so it has no solution."
    )
