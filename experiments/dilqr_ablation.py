r"""DiLQR, Fig. 7: what the gradient costs without each part of the method, on pendulum.

DiLQR solves (I - Phi_z) dz = Phi_theta for the Jacobian of the plan z, where Phi is one iteration
of iLQR. Its parts: one adjoint regulator for each of the T(n+m) entries of the plan, in one batch
(4.4); the expansion's derivatives stage by stage (4.5) and forwards in time (4.6). Each is taken
away alone:

- `one at a time`: the T(n+m) regulators in a loop;
- `dense`: derivatives of all stages' D_t, d_t by all of z, as one matrix;
- `backwards in time`: derivatives of D_t through the roll-out, by reverse mode, one pass an entry;
  in torch as the authors did, and compiled by JAX, which tells the algorithm from the framework.

`one adjoint` is this library: the gradient needs one Riccati solve and one vector-Jacobian
product, and no Jacobian. Its time includes rolling out and checking a solution that is given as
the guess. All take the same solution and must return the same gradient of a random linear loss by
(gravity, mass, length) and the initial state. The paper's forward algorithm inserts total
derivatives where partial ones belong; here the partial ones are used.
"""

import dataclasses
import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

from . import _main, _pictures
from ._rows import Row, verdict

N, M = 3, 1
WEIGHTS = np.array([1.0, 1.0, 0.1, 1e-3])
TRUE = (10.0, 1.0, 1.0)  # gravity [m/s^2], mass [kg], length [m]
OURS, COMPLETE, TORCH = "one adjoint", "DiLQR, complete", "backwards in time, torch"
VARIANTS = (OURS, COMPLETE, "one at a time", "dense", "backwards in time, JAX", TORCH)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    horizons: tuple[int, ...] = (5, 10, 20, 30, 40, 50, 60)
    """Steps of the plan; 30 is reported, or the last."""
    seeds: int = 8
    """Initial states and losses."""
    repetitions: int = 20
    """Of each measurement, after a first; the median is kept. Fewer once two seconds are spent."""


SIZES = {
    "full": Config(),
    "reduced": Config(horizons=(5, 10, 30, 60), seeds=4),
    "quick": Config(horizons=(5,), seeds=2, repetitions=3),
}


def pendulum(parameters):
    return dc.systems.Pendulum(*parameters)


def problem(parameters, horizon):
    return dc.ControlProblem(
        dynamics=pendulum(parameters),
        stage_cost=dc.GoalCost(WEIGHTS, [1.0, 0.0, 0.0]),
        horizon=horizon,
        control_size=M,
    )


@functools.partial(jax.jit, static_argnames="horizon")
def solved(parameters, x0, horizon, guess=None):
    # A tight tolerance, since the variants agree at a solution only.
    solver = dc.DDP(tolerance=1e-12)
    return dc.solve(problem(parameters, horizon), x0, solver, guess=guess, throw=False)


@jax.jit
def one_adjoint(parameters, x0, plan, loss):
    horizon = len(plan.controls)

    def value(parameters, x0):
        found = solved(parameters, x0, horizon, guess=plan.controls)
        tau = jnp.concatenate([found.states[:-1], found.controls], axis=1)
        return jnp.sum(loss * tau)

    return jnp.concatenate(jax.grad(value, argnums=(0, 1))(parameters, x0))


def step(tau, parameters):
    return pendulum(parameters)(tau[:N], tau[N:], 0)


def expansion(taus, parameters):
    """D_t and d_t of every stage: x' = D tau + d."""
    D = jax.vmap(jax.jacfwd(step), (0, None))(taus, parameters)
    following = jax.vmap(step, (0, None))(taus, parameters)
    return D, following - jnp.einsum("tij,tj->ti", D, taus)


def unit_regulators(D, losses, batched):
    """Of each loss `(T, n+m)` the regulator's response and its costates."""
    weights = dc.Diagonal(jnp.broadcast_to(WEIGHTS, losses.shape[1:]))

    def respond(loss):
        asked = dc.LinearQuadraticProblem(weights, loss, D, jnp.zeros(D.shape[:2]))
        found = dc.lqr(asked, jnp.zeros(N), throw=False)
        return jnp.concatenate([found.states[:-1], found.controls], axis=1), found.costates

    return jax.vmap(respond)(losses) if batched else jax.lax.map(respond, losses)


