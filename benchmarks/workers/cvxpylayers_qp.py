"""cvxpylayers (torch, diffcp): the problem as a parametrised convex program.

Clarabel solves it and a dense factorisation differentiates it: the defaults (SCS, LSQR) return
controls that are 0.1 % and gradients that are 20 % off.

Costs enter through their Cholesky factors, so that the program is linear in its parameters; torch
carries the gradient on to `C`.
"""

import os

import cvxpy as cp
import torch
from cvxpylayers.torch import CvxpyLayer
from protocol import Unable, serve

_SOLVER = {
    "solve_method": "Clarabel",
    "tol_gap_abs": 1e-12,
    "tol_gap_rel": 1e-12,
    "tol_feas": 1e-12,
}
_MOST_WORK = 1e9  # batch times unknowns cubed, as the derivative is dense; seconds a call


def prepare(case, arrays):
    n, m, T = case["n"], case["m"], case["T"]
    if case["batch"] * (T * (n + m)) ** 3 > _MOST_WORK:
        raise Unable(f"left out: dense matrices of {T * (n + m)} unknowns take minutes a call")
    layer = _layer(n, m, T)
    data = {name: torch.tensor(array) for name, array in arrays.items()}
    names = ("C", "c", "F", "f", "x0")
    inputs = tuple(data[name] for name in names)

    def solve(C, c, F, f, x0, **settings):
        roots = torch.linalg.cholesky(C).mT
        stages = [a[:, t] for a, count in ((roots, T), (F, T - 1)) for t in range(count)]
        (tau,) = layer(*stages, c, f[:, :-1], x0, solver_args={**_SOLVER, **settings})
        return tau[..., :n], tau[..., n:]

    def forward():
        with torch.no_grad():
            return solve(*inputs)

    def both():
        leaves = tuple(a.detach().requires_grad_() for a in inputs)
        x, u = solve(*leaves, mode="dense")
        return torch.autograd.grad((data["wx"] * x).sum() + (data["wu"] * u).sum(), leaves)

    def answer(results):
        gradients = zip(names, results["forward+backward"], strict=True)
        return {
            "controls": results["forward"][1].numpy(),
            **{f"d{name}": gradient.numpy() for name, gradient in gradients},
        }

    return {"forward": forward, "forward+backward": both, "answer": answer}


def _layer(n, m, T):
    tau = cp.Variable((T, n + m))
    roots = [cp.Parameter((n + m, n + m)) for _ in range(T)]
    F = [cp.Parameter((n, n + m)) for _ in range(T - 1)]
    c, f, x0 = cp.Parameter((T, n + m)), cp.Parameter((T - 1, n)), cp.Parameter(n)
    cost = sum(0.5 * cp.sum_squares(roots[t] @ tau[t]) + c[t] @ tau[t] for t in range(T))
    dynamics = [tau[t + 1, :n] == F[t] @ tau[t] + f[t] for t in range(T - 1)]
    problem = cp.Problem(cp.Minimize(cost), [tau[0, :n] == x0, *dynamics])
    return CvxpyLayer(problem, parameters=[*roots, *F, c, f, x0], variables=[tau])


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_default_dtype(torch.float64)
    serve(prepare, "cvxpylayers", "cvxpy", "diffcp", "torch", "numpy")
