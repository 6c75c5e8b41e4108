r"""How good an answer is, by the same functions for every peer, in float64.

The measure of stationarity is the raw projected gradient of the cost J,
`max |clip(u - dJ/du, lower, upper) - u|`, with the controls rolled out again. Gradients are
compared with references that share no code with any peer: a plain Riccati recursion in NumPy for
linear-quadratic problems, and for systems dense Newton steps from the peer's own controls to the
optimum next to it, with the implicit function theorem there,

    w = (d2J/du2)^-1 dL/du,    dL/dtheta = d/dtheta [ L(u, theta) - w' dJ/du(u, theta) ]

over the controls that no bound holds. So a peer that ends in another local minimum than the rest
is judged at that one. An error of a gradient is relative to the largest entry of its array; of
several arrays the worst counts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffcontrol import systems
from diffcontrol.systems import Cartpole, Pendulum

from .cases import Case

_NEWTON_STEPS = 30


def judge(case: Case, answer: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict:
    """`mean_cost`, `projected_gradient` (the worst), and where the answer has them `iterations`,
    `iterations_most` and `gradient_error`; for linear-quadratic problems also `control_error`."""
    found = {}
    if "iterations" in answer:
        found["iterations"] = float(np.mean(answer["iterations"]))
        found["iterations_most"] = int(np.max(answer["iterations"]))
    look = _linear_quadratic if case.kind == "lq" else _system
    return found | look(case, answer, arrays)


def _error(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.max(np.abs(value - reference)) / np.max(np.abs(reference)))


# Linear-quadratic problems, batch first.


def _linear_quadratic(case: Case, answer: dict, arrays: dict) -> dict:
    C, c = arrays["C"], arrays["c"]
    x = _roll_out(arrays, answer["controls"])
    tau = np.concatenate([x, answer["controls"]], -1)
    slope = _apply(C, tau) + c
    costate, reduced = 0.0 * x[:, 0], np.empty_like(answer["controls"])
    for t in reversed(range(case.T)):
        through = slope[:, t] + _apply(arrays["F"][:, t].swapaxes(-1, -2), costate)
        costate, reduced[:, t] = through[:, : case.n], through[:, case.n :]
    optimum, gradient = reference(arrays)
    found = {
        "mean_cost": float(np.mean(np.sum(tau * (0.5 * _apply(C, tau) + c), (1, 2)))),
        "projected_gradient": float(np.max(np.abs(reduced))),
        "control_error": _error(answer["controls"], optimum),
    }
    if "dC" in answer:
        dC = 0.5 * (answer["dC"] + answer["dC"].swapaxes(-1, -2))
        T = answer["dF"].shape[1]  # the last stage has no successor, and some take no F there
        errors = [
            _error(dC, gradient["C"]),
            _error(answer["dc"], gradient["c"]),
            _error(answer["dF"], gradient["F"][:, :T]),
            _error(answer["df"], gradient["f"][:, :T]),
            _error(answer["dx0"], gradient["x0"]),
        ]
        found["gradient_error"] = max(errors)
    return found


def reference(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Optimal controls, and the gradients of `sum(wx x) + sum(wu u)` by name.

    The optimality conditions are linear and symmetric. Where `tau, lambda` solve them for the data
    and `s, sigma` for the cost `-w' tau` with `f = 0` and `x_0 = 0`, the gradients are
    `dc = s`, `dC = (s tau' + tau s') / 2`, `df_t = sigma_{t+1}`, `dx_0 = sigma_0` and
    `dF_t = sigma_{t+1} tau_t' + lambda_{t+1} s_t'`, up to the sign of the second solution.
    """
    w = np.concatenate([arrays["wx"], arrays["wu"]], -1)
    tau, costate = _riccati(arrays["C"], arrays["c"], arrays["F"], arrays["f"], arrays["x0"])
    zero = (0.0 * arrays["f"], 0.0 * arrays["x0"])
    s, sigma = _riccati(arrays["C"], w, arrays["F"], *zero)
    outer = lambda a, b: a[..., :, None] * b[..., None, :]
    gradient = {
        "C": 0.5 * (outer(s, tau) + outer(tau, s)),
        "c": s,
        "F": outer(sigma[:, 1:], tau) + outer(costate[:, 1:], s),
        "f": sigma[:, 1:],
        "x0": sigma[:, 0],
    }
    return tau[..., arrays["x0"].shape[1] :], gradient


