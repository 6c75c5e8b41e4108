"""pypose: `pypose.module.LQR` on a time-varying system; gradients by torch's autograd.

Linear-quadratic problems only: it clips controls instead of solving with bounds.
"""

import os

import pypose as pp
import torch
from protocol import serve


class Linear(pp.module.LTV):
    """`x_{t+1} = A_t x_t + B_t u_t + c_t`; the observation that pypose asks for is not used."""

    def __init__(self, F, f):
        n = f.shape[-1]
        nothing = torch.zeros(n, n), torch.zeros(n, F.shape[-1] - n)
        super().__init__(F[..., :n], F[..., n:], *nothing, f, torch.zeros(n))

    def _now(self, matrices):
        return matrices[:, self._t % matrices.shape[1]]

    A = property(lambda self: self._now(self._A))
    B = property(lambda self: self._now(self._B))
    c1 = property(lambda self: self._now(self._c1))


def prepare(case, arrays):
    data = {name: torch.tensor(array) for name, array in arrays.items()}
    names = ("C", "c", "F", "f", "x0")
    inputs = tuple(data[name] for name in names)

    def solve(C, c, F, f, x0):
        x, u, _ = pp.module.LQR(Linear(F, f), C, c, case["T"])(x0)
        return x[:, :-1], u

    def forward():
        with torch.no_grad():
            return solve(*inputs)

    def both():
        leaves = tuple(a.detach().requires_grad_() for a in inputs)
        x, u = solve(*leaves)
        return torch.autograd.grad((data["wx"] * x).sum() + (data["wu"] * u).sum(), leaves)

    def answer(results):
        gradients = zip(names, results["forward+backward"], strict=True)
        return {
            "controls": results["forward"][1].numpy(),
            **{f"d{name}": gradient.numpy() for name, gradient in gradients},
        }

    return {"forward": forward, "forward+backward": both, "answer": answer}


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_default_dtype(torch.float64)
    serve(prepare, "pypose", "torch", "numpy")
