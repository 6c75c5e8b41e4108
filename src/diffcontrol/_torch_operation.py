r"""Functions of JAX as operations of PyTorch, with derivatives of any order.

A *program* is a pure function of arrays, compiled. Its pullback (reverse mode), its pushforward
(forward mode) and its form for a batch are programs again, made when they are first asked for and
then kept. So derivatives of any order and `torch.func` need no further rule, and nothing is
compiled twice for the same shapes.

A program may say how to differentiate it *where its outcome is known*, so that derivatives need
not compute again what the forward pass has computed.

A batch is differentiated sample by sample, and summed where samples share an array, so that a
sample whose outcome is not used spoils no other, even if it met NaN.

Tensors go to JAX as NumPy views of their memory, which JAX reads where it is if it is aligned, and
copies if not; this costs less than DLPack, by which they come back. Every program is waited for, so
torch may change its tensors in place once a call returns.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

Axes = tuple[int | None, ...]
Flags = tuple[bool, ...]
Call = Callable[..., tuple[Any, ...]]

_AS_IT_IS = contextlib.nullcontext()


class Program:
    """A pure function of floating-point arrays, compiled, and the programs that follow from it.

    Args:
        call: arrays -> tuple of arrays, of which integers and booleans come last.
        known: `(*inputs, *remembered)` -> the floating-point outputs of `call(*inputs)`, with all
            their derivatives by the inputs; `remembered` are the first `remembers` of them. None
            is `call` itself.
        remembers: how many outputs `known` wants.
        check: looks at the outputs of a call, and may raise.
    """

    def __init__(
        self,
        call: Call,
        *,
        known: Call | None = None,
        remembers: int = 0,
        check: Callable[[Sequence[jax.Array]], None] | None = None,
    ):
        self.call, self.known = call, call if known is None else known
        self.remembers, self.check = remembers, check
        # Behind the barrier no output shares memory with an input.
        self._compiled = jax.jit(lambda *arrays: jax.lax.optimization_barrier(call(*arrays)))
        self._followed: dict[Any, Program] = {}

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run it; no derivative."""
        is_double = tensors[0].dtype == torch.float64
        # JAX in 32 bit would round float64 arrays.
        with jax.default_device(_cpu()), jax.enable_x64(True) if is_double else _AS_IT_IS:
            outputs = jax.block_until_ready(self._compiled(*map(_view, tensors)))
        if self.check is not None:
            self.check(outputs)
        return tuple(torch.from_dlpack(output.__dlpack__()) for output in outputs)

    def __deepcopy__(self, memo: dict) -> "Program":
        return self

    def __reduce__(self):
        raise TypeError(
            "Compiled programs cannot be pickled: save the `state_dict()` of the module, and load "
            "it into one that is made anew."
        )

    def pull(self, needed: Flags, given: Flags) -> "Program":
        """`(*inputs, *remembered, *cotangents)` -> cotangents of the inputs that are needed.

        Cotangents are those of the floating-point outputs for which one is `given`.
        """
        return self._following("pull", (needed, given), lambda: self._pull(needed, given))

    def push(self, moved: Flags) -> "Program":
        """`(*inputs, *remembered, *tangents of the inputs that are moved)` -> tangents of the
        floating-point outputs."""
        return self._following("push", moved, lambda: self._push(moved))

    def batched(self, axes: Axes) -> "Program":
        """The same for a batch along these axes of the inputs; outputs have it first."""
        return self._following("batched", axes, lambda: _Batched(self, axes))

    def _following(self, how: str, of: Any, make: "Callable[[], Program]") -> "Program":
        if (how, of) not in self._followed:
            self._followed[how, of] = make()
        return self._followed[how, of]

    def _pull(self, needed: Flags, given: Flags) -> "Program":
        def call(*arrays):
            moving, known, cotangents = self._split(needed, arrays)
            read = lambda moving: list(itertools.compress(known(moving), given))
            (gradients,) = jax.vjp(read, moving)[1](list(cotangents))
            is_used = jnp.any(jnp.stack([jnp.any(c != 0) for c in cotangents]))
            return tuple(_zero_unless(is_used, g) for g in jax.tree.leaves(gradients))

        return Program(call)

    def _push(self, moved: Flags) -> "Program":
        def call(*arrays):
            moving, known, tangents = self._split(moved, arrays)
            tangents = jax.tree.unflatten(jax.tree.structure(moving), tangents)
            return jax.jvp(known, (moving,), (tangents,))[1]

        return Program(call)

    def _split(self, moved: Flags, arrays: tuple[Any, ...]):
        """The inputs that move, `known` as a function of them, and what follows in `arrays`."""
        count, end = len(moved), len(moved) + self.remembers
        moving, held = eqx.partition(arrays[:count], moved)
        known = lambda moving: self.known(*eqx.combine(moving, held), *arrays[count:end])
        return moving, known, arrays[end:]


