r"""How wrong are the gradients? Exact, unrolled and Gauss-Newton along training, on both systems.

The gradient of one plan's imitation loss by the parameters of the dynamics, at points along a
training run: by the implicit function theorem (exact), by differentiating the iterations of iLQR
(unrolled), and by DiffMPC's rule, which leaves the curvature of the dynamics out (Gauss-Newton).
The truth are differences of converged solves, where two step sizes agree; where they do not, a
bound is about to change hands, and the plan is left out and counted.

DiffMPC is the zeroth term of a series. In the free controls u, with the reduced Hessians R (exact)
and R_GN of the problem and b = d(grad J)/dtheta,

    du/dtheta = -R^-1 b = sum_k Phi^k (-R_GN^-1 b),      Phi = I - R_GN^-1 R

and Phi is also what an iteration of iLQR does to a small error: its spectral radius rho is iLQR's
local rate of convergence. So DiffMPC errs by about rho / (1 - rho): most where iLQR is slow.
(mathematics: DiLQR's fixed point, proposition A.1.)
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

from . import _imitation, _main, _pictures
from ._imitation import Trial, expert_data, learner, train
from ._rows import Row, verdict
from ._sweep import say

TIGHT = dc.DDP(tolerance=1e-12, max_iterations=100)
UNROLLED = dc.ILQR(tolerance=0.0, max_iterations=30)
WAYS = ("exact", "unrolled", "Gauss-Newton")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    epochs: int = 300
    """Of the training run, with the papers' protocol and the exact gradient."""
    points: int = 10
    """Of the run at which gradients are compared."""
    plans: int = 50
    """At each point."""
    systems: tuple[str, ...] = ("pendulum", "cartpole")
    """On which."""

    def __post_init__(self):
        if self.plans > 100:
            raise ValueError("--plans is at most 100.")


SIZES = {
    "full": Config(),
    "reduced": Config(points=5, plans=32),
    "quick": Config(epochs=2, points=2, plans=4, systems=("pendulum",)),
}


def plan_loss(trial: Trial, dx, sample, guess, solver, adjoint):
    """Imitation loss, and the plan."""
    problem = learner(trial, {"dx": dx})
    found = dc.solve(problem, sample.x0, solver, guess=guess, adjoint=adjoint, throw=False)
    return jnp.mean((found.controls - sample.controls) ** 2), found


def differences(loss, dx):
    """The gradient by central differences, extrapolated, and how far two of them are apart."""

    def central(step):
        moves = step * jnp.abs(dx)
        up, down = (jax.vmap(lambda m, s=s: loss(dx + s * m))(jnp.diag(moves)) for s in (1, -1))
        return (up - down) / (2.0 * moves)

    # Each pair removes the error of second order; a kink between them makes them differ.
    extrapolated = lambda step: (4.0 * central(step) - central(2.0 * step)) / 3.0
    first, second = extrapolated(1e-4), extrapolated(1e-5)
    return first, jnp.linalg.norm(second - first) / jnp.linalg.norm(second)


@functools.partial(jax.jit, static_argnums=0)
def compare(trial: Trial, dx, samples):
    """All gradients at one point of the run, of each plan."""

    def one(sample):
        _, found = plan_loss(trial, dx, sample, None, TIGHT, None)
        # From beside the solution a step of Newton's method is needed, and ends at rounding; the
        # solution itself may be as far off as the tolerance allows, which is felt where the loss,
        # and so the gradient, is tiny.
        near = jax.lax.stop_gradient(found.controls) + 1e-6
        value, found = plan_loss(trial, dx, sample, near, TIGHT, None)
        grad = lambda guess, solver, adjoint: jax.grad(
            lambda dx: plan_loss(trial, dx, sample, guess, solver, adjoint)[0]
        )(dx)
        gradients = {
            "exact": grad(near, TIGHT, dc.ImplicitAdjoint()),
            "unrolled": grad(None, UNROLLED, dc.UnrolledAdjoint()),
            "Gauss-Newton": grad(near, TIGHT, dc.GaussNewtonAdjoint()),
        }
        of_dx = lambda dx: plan_loss(trial, dx, sample, near, TIGHT, None)[0]
        truth, apart = differences(of_dx, dx)
        rate, zeroth = series(trial, dx, sample, found)
        good = (found.result == dc.RESULTS.successful) & (apart < 1e-6)
        # The unrolled iterations may end in another minimum, whose gradient is another.
        ended = plan_loss(trial, dx, sample, None, UNROLLED, None)[1].controls
        same = jnp.max(jnp.abs(ended - found.controls)) < 1e-6
        return value, gradients, truth, good, same, rate, zeroth

    return jax.vmap(one)(samples)


