"""crocoddyl: one step of `SolverDDP` on `ActionModelLQR`, which solves the problem. No gradients.

Solvers are made beforehand; a call loops over the batch. Systems of Python functions would measure
Python, so nonlinear problems with a compiled model come from `published.py`.
"""

import crocoddyl
import numpy as np
from protocol import serve


def prepare(case, arrays):
    n, m, T = case["n"], case["m"], case["T"]
    C, c, F, f, x0 = (arrays[name] for name in ("C", "c", "F", "f", "x0"))
    nothing = (np.eye(n), np.zeros((n, m)), np.zeros((n, n)), np.eye(m), np.zeros((n, m)))
    end = crocoddyl.ActionModelLQR(*nothing, np.zeros(n), np.zeros(n), np.zeros(m))
    solvers, starts = [], []
    for b in range(case["batch"]):
        models = [
            crocoddyl.ActionModelLQR(
                F[b, t, :, :n], F[b, t, :, n:], C[b, t, :n, :n], C[b, t, n:, n:],
                C[b, t, :n, n:], f[b, t], c[b, t, :n], c[b, t, n:],
            )
            for t in range(T)
        ]  # fmt: skip
        problem = crocoddyl.ShootingProblem(x0[b], models, end)
        problem.nthreads = case["threads"]  # over stages; more threads than cores cost a lot
        solver = crocoddyl.SolverDDP(problem)
        solver.reg_min = 0.0  # the answer, not one next to it
        us = [np.zeros(m)] * T
        solvers.append(solver)
        starts.append((problem.rollout(us), us))

    def forward():
        for solver, (xs, us) in zip(solvers, starts, strict=True):
            solver.solve(xs, us, 1, True, 0.0)

    def answer(results):
        return {"controls": np.array([np.array(solver.us) for solver in solvers])}

    return {"forward": forward, "answer": answer}


if __name__ == "__main__":
    serve(prepare, "crocoddyl", "numpy")
