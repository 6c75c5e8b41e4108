r"""The linear-quadratic regulator in closed form, with the gradient of every input.

The optimality conditions are one symmetric linear system `M z = rows` (`_kernel/riccati.py`), so
the whole derivative is that of a linear solve: with `M d = cotangent`, one more solve with the
factorisation of the forward pass,

    dC_t = 1/2 (d_tau tau' + tau d_tau'),  dc_t = d_tau,
    dF_t = d_lambda_{t+1} tau' + lambda_{t+1} d_tau',  df_t = d_lambda_{t+1},  dx_0 = d_lambda_0

(DiffMPC, eq. 8), up to the sign of `d`. They come out of differentiating `multiply`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._control_problem import check_concrete_values
from ._kernel import riccati
from ._kernel.riccati import RightHandSide, System, Unknowns
from ._linear_quadratic import LinearQuadraticProblem, blocks
from ._result import RESULTS, choose, succeeded
from ._solution import Solution, Stats
from ._tree import any_nan, stop_gradient
from ._types import Numbers, as_floats
from ._undifferentiable import STATS_REFUSE, without_cotangent


def lqr(problem: LinearQuadraticProblem, x0: Numbers, *, throw: bool = True) -> Solution:
    """Solve a linear-quadratic problem exactly.

    Args:
        problem: the data.
        x0: initial state, `(n,)`.
        throw: raise at run time if the problem has no unique minimum, or holds NaN.

    Returns:
        The solution, with derivatives of any order with respect to `C, c, F, f`, the terminal
        terms and `x0`.

    Raises:
        ValueError, TypeError: when traced, for a wrong type or shape, or NaN that is known then.
        RuntimeError: at run time, with the sentence of `RESULTS`, if `throw`.

    Source: DiffMPC (Amos et al. 2018), module 1.
    """
    if not isinstance(problem, LinearQuadraticProblem):
        raise TypeError(
            f"`problem` must be a LinearQuadraticProblem, got {type(problem).__name__}."
        )
    x0 = as_floats("x0", x0)
    n = problem.state_size
    if x0.shape != (n,):
        raise ValueError(f"`x0` must have shape ({n},) to go with `F`, but has shape {x0.shape}.")
    check_concrete_values("problem", problem)
    check_concrete_values("x0", x0)
    return _lqr(problem, x0, throw)


@eqx.filter_jit
def _lqr(problem: LinearQuadraticProblem, x0: Array, throw: bool) -> Solution:
    dtype = jnp.result_type(problem.f, x0)
    problem, x0 = jax.tree.map(lambda leaf: leaf.astype(dtype), (problem, x0))
    n, m, T = x0.shape[0], problem.control_size, problem.horizon
    system = System(
        blocks(problem.C), problem.C_terminal, blocks(problem.F), jnp.ones((T, m), bool)
    )
    rhs = RightHandSide(problem.c, problem.c_terminal, jnp.concatenate([x0[None], problem.f]))
    z, factors = riccati.factor_and_solve(system, rhs)
    convex = jnp.all(factors.pivots > 0)
    result = choose(convex, RESULTS.successful, RESULTS.indefinite)
    result = choose(any_nan((problem, x0)), RESULTS.invalid_input, result)
    solution = Solution(
        states=z.x,
        controls=z.u,
        costates=z.costate,
        multipliers=jnp.zeros((T, m), dtype),
        cost=_cost(problem, z),
        gains=riccati.gains(system, factors),
        result=result,
        stats=without_cotangent(
            _stats(system, z, problem.c[:, n:]), jnp.sum(z.x) + jnp.sum(z.u), STATS_REFUSE
        ),
    )
    if throw:
        solution = solution.result.error_if(solution, ~succeeded(solution.result))
    return solution


def _cost(problem: LinearQuadraticProblem, z: Unknowns) -> Array:
    tau = jnp.concatenate([z.x[:-1], z.u], axis=1)
    x_T = z.x[-1]
    C_tau = riccati.multiply_curvature(blocks(problem.C), tau)
    running = 0.5 * jnp.sum(tau * C_tau) + jnp.sum(problem.c * tau)
    return running + 0.5 * x_T @ problem.C_terminal @ x_T + problem.c_terminal @ x_T


def _stats(system: System, z: Unknowns, c_u: Array) -> Stats:
    """The stationarity by the same measure as of nonlinear problems, with the scale 1."""
    system, z, c_u = stop_gradient((system, z, c_u))
    raw = jnp.max(jnp.abs(riccati.multiply(system, z).u + c_u))
    scale = jnp.maximum(1.0, jnp.max(jnp.abs(c_u)))
    zero = jnp.zeros_like(raw)
    return Stats(
        iterations=jnp.ones((), jnp.int32),
        stationarity=raw / scale,
        stationarity_raw=raw,
        step_size=zero + 1,
        regularisation=zero,
    )
