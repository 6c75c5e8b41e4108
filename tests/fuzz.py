"""A seeded generator of optimal control problems, and what must hold for each of them.

Every problem is either solved and certified, or reported; and its gradient either equals
converged central differences, or is flagged by the certificate. Run as

    python -m tests.fuzz --problems 10000

A family fixes what needs compiling (sizes, horizon, form of the problem); its members differ in
arrays only, so that one compiled function serves hundreds of problems.
"""

import argparse
import dataclasses
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

STEPS = 10.0 ** np.array([-3.0, -3.5, -4.0, -4.5, -5.0])
WRONG, RIGHT, CONVERGED = 1e-2, 1e-4, 1e-5
DIRECTIONS = 3


@dataclasses.dataclass(frozen=True)
class Family:
    """What a compiled function is specialised to."""

    seed: int
    n: int
    m: int
    T: int
    closure: bool
    terminal: bool
    solver: dc.DDP | dc.ILQR


class Parameters(eqx.Module):
    """Everything that varies within a family."""

    A: jax.Array
    B: jax.Array
    W: jax.Array
    bend: jax.Array
    kink: jax.Array
    C: jax.Array
    c: jax.Array
    ripple: jax.Array
    lower: jax.Array
    upper: jax.Array
    x0: jax.Array


def families(count: int, seed: int) -> list[Family]:
    """Sizes spread over n to 12, m to 6, T to 200, small ones more often."""
    rng = np.random.default_rng(seed)
    fixed = [(1, 1, 1), (2, 1, 20), (3, 2, 8), (4, 1, 50), (5, 3, 12), (12, 6, 5), (2, 2, 200)]
    out = []
    for i in range(count):
        if i < len(fixed):
            n, m, T = fixed[i]
        else:
            n, m = int(rng.integers(1, 13)), int(rng.integers(1, 7))
            T = int(rng.choice([1, 2, 3, 5, 10, 20, 40, 100]))
        solver = (dc.ILQR if i % 5 == 3 else dc.DDP)(tolerance=1e-11, max_iterations=120)
        out.append(Family(seed * 1000 + i, n, m, T, i % 3 == 1, i % 2 == 0, solver))
    return out


def members(family: Family, count: int) -> Parameters:
    """Draw `count` problems, stacked along a leading axis."""
    rng = np.random.default_rng(family.seed)
    n, m, T = family.n, family.m, family.T
    draws = [_member(rng, n, m, T, i) for i in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(a) for a in leaves]), *draws)


def _member(rng: np.random.Generator, n: int, m: int, T: int, index: int) -> Parameters:
    A = np.eye(n) + 0.3 / np.sqrt(n) * rng.standard_normal((n, n))
    A *= min(1.0, 1.05 / np.max(np.abs(np.linalg.eigvals(A)))) if T > 20 else 1.0
    root = rng.standard_normal((n + m, n + m)) / np.sqrt(n + m)
    C = root @ root.T + 0.05 * np.eye(n + m)
    if index % 4 == 1:
        # Indefinite stage Hessians that bounds, horizon and dynamics may or may not make up for.
        C = C - 0.3 * rng.random() * np.diag(rng.random(n + m) < 0.4)
    width = 10.0 ** rng.uniform(-1.5, 0.5, (T, m))
    lower, upper = -width * rng.random((T, m)), width * rng.random((T, m))
    lower[rng.random((T, m)) < 0.2], upper[rng.random((T, m)) < 0.2] = -np.inf, np.inf
    if index % 5 == 2:
        equal = rng.random((T, m)) < 0.3
        value = rng.uniform(-0.5, 0.5, (T, m))
        lower, upper = np.where(equal, value, lower), np.where(equal, value, upper)
    elif index % 5 == 3:
        lower, upper = np.full((T, m), -np.inf), np.full((T, m), np.inf)
    parameters = Parameters(
        A=A,
        B=rng.standard_normal((n, m)) / np.sqrt(m),
        W=rng.standard_normal((n, n + m)) / np.sqrt(n + m),
        bend=np.asarray(0.0 if index % 6 == 0 else rng.uniform(0, 0.5)),
        kink=np.asarray(rng.uniform(0, 0.3) if index % 7 == 4 else 0.0),
        C=C,
        c=0.5 * rng.standard_normal(n + m),
        ripple=np.asarray(rng.uniform(0, 1.0) if index % 3 == 2 else 0.0),
        lower=lower,
        upper=upper,
        x0=rng.standard_normal(n),
    )
    if index % 41 == 40:
        parameters = eqx.tree_at(lambda p: p.A, parameters, np.full((n, n), np.nan))
    return parameters


