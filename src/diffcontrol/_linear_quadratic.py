r"""The linear-quadratic problem.

    minimise    sum_t 1/2 tau_t' C_t tau_t + c_t' tau_t  +  1/2 x_T' C_T x_T + c_T' x_T
    subject to  x_0 given,  x_{t+1} = F_t tau_t + f_t,     tau = [x; u]

(DiffMPC, eq. 2; the paper's problem of T steps is the one without terminal terms.)
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Numbers, as_floats


class Diagonal(eqx.Module):
    """A diagonal matrix for every stage.

    Attributes:
        values: `(T, n+m)`, or `(n+m,)` inside `TimeInvariant`.
    """

    values: Float[Array, "..."]

    def __init__(self, values: Numbers):
        self.values = as_floats("values", values)


class TimeInvariant(eqx.Module):
    """The same matrix at every stage. Its gradient is summed over the stages.

    Attributes:
        matrix: the matrix without an axis for the stages, or a `Diagonal` without one.
    """

    matrix: Float[Array, "..."] | Diagonal

    def __init__(self, matrix: Numbers | Diagonal):
        self.matrix = matrix if isinstance(matrix, Diagonal) else as_floats("matrix", matrix)


Matrices = Array | Diagonal | TimeInvariant


def blocks(given: Matrices) -> Array:
    """The numbers of a matrix: a first axis of `T`, or one if it is the same at every stage, then
    those of a matrix, or one for a diagonal."""
    if isinstance(given, TimeInvariant):
        return blocks(given.matrix)[None]
    return given.values if isinstance(given, Diagonal) else given


class LinearQuadraticProblem(eqx.Module):
    """Data of a linear-quadratic problem; a pytree whose arrays have gradients.

    Structure is said by type and kept: what is given once is stored, read and differentiated once.

    Attributes:
        C: `(T, n+m, n+m)` [cost / unit^2]; read through its symmetric part, and its gradient is
            symmetric. Or a `Diagonal`, or a `TimeInvariant` of a matrix or `Diagonal`.
        c: `(T, n+m)` [cost / unit].
        F: `(T, n, n+m)`, the dynamics `[A_t B_t]` [unit of x / unit of x or u], or a
            `TimeInvariant`.
        f: `(T, n)` [unit of x].
        C_terminal: `(n, n)` [cost / unit of x^2], zero if not given.
        c_terminal: `(n,)` [cost / unit of x], zero if not given.

    Raises:
        TypeError: naming the argument that is not made of real numbers.
        ValueError: naming the argument whose shape does not fit.
    """

    C: Float[Array, "T nm nm"] | Diagonal | TimeInvariant
    c: Float[Array, "T nm"]
    F: Float[Array, "T n nm"] | TimeInvariant
    f: Float[Array, "T n"]
    C_terminal: Float[Array, "n n"]
    c_terminal: Float[Array, " n"]

    def __init__(
        self,
        C: Numbers | Diagonal | TimeInvariant,
        c: Numbers,
        F: Numbers | TimeInvariant,
        f: Numbers,
        C_terminal: Numbers | None = None,
        c_terminal: Numbers | None = None,
    ):
        c, f = as_floats("c", c), as_floats("f", f)
        shared = isinstance(F, TimeInvariant)
        F = F if isinstance(F, TimeInvariant) else as_floats("F", F)
        F_shape = blocks(F).shape[shared:]
        wanted = ("n", "n+m") if shared else ("T", "n", "n+m")
        if len(F_shape) != len(wanted) or 0 in F_shape or F_shape[-1] <= F_shape[-2]:
            raise ValueError(
                f"LinearQuadraticProblem: `F` must have shape ({', '.join(wanted)}) with T, n, m "
                f"at least 1, but has shape {F_shape}."
            )
        if shared and (f.ndim != 2 or f.shape[0] == 0):
            raise ValueError(
                "LinearQuadraticProblem: with a TimeInvariant `F`, `f` must have shape (T, n) with "
                f"T at least 1, but has shape {f.shape}."
            )
        T = f.shape[0] if shared else F_shape[0]
        n, size = F_shape[-2:]
        C = C if isinstance(C, Diagonal | TimeInvariant) else as_floats("C", C)
        dtype = jnp.result_type(blocks(C), c, blocks(F), f)
        zero = jnp.zeros((), dtype)
        C_terminal = jnp.broadcast_to(zero, (n, n)) if C_terminal is None else C_terminal
        c_terminal = jnp.broadcast_to(zero, (n,)) if c_terminal is None else c_terminal

        def checked(name, value, shape):
            if isinstance(value, TimeInvariant):
                return TimeInvariant(checked(f"{name}.matrix", value.matrix, shape[1:]))
            if isinstance(value, Diagonal):
                return Diagonal(checked(f"{name}.values", value.values, shape[:-1]))
            array = as_floats(name, value)
            if array.shape != shape:
                raise ValueError(
                    f"LinearQuadraticProblem: `{name}` must have shape {shape} to go with `F` of "
                    f"shape {F_shape}, but has shape {array.shape}."
                )
            return array.astype(dtype)

        self.C = checked("C", C, (T, size, size))
        self.c = checked("c", c, (T, size))
        self.F = checked("F", F, (T, n, size))
        self.f = checked("f", f, (T, n))
        self.C_terminal = checked("C_terminal", C_terminal, (n, n))
        self.c_terminal = checked("c_terminal", c_terminal, (n,))

    @property
    def horizon(self) -> int:
        """`T`."""
        return self.f.shape[0]

    @property
    def state_size(self) -> int:
        """`n`."""
        return self.f.shape[1]

    @property
    def control_size(self) -> int:
        """`m`."""
        return self.c.shape[1] - self.f.shape[1]