def _riccati(C, c, F, f, x0):
    """`tau` `(B, T, n+m)` and costates `(B, T+1, n)` of the optimum."""
    B, T, n, _ = F.shape
    V, v, gains = np.zeros((B, n, n)), np.zeros((B, n)), []
    values = [(V, v)]
    for t in reversed(range(T)):
        Ft = F[:, t].swapaxes(-1, -2)
        Q = C[:, t] + Ft @ V @ F[:, t]
        q = c[:, t] + _apply(Ft, _apply(V, f[:, t]) + v)
        right = np.concatenate([Q[:, n:, :n], q[:, n:, None]], -1)
        gain = -np.linalg.solve(Q[:, n:, n:], right)
        K, k = gain[..., :n], gain[..., n]
        V = Q[:, :n, :n] + Q[:, :n, n:] @ K
        V, v = 0.5 * (V + V.swapaxes(-1, -2)), q[:, :n] + _apply(Q[:, :n, n:], k)
        gains.append((K, k))
        values.append((V, v))
    x, taus, costates = x0, [], []
    for t, ((K, k), (V, v)) in enumerate(zip(reversed(gains), values[:0:-1], strict=True)):
        taus.append(np.concatenate([x, _apply(K, x) + k], -1))
        costates.append(_apply(V, x) + v)
        x = _apply(F[:, t], taus[-1]) + f[:, t]
    return np.stack(taus, 1), np.stack([*costates, 0.0 * x], 1)


def _roll_out(arrays: dict, u: np.ndarray) -> np.ndarray:
    x = [arrays["x0"]]
    for t in range(u.shape[1] - 1):
        tau = np.concatenate([x[t], u[:, t]], -1)
        x.append(_apply(arrays["F"][:, t], tau) + arrays["f"][:, t])
    return np.stack(x, 1)


def _apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (matrix @ vector[..., None])[..., 0]


# Systems.


def _system(case: Case, answer: dict, arrays: dict) -> dict:
    u, x0 = jnp.asarray(answer["controls"], float), jnp.asarray(arrays["x0"])
    cost, projected = _stationarity(case.kind, u, x0)
    found = {"mean_cost": float(cost.mean()), "projected_gradient": float(projected.max())}
    if "dweights" in answer:
        gradient, residual = _exact_gradient(case.kind, u, x0)
        exact = zip(("ddynamics", "dweights", "dgoal"), gradient, strict=True)
        error = max(_error(answer[name], np.asarray(g)) for name, g in exact)
        # Without an optimum next to the answer there is nothing to compare with.
        found["gradient_error"] = error if residual < 1e-9 else float("nan")
    return found


def _of(kind: str):
    """The parameters of a system, and functions of `(u, x0, parameters)`: cost and trajectory."""
    problem = getattr(systems, kind).problem(horizon=1)

    def run(u, x0, parameters):
        dynamics, stage_cost = parameters

        def advance(x, u):
            return dynamics(x, u, 0), (x, stage_cost(x, u, 0))

        _, (x, costs) = jax.lax.scan(advance, x0, u)
        return x, jnp.sum(costs)

    bounds = problem.control_bounds
    return (problem.dynamics, problem.stage_cost), run, (bounds.lower, bounds.upper)


@functools.partial(jax.jit, static_argnums=0)
def _stationarity(kind: str, us, x0s):
    parameters, run, bounds = _of(kind)

    def of_one(u, x0):
        u = jnp.clip(u, *bounds)
        value, slope = jax.value_and_grad(lambda u: run(u, x0, parameters)[1])(u)
        return value, jnp.max(jnp.abs(jnp.clip(u - slope, *bounds) - u))

    return jax.vmap(of_one)(us, x0s)


@functools.partial(jax.jit, static_argnums=0)
def _exact_gradient(kind: str, us, x0s):
    """The gradient of `mean(x^2) + mean(u^2)` by parameter, and the projected gradient left."""
    parameters, run, (lower, upper) = _of(kind)

    def of_one(u, x0):
        shape = u.shape
        slope_of = lambda u, parameters: jax.grad(
            lambda u: run(u.reshape(shape), x0, parameters)[1]
        )(u)

        def newton(u):
            """The step over free controls, and what solves with their Hessian."""
            slope = slope_of(u, parameters)
            held = ((u <= lower) & (slope > 0)) | ((u >= upper) & (slope < 0))
            H = jax.jacfwd(slope_of)(u, parameters)
            H = jnp.where(held[:, None] | held, jnp.eye(len(u)), H)
            solve = lambda right: jnp.linalg.solve(H, jnp.where(held, 0.0, right))
            return slope, solve

        def step(_, u):
            slope, solve = newton(u)
            return jnp.clip(u - solve(slope), lower, upper)

        u = jax.lax.fori_loop(0, _NEWTON_STEPS, step, jnp.clip(u, lower, upper).ravel())
        slope, solve = newton(u)

        def loss(u, parameters):
            x, _ = run(u.reshape(shape), x0, parameters)
            return jnp.mean(x**2) + jnp.mean(u**2)

        w = solve(jax.grad(loss)(u, parameters))
        gradient = jax.grad(lambda p: loss(u, p) - w @ slope_of(u, p))(parameters)
        return gradient, jnp.max(jnp.abs(jnp.clip(u - slope, lower, upper) - u))

    gradients, residuals = jax.vmap(of_one)(us, x0s)
    dynamics, cost = jax.tree.map(lambda g: jnp.mean(g, 0), gradients)
    return (_values(dynamics), cost.weights, cost.goal), jnp.max(residuals)


def _values(dynamics: Pendulum | Cartpole):
    return jnp.stack(jax.tree.leaves(dynamics))