class Dynamics(eqx.Module):
    parameters: Parameters

    def __call__(self, x, u, t):
        p = self.parameters
        tau = jnp.concatenate([x, u])
        smooth = p.A @ x + p.B @ u + p.bend * jnp.sin(p.W @ tau + 0.1 * t)
        return smooth + p.kink * jnp.maximum(p.W @ tau, 0.0)


class StageCost(eqx.Module):
    parameters: Parameters

    def __call__(self, x, u, t):
        p = self.parameters
        tau = jnp.concatenate([x, u])
        quadratic = 0.5 * tau @ p.C @ tau + p.c @ tau
        return quadratic + p.ripple * jnp.sum(jnp.cos(2.0 * x)) + 0.05 * jnp.sum(x**4)


def build(family: Family, p: Parameters) -> dc.ControlProblem:
    dynamics, cost = Dynamics(p), StageCost(p)
    if family.closure:
        dynamics = lambda x, u, t: Dynamics(p)(x, u, t)
        cost = lambda x, u, t: StageCost(p)(x, u, t)
    terminal = (lambda x: jnp.sum(p.c[: family.n] * x) + x @ x) if family.terminal else None
    return dc.ControlProblem(
        dynamics=dynamics,
        stage_cost=cost,
        terminal_cost=terminal,
        horizon=family.T,
        control_size=family.m,
        control_bounds=dc.Bounds(p.lower, p.upper),
    )


def _direction(family: Family, p: Parameters, kind: int) -> Parameters:
    """Directions that move dynamics, costs, or start and bounds; equal bounds move together."""
    rng = np.random.default_rng([family.seed, kind])
    draw = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), p)
    moved = [("A", "B", "W", "bend", "kink"), ("C", "c", "ripple"), ("lower", "upper", "x0")][kind]
    zero = jax.tree.map(jnp.zeros_like, p)
    out = eqx.tree_at(
        lambda p: [getattr(p, name) for name in moved],
        zero,
        [getattr(draw, name) for name in moved],
    )
    out = eqx.tree_at(lambda p: p.C, out, 0.5 * (out.C + out.C.T))
    together = jnp.where(p.lower == p.upper, out.lower, out.upper)
    return eqx.tree_at(lambda p: p.upper, out, together)


def _loss(family: Family, solution: dc.Solution):
    rng = np.random.default_rng(family.seed + 7)
    weights = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)),
        (solution.states, solution.controls),
    )
    return jnp.sum(weights[0] * solution.states) + jnp.sum(weights[1] * solution.controls)


@dataclasses.dataclass
class Judgement:
    """Arrays over the members of a family."""

    solved: np.ndarray
    trustworthy: np.ndarray
    decided: np.ndarray
    error: np.ndarray
    silent_zero: np.ndarray


def judge(family: Family, parameters: Parameters) -> Judgement:
    """Solve, certify, differentiate and difference every member."""

    def forward(p, guess):
        solution = dc.solve(build(family, p), p.x0, family.solver, guess=guess, throw=False)
        return _loss(family, solution), solution

    def derivatives(p):
        gradient, solution = eqx.filter_grad(forward, has_aux=True)(p, None)
        along = lambda d: sum(
            jnp.sum(jnp.where(b == 0, 0.0, a * b))
            for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(d), strict=True)
        )
        slopes = jnp.stack([along(_direction(family, p, k)) for k in range(DIRECTIONS)])
        return slopes, dc.certify(build(family, p), p.x0, solution), solution

    slopes, certificate, solution = jax.jit(jax.vmap(derivatives))(parameters)

    def differences(p, guess):
        directions = [_direction(family, p, k) for k in range(DIRECTIONS)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)

        def at(direction, step):
            moved = jax.tree.map(lambda a, d: jnp.where(d == 0, a, a + step * d), p, direction)
            value, solution = forward(moved, guess)
            return jnp.where(solution.stats.stationarity < 1e-9, value, jnp.nan)

        over_steps = jax.vmap(at, in_axes=(None, 0))
        values = jax.vmap(over_steps, in_axes=(0, None))(
            stacked, jnp.asarray(np.concatenate([STEPS, -STEPS]))
        )
        ahead, behind = values[:, : len(STEPS)], values[:, len(STEPS) :]
        here = forward(p, guess)[0]
        return (ahead - behind) / (2 * STEPS), (ahead - 2 * here + behind) / STEPS

    solved = np.asarray(jax.vmap(lambda r: r == dc.RESULTS.successful)(solution.result))
    # A batch runs as long as its slowest member, so only solved members are differenced: the
    # others' rows are filled with copies of a solved one, and their differences blanked.
    rows = np.where(solved, np.arange(len(solved)), int(np.argmax(solved)))
    solved_ones, guesses = jax.tree.map(lambda leaf: leaf[rows], (parameters, solution.controls))
    both = jax.jit(jax.vmap(differences))(solved_ones, guesses)
    differenced, gaps = (np.array(array) for array in both)
    differenced[~solved] = np.nan
    return _compare(
        np.asarray(slopes), differenced, gaps, solved, np.asarray(certificate.trustworthy)
    )