def series(trial: Trial, dx, sample, found):
    """iLQR's local rate, and the partial sums of the series as gradients of the loss.

    The zeroth term takes b without the curvature E of the dynamics, too: with X = dx/dtheta at
    fixed controls and J = d(states, controls)/du it is b - J' E X, since E multiplies all of the
    trajectory's change. From there on each term is -R_GN^-1 (b + (R - R_GN) du).
    """
    free = (found.multipliers == 0).ravel()
    f = lambda dx, tau, u: learner(trial, {"dx": dx}).dynamics(tau, u, 0)

    def rollout(u, dx):
        def advance(x, u):
            tau = jnp.concatenate([x, u])
            return f(dx, x, u), tau

        return jax.lax.scan(advance, sample.x0, u[:, None])[1]

    cost = learner(trial, {"dx": dx}).stage_cost
    n = sample.x0.size
    total = lambda u, dx: jnp.sum(jax.vmap(lambda tau: cost(tau[:n], tau[n:], 0))(rollout(u, dx)))
    u = jax.lax.stop_gradient(found.controls).ravel()
    taus = rollout(u, dx)
    exact = jax.hessian(total)(u, dx)
    jacobian, moved = jax.jacfwd(rollout, (0, 1))(u, dx)
    newton = jnp.einsum("tiu,i,tiv->uv", jacobian, _weights(trial), jacobian)
    curvature = jax.vmap(
        lambda costate, tau: jax.hessian(lambda tau: costate @ f(dx, tau[:n], tau[n:]))(tau)
    )(found.costates[1:], taus)
    mixed = jax.jacfwd(jax.grad(total), 1)(u, dx)
    mixed_zeroth = mixed - jnp.einsum("tiu,tij,tjp->up", jacobian, curvature, moved)

    # Rows and columns of controls at a bound become those of the identity.
    both, identity = free[:, None] & free[None, :], jnp.eye(u.size)
    exact, newton = (jnp.where(both, matrix, identity) for matrix in (exact, newton))
    mixed, mixed_zeroth = (jnp.where(free[:, None], part, 0.0) for part in (mixed, mixed_zeroth))
    # Phi is similar to a symmetric matrix, since R_GN is positive definite.
    root = jnp.linalg.cholesky(newton)
    inner = jax.scipy.linalg.solve_triangular(root, exact, lower=True)
    symmetric = identity - jax.scipy.linalg.solve_triangular(root, inner.T, lower=True)
    rate = jnp.max(jnp.abs(jnp.linalg.eigvalsh(symmetric)))

    pull = 2.0 * (u - sample.controls.ravel()) / u.size
    du = -jnp.linalg.solve(newton, mixed_zeroth)
    terms = [pull @ du]
    for _ in range(3):
        du = -jnp.linalg.solve(newton, mixed + (exact - newton) @ du)
        terms.append(pull @ du)
    return rate, jnp.stack(terms)


def _weights(trial: Trial):
    return _imitation.SYSTEMS[trial.system][0].cost().weights


def measure(config: Config, context: _main.Context):
    found = {}
    for system in config.systems:
        say(f"{system}: training")
        trial = Trial(system, "mpc.dx", 100, 0, config.epochs)
        path = np.asarray(train(trial)["path"]["dx"])
        # More points where the parameters move most.
        at = np.unique(np.geomspace(1, len(path), config.points).astype(int) - 1)
        starts = [np.array(_imitation.SYSTEMS[system][2]), *path[at]]
        samples = expert_data(trial).take(0, config.plans)
        of_points = []
        for number, dx in enumerate(starts):
            say(f"{system}: point {number + 1} of {len(starts)}")
            value, gradients, truth, good, same, rate, terms = jax.tree.map(
                np.asarray, compare(_imitation._program_of(trial), jnp.asarray(dx), samples)
            )
            size = np.linalg.norm(truth, axis=1)
            # A plan all of whose controls are held has no gradient, exactly, in every way.
            good = good & (size > 1e-9)
            error = {
                way: np.linalg.norm(gradients[way] - truth, axis=1) / np.maximum(size, 1e-300)
                for way in WAYS
            }
            cosine = {}
            for way in WAYS:
                a, b = gradients[way][good].mean(axis=0), truth[good].mean(axis=0)
                cosine[way] = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
            zeroth = np.linalg.norm(terms[:, 0] - gradients["Gauss-Newton"], axis=1)
            partial = [np.linalg.norm(terms[:, k] - truth, axis=1) / size for k in range(4)]
            of_points.append(
                {
                    "parameters": dx.tolist(),
                    "loss": float(value.mean()),
                    "compared": float(good.mean()),
                    "error": {way: error[way][good].tolist() for way in WAYS},
                    "same": same[good].tolist(),
                    "cosine": cosine,
                    "rate": rate[good].tolist(),
                    "zeroth": float(np.max((zeroth / np.maximum(size, 1e-300))[good], initial=0.0)),
                    "partial": [float(np.median(each[good])) for each in partial],
                }
            )
        found[system] = of_points
    return found


def _all(points, name, way=None):
    read = lambda point: point[name] if way is None else point[name][way]
    return np.concatenate([np.asarray(read(point), float) for point in points])