class _Batched(Program):
    """A program under `jax.vmap`, differentiated sample by sample."""

    def __init__(self, one: Program, axes: Axes):
        super().__init__(jax.vmap(one.call, axes), remembers=one.remembers, check=one.check)
        self.one, self.axes = one, axes

    def _pull(self, needed, given):
        one = self.one.pull(needed, given).call
        wanted = list(itertools.compress(self.axes, needed))
        out_axes = tuple(0 if axis is None else axis for axis in wanted)

        def call(*arrays):
            in_axes = self.axes + (0,) * (len(arrays) - len(needed))
            gradients = jax.vmap(one, in_axes, out_axes)(*arrays)
            return tuple(
                jnp.sum(gradient, axis=0) if axis is None else gradient
                for axis, gradient in zip(wanted, gradients, strict=True)
            )

        return Program(call)

    def _push(self, moved):
        of_tangents = tuple(itertools.compress(self.axes, moved))
        return self.one.push(moved).batched(self.axes + (0,) * self.remembers + of_tangents)


@jax.custom_jvp
def _zero_unless(is_used, gradient):
    """The pullback of zeros is zero, even where it meets NaN on its way.

    A pullback is linear, so for finite numbers this is `gradient`, and its derivative is that of
    `gradient`.
    """
    return jnp.where(is_used, gradient, 0.0)


@_zero_unless.defjvp
def _zero_unless_jvp(primals, tangents):
    return _zero_unless(*primals), tangents[1]


class Operation(torch.autograd.Function):
    """`Operation.apply(program, *tensors)`: a program in torch's graph."""

    @staticmethod
    def forward(program, *tensors):
        return program(*tensors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.program, *tensors = inputs
        ctx.inputs, ctx.outputs = len(tensors), len(output)
        ctx.floating = sum(out.is_floating_point() for out in output)
        ctx.mark_non_differentiable(*output[ctx.floating :])
        ctx.set_materialize_grads(False)  # None, and not zeros, for what does not matter
        kept = (*tensors, *output[: ctx.program.remembers])
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx, *cotangents):
        needed = ctx.needs_input_grad[1:]
        given, present = _present(cotangents[: ctx.floating])
        if not present:
            return (None,) * (1 + ctx.inputs)
        pull = ctx.program.pull(needed, given)
        gradients = iter(Operation.apply(pull, *_kept(ctx), *present))
        return None, *(next(gradients) if is_needed else None for is_needed in needed)

    @staticmethod
    def jvp(ctx, _, *tangents):
        moved, present = _present(tangents)
        moves = Operation.apply(ctx.program.push(moved), *_kept(ctx), *present)
        return *moves, *[None] * (ctx.outputs - ctx.floating)

    @staticmethod
    def vmap(info, in_dims, program, *tensors):
        outputs = Operation.apply(program.batched(in_dims[1:]), *tensors)
        return outputs, (0,) * len(outputs)


def _present(tensors: Sequence[torch.Tensor | None]) -> tuple[Flags, list[torch.Tensor]]:
    """Which are not None, and these."""
    flags = tuple(tensor is not None for tensor in tensors)
    return flags, [tensor for tensor in tensors if tensor is not None]


def _kept(ctx) -> list[torch.Tensor]:
    """Inputs and remembered outputs. The latter are values only: how they depend on the inputs is
    what `Program.known` says."""
    kept = ctx.saved_tensors
    return [*kept[: ctx.inputs], *(output.detach() for output in kept[ctx.inputs :])]


def _view(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor."""
    try:
        return tensor.numpy(force=True)
    except RuntimeError as error:
        raise RuntimeError(
            "JAX was given a tensor without memory of its own. `is_grads_batched=True` and "
            "`vectorize=True` of torch.autograd cannot be used; use torch.func."
        ) from error


@functools.cache
def _cpu() -> jax.Device:
    return jax.devices("cpu")[0]