def _compare(slopes, differenced, gaps, solved, trustworthy) -> Judgement:
    # The three smallest steps must agree. Larger ones may agree with each other on something else:
    # on one side of an active set that changes within their reach.
    last = differenced[..., -3:]
    change = np.max(np.abs(np.diff(last, axis=-1)), axis=-1)
    difference, uncertainty = last[..., 1], np.where(np.isnan(change), np.inf, change)
    largest = np.max(np.nan_to_num(np.abs(slopes)), axis=-1, keepdims=True)
    scale = np.maximum(np.abs(difference), 1e-3 * largest)
    scale = np.maximum(scale, 1e-6)
    # The differences to both sides must approach each other with the step: ten times the step,
    # ten times the gap. Where they do not, a
    # kink or a change of the active set lies nearer than the smallest step, and central
    # differences agree on the mean of two slopes.
    gap = np.abs(gaps[..., -3:])
    smooth = (gap[..., -1] <= 0.2 * gap[..., 0]) | (gap[..., -1] <= CONVERGED * scale)
    decided = np.all((uncertainty / scale <= CONVERGED) & smooth, axis=-1)
    error = np.max(np.abs(slopes - difference) / scale, axis=-1)
    zero = np.any((slopes == 0) & (np.abs(difference) > 1e-6), axis=-1)
    return Judgement(solved, trustworthy, decided, error, zero & decided)


@dataclasses.dataclass
class Tally:
    """Counts over all problems, and the members that broke a promise."""

    problems: int = 0
    solved: int = 0
    trusted: int = 0
    decided: int = 0
    trusted_and_decided: int = 0
    trusted_and_right: int = 0
    wrong: int = 0
    wrong_and_flagged: int = 0
    offenders: list = dataclasses.field(default_factory=list)

    def add(self, family: Family, j: Judgement) -> None:
        flagged = ~(j.trustworthy & j.solved)
        wrong = j.decided & ~(j.error <= WRONG)
        trusted = ~flagged & j.decided
        right = trusted & (j.error <= RIGHT)
        self.problems += len(j.solved)
        self.solved += int(j.solved.sum())
        self.trusted += int((~flagged).sum())
        self.decided += int(j.decided.sum())
        self.trusted_and_decided += int(trusted.sum())
        self.trusted_and_right += int(right.sum())
        self.wrong += int(wrong.sum())
        self.wrong_and_flagged += int((wrong & flagged).sum())
        silent = ~flagged & (wrong | j.silent_zero)
        for i in np.flatnonzero(silent | (trusted & ~right)):
            self.offenders.append((family, int(i), float(j.error[i]), bool(silent[i])))

    def __str__(self) -> str:
        share = lambda a, b: f"{a} of {b} ({100 * a / max(b, 1):.2f} %)"
        return (
            f"{self.problems} problems: solved {share(self.solved, self.problems)}, trustworthy "
            f"{share(self.trusted, self.problems)}, differences converged "
            f"{share(self.decided, self.problems)}\n"
            f"trustworthy gradients within {RIGHT:g} of converged differences: "
            f"{share(self.trusted_and_right, self.trusted_and_decided)}\n"
            f"gradients wrong by more than {WRONG:g} that are flagged: "
            f"{share(self.wrong_and_flagged, self.wrong)}"
        )


def run(problems: int, seed: int, family_count: int, report=lambda line: None) -> Tally:
    """Judge about `problems` problems spread over `family_count` families."""
    tally, started = Tally(), time.monotonic()
    chosen = families(family_count, seed)
    each = -(-problems // family_count)
    for i, family in enumerate(chosen):
        tally.add(family, judge(family, members(family, each)))
        elapsed = time.monotonic() - started
        left = elapsed / (i + 1) * (len(chosen) - i - 1)
        report(
            f"family {i + 1}/{len(chosen)} (n={family.n} m={family.m} T={family.T}): "
            f"{tally.problems} problems, {len(tally.offenders)} offenders, {left / 60:.1f} min left"
        )
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", type=int, default=None)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    count = arguments.families or max(7, min(50, arguments.problems // 100))
    tally = run(arguments.problems, arguments.seed, count, lambda line: print(line, flush=True))
    print(tally)
    for family, index, error, silent in tally.offenders:
        print(f"{'SILENT ' if silent else ''}error {error:.1e}: member {index} of {family}")
    return 1 if any(silent for *_, silent in tally.offenders) else 0


if __name__ == "__main__":
    sys.exit(main())
