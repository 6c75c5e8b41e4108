r"""DiLQR, rocket: it lands, and its parameters are recovered from demonstrations.

The paper names a rocket and gives no number. This is the released environment: position r (x is
up), velocity v, quaternion q and body rates w, driven by a body thrust u at the tail, in steps of
explicit Euler:

    r' = v,  v' = R(q) u / m - g,  q' = 1/2 Omega(w) q,  w' = J^-1 (r_T x u - w x J w)

with r_T = (-l/2, 0, 0), J = diag(J_x, J_y, J_z). It is driven in closed loop with the released
settings, and with their defects mended one by one. "Landed" means: the norms of r, v, the
quaternion's vector part and w are all below 0.5 (m, m/s, 1, rad/s).

The parameters come from plans at the true ones, by Levenberg-Marquardt on the logarithms of
(J_x, J_y, J_z, m, l) with the Jacobian of the plans in forward mode through the solver. Thrust
enters as l/J and gyroscopic torques as ratios of J, so a common factor of J_x, J_y, J_z and l
changes nothing; and J_x is seen only where the rocket rolls. So what can be recovered are m, l/J_y,
l/J_z and, from starts that roll, l/J_x. The singular values of the Jacobian say the same.
"""

import dataclasses
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

from . import _main, _pictures
from ._rows import Row, verdict

