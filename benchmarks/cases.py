"""What is measured: batches of problems, as plain NumPy arrays that every peer gets alike.

Linear-quadratic ("lq") problems are dense and time-varying, the systems are those of the DiffMPC
paper with its costs, bounds and starts.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch of problems, and what may be spent on it.

    Attributes:
        kind: "lq", "pendulum" or "cartpole".
        n, m, T: states, controls, stages.
        batch: number of problems.
        threads: cores that a peer may use.
        max_iterations: limit of a nonlinear solver, None for its own.
        from_solution: start at the solution, the state being near the goal, and take
            `max_iterations` from there (real-time iteration), so that every problem costs the same.
    """

    kind: str
    n: int
    m: int
    T: int
    batch: int
    threads: int = 1
    max_iterations: int | None = None
    from_solution: bool = False

    @property
    def name(self) -> str:
        size = f" n={self.n} m={self.m}" if self.kind == "lq" else ""
        return f"{self.kind}{size} T={self.T} batch {self.batch}"


def pendulum(batch: int, T: int = 20) -> Case:
    return Case("pendulum", 3, 1, T, batch)


def cartpole(batch: int, T: int = 25) -> Case:
    return Case("cartpole", 5, 1, T, batch)


LQ = [
    Case("lq", 3, 3, 5, 32),
    Case("lq", 4, 1, 20, 128),
    Case("lq", 4, 1, 50, 1),
    Case("lq", 4, 1, 50, 32),
    Case("lq", 4, 1, 50, 128),
    Case("lq", 4, 1, 50, 1024),
    Case("lq", 12, 4, 50, 64),
    Case("lq", 32, 8, 100, 16),
]
MPC = [system(batch) for system in (pendulum, cartpole) for batch in (1, 32, 128, 1024)]
TWO_THREADS = [
    dataclasses.replace(case, threads=2)
    for case in (*LQ, pendulum(128), cartpole(128))
    if case.batch > 1
]
FULL = LQ + MPC + TWO_THREADS
QUICK = [LQ[0], LQ[4], pendulum(32)]


def data(case: Case) -> dict[str, Any]:
    """The arrays of a case, batch first.

    Of a linear-quadratic one: `C` `(B, T, n+m, n+m)`, `c`, `F`, `f`, `x0`, and the weights `wx`,
    `wu` of the loss `sum(wx x) + sum(wu u)`. Of a system: `x0` `(B, n)`.
    """
    rng = np.random.default_rng([case.n, case.T, case.batch])
    n, m, T, B = case.n, case.m, case.T, case.batch
    if case.kind == "lq":
        nm = n + m
        root = rng.standard_normal((B, T, nm, nm)) / np.sqrt(nm)
        F = 0.3 / np.sqrt(n) * rng.standard_normal((B, T, n, nm))
        F[..., :n] += 0.8 * np.eye(n)
        return {
            "C": root @ root.swapaxes(-1, -2) + 0.2 * np.eye(nm),
            "c": rng.standard_normal((B, T, nm)),
            "F": F,
            "f": rng.standard_normal((B, T, n)),
            "x0": rng.standard_normal((B, n)),
            "wx": rng.standard_normal((B, T, n)),
            "wu": rng.standard_normal((B, T, m)),
        }
    uniform = rng.uniform
    if case.kind == "pendulum":
        angle, speed = uniform(-np.pi / 2, np.pi / 2, B), uniform(-1, 1, B)
        if case.from_solution:
            angle, speed = 0.1 * angle, 0.1 * speed
        return {"x0": np.stack([np.cos(angle), np.sin(angle), speed], 1)}
    position, velocity = uniform(-0.5, 0.5, B), uniform(-0.5, 0.5, B)
    angle, speed = uniform(-np.pi, np.pi, B), uniform(-1, 1, B)
    return {"x0": np.stack([position, velocity, np.cos(angle), np.sin(angle), speed], 1)}