@functools.partial(jax.jit, static_argnames=("batched", "dense"))
def by_fixed_point(parameters, x0, plan, loss, batched=True, dense=False):
    """Proposition A.1 over states and controls."""
    taus = jnp.concatenate([plan.states[:-1], plan.controls], axis=1)
    T, size = taus.shape
    costates = plan.costates[1:]
    D, _ = expansion(taus, parameters)
    units = jnp.eye(T * size).reshape(T * size, T, size)
    d_tau, d_costate = unit_regulators(D, units, batched)
    if dense:
        # The regulator's derivatives by D_t and d_t, times theirs by everything.
        by_D = d_costate[:, 1:, :, None] * taus[:, None] + costates[:, :, None] * d_tau[:, :, None]
        by_inputs = jnp.concatenate(
            [by_D.reshape(T * size, -1), d_costate[:, 1:].reshape(T * size, -1)], axis=1
        )

        def flat(z, parameters):
            D, d = expansion(z.reshape(T, size), parameters)
            return jnp.concatenate([D.ravel(), d.ravel()])

        of_z, of_parameters = jax.jacfwd(flat, argnums=(0, 1))(taus.ravel(), parameters)
        by_z, by_parameters = by_inputs @ of_z, by_inputs @ of_parameters
    else:
        # d_t = f - D_t tau_t leaves of both only lambda' D_t and f, a block for each stage.
        pulled = lambda tau, parameters, costate: costate @ jax.jacfwd(step)(tau, parameters)
        each = (0, None, 0)
        of_z = jax.vmap(jax.jacfwd(pulled), each)(taus, parameters, costates)
        of_parameters = jax.vmap(jax.jacfwd(pulled, argnums=1), each)(taus, parameters, costates)
        next_state = jax.vmap(jax.jacfwd(step, argnums=1), (0, None))(taus, parameters)
        by_z = jnp.einsum("kti,tij->ktj", d_tau, of_z).reshape(T * size, -1)
        by_parameters = jnp.einsum("kti,tip->kp", d_tau, of_parameters)
        by_parameters += jnp.einsum("kti,tip->kp", d_costate[:, 1:], next_state)
    right = jnp.concatenate([by_parameters, d_costate[:, 0]], axis=1)
    return loss.ravel() @ jnp.linalg.solve(jnp.eye(T * size) - by_z, right)


@jax.jit
def by_controls(parameters, x0, plan, loss, of_states, of_D):
    """The fixed point over controls alone, given derivatives of the rolled-out x_t and D_t.

    Both by (controls, parameters, initial state), at fixed controls.
    """
    T = len(plan.controls)
    taus = jnp.concatenate([plan.states[:-1], plan.controls], axis=1)
    D, _ = expansion(taus, parameters)
    units = jnp.concatenate([jnp.zeros((T, T, N)), jnp.eye(T)[:, :, None]], axis=2)
    d_tau, _ = unit_regulators(D, units, True)
    of_u = jnp.eye(T, of_states.shape[-1])[:, None]
    of_tau = jnp.concatenate([of_states, of_u], axis=1)
    moved = WEIGHTS[:, None] * of_tau
    moved += jnp.einsum("tijp,ti->tjp", of_D, plan.costates[1:])
    change = jnp.einsum("kti,tip->kp", d_tau, moved)
    of_controls = jnp.linalg.solve(-change[:, :T], change[:, T:])
    along = jnp.concatenate([of_controls, jnp.eye(change.shape[1] - T)])
    return jnp.einsum("ti,tip->p", loss, of_tau) @ along


@jax.jit
def backwards_in_jax(parameters, x0, plan, loss):
    T = len(plan.controls)

    def rolled(inputs):
        controls, parameters, x = jnp.split(inputs, (T, T + len(TRUE)))

        def advance(x, u):
            tau = jnp.append(x, u)
            return step(tau, parameters), (x, jax.jacfwd(step)(tau, parameters))

        return jax.lax.scan(advance, x, controls)[1]

    inputs = jnp.concatenate([plan.controls[:, 0], parameters, x0])
    return by_controls(parameters, x0, plan, loss, *jax.jacrev(rolled)(inputs))


def backwards_in_torch(parameters, x0, plan, loss):
    import torch

    jacobian = torch.autograd.functional.jacobian
    T = len(plan.controls)

    def advance(tau, parameters):
        (cos, sin, speed, torque), (g, m, l) = tau, parameters
        speed = speed + 0.05 * (3.0 * g / (2.0 * l) * sin + 3.0 * torque / (m * l**2))
        angle = torch.atan2(sin, cos) + 0.05 * speed
        return torch.stack([torch.cos(angle), torch.sin(angle), speed])

    def rolled(inputs):
        controls, parameters, x = torch.split(inputs, (T, len(TRUE), N))
        states, slopes = [], []
        for u in controls:
            tau = torch.cat([x, u[None]])
            states.append(x)
            slopes.append(jacobian(lambda tau: advance(tau, parameters), tau, create_graph=True))
            x = advance(tau, parameters)
        return torch.stack(states), torch.stack(slopes)

    inputs = np.concatenate([plan.controls[:, 0], parameters, x0])
    parts = jacobian(rolled, torch.tensor(inputs, dtype=torch.float64))
    return by_controls(parameters, x0, plan, loss, *(jnp.asarray(part.numpy()) for part in parts))


METHODS = dict(
    zip(
        VARIANTS,
        (
            one_adjoint,
            by_fixed_point,
            functools.partial(by_fixed_point, batched=False),
            functools.partial(by_fixed_point, dense=True),
            backwards_in_jax,
            backwards_in_torch,
        ),
        strict=True,
    )
)