def rows(config: Config, found):
    made = []
    for system, points in found.items():
        exact, newton = (_all(points, "error", way) for way in ("exact", "Gauss-Newton"))
        unrolled = _all(points, "error", "unrolled")
        same = _all(points, "same").astype(bool)
        rate = _all(points, "rate")
        row = lambda claim, metric, ours, judged, why: Row(
            "DiLQR",
            "gradient accuracy",
            f"{claim}, {system}",
            metric,
            None,
            float(ours),
            1,
            judged,
            why,
        )
        quantile = lambda values: ", ".join(
            f"{q} %: {np.percentile(values, q):.1g}" for q in (50, 90, 99, 100)
        )
        made += [
            row(
                "the exact gradient equals converged differences",
                "99th percentile of the relative error over plans along training [1]",
                np.percentile(exact, 99),
                verdict(np.percentile(exact, 99), 1e-5),
                f"{exact.size} plans, quantiles {quantile(exact)}; "
                f"{100 * np.mean([1 - point['compared'] for point in points]):.0f} % left out, "
                "where differences of two sizes disagree or there is no gradient.",
            ),
            row(
                "DiffMPC's gradient is an approximation",
                "median relative error at the learner's first parameters [1]",
                np.median(points[0]["error"]["Gauss-Newton"]),
                "reached",
                f"Along training {quantile(newton)}; cosine of the mean over the plans "
                f"{points[0]['cosine']['Gauss-Newton']:.3f} at first, "
                f"least {min(p['cosine']['Gauss-Newton'] for p in points):.3f}"
                ".",
            ),
            row(
                "unrolling is right where its iterations have converged to the same plan",
                "median relative error there [1]",
                np.median(unrolled[same]) if same.any() else np.inf,
                verdict(np.median(unrolled[same]) if same.any() else np.inf, 1e-4),
                f"{UNROLLED.max_iterations} iterations; they have on {100 * same.mean():.0f} %. "
                f"Quantiles there {quantile(unrolled[same]) if same.any() else 'none'}, over all "
                f"plans {quantile(unrolled)}.",
            ),
            row(
                "DiffMPC is the zeroth term of the series whose sum is the exact gradient",
                "largest difference to that term, relative to the gradient [1]",
                max(point["zeroth"] for point in points),
                verdict(max(point["zeroth"] for point in points), 1e-6),
                "Median errors of the partial sums up to the third term: "
                + ", ".join(f"{np.median([p['partial'][k] for p in points]):.2g}" for k in range(4))
                + ".",
            ),
            row(
                "DiffMPC errs by about rho / (1 - rho), most where iLQR converges slowly",
                "median over the plans of its error over rho / (1 - rho) [1]",
                scale := float(np.median((newton * (1 - rate) / rate)[rate < 1])),
                "reached" if 1 / 3 <= scale <= 3 else "explained",
                f"Local rates {quantile(rate)}; rank correlation "
                f"{_rank_correlation(rate[rate < 1], newton[rate < 1]):.2f}; median error "
                f"{np.median(newton[rate <= 0.3]):.2g} where rho <= 0.3 and "
                f"{np.median(newton[rate > 0.3]):.2g} above; {100 * np.mean(rate >= 1):.0f} % have "
                "rho >= 1, where iLQR with full steps does not converge at all.",
            ),
        ]
    return made


def _rank_correlation(a, b) -> float:
    rank = lambda values: np.argsort(np.argsort(values)).astype(float)
    return float(np.corrcoef(rank(a), rank(b))[0, 1])


def draw(found, path):
    figure, axes = _pictures.grid(len(found), 3, width=13.0, height=3.9 * len(found))
    for row, (system, points) in zip(axes, found.items(), strict=True):
        for way in WAYS:
            colour = _pictures.COLOURS[way]
            quartiles = np.array([_pictures.quartiles(p["error"][way] or [np.nan]) for p in points])
            x = np.arange(len(points))
            row[0].plot(x, quartiles[:, 1], "o-", color=colour, label=way)
            row[0].fill_between(x, quartiles[:, 0], quartiles[:, 2], color=colour, alpha=0.2)
            row[1].plot(x, [p["cosine"][way] for p in points], "o-", color=colour, label=way)
        row[0].set_yscale("log")
        row[0].set_ylabel("relative error, median and quartiles [1]")
        row[0].legend(fontsize=8)
        row[1].set_ylabel("cosine of the mean gradient with the truth [1]")
        for ax in row[:2]:
            ax.set_xlabel("point along training [1]")
        row[0].set_title(system, fontsize=11, loc="left")
        rate, error = _all(points, "rate"), _all(points, "error", "Gauss-Newton")
        row[2].plot(rate, error, ".", color=_pictures.COLOURS["Gauss-Newton"], label="plans")
        line = np.append(np.geomspace(max(rate.min(), 1e-8), 0.9), np.linspace(0.9, 0.99, 20))
        row[2].plot(line, line / (1 - line), "k-", linewidth=1, label="rho / (1 - rho)")
        row[2].set_yscale("log")
        row[2].set_xscale("log")
        row[2].set_xlabel("local rate rho of iLQR [1]")
        row[2].set_ylabel("relative error of DiffMPC's gradient [1]")
        row[2].legend(fontsize=8)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("gradient_accuracy", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
