"""What is measured: data as plain NumPy arrays, so that every peer gets the same numbers."""

import dataclasses

import numpy as np

SHAPES = {"pendulum": (3, 1), "cartpole": (5, 1)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch of problems. `kind` is "lq", or the name of a system."""

    kind: str
    n: int
    m: int
    T: int
    batch: int

    @property
    def name(self) -> str:
        size = f" n={self.n} m={self.m}" if self.kind == "lq" else ""
        return f"{self.kind}{size} T={self.T} batch {self.batch}"


LQ = [
    Case("lq", 3, 3, 5, 32),
    Case("lq", 4, 1, 20, 128),
    Case("lq", 4, 1, 50, 128),
    Case("lq", 12, 4, 50, 64),
    Case("lq", 32, 8, 100, 16),
]
MPC = [
    Case(system, *SHAPES[system], T, batch)
    for system, T in (("pendulum", 20), ("cartpole", 25))
    for batch in (1, 32, 128)
]


def data(case: Case) -> dict[str, np.ndarray]:
    """Arrays of a case, batch first; for systems the starts of the papers."""
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
        return {"x0": np.stack([np.cos(angle), np.sin(angle), speed], 1)}
    position, velocity = uniform(-0.5, 0.5, B), uniform(-0.5, 0.5, B)
    angle, speed = uniform(-np.pi, np.pi, B), uniform(-1, 1, B)
    return {"x0": np.stack([position, velocity, np.cos(angle), np.sin(angle), speed], 1)}
