"""A controller as a layer of a PyTorch network.

`import diffcontrol.torch`, or `dc.torch`. The layer solves and differentiates in JAX; torch sees
one operation with derivatives of any order, in reverse and forward mode and under `torch.func`.

A solve is differentiated where it ended: the backward pass is given the trajectory that the
forward pass has found, and applies the adjoint's rule there. It does not search again.
(`UnrolledAdjoint` differentiates the iterations themselves and therefore runs them again.)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, SupportsInt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

try:
    import torch
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "diffcontrol.torch needs PyTorch, which is not installed: pip install 'diffcontrol[torch]'",
        name="torch",
    ) from None

from . import _result
from ._adjoint.base import AbstractAdjoint, solved_at
from ._control_problem import ControlProblem, stage_problem
from ._iterate import AbstractSolver, run_fixed
from ._optimality import Point, stage_costs
from ._result import RESULTS
from ._solve import check_algorithms, initial_controls, solve
from ._solver.ddp import DDP
from ._torch_operation import Operation, Program


class Solution(NamedTuple):
    """What a `Controller` returns; `...` are the batch axes of its arguments.

    The first four have derivatives.

    Attributes:
        states: `(..., T+1, n)`.
        controls: `(..., T, m)`.
        costates: `(..., T+1, n)`: derivative of the optimal cost by the states [cost / unit of x].
        cost: `(...)`: the optimal cost.
        success: `(...)`, bool: whether the solve ended as it should. Where it did not, the numbers
            above are what the solver had when it stopped; leave them out.
        result: `(...)`, int32: how the solve ended; `sentence` puts it in words.
    """

    states: torch.Tensor
    controls: torch.Tensor
    costates: torch.Tensor
    cost: torch.Tensor
    success: torch.Tensor
    result: torch.Tensor


def sentence(result: SupportsInt) -> str:
    """How a solve ended, in words: for one entry of `Solution.result`."""
    form = jax.tree.structure(RESULTS.successful)
    return _result.sentence(jax.tree.unflatten(form, [np.asarray(int(result))]))


class Controller(torch.nn.Module):
    """The solution of an optimal control problem as a layer.

    Maps initial states to optimal trajectories. The learned arrays of the problem are parameters
    and the others buffers, under the names that they have there, such as `stage_cost.goal`;
    `torch.nn.utils.parametrize` on `controller.dynamics` keeps a mass positive. The problem is
    read when the controller is made. Arrays that its plain functions close over are constants: to
    learn one, make it a field of an `eqx.Module` or an argument of an `eqx.Partial`.

    Works in float32 and float64, on the CPU. float64 needs no setting of JAX. JAX has threads, so
    give a `DataLoader` with workers `multiprocessing_context="spawn"`: a fork may hang.

    Args:
        problem: what is solved.
        solver: by which algorithm.
        adjoint: how derivatives come out, as in `diffcontrol.solve`; None is the solver's own.
        learn: `problem -> array, part of the problem, or tuple of these`, as for `eqx.tree_at`:
            what becomes a parameter. None is every floating-point array without infinities.
        throw: raise unless every solve of a call succeeds. With False mask by `success`; a sample
            that the loss leaves out adds nothing to any gradient.

    Raises:
        ValueError, TypeError: for a solver and an adjoint that do not fit, as from
            `diffcontrol.solve`.
    """

    def __init__(
        self,
        problem: ControlProblem,
        solver: AbstractSolver = DDP(),
        *,
        adjoint: AbstractAdjoint | None = None,
        learn: Callable[[ControlProblem], Any] | None = None,
        throw: bool = True,
    ):
        super().__init__()
        if not isinstance(problem, ControlProblem):
            raise TypeError(f"`problem` must be a ControlProblem, got {type(problem).__name__}.")
        solver, adjoint = check_algorithms(solver, adjoint, None)
        arrays, rest = eqx.partition(problem, eqx.is_inexact_array)
        leaves, structure = jax.tree_util.tree_flatten_with_path(arrays)
        self._names = []
        for (path, leaf), is_learned in zip(leaves, _learned(arrays, learn), strict=True):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            self._names.append(name)
            _register(self, name, torch.tensor(np.asarray(leaf)), is_learned)
        self._no_guess = torch.zeros(problem.horizon, problem.control_size)
        self._settings = f"horizon={problem.horizon}, solver={solver}, adjoint={adjoint}"
        self._program = _program(rest, structure, solver, adjoint, throw)

    def extra_repr(self) -> str:
        return self._settings

    def forward(
        self, x0: torch.Tensor, guess: torch.Tensor | None = None, **arrays: torch.Tensor
    ) -> Solution:
        """Solve from every initial state.

        Args:
            x0: initial states, `(..., n)`.
            guess: controls to start from, `(..., T, m)`; None is zero. Its derivative is zero under
                an implicit adjoint.
            **arrays: take the place of arrays of the problem in this call; of the shape there, or
                with batch axes before it. `goal=` names the array `stage_cost.goal`: the end of a
                name is enough where no other ends so, and `**{"stage_cost.goal": goal}` is more.

        Returns:
            The solutions. Batch axes of all arguments broadcast together.

        Raises:
            ValueError, TypeError: for arguments that do not fit together.
            RuntimeError: if `throw`, and some solve does not succeed.
        """
        _check("x0", x0, x0)
        if x0.ndim == 0:
            raise ValueError("`x0` must have shape (n,), or batch axes before it, but is a number.")
        inputs: dict[str, Any] = {"x0": x0}
        inputs["guess"] = self._no_guess.to(x0.dtype) if guess is None else guess
        given = {_full_name(end, self._names): value for end, value in arrays.items()}
        heads = [x0.shape[:-1], _head("guess", inputs["guess"], self._no_guess.shape, x0)]
        for name in self._names:
            own: Any = functools.reduce(getattr, name.split("."), self)
            inputs[name] = given.get(name, own)
            heads.append(_head(name, inputs[name], own.shape, x0))
        batch = _broadcast(inputs, heads)
        program = self._program
        if batch:
            program = program.batched(tuple(0 if head else None for head in heads))
        outputs = Operation.apply(program, *map(_in_one_row, inputs.values(), heads, repeat(batch)))
        if len(batch) > 1:
            outputs = [output.reshape(*batch, *output.shape[1:]) for output in outputs]
        return Solution(*outputs)


def _program(
    rest: ControlProblem, structure, solver: AbstractSolver, adjoint: AbstractAdjoint, throw: bool
) -> Program:
    """`(x0, guess, *arrays of the problem)` -> what a `Solution` holds."""

    def problem(arrays):
        return eqx.combine(jax.tree.unflatten(structure, arrays), rest)

    def call(x0, guess, *arrays):
        end = solve(problem(arrays), x0, solver, guess=guess, adjoint=adjoint, throw=False)
        (result,) = jax.tree.leaves(end.result)
        success = _result.succeeded(end.result)
        return end.states, end.controls, end.costates, end.cost, success, result

    def known(x0, guess, *more):
        *arrays, x, u, costates = more
        found = jax.lax.stop_gradient(Point(x, u, costates))
        stages, x0 = stage_problem(problem(arrays), x0)
        guess = initial_controls(stages, guess, x0.dtype)
        stay = eqx.filter_closure_convert(eqx.Partial(_stay, found), stages, x0, guess)
        again = eqx.Partial(_run_again, solver)
        point = adjoint.solve(stages, x0, guess, until_done=stay, fixed=again).point
        cost = jnp.sum(stage_costs(stages, point.states, point.controls))
        return point.states, point.controls, point.costates, cost

    return Program(call, known=known, remembers=3, check=_raise_if_failed if throw else None)


def _stay(point, problem, x0, controls):
    """A run that is already where it ends."""
    return solved_at(problem, point, None)


def _run_again(solver, problem, x0, controls):
    solved = run_fixed(solver, problem, x0, controls)
    return dataclasses.replace(solved, outcome=None)


def _raise_if_failed(outputs: Sequence[jax.Array]) -> None:
    success = np.asarray(outputs[-2])
    if success.all():
        return
    first = int(np.argmin(success))
    where = f", the first of them sample {first}" if success.ndim else ""
    raise RuntimeError(
        f"{np.sum(~success)} of {success.size} solves did not succeed{where}: "
        f"{sentence(np.asarray(outputs[-1]).flat[first])} With `throw=False` mask by `success`."
    )


def _learned(arrays: ControlProblem, learn: Callable[[ControlProblem], Any] | None) -> list[bool]:
    """For each array whether it is a parameter."""
    if learn is None:
        return [bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(arrays)]
    nothing = jax.tree.map(lambda _: False, arrays)
    chosen = learn(nothing)
    for part in chosen if isinstance(chosen, tuple) else (chosen,):
        leaves = jax.tree.leaves(part)
        if not leaves or any(leaf is not False for leaf in leaves):
            raise TypeError(
                "`learn` must return floating-point arrays of the problem, or parts of it that "
                f"hold some, not {part!r}."
            )
    every = lambda part: jax.tree.map(lambda _: True, part)
    return jax.tree.leaves(eqx.tree_at(learn, nothing, replace_fn=every))


def _register(module: torch.nn.Module, name: str, value: torch.Tensor, is_learned: bool) -> None:
    """Put `value` into `module` under a name with dots."""
    *rooms, last = name.split(".")
    for room in rooms:
        if room not in module._modules:
            module.add_module(room, torch.nn.Module())
        module = module.get_submodule(room)
    if is_learned:
        module.register_parameter(last, torch.nn.Parameter(value))
    else:
        module.register_buffer(last, value)


def _full_name(end: str, names: list[str]) -> str:
    """The one name that ends so."""
    fits = [name for name in names if f".{name}".endswith(f".{end}")]
    if len(fits) != 1:
        seen = "names more than one array" if fits else "names no array of the problem"
        raise TypeError(f"`{end}` {seen}; there are {', '.join(fits or names)}.")
    return fits[0]


def _check(name: str, value: Any, x0: torch.Tensor) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}.")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"`{name}` must be float32 or float64, got {value.dtype}.")
    if value.device.type != "cpu" or value.layout != torch.strided:
        raise ValueError(
            f"`{name}` must be a dense tensor on the CPU, where solves run, but is "
            f"{value.layout} on {value.device}."
        )
    if value.dtype != x0.dtype:
        raise TypeError(
            f"`{name}` is {value.dtype}, but `x0` is {x0.dtype}; convert one of them "
            "(`controller.to(x0.dtype)` converts all arrays of the problem)."
        )


def _head(name: str, value: Any, tail: torch.Size, x0: torch.Tensor) -> torch.Size:
    """The batch axes of an argument whose last axes must be `tail`."""
    _check(name, value, x0)
    split = value.ndim - len(tail)
    if split < 0 or value.shape[split:] != tail:
        raise ValueError(
            f"`{name}` must have shape {tuple(tail)}, or batch axes before it, but has shape "
            f"{tuple(value.shape)}."
        )
    return value.shape[:split]


def _broadcast(names: Iterable[str], heads: Sequence[torch.Size]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*heads)
    except ValueError:
        seen = [f"{tuple(h)} of `{name}`" for name, h in zip(names, heads, strict=True) if h]
        raise ValueError(f"Batch axes must broadcast together: {', '.join(seen)}.") from None


def _in_one_row(value: torch.Tensor, head: torch.Size, batch: tuple[int, ...]) -> torch.Tensor:
    """`value` with its batch axes `head`, if it has any, broadcast to `batch` and made one."""
    if not head or head == batch and len(batch) == 1:
        return value
    tail = value.shape[len(head) :]
    return value.expand(*batch, *tail).reshape(math.prod(batch), *tail)
