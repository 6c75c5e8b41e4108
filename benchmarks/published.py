"""Figures measured once, for what a run of the benchmark cannot measure by itself.

Source: `speed.md`, 20 November 2026; one core of an Intel Xeon of the Sapphire Rapids class with
AVX-512, float64. Peers: HPIPM and BLASFEO built for AVX-512, acados of August 2026, crocoddyl
3.2.1 with C++ models; torch 2.13.0 and mpc.pytorch 0.0.6 in the same run.
"""

from .cases import Case

# What that core can do: peak of fused multiply-adds [1/s], reading memory by level [B/s].
PEAK = 120e9
READ = {"L1": 288e9, "L2": 171e9, "L3": 29e9, "memory": 13.7e9}

# How many times faster than mpc.pytorch in the same run: forward, and forward and backward (None
# where there is no gradient). HPIPM: solve only; solve, adjoint and outer products.
_Ratios = tuple[float, float | None]
_HPIPM: dict[tuple, _Ratios] = {
    (3, 3, 5, 32): (155.0, 175.0),
    (4, 1, 20, 128): (10.5, 16.0),
    (4, 1, 50, 128): (9.2, 9.6),
    (12, 4, 50, 64): (32.0, 32.0),
    (32, 8, 100, 16): (9.7, 15.0),
}
_ACADOS: dict[tuple, _Ratios] = {
    ("pendulum", 20, 1): (128.0, 93.0),
    ("pendulum", 20, 32): (6.3, 4.8),
    ("pendulum", 20, 128): (2.9, 2.1),
    ("cartpole", 25, 1): (426.0, 394.0),
    ("cartpole", 25, 32): (61.0, 58.0),
    ("cartpole", 25, 128): (23.5, 22.7),
}
_CROCODDYL: dict[tuple, _Ratios] = {
    ("pendulum", 20, 1): (63.0, None),
    ("pendulum", 20, 32): (3.0, None),
    ("pendulum", 20, 128): (1.16, None),
    ("cartpole", 25, 1): (1422.0, None),
    ("cartpole", 25, 32): (200.0, None),
    ("cartpole", 25, 128): (78.0, None),
}


def stand_ins(case: Case, rows: list[dict]) -> list[dict]:
    """Rows of the peers that cannot be installed, from mpc.pytorch's row of the same case.

    Its time divided by their published ratio to it. One core only.
    """
    measured = [r for r in rows if r["peer"] == "mpc.pytorch" and "error" not in r]
    if not measured or case.threads > 1:
        return []
    size = (case.n, case.m, case.T, case.batch)
    system = (case.kind, case.T, case.batch)
    tables = {
        "HPIPM": _HPIPM.get(size) if case.kind == "lq" else None,
        "acados": _ACADOS.get(system),
        "crocoddyl, C++ model": _CROCODDYL.get(system),
    }
    found = []
    for peer, ratios in tables.items():
        if ratios is None:
            continue
        row = {"case": case.name, "peer": peer, "threads": case.threads, "rescaled": True}
        for what, ratio in zip(("forward", "forward+backward"), ratios, strict=True):
            if ratio is not None and what in measured[0]:
                row[what] = measured[0][what] / ratio
        found.append(row)
    return found