DT, HORIZON, CLOSE = 0.1, 40, 0.5
START = (10.0, -8.0, 5.0, -0.1, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
TRUE = (0.5, 1.0, 1.0, 1.0, 1.0)  # J_x, J_y, J_z [kg m^2], m [kg], l [m]
ERRORS = {"position [m]": (0, 3), "velocity [m/s]": (3, 6), "tilt [1]": (7, 10)}
ERRORS["angular velocity [rad/s]"] = (10, 13)
RELEASED = dict(tilt=1e4, thrust=(1.0, 1.0, 0.4), normalise=0.0, box=20.0)
ARMS = {
    "released": {},
    "no box": dict(box=np.inf),
    "tilt weight once": dict(tilt=200.0),
    "0.4 on the main thrust": dict(thrust=(0.4, 1.0, 1.0)),
    "normalised quaternion": dict(normalise=1.0),
    "tilt weight once, normalised": dict(tilt=200.0, normalise=1.0),
    "all mended": dict(tilt=200.0, thrust=(0.4, 1.0, 1.0), normalise=1.0),
}
COMBINATIONS = ("m", "l/J_y", "l/J_z", "l/J_x")
COLOURS = dict(zip(ARMS, _pictures.SEEDS, strict=False))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    steps: int = 80
    """Of the closed loop; the released one has 40."""
    seeds: int = 16
    """Learners, each parameter 20 to 30 % off, up or down."""
    starts: int = 8
    """Demonstrated plans of each kind."""
    iterations: int = 12
    """Of Levenberg-Marquardt."""


SIZES = {
    "full": Config(),
    "reduced": Config(seeds=8, starts=4),
    "quick": Config(seeds=2, starts=2, iterations=8),
}


class Rocket(eqx.Module):
    """Dynamics `(x, u, t) -> next x`; `normalise` 0 leaves the quaternion's norm, 1 makes it 1."""

    J: jax.Array
    m: jax.Array
    l: jax.Array
    normalise: jax.Array

    def __call__(self, x, u, t):
        r, v, q, w = x[:3], x[3:6], x[6:10], x[10:]
        q0, vector = q[0], q[1:]
        # Of the unit quaternion; written so that, as released, the norm is not divided by.
        thrust = u + 2.0 * jnp.cross(vector, jnp.cross(vector, u) + q0 * u)
        tail = jnp.array([-0.5, 0.0, 0.0]) * self.l
        spin = (jnp.cross(tail, u) - jnp.cross(w, self.J * w)) / self.J
        turn = 0.5 * jnp.append(-vector @ w, q0 * w + jnp.cross(vector, w))
        q = q + DT * turn
        q = q / (1.0 + self.normalise * (jnp.linalg.norm(q) - 1.0))
        fall = jnp.array([-10.0, 0.0, 0.0])
        return jnp.concatenate([r + DT * v, v + DT * (thrust / self.m + fall), q, w + DT * spin])


def rocket(parameters, normalise=0.0):
    return Rocket(parameters[:3], parameters[3], parameters[4], jnp.asarray(normalise, float))


def problem(parameters, tilt, thrust, normalise, box):
    weights = [10.0] * 3 + [1.0] * 3 + [0.0, 0.0, tilt, tilt] + [1.0] * 3 + list(thrust)
    return dc.ControlProblem(
        dynamics=rocket(jnp.asarray(parameters), normalise),
        stage_cost=dc.GoalCost(weights, jnp.zeros(13)),
        horizon=HORIZON,
        control_size=3,
        control_bounds=dc.Bounds(-box, box),
    )


def measure(config: Config, context: _main.Context):
    landings = {arm: landing(config, RELEASED | mended) for arm, mended in ARMS.items()}
    return {
        "landing": landings,
        "recovery": {
            kind: recovery(config, kind == "rolling starts")
            for kind in ("starts at rest", "rolling starts")
        },
    }


def landing(config, settings):
    """A closed loop, and its first plan."""
    asked = problem(TRUE, **settings)
    plan = dc.solve(asked, jnp.array(START))
    run = dc.simulate(dc.MPC(asked), asked.dynamics, jnp.array(START), steps=config.steps)
    solved = jax.vmap(lambda result: result == dc.RESULTS.successful)(run.memory.result)
    errors = {
        name: jnp.linalg.norm(run.states[:, low:high], axis=1)
        for name, (low, high) in ERRORS.items()
    }
    worst = np.max(list(errors.values()), axis=0)
    far = np.nonzero(worst >= CLOSE)[0]
    return {
        "position": run.states[:, :3],
        "errors": {name: error[40] for name, error in errors.items()},
        "worst": worst,
        "landed_from": int(far[-1]) + 1 if len(far) and far[-1] < config.steps else None,
        "unsolved": int(jnp.sum(~solved)),
        "iterations": jnp.mean(run.memory.iterations),
        "norm": jnp.linalg.norm(run.states[-1, 6:10]),
        "lean": _lean(run.states[:, 6:10]),
        "plan_cost": plan.cost,
        "plan_iterations": plan.stats.iterations,
        "plan_at_box": int(jnp.sum(plan.multipliers != 0)),
        "largest_thrust": jnp.max(jnp.abs(run.controls), axis=0),
    }


def _lean(q):
    """The largest angle between the rocket and the vertical [degrees]."""
    upright = 1.0 - 2.0 * jnp.sum(q[:, 2:] ** 2, axis=1) / jnp.sum(q**2, axis=1)
    return float(jnp.rad2deg(jnp.max(jnp.arccos(upright))))


def demonstrated_starts(config, rolling):
    """Near the released start; at rest, or turning about all axes."""
    spread = np.array([2.0] * 3 + [0.5] * 3 + [0.0] * 4 + [0.5 * rolling] * 3)
    return jnp.asarray(
        START + spread * np.random.default_rng(0).uniform(-1, 1, (config.starts, 13))
    )


def recovery(config, rolling):
    starts = demonstrated_starts(config, rolling)
    asked = problem(TRUE, **RELEASED)
    plans = [dc.solve(asked, x0) for x0 in starts]  # one by one: that is compiled already
    expert = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plans)
    jacobian = lambda logarithms: _plans(logarithms, asked, starts, expert)
    true = jnp.log(jnp.array(TRUE))
    _, values, vectors = np.linalg.svd(np.asarray(jacobian(true)[0]), full_matrices=False)
    random = np.random.default_rng(1)
    off = random.uniform(0.2, 0.3, (config.seeds, 5)) * random.choice([-1, 1], (config.seeds, 5))
    return {
        "singular_values": values,
        "directions": vectors,
        "curves": [fit(config, jacobian, true + np.log1p(start), true) for start in off],
    }


