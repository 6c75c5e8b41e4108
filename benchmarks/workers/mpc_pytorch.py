"""mpc.pytorch (`mpc` on PyPI), with the settings of the DiffMPC paper's systems.

Mended at run time: `util.bdiag`, whose byte mask new versions of torch refuse, so that backward
with bounds ends in an error at batch 1. Linear-quadratic problems run one iteration, which solves
them. Its gradient is that of the Gauss-Newton approximation, without second derivatives of the
dynamics.
"""

import os

import numpy as np
import torch
from mpc import mpc, util
from protocol import Unable, serve

util.bdiag = torch.diag_embed
_LARGEST_BATCH = 128


def prepare(case, arrays):
    if case["kind"] == "lq":
        return _lq(case, arrays)
    if case["batch"] > _LARGEST_BATCH:
        raise Unable(f"left out: minutes a call beyond batch {_LARGEST_BATCH}")
    return _mpc(case, arrays)


def _time_first(array):
    return torch.tensor(np.ascontiguousarray(np.swapaxes(array, 0, 1)))


def _batch_first(tensor):
    return tensor.detach().numpy().swapaxes(0, 1)


def _lq(case, arrays):
    C, c, F, f, wx, wu = (_time_first(arrays[k]) for k in ("C", "c", "F", "f", "wx", "wu"))
    F, f = F[:-1].contiguous(), f[:-1].contiguous()  # its last stage has no successor
    x0 = torch.tensor(arrays["x0"])
    inputs = (C, c, F, f, x0)

    def solve(C, c, F, f, x0):
        controller = mpc.MPC(
            case["n"], case["m"], case["T"], lqr_iter=1, verbose=-1, n_batch=case["batch"],
            grad_method=mpc.GradMethods.ANALYTIC, exit_unconverged=False,
            detach_unconverged=False,
        )  # fmt: skip
        x, u, _ = controller(x0, mpc.QuadCost(C, c), mpc.LinDx(F, f))
        return x, u

    def forward():
        with torch.no_grad():
            return solve(*inputs)

    def both():
        leaves = tuple(a.detach().requires_grad_() for a in inputs)
        x, u = solve(*leaves)
        return torch.autograd.grad((wx * x).sum() + (wu * u).sum(), leaves)

    def answer(results):
        dC, dc, dF, df, dx0 = results["forward+backward"]
        return {
            "controls": _batch_first(results["forward"][1]),
            "dC": _batch_first(dC),
            "dc": _batch_first(dc),
            "dF": _batch_first(dF),
            "df": _batch_first(df),
            "dx0": dx0.numpy(),
        }

    return {"forward": forward, "forward+backward": both, "answer": answer}


class Pendulum(torch.nn.Module):
    bound, goal, weights, penalty = 2.0, [1.0, 0.0, 0.0], [1.0, 1.0, 0.1], 1e-3
    settings = dict(eps=1e-3, linesearch_decay=0.2, max_linesearch_iter=5)

    def __init__(self):
        super().__init__()
        self.parameters_ = torch.tensor([10.0, 1.0, 1.0])

    def forward(self, x, u):
        gravity, mass, length = torch.unbind(self.parameters_)
        u = torch.clamp(u, -self.bound, self.bound)[:, 0]
        cos, sin, speed = torch.unbind(x, 1)
        angle = torch.atan2(sin, cos)
        speed = speed + 0.05 * (1.5 * gravity / length * sin + 3 * u / (mass * length**2))
        angle = angle + 0.05 * speed
        return torch.stack((torch.cos(angle), torch.sin(angle), speed), 1)


class Cartpole(torch.nn.Module):
    bound, goal, weights, penalty = 100.0, [0, 0, 1.0, 0, 0], [0.1, 0.1, 1.0, 1.0, 0.1], 1e-3
    settings = dict(eps=1e-4, linesearch_decay=0.5, max_linesearch_iter=2)

    def __init__(self):
        super().__init__()
        self.parameters_ = torch.tensor([9.8, 1.0, 0.1, 0.5])

    def forward(self, x, u):
        gravity, cart, pole, half = torch.unbind(self.parameters_)
        total = cart + pole
        u = torch.clamp(u, -self.bound, self.bound)[:, 0]
        position, velocity, cos, sin, speed = torch.unbind(x, 1)
        push = (u + pole * half * speed**2 * sin) / total
        angular = (gravity * sin - cos * push) / (half * (4.0 / 3.0 - pole * cos**2 / total))
        acceleration = push - pole * half * angular * cos / total
        angle = torch.atan2(sin, cos) + 0.05 * speed
        return torch.stack(
            (
                position + 0.05 * velocity,
                velocity + 0.05 * acceleration,
                torch.cos(angle),
                torch.sin(angle),
                speed + 0.05 * angular,
            ),
            1,
        )


class CountingMPC(mpc.MPC):
    """Knows how many iterations it ran; all problems of a batch run as many."""

    iterations = 0

    def solve_lqr_subproblem(self, *arguments, no_op_forward=False, **named):
        self.iterations += not no_op_forward  # the last call only attaches the gradient
        return super().solve_lqr_subproblem(*arguments, no_op_forward=no_op_forward, **named)


def _mpc(case, arrays):
    model = {"pendulum": Pendulum, "cartpole": Cartpole}[case["kind"]]()
    x0 = torch.tensor(arrays["x0"])
    T, B, n = case["T"], case["batch"], case["n"]
    weights = torch.tensor([*model.weights, model.penalty])
    goal = torch.tensor(model.goal)
    linear = torch.cat((-weights[:n] * goal, torch.zeros(1)))
    C = torch.diag(weights)[None, None].repeat(T, B, 1, 1)
    c = linear[None, None].repeat(T, B, 1)

    def solve(C, c):
        controller = CountingMPC(
            n, 1, T, u_lower=-model.bound, u_upper=model.bound, lqr_iter=500, verbose=-1,
            n_batch=B, grad_method=mpc.GradMethods.AUTO_DIFF, exit_unconverged=False,
            detach_unconverged=False, **model.settings,
        )  # fmt: skip
        x, u, _ = controller(x0, mpc.QuadCost(C, c), model)
        return x, u, controller.iterations

    def forward():  # its own derivatives of the dynamics need gradients switched on
        return solve(C, c)

    def both():
        leaves = C.detach().requires_grad_(), c.detach().requires_grad_()
        model.parameters_ = model.parameters_.detach().requires_grad_()
        x, u, _ = solve(*leaves)
        out = torch.autograd.grad((x**2).mean() + (u**2).mean(), (*leaves, model.parameters_))
        model.parameters_ = model.parameters_.detach()
        return out

    def answer(results):
        _, u, iterations = results["forward"]
        dC, dc, dparameters = results["forward+backward"]
        # 1/2 w (tau - goal)^2 is C = diag(w), c = -w goal, up to a constant.
        dq, dp = dC.sum((0, 1)).diagonal(), dc.sum((0, 1))[:n]
        dweights = dq.clone()
        dweights[:n] -= goal * dp
        return {
            "controls": _batch_first(u),
            "iterations": iterations,
            "dweights": dweights.numpy(),
            "dgoal": (-weights[:n] * dp).numpy(),
            "ddynamics": dparameters.numpy(),
        }

    return {"forward": forward, "forward+backward": both, "answer": answer}


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_default_dtype(torch.float64)
    serve(prepare, "mpc", "torch", "numpy")
