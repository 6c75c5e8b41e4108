r"""The linear-quadratic problem.

    minimise    sum_t 1/2 tau_t' C_t tau_t + c_t' tau_t  +  1/2 x_T' C_T x_T + c_T' x_T
    subject to  x_0 given,  x_{t+1} = F_t tau_t + f_t,     tau = [x; u]

(DiffMPC, eq. 2; the paper's problem of T steps is the one without terminal terms.)
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Numbers, as_floats


class LinearQuadraticProblem(eqx.Module):
    """Data of a linear-quadratic problem; a pytree whose arrays have gradients.

    Attributes:
        C: `(T, n+m, n+m)` [cost / unit^2]; read through its symmetric part, and its gradient is
            symmetric.
        c: `(T, n+m)` [cost / unit].
        F: `(T, n, n+m)`, the dynamics `[A_t B_t]` [unit of x / unit of x or u].
        f: `(T, n)` [unit of x].
        C_terminal: `(n, n)` [cost / unit of x^2], zero if not given.
        c_terminal: `(n,)` [cost / unit of x], zero if not given.

    Raises:
        TypeError: naming the argument that is not made of real numbers.
        ValueError: naming the argument whose shape does not fit.
    """

    C: Float[Array, "T nm nm"]
    c: Float[Array, "T nm"]
    F: Float[Array, "T n nm"]
    f: Float[Array, "T n"]
    C_terminal: Float[Array, "n n"]
    c_terminal: Float[Array, " n"]

    def __init__(
        self,
        C: Numbers,
        c: Numbers,
        F: Numbers,
        f: Numbers,
        C_terminal: Numbers | None = None,
        c_terminal: Numbers | None = None,
    ):
        C, c, F, f = (as_floats(*a) for a in (("C", C), ("c", c), ("F", F), ("f", f)))
        if F.ndim != 3 or F.shape[0] == 0 or F.shape[2] <= F.shape[1]:
            raise ValueError(
                "LinearQuadraticProblem: `F` must have shape (T, n, n+m) with T, n, m at least 1, "
                f"but has shape {F.shape}."
            )
        T, n, size = F.shape
        dtype = jnp.result_type(C, c, F, f)
        zero = jnp.zeros((), dtype)
        C_terminal = jnp.broadcast_to(zero, (n, n)) if C_terminal is None else C_terminal
        c_terminal = jnp.broadcast_to(zero, (n,)) if c_terminal is None else c_terminal

        def checked(name: str, value: Numbers, shape: tuple[int, ...]) -> Array:
            array = as_floats(name, value)
            if array.shape != shape:
                raise ValueError(
                    f"LinearQuadraticProblem: `{name}` must have shape {shape} to go with `F` of "
                    f"shape {F.shape}, but has shape {array.shape}."
                )
            return array.astype(dtype)

        self.C = checked("C", C, (T, size, size))
        self.c = checked("c", c, (T, size))
        self.F = checked("F", F, (T, n, size))
        self.f = checked("f", f, (T, n))
        self.C_terminal = checked("C_terminal", C_terminal, (n, n))
        self.c_terminal = checked("c_terminal", c_terminal, (n,))

    @property
    def control_size(self) -> int:
        """`m`."""
        return self.F.shape[2] - self.F.shape[1]