def measure(config: Config, context: _main.Context):
    import torch

    torch.set_num_threads(1)
    parameters = jnp.array(TRUE)
    keys = jax.random.split(jax.random.key(0), config.seeds)
    found = {"horizons": config.horizons, "seconds": {}, "apart": {}, "iterations": []}
    seconds = {name: [] for name in VARIANTS}
    apart = {name: [] for name in VARIANTS}
    for T in config.horizons:
        differ = {name: 0.0 for name in VARIANTS}
        for place, key in enumerate(keys):
            x0 = dc.systems.pendulum.start(key)
            loss = jax.random.normal(key, (T, N + M))
            plan = jax.tree.map(jnp.asarray, solved(parameters, x0, T))
            found["iterations"].append(int(plan.stats.iterations))
            gradients, last = {}, place == len(keys) - 1
            for name, method in METHODS.items():
                run = functools.partial(method, parameters, x0, plan, loss)
                if name != TORCH or last:  # torch takes seconds for each
                    gradients[name] = run()
                if last:
                    often = config.repetitions if name != TORCH else 1
                    seconds[name].append(timed(run, often))
            size = jnp.max(jnp.abs(gradients[OURS]))
            for name, gradient in gradients.items():
                error = float(jnp.max(jnp.abs(gradient - gradients[OURS])) / size)
                differ[name] = max(differ[name], error)
        for name in VARIANTS:
            apart[name].append(differ[name])
    return found | {"seconds": seconds, "apart": apart}


def timed(run, repetitions):
    """Median seconds of a function that has run before."""
    taken = []
    while len(taken) < repetitions and sum(taken) < 2.0:
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def rows(config: Config, found):
    horizons = list(found["horizons"])
    at = horizons.index(30) if 30 in horizons else -1
    seconds = {name: np.array(values) for name, values in found["seconds"].items()}
    worst = max(max(values) for values in found["apart"].values())
    times = ", ".join(f"{name} {1e3 * seconds[name][at]:.3g} ms" for name in VARIANTS)
    torch, alone = seconds[TORCH], seconds["one at a time"]
    # In one framework: torch beside compiled code would mostly measure Python.
    backwards = seconds["backwards in time, JAX"]
    most = np.mean((backwards > alone) & (backwards > seconds["dense"]))
    second = np.mean(alone > seconds["dense"])
    said = ", ".join(
        f"T = {T}: {1e3 * alone[i]:.3g} and {1e3 * seconds['dense'][i]:.3g} ms"
        for i, T in enumerate(horizons)
    )
    whole = seconds[COMPLETE]
    python = torch[at] / seconds["backwards in time, JAX"][at]
    why = {
        TORCH: f"Compiled by JAX the same algorithm is {python:.3g} times faster: most is Python."
    }
    return [
        Row(
            "DiLQR",
            "Fig. 7",
            f"one adjoint solve against `{name}`",
            f"speed-up at horizon {horizons[at]} [1]",
            None,
            seconds[name][at] / seconds[OURS][at],
            1 if name == TORCH else config.repetitions,
            verdict(seconds[name][at] / seconds[OURS][at], 1.0, lower=False, otherwise="explained"),
            why.get(name, times),
        )
        for name in VARIANTS[1:]
    ] + [
        Row(
            "DiLQR",
            "Fig. 7",
            "of the three parts the forward algorithm matters most",
            "share of horizons at which its removal costs most",
            1.0,
            most,
            len(horizons),
            "reached" if most == 1.0 else "explained",
            f"All compiled by JAX, at horizon {horizons[at]}, removing it costs a factor "
            f"{backwards[at] / whole[at]:.3g}, parallelisation {alone[at] / whole[at]:.3g}, "
            f"sparsity {seconds['dense'][at] / whole[at]:.3g}. In torch it costs "
            f"{torch[at] / whole[at]:.3g}, but nothing else here is in torch.",
        ),
        Row(
            "DiLQR",
            "Fig. 7",
            "parallelisation comes next, before sparsity",
            "share of horizons at which its removal costs more than that of sparsity",
            1.0,
            second,
            len(horizons),
            "reached" if second == 1.0 else "explained",
            f"In a compiled loop and as a dense matrix, on one core: {said}.",
        ),
        Row(
            "DiLQR",
            "Fig. 7",
            "all variants return the same gradient",
            "largest relative difference",
            None,
            worst,
            config.seeds * len(horizons),
            verdict(worst, 1e-8),
        ),
    ]


def draw(found, path):
    figure, ((ax,),) = _pictures.grid(1, 1, width=7.0, height=4.5)
    for name, colour in zip(VARIANTS, _pictures.SEEDS, strict=False):
        ax.plot(found["horizons"], found["seconds"][name], "o-", color=colour, label=name)
    ax.set(xlabel="horizon [steps]", ylabel="time of the gradient [s]", yscale="log")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(alpha=0.3)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("dilqr_ablation", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