@eqx.filter_jit
def _plans(logarithms, asked, starts, expert):
    """How plans differ from the expert's: Jacobian, difference, and whether all were found."""

    def compared(logarithms):
        learner = eqx.tree_at(lambda p: p.dynamics, asked, rocket(jnp.exp(logarithms)))
        find = lambda x0, guess: dc.solve(learner, x0, guess=guess, throw=False)
        found = jax.vmap(find)(starts, expert.controls)
        good = jnp.all(jax.vmap(lambda result: result == dc.RESULTS.successful)(found.result))
        difference = jnp.concatenate(
            [(found.states - expert.states).ravel(), (found.controls - expert.controls).ravel()]
        )
        return difference, (difference, good)

    return jax.jacfwd(compared, has_aux=True)(logarithms)


def fit(config, jacobian, at, true):
    """Levenberg-Marquardt: loss and errors of the combinations before each iteration."""
    damping = 1e-3
    slope, (difference, _) = jacobian(at)
    lines = []
    for _ in range(config.iterations):
        lines.append(described(at - true, difference))
        normal = slope.T @ slope
        step = jnp.linalg.solve(
            normal + damping * jnp.trace(normal) / 5 * jnp.eye(5), -slope.T @ difference
        )
        tried, (after, good) = jacobian(at + step)
        if good and after @ after < difference @ difference:
            at, slope, difference, damping = at + step, tried, after, max(damping / 10, 1e-12)
        else:
            damping *= 10
    lines.append(described(at - true, difference))
    return {name: [line[name] for line in lines] for name in lines[0]}


def described(off, difference):
    J_x, J_y, J_z, m, l = np.asarray(off)
    error = dict(zip(COMBINATIONS, (m, l - J_y, l - J_z, l - J_x), strict=True))
    return {"loss": float(jnp.mean(difference**2))} | {
        name: float(abs(np.expm1(value))) for name, value in error.items()
    }


def rows(config: Config, found):
    landings = found["landing"]
    released, mended = landings["released"], landings["all mended"]
    alone = landings["tilt weight once"]
    at_40 = {name: arm["worst"][40] for name, arm in landings.items()}
    said = ", ".join(f"{name} {worst:.2g}" for name, worst in at_40.items())
    still, rolling = found["recovery"]["starts at rest"], found["recovery"]["rolling starts"]
    worst = lambda runs, names: max(curve[name][-1] for curve in runs["curves"] for name in names)
    values = lambda runs: ", ".join(f"{value:.2g}" for value in runs["singular_values"])
    return [
        Row(
            "DiLQR",
            "rocket",
            "the rocket lands in 40 steps of closed loop, released settings",
            "largest goal error after 40 steps [m, m/s, 1, rad/s]",
            None,
            at_40["released"],
            1,
            verdict(at_40["released"], CLOSE, otherwise="explained"),
            f"All errors are below {CLOSE} from step {released['landed_from']} on. What matters is "
            f"that the tilt weight is counted twice; after 40 steps: {said}.",
        ),
        Row(
            "DiLQR",
            "rocket",
            "the rocket lands in 40 steps with the defects of the released settings mended",
            "largest goal error after 40 steps [m, m/s, 1, rad/s]",
            None,
            at_40["all mended"],
            1,
            verdict(at_40["all mended"], CLOSE),
            f"All errors are below {CLOSE} from step {mended['landed_from']} on, and it leans by "
            f"at most {mended['lean']:.0f} degrees. With the tilt weight mended alone it leans by "
            f"{alone['lean']:.0f}: explicit Euler lets the quaternion's norm, which multiplies the "
            f"thrust, grow to {alone['norm']:.3g}.",
        ),
        Row(
            "DiLQR",
            "rocket",
            "every plan of every closed loop is solved to the tolerance",
            "share of solves that are not",
            None,
            sum(arm["unsolved"] for arm in landings.values()) / (len(ARMS) * config.steps),
            len(ARMS) * config.steps,
            "reached" if not any(arm["unsolved"] for arm in landings.values()) else "short",
            f"The box of 20 N holds {released['plan_at_box']} of the first plan's 120 controls; "
            f"without it the thrust reaches {max(landings['no box']['largest_thrust']):.3g} N.",
        ),
        Row(
            "DiLQR",
            "rocket",
            "m, l/J_y, l/J_z and l/J_x are recovered from plans that roll",
            "largest relative error, all learners",
            None,
            worst(rolling, COMBINATIONS),
            config.seeds,
            verdict(worst(rolling, COMBINATIONS), 0.01),
            f"Singular values by log parameters: {values(rolling)}.",
        ),
        Row(
            "DiLQR",
            "rocket",
            "m, l/J_y and l/J_z are recovered from plans that start at rest",
            "largest relative error, all learners",
            None,
            worst(still, COMBINATIONS[:3]),
            config.seeds,
            verdict(worst(still, COMBINATIONS[:3]), 0.01),
            f"J_x is not seen there; singular values by log parameters: {values(still)}.",
        ),
    ]


