r"""DiLQR, section 6.3: general frameworks can differentiate optimal control; what it costs.

The paper says that frameworks such as JAXopt and Theseus cannot, since the expansion of iLQR
depends on the trajectory itself. The optimality conditions do not: any framework that
differentiates a root or a minimum implicitly has the same gradient. Here Optimistix solves and
differentiates pendulum and cartpole without bounds in two ways, each its natural one:

- `shooting`: the cost as a function of the controls, minimised by BFGS;
- `KKT`: the root of the Lagrangian's derivative by states, controls and costates, by Newton.

Neither knows the stages, so its linear algebra is dense. Each is run from controls of zero, where
it may fail, and from the solution, where all must return the same gradient of a random linear loss
by the physical parameters and the initial state. Memory is XLA's for temporaries.
"""

import dataclasses
import functools
import logging
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

from . import _main, _pictures
from ._rows import Row, verdict

OURS, SHOOTING, KKT = "dc.solve", "Optimistix, shooting", "Optimistix, KKT"
METHODS = (OURS, SHOOTING, KKT)
COLOURS = dict(zip(METHODS, ("#0072B2", "#E69F00", "#009E73"), strict=True))
SYSTEMS = {  # parameters as the systems take them [SI units]
    "pendulum": (dc.systems.pendulum, dc.systems.Pendulum, (10.0, 1.0, 1.0)),
    "cartpole": (dc.systems.cartpole, dc.systems.Cartpole, (9.8, 1.0, 0.1, 0.5)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    systems: tuple[str, ...] = ("pendulum", "cartpole")
    """"pendulum", "cartpole"."""
    horizons: tuple[int, ...] = (10, 20, 40, 80)
    """Steps of a plan."""
    seeds: int = 8
    """Initial states, of the papers' distribution."""
    repetitions: int = 5
    """Of each time; the median is kept. Fewer once a second is spent."""
    newton_steps: int = 50
    """At most, of Newton; it either converges in fewer or diverges."""
    bfgs_steps: int = 2000
    """At most, of BFGS."""


SIZES = {
    "full": Config(),
    "reduced": Config(horizons=(10, 40), seeds=4, repetitions=3),
    "quick": Config(systems=("pendulum",), horizons=(10,), seeds=2, repetitions=2),
}


def ours(config, problem, x0, guess):
    # At horizon 80 cartpole takes thousands of iterations from controls of zero.
    solver = dc.DDP(tolerance=1e-10, max_iterations=5000)
    solution = dc.solve(problem, x0, solver, guess=guess, throw=False)
    return solution.states, solution.controls, solution.result == dc.RESULTS.successful


def rolled(problem, x0, controls, offsets):
    """States, with an offset added to each: the cost's derivative by it is the costate."""

    def advance(x, inputs):
        u, offset = inputs
        x = problem.dynamics(x, u, 0) + offset
        return x, x

    start = x0 + offsets[0]
    return jnp.concatenate([start[None], jax.lax.scan(advance, start, (controls, offsets[1:]))[1]])


def total_cost(problem, states, controls):
    return jnp.sum(jax.vmap(problem.stage_cost, (0, 0, None))(states[:-1], controls, 0))


def shooting(config, problem, x0, guess):
    import optimistix

    offsets = jnp.zeros((problem.horizon + 1, len(x0)))

    def cost(controls, given):
        problem, x0 = given
        return total_cost(problem, rolled(problem, x0, controls, offsets), controls)

    found = optimistix.minimise(
        cost,
        optimistix.BFGS(rtol=1e-10, atol=1e-10),
        guess,
        (problem, x0),
        max_steps=config.bfgs_steps,
        throw=False,
    )
    states = rolled(problem, x0, found.value, offsets)
    return states, found.value, found.result == optimistix.RESULTS.successful


def kkt(config, problem, x0, guess):
    import optimistix

    def lagrangian(point, given):
        states, controls, costates = point
        problem, x0 = given
        following = jax.vmap(problem.dynamics, (0, 0, None))(states[:-1], controls, 0)
        gaps = jnp.concatenate([x0[None], following]) - states
        return total_cost(problem, states, controls) + jnp.sum(costates * gaps)

    offsets = jnp.zeros((problem.horizon + 1, len(x0)))
    cost = lambda offsets: total_cost(problem, rolled(problem, x0, guess, offsets), guess)
    first = (rolled(problem, x0, guess, offsets), guess, jax.grad(cost)(offsets))
    found = optimistix.root_find(
        jax.grad(lagrangian),
        optimistix.Newton(rtol=1e-10, atol=1e-10),
        first,
        (problem, x0),
        max_steps=config.newton_steps,
        throw=False,
    )
    return *found.value[:2], found.result == optimistix.RESULTS.successful


def compiled(config, name, horizon, method):
    """`(parameters, x0, guess, loss) -> controls, cost, success, gradient`; its memory [bytes]."""
    module, system, true = SYSTEMS[name]
    x0 = module.start(jax.random.key(0))

    def value(inputs, guess, loss):
        parameters, x0 = inputs
        problem = dc.ControlProblem(
            dynamics=system(*parameters),
            stage_cost=module.cost(),
            horizon=horizon,
            control_size=1,
        )
        states, controls, good = method(config, problem, x0, guess)
        tau = jnp.concatenate([states[:-1], controls], axis=1)
        # A root that was not reached may have states that the controls do not lead to.
        reached = rolled(problem, x0, controls, jnp.zeros_like(states))
        return jnp.sum(loss * tau), (controls, total_cost(problem, reached, controls), good)

    def run(parameters, x0, guess, loss):
        gradient, found = jax.grad(value, has_aux=True)((parameters, x0), guess, loss)
        return *found, jnp.concatenate(gradient)

    like = (jnp.array(true), x0, jnp.zeros((horizon, 1)), jnp.zeros((horizon, len(x0) + 1)))
    program = jax.jit(run).lower(*like).compile()
    return program, program.memory_analysis().temp_size_in_bytes


def condition(config, name, horizon):
    """`(x0, controls)` -> condition number of the Hessian that shooting solves with."""
    module, system, true = SYSTEMS[name]

    def cost(controls, x0):
        asked = system(*jnp.array(true))
        problem = dc.ControlProblem(
            dynamics=asked, stage_cost=module.cost(), horizon=horizon, control_size=1
        )
        states = rolled(problem, x0, controls[:, None], jnp.zeros((horizon + 1, len(x0))))
        return total_cost(problem, states, controls[:, None])

    return jax.jit(lambda x0, controls: jnp.linalg.cond(jax.hessian(cost)(controls[:, 0], x0)))


def measure(config: Config, context: _main.Context):
    # A failure of Optimistix is counted, and need not be printed as well.
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
    return {
        name: {str(T): one_horizon(config, name, T) for T in config.horizons}
        for name in config.systems
    }


def one_horizon(config, name, T):
    module, _, true = SYSTEMS[name]
    programs, found = {}, {"cheaper": [], "converged": [], "condition": []}
    for label, method in zip(METHODS, (ours, shooting, kkt), strict=True):
        programs[label], memory = compiled(config, name, T, method)
        found[label] = {"memory": memory, "cold": [], "solved": [], "warm": [], "apart": []}
    hessian = condition(config, name, T)
    for key in jax.random.split(jax.random.key(1), config.seeds):
        x0 = module.start(key)
        loss = jax.random.normal(key, (T, len(x0) + 1))
        zero = jnp.zeros((T, 1))
        costs = {}
        for label, program in programs.items():
            run = functools.partial(program, jnp.array(true), x0, zero, loss)
            answer, seconds = timed(run, config.repetitions)
            found[label]["cold"].append(seconds)
            costs[label] = np.inf if answer is None else float(np.nan_to_num(answer[1], nan=np.inf))
            if label == OURS:
                solution, best, good = answer[0], costs[label], bool(answer[2])
            # Another minimum that is as cheap counts.
            found[label]["solved"].append(costs[label] <= best + 1e-6 * abs(best))
        found["cheaper"].append(min(costs.values()) < best - 1e-6 * abs(best))
        found["converged"].append(good)
        if not good:
            continue
        found["condition"].append(float(hessian(x0, solution)))
        gradients = {}
        for label, program in programs.items():
            run = functools.partial(program, jnp.array(true), x0, solution, loss)
            answer, seconds = timed(run, config.repetitions)
            found[label]["warm"].append(seconds)
            gradients[label] = np.full(1, np.inf) if answer is None else np.asarray(answer[3])
        size = np.max(np.abs(gradients[OURS]))
        for label, gradient in gradients.items():
            error = np.max(np.abs(gradient - gradients[OURS])) / size
            found[label]["apart"].append(float(error))
    return found


def timed(run, repetitions):
    """The answer, or None if Optimistix found no gradient, and median seconds."""
    seconds = []
    while not seconds or (len(seconds) < repetitions and sum(seconds) < 1.0):
        start = time.perf_counter()
        try:
            answer = jax.block_until_ready(run())
        except jax.errors.JaxRuntimeError:  # a singular system at a point that diverged
            return None, time.perf_counter() - start
        seconds.append(time.perf_counter() - start)
    return answer, float(np.median(seconds))


def rows(config: Config, found):
    last = str(config.horizons[-1])
    runs = [run for system in found.values() for run in system.values()]
    ends = {name: system[last] for name, system in found.items()}
    count = config.seeds * len(runs)
    apart = {
        label: max(max(run[label]["apart"], default=0.0) for run in runs) for label in METHODS[1:]
    }
    solved = {label: sum(sum(run[label]["solved"]) for run in runs) / count for label in METHODS}
    converged = sum(sum(run["converged"]) for run in runs) / count
    conditions = {
        T: max(max(system[T]["condition"], default=0.0) for system in found.values())
        for T in map(str, config.horizons)
    }
    ill = (
        "Shooting solves with the Hessian by the controls alone, whose condition number grows as "
        "open loops diverge: at most "
        + ", ".join(f"{value:.1g} at horizon {T}" for T, value in conditions.items())
        + "."
    )
    middle = lambda run, label, kind: float(np.median(np.array(run[label][kind], float)))

    def ratio(label, kind):
        """Of the longest horizon, the system where the library gains least."""
        if kind == "memory":
            return min(run[label]["memory"] / run[OURS]["memory"] for run in ends.values())
        return min(
            middle(run, label, kind) / middle(run, OURS, kind)
            for run in ends.values()
            if run[OURS][kind]
        )

    def said(kind):
        if kind == "memory":
            each = lambda run, label: f"{run[label]['memory'] / 1024:.4g} kB"
        else:
            each = lambda run, label: f"{1e3 * middle(run, label, kind):.3g} ms"
        return "; ".join(
            f"{name}: " + ", ".join(f"{label} {each(run, label)}" for label in METHODS)
            for name, run in ends.items()
        )

    row = functools.partial(Row, "DiLQR", "section 6.3")
    made = [
        row(
            f"a general framework differentiates optimal control exactly ({label})",
            "largest relative difference of gradients at the solution",
            None,
            apart[label],
            round(converged * count),
            verdict(apart[label], 1e-6, otherwise="explained"),
            "Of the plan that dc.solve found, to a tolerance of 1e-10; the paper says that general "
            "frameworks cannot. " + (ill if label == SHOOTING else ""),
        )
        for label in METHODS[1:]
    ]
    for kind, what in (
        ("warm", "time at a known solution"),
        ("cold", "time of plan and gradient from controls of zero"),
        ("memory", "temporary memory of plan and gradient"),
    ):
        made += [
            row(
                f"knowing the stages saves: {what}, {label}",
                f"ratio to dc.solve at horizon {last}, of the system where it is smaller [1]",
                None,
                ratio(label, kind),
                1 if kind == "memory" else config.seeds,
                verdict(ratio(label, kind), 1.0, lower=False, otherwise="explained"),
                said(kind) + (", failures included." if kind == "cold" else "."),
            )
            for label in METHODS[1:]
        ]
    made.append(
        row(
            "from controls of zero dc.solve ends no worse than either way of Optimistix",
            "share of starts on which it does",
            None,
            1.0 - _beaten(runs),
            count,
            "reached" if _beaten(runs) == 0 else "explained",
            "Ends within 1e-6 of the cost of dc.solve, or below: "
            + ", ".join(f"{label} {solved[label]:.0%}" for label in METHODS[1:])
            + f". dc.solve itself converges on {converged:.0%}, and gradients are compared there.",
        )
    )
    return made


def _beaten(runs):
    """Share of starts where another method ended clearly cheaper."""
    cheaper = [better for run in runs for better in run["cheaper"]]
    return sum(cheaper) / max(1, len(cheaper))


def draw(found, path):
    figure, axes = _pictures.grid(len(found), 3, width=12.0, height=3.4 * len(found))
    kinds = (("cold", "plan and gradient"), ("warm", "gradient at the solution"))
    for line, (name, system) in zip(axes, found.items(), strict=True):
        horizons = [int(T) for T in system]
        for label in METHODS:
            style = dict(color=COLOURS[label], marker="o", label=label)
            for ax, (kind, what) in zip(line, kinds, strict=False):
                times = [np.median(np.array(run[label][kind], float)) for run in system.values()]
                ax.plot(horizons, times, **style)
                ax.set(ylabel=f"{what} [s]")
            line[2].plot(
                horizons, [run[label]["memory"] / 1024 for run in system.values()], **style
            )
        line[2].set(ylabel="temporary memory [kB]")
        for ax in line:
            ax.set(yscale="log", xlabel="horizon [steps]", title=name)
            ax.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("general_frameworks", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
