"""Safe-PDP's cartpole with its log barrier; the gradients of Safe-PDP and IDOC, vectorised.

The gradients are written from their mathematics. Each takes learners' parameters and plans, and
what was shown, and gives the gradient of ||xi - xi*||^2 by the nine parameters.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

N, M, HORIZON, DT, GRAVITY, GAMMA = 4, 1, 35, 0.1, 10.0, 1e-2
SOFTLY = (1.0, 0.1, GAMMA)  # how a plan is found from rest
NAMES = ("m_c", "m_p", "l", "u_max", "x_max", "w_x", "w_q", "w_x'", "w_q'")
TRUE = np.array([0.5, 0.5, 1.0, 5.0, 0.8, 0.1, 1.0, 0.1, 0.1])
GOAL = (0.0, np.pi, 0.0, 0.0)  # cart [m], angle from hanging [rad], their speeds


class Cartpole(eqx.Module):
    """JinEnv's: q = 0 hangs; explicit Euler."""

    parameters: jax.Array  # m_c, m_p [kg], l [m]

    def __call__(self, x, u, t):
        m_c, m_p, l = self.parameters
        _, q, speed, turn = x
        sin, cos, mass = jnp.sin(q), jnp.cos(q), m_c + m_p * jnp.sin(q) ** 2
        along = (u[0] + m_p * sin * (l * turn**2 + GRAVITY * cos)) / mass
        about = -(u[0] + m_p * l * turn**2 * sin) * cos - (m_c + m_p) * GRAVITY * sin
        return x + DT * jnp.stack([speed, turn, along, about / (l * mass)])


class Goal(eqx.Module):
    weights: jax.Array

    def __call__(self, x, u, t):
        return self.weights @ (x - jnp.array(GOAL)) ** 2 + 0.1 * jnp.sum(u**2)


class Limits(eqx.Module):
    """Negative inside."""

    u_max: jax.Array
    x_max: jax.Array

    def __call__(self, x, u, t):
        cart = jnp.stack([x[0] - self.x_max, -x[0] - self.x_max])
        return jnp.concatenate([cart, u - self.u_max, -u - self.u_max])


class Last(eqx.Module):
    """The stage cost without a control, for the last state."""

    stage: eqx.Module

    def __call__(self, x):
        return self.stage(x, jnp.zeros(M), 0)


def problem(parameters, gamma=GAMMA):
    limits = Limits(parameters[3], parameters[4])
    cost = dc.log_barrier(limits, gamma) + Goal(parameters[5:])
    return dc.ControlProblem(
        dynamics=Cartpole(parameters[:3]),
        stage_cost=cost,
        terminal_cost=Last(cost),
        horizon=HORIZON,
        control_size=M,
    )


def memory_of(solution):
    """What the next solve starts from: states, controls and gains."""
    return solution.states[:-1], solution.controls, solution.gains


def plan(parameters, memory, gamma=GAMMA, adjoint=None):
    """From the last policy, or where that leaves the limits, from rest, which is inside."""
    asked, limits = problem(parameters, gamma), Limits(*parameters[3:5])

    def advance(x, before):
        x_before, u, gain = before
        u = u + gain @ (x - x_before)
        x = asked.dynamics(x, u, 0)
        return x, (u, limits(x, u, 0))

    _, (controls, beyond) = jax.lax.scan(advance, jnp.zeros(N), memory)
    guess = jax.lax.stop_gradient(jnp.where(jnp.all(beyond < 0), controls, 0.0))
    solver = dc.DDP(max_iterations=500)
    return dc.solve(asked, jnp.zeros(N), solver, guess=guess, adjoint=adjoint, throw=False)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def plans(parameters, memory, gamma):
    return plan(parameters, memory, gamma)


memory_of_all = jax.jit(jax.vmap(memory_of))


def found_by(parameters, gammas=SOFTLY):
    """Plans of learners, each barrier's starting from those of the one before."""
    learners = len(parameters)
    memory = [np.zeros((learners, HORIZON, *size)) for size in ((N,), (M,), (M, N))]
    for gamma in gammas:
        solutions = plans(parameters, tuple(memory), gamma)
        memory = memory_of_all(solutions)
    return solutions


def difference(solution, shown):
    """xi - xi*."""
    apart = (solution.states - shown.states, solution.controls - shown.controls)
    return jnp.concatenate([part.ravel() for part in apart])


def compared(parameters, memory, shown):
    """xi - xi*; what the plan leaves to the next and whether it was found."""
    solution = plan(parameters, memory, adjoint=dc.ImplicitAdjoint())
    apart = difference(solution, shown)
    good = (solution.result == dc.RESULTS.successful) & jnp.all(jnp.isfinite(apart))
    return apart, (memory_of(solution), good)