def draw(found, path):
    figure, axes = _pictures.grid(2, 2, width=11.0, height=7.5)
    lands, errors, spectrum, fits = axes.ravel()
    for arm in ("released", "all mended"):
        position = np.array(found["landing"][arm]["position"])
        time = DT * np.arange(len(position))
        for column, (axis, line) in enumerate(
            zip(("x (up)", "y", "z"), ("-", "--", ":"), strict=True)
        ):
            lands.plot(time, position[:, column], line, color=COLOURS[arm], label=f"{axis}, {arm}")
    lands.set(xlabel="time [s]", ylabel="position [m]", title="closed loop")
    lands.legend(fontsize=8, ncols=2)

    for arm, landing in found["landing"].items():
        worst = landing["worst"]
        errors.plot(DT * np.arange(len(worst)), worst, color=COLOURS[arm], label=arm)
    errors.axhline(CLOSE, color="black", linewidth=0.8, linestyle="--", label="landed")
    errors.axvline(4.0, color="black", linewidth=0.8, linestyle=":", label="40 steps")
    errors.set(xlabel="time [s]", ylabel="largest goal error [m, m/s, 1, rad/s]", yscale="log")
    errors.set_ylim(top=200)
    errors.legend(fontsize=8, ncols=2, loc="upper right")

    for kind, colour, shift in zip(found["recovery"], _pictures.SEEDS, (-0.2, 0.2), strict=False):
        values = np.array(found["recovery"][kind]["singular_values"])
        spectrum.bar(np.arange(1, 6) + shift, values, 0.4, bottom=1e-16, color=colour, label=kind)
    spectrum.set(yscale="log", xlabel="number [1]", ylabel="singular value [m, N, ...]")
    spectrum.set_title("Jacobian of the plans by log parameters", fontsize=10)
    spectrum.legend(fontsize=8)

    for name, colour in zip(COMBINATIONS, _pictures.SEEDS, strict=False):
        for place, curve in enumerate(found["recovery"]["rolling starts"]["curves"]):
            error = np.maximum(curve[name], 1e-16)
            fits.plot(error, color=colour, linewidth=1, label=None if place else name)
    fits.axhline(0.01, color="black", linewidth=0.8, linestyle="--", label="1 %")
    fits.set(
        yscale="log", xlabel="iteration of Levenberg-Marquardt [1]", ylabel="relative error [1]"
    )
    fits.set_title("parameters from rolling starts, all learners", fontsize=10)
    fits.legend(fontsize=8)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("dilqr_rocket", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
