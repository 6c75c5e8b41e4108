"""From continuous to discrete time: one integration step as dynamics `(x, u, t) -> next x`.

The control is held over the step (zero-order hold), and so is the time that `f` sees: the
integer absolute time, counted in steps. Integration methods are functions
`(f, x, u, t, dt) -> next x`; `euler`, `semi_implicit` and `rk4` are given, and any function of that
form will do.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float


def euler(f: Callable, x: Array, u: Array, t: int | Array, dt: float | Array) -> Array:
    """Explicit Euler step, `x + dt f(x, u, t)`: first order, adds energy to oscillators.

    Args:
        f: `(x, u, t) -> dx/dt`, `(n,)` [unit of x / s].
        x: state, `(n,)`.
        u: control held over the step, `(m,)`.
        t: integer absolute time, in steps.
        dt: step [s].

    Returns:
        The next state, `(n,)`.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, eq. I.7.3.
    """
    return x + dt * f(x, u, t)


def semi_implicit(f: Callable, x: Array, u: Array, t: int | Array, dt: float | Array) -> Array:
    """Semi-implicit Euler step for mechanical systems: first order, energy stays bounded.

    The state is `x = [q; v]`, positions before velocities, each half of it, and `f` returns
    `[dq/dt; dv/dt]`. Velocities advance first, positions follow with the new velocities:
    `v+ = v + dt f_v(q, v)`, `q+ = q + dt f_q(q, v+)`.

    Arguments as for `euler`, with `u` and `t` held.

    Raises:
        ValueError: if the size of the state is odd.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, eq. I.1.9.
    """
    n = x.shape[0]
    if n % 2:
        raise ValueError(
            "semi_implicit: the state must be [positions; velocities] in equal halves, but has "
            f"odd size {n}. Use rk4 or euler."
        )
    half = n // 2
    v = x[half:] + dt * f(x, u, t)[half:]
    q = x[:half] + dt * f(jnp.concatenate([x[:half], v]), u, t)[:half]
    return jnp.concatenate([q, v])


def rk4(f: Callable, x: Array, u: Array, t: int | Array, dt: float | Array) -> Array:
    """The classical Runge-Kutta step: fourth order.

    Arguments and units as for `euler`; `u` and `t` are held.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, table II.1.2.
    """
    k1 = f(x, u, t)
    k2 = f(x + 0.5 * dt * k1, u, t)
    k3 = f(x + 0.5 * dt * k2, u, t)
    k4 = f(x + dt * k3, u, t)
    return x + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


class Discretised(eqx.Module):
    """Discrete-time dynamics `(x, u, t) -> next x`; see `discretise`.

    Attributes:
        f: the continuous dynamics; its arrays are parameters.
        method: the integration method.
    """

    f: Callable
    method: Callable = eqx.field(static=True)
    # One of the two is None. A Python number must not be a leaf: `jax.vmap` over a batch of
    # problems would ask it for a batch axis.
    _fixed_dt: float | None = eqx.field(static=True)
    _variable_dt: Float[Array, ""] | None

    @property
    def dt(self) -> float | Array:
        """Step [s]."""
        if self._fixed_dt is not None:
            return self._fixed_dt
        assert self._variable_dt is not None
        return self._variable_dt

    def __call__(self, x: Array, u: Array, t: int | Array) -> Array:
        return self.method(self._rate, x, u, t, self.dt)

    def _rate(self, x: Array, u: Array, t: int | Array) -> Array:
        rate = jnp.asarray(self.f(x, u, t))
        # A scalar would broadcast silently.
        if rate.shape != x.shape:
            raise ValueError(
                f"discretise: `f` must return dx/dt with the shape of the state, {x.shape}, but "
                f"returns shape {rate.shape}."
            )
        return rate


def discretise(f: Callable, dt: ArrayLike, method: Callable = rk4) -> Discretised:
    """Dynamics that advance `dx/dt = f(x, u, t)` by one step of `dt`.

    Args:
        f: `(x, u, t) -> dx/dt`, with `x` and `dx/dt` of shape `(n,)`, `u` of shape `(m,)` held
            over the step, and `t` the integer absolute time in steps. An `eqx.Module`'s arrays are
            parameters.
        dt: step [s]. A Python number is fixed and part of the compiled program; an array scalar
            is a parameter with a gradient.
        method: `euler`, `semi_implicit` or `rk4`, or any function
            `(f, x, u, t, dt) -> next x`.

    Returns:
        Dynamics for a `ControlProblem`.

    Raises:
        TypeError: if `f` or `method` is not callable, or `dt` not a real number.
        ValueError: if a fixed `dt` is not positive, or an array `dt` not a scalar.
    """
    if not callable(f):
        raise TypeError(f"discretise: `f` must be a callable (x, u, t) -> dx/dt, got {f!r}.")
    if not callable(method):
        raise TypeError(
            f"discretise: `method` must be a function such as diffcontrol.rk4, got {method!r}."
        )
    if isinstance(dt, (int, float)) and not isinstance(dt, bool):
        if not 0.0 < dt < float("inf"):
            raise ValueError(f"discretise: `dt` must be a positive step [s], got {dt}.")
        return Discretised(f, method, float(dt), None)
    if not isinstance(dt, (jax.Array, np.ndarray)):
        raise TypeError(f"discretise: `dt` must be a number or an array scalar, got {dt!r}.")
    if dt.shape != () or not jnp.issubdtype(dt.dtype, jnp.floating):
        raise ValueError(
            "discretise: an array `dt` must be a floating-point scalar, but has shape "
            f"{dt.shape} and type {dt.dtype}."
        )
    return Discretised(f, method, None, jnp.asarray(dt))