def where(choose, a, b):
    """Learner by learner."""
    pick = lambda a, b: np.where(choose.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, a, b)


def tried(step, parameters, memory, shown):
    """A step from the last policies; where these leave the limits, from ones found from rest."""
    found, good = step(parameters, memory, shown)
    if not np.all(good):
        anew = memory_of_all(found_by(np.asarray(parameters)))
        memory = where(np.asarray(good), memory, anew)
        found, good = step(parameters, memory, shown)
    return jax.tree.map(np.asarray, found), np.asarray(good)


# --- The gradients of Safe-PDP and IDOC ----------------------------------------------------------


def stage(parameters, tau, costate):
    """The slope of the Hamiltonian by (x, u), and the next state."""
    asked = problem(parameters)
    following = lambda tau: asked.dynamics(tau[:N], tau[N:], 0)
    value = lambda tau: asked.stage_cost(tau[:N], tau[N:], 0) + costate @ following(tau)
    return jax.grad(value)(tau), following(tau)


def last(parameters, x):
    return jax.grad(problem(parameters).terminal_cost)(x)


def expanded(parameters, solution):
    """Hessians and Jacobians along a plan; (parameters) -> slopes and next states there."""
    taus = jnp.concatenate([solution.states[:-1], solution.controls], axis=1)
    costates, x_last = solution.costates[1:], solution.states[-1]
    by_tau = jax.vmap(jax.jacfwd(stage, argnums=1), (None, 0, 0))
    H, F = by_tau(parameters, taus, costates)
    H_last = jax.jacfwd(last, argnums=1)(parameters, x_last)
    stages = jax.vmap(stage, (None, 0, 0))
    conditions = lambda parameters: (stages(parameters, taus, costates), last(parameters, x_last))
    return H, F, H_last, conditions


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def safe_pdp(parameters, solution, shown):
    """A regulator for each parameter, driven by the derivatives of the conditions by it."""
    H, F, H_last, conditions = expanded(parameters, solution)
    (c, f), c_last = jax.jacfwd(conditions)(parameters)

    def column(c, f, c_last):
        asked = dc.LinearQuadraticProblem(H, c, F, f, H_last, c_last)
        moved = dc.lqr(asked, jnp.zeros(N), throw=False)
        return jnp.concatenate([moved.states.ravel(), moved.controls.ravel()])

    columns = jax.vmap(column, (2, 2, 1))(c, f, c_last)
    return 2.0 * columns @ difference(solution, shown)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def idoc(parameters, solution, shown):
    """s = H^-1 A' w - H^-1 g with (A H^-1 A') w = A H^-1 g, block-tridiagonal; then one VJP."""
    H, F, H_last, conditions = expanded(parameters, solution)
    g_x, g_u = solution.states - shown.states, solution.controls - shown.controls
    P, P_last = jnp.linalg.inv(H), jnp.linalg.inv(H_last)
    v = 2.0 * jnp.einsum("tij,tj->ti", P, jnp.concatenate([g_x[:-1], g_u], axis=1))
    v_last = 2.0 * P_last @ g_x[-1]
    # Constraints x_0 = const and x_{t+1} - f = 0, so A has F below its unit blocks.
    diagonal = jnp.concatenate([P[:, :N, :N], P_last[None]])
    diagonal = diagonal.at[1:].add(jnp.einsum("tij,tjk,tlk->til", F, P, F))
    below = -F @ P[:, :, :N]
    right = jnp.concatenate([v[:, :N], v_last[None]])
    right = right.at[1:].add(-jnp.einsum("tij,tj->ti", F, v))

    def forward(carry, row):
        inverse, value = carry
        D, B, r = row
        new = jnp.linalg.inv(D - B @ inverse @ B.T)
        return (new, new @ (r - B @ value)), (inverse, value, B)

    def backward(w, row):
        inverse, value, B = row
        w = value - inverse @ B.T @ w
        return w, w

    nothing = (jnp.zeros((N, N)), jnp.zeros(N))
    below = jnp.concatenate([jnp.zeros((1, N, N)), below])
    (_, w_last), rows = jax.lax.scan(forward, nothing, (diagonal, below, right))
    _, w = jax.lax.scan(backward, w_last, rows, reverse=True)
    w = jnp.concatenate([w[1:], w_last[None]])
    pulled = jnp.pad(w[:-1], ((0, 0), (0, M))) - jnp.einsum("tij,ti->tj", F, w[1:])
    s = jnp.einsum("tij,tj->ti", P, pulled) - v
    s_last = P_last @ w[-1] - v_last
    return jax.vjp(conditions, parameters)[1](((s, w[1:]), s_last))[0]
