r"""The optimal control problem.

minimise    sum_{t=0}^{T-1} l(x_t, u_t, t) + l_T(x_T)
subject to  x_0 given,  x_{t+1} = f(x_t, u_t, t),  lower <= u_t <= upper
"""

import inspect
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ._cost import AbstractStageCost, cost_at_stage
from ._trajectory import stages
from ._tree import any_nan, promoted_dtype
from ._types import Numbers, as_floats, is_concrete, known_to


class Bounds(eqx.Module):
    """Box bounds `lower <= u_t <= upper`.

    Each side may be a scalar, one value a control `(m,)`, or one a stage and control `(T, m)`;
    infinities mean unbounded and equal sides fix a control. Both sides have gradients.

    Attributes:
        lower, upper: [unit of the control].
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]

    def __init__(self, lower: Numbers = -jnp.inf, upper: Numbers = jnp.inf):
        self.lower = _as_bound("lower", lower, never=np.inf)
        self.upper = _as_bound("upper", upper, never=-np.inf)
        check_order(self.lower, self.upper)


def check_order(lower: Array, upper: Array) -> None:
    """Raise `ValueError` for bounds known to be inverted, or of shapes that do not go together."""
    try:
        np.broadcast_shapes(lower.shape, upper.shape)
    except ValueError:
        raise ValueError(
            f"Bounds: `lower` of shape {lower.shape} and `upper` of shape {upper.shape} do not "
            "broadcast together."
        ) from None
    if is_concrete(lower) and is_concrete(upper) and np.any(np.asarray(lower) > np.asarray(upper)):
        raise ValueError("Bounds: some `lower` bound lies above its `upper` bound.")


class ControlProblem(eqx.Module):
    """A finite-horizon optimal control problem; a pytree whose arrays are its parameters.

    Attributes:
        dynamics: `(x, u, t) -> next x`, with `x` of shape `(n,)`, `u` of shape `(m,)` and `t` an
            integer array scalar. Any callable: an `eqx.Module`'s arrays are parameters, and so
            are values that a plain function closes over.
        stage_cost: `(x, u, t) -> scalar`.
        terminal_cost: `(x) -> scalar`, or None for no cost on the last state.
        horizon: the number `T` of controls.
        control_size: `m`.
        control_bounds: `Bounds`, or None for unbounded controls.

    Raises:
        ValueError, TypeError: for a horizon or size below one or not an integer, something not
            callable, or bounds of a wrong type.
    """

    dynamics: Callable
    stage_cost: Callable
    terminal_cost: Callable | None
    horizon: int = eqx.field(static=True)
    control_size: int = eqx.field(static=True)
    control_bounds: Bounds | None

    def __init__(
        self,
        *,
        dynamics: Callable,
        stage_cost: Callable,
        horizon: int,
        control_size: int,
        terminal_cost: Callable | None = None,
        control_bounds: Bounds | None = None,
    ):
        self.dynamics = _callable("dynamics", "(x, u, t) -> next x", dynamics)
        self.stage_cost = _callable("stage_cost", "(x, u, t) -> scalar", stage_cost)
        self.terminal_cost = (
            None
            if terminal_cost is None
            else _callable("terminal_cost", "(x) -> scalar", terminal_cost)
        )
        self.horizon = _size("horizon", horizon)
        self.control_size = _size("control_size", control_size)
        if control_bounds is not None and not isinstance(control_bounds, Bounds):
            raise TypeError(
                "ControlProblem: `control_bounds` must be a `Bounds` or None, got "
                f"{type(control_bounds).__name__}. Write Bounds(lower, upper)."
            )
        self.control_bounds = control_bounds


class StageProblem(eqx.Module):
    """A `ControlProblem` made ready for arithmetic.

    Every array that the user's callables use, also by closing over it, is a leaf of this pytree;
    callables take the stage index `k` in place of the time; bounds have shape `(T, m)`; all
    arrays have one floating-point type. It exists so that solver and adjoint need not know how a
    problem was written down, and so that no value is hidden from differentiation.
    """

    dynamics: Callable
    stage_cost: Callable
    terminal_cost: Callable
    lower: Float[Array, "T m"]
    upper: Float[Array, "T m"]
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    control_size: int = eqx.field(static=True)


def stage_problem(
    problem: ControlProblem, x0: Numbers, start: ArrayLike = 0
) -> tuple[StageProblem, Float[Array, " n"]]:
    """Check `problem` against `x0` and make it ready.

    Args:
        problem: the problem.
        x0: initial state, shape `(n,)`.
        start: absolute time of stage 0; callables see `start + k`.

    Returns:
        The stage problem, and `x0` in the type that all arithmetic will use.

    Raises:
        ValueError, TypeError: naming the argument, what was seen and what to do.
    """
    if not isinstance(problem, ControlProblem):
        raise TypeError(f"`problem` must be a ControlProblem, got {type(problem).__name__}.")
    x0 = _initial_state(x0)
    dtype = promoted_dtype(problem, x0)
    x0 = x0.astype(dtype)
    n, m, T = x0.shape[0], problem.control_size, problem.horizon
    u0, k0 = jnp.zeros((m,), dtype), stages(T)[0]

    dynamics, stage_cost, terminal_cost = (
        problem.dynamics,
        problem.stage_cost,
        problem.terminal_cost,
    )
    if isinstance(stage_cost, AbstractStageCost):
        stage_cost.check(n, m, T)
    _check_output("dynamics", (n,), dynamics, x0, u0, k0)
    _check_output("stage_cost", (), stage_cost, x0, u0, k0)
    if terminal_cost is not None:
        _check_output("terminal_cost", (), terminal_cost, x0)

    # `filter_closure_convert` traces each callable once and hoists every array it uses into the
    # returned pytree. The functions below have a closure, so it also looks at callables without
    # one, which may still reach arrays through global names. The examples are the arrays at hand,
    # and not their shapes, since under `jax.shard_map` an array also knows its mesh.
    def stage_dynamics(x, u, k):
        return jnp.asarray(dynamics(x, u, start + k), dtype)

    def cost_of_stage(x, u, k):
        return jnp.asarray(cost_at_stage(stage_cost, k)(x, u, start + k), dtype)

    def cost_of_end(x):
        return jnp.asarray(0.0 if terminal_cost is None else terminal_cost(x), dtype)

    def opened(name, function, *args):
        converted = eqx.filter_closure_convert(function, *args)
        check_concrete_values(f"problem.{name}, or a value that it closes over,", converted)
        return converted

    return (
        StageProblem(
            dynamics=opened("dynamics", stage_dynamics, x0, u0, k0),
            stage_cost=opened("stage_cost", cost_of_stage, x0, u0, k0),
            terminal_cost=opened("terminal_cost", cost_of_end, x0),
            lower=_stage_bounds("lower", problem, T, m, dtype),
            upper=_stage_bounds("upper", problem, T, m, dtype),
            horizon=T,
            state_size=n,
            control_size=m,
        ),
        x0,
    )


def invalid(problem: StageProblem, x0: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether the data hold NaN or an inverted bound, so that no solution exists."""
    return any_nan((problem, x0)) | jnp.any(problem.lower > problem.upper)


def check_concrete_values(name: str, tree: PyTree) -> None:
    """Raise `ValueError` for NaN in arrays whose values are known when traced."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
        if known_to(leaf, np.isnan):
            raise ValueError(f"`{name}{jax.tree_util.keystr(path)}` holds NaN; give finite values.")


def _initial_state(x0: Numbers) -> Array:
    x0 = as_floats("x0", x0)
    if x0.ndim != 1 or x0.shape[0] == 0:
        raise ValueError(
            f"`x0` must be one flat state of shape (n,), but has shape {x0.shape}. "
            "Batch with jax.vmap."
        )
    return x0


def _check_output(name: str, shape: tuple, function: Callable, *args) -> None:
    takes = "(x)" if name == "terminal_cost" else "(x, u, t)"
    try:
        inspect.signature(function).bind(*args)
    except TypeError as mismatch:
        raise TypeError(
            f"ControlProblem: `{name}` must take {takes}, but cannot be called so: {mismatch}."
        ) from None
    except ValueError:  # a builtin that does not tell its signature
        pass
    try:
        seen = eqx.filter_eval_shape(function, *args)
    except Exception as problem:
        shapes = " and ".join(
            f"{what} of shape {arg.shape}" for what, arg in zip(("x", "u"), args, strict=False)
        )
        first_line = str(problem).partition("\n")[0]
        raise ValueError(
            f"ControlProblem: `{name}` fails for {shapes}: {type(problem).__name__}: {first_line} "
            "(The size of x is that of `x0`, the size of u is `control_size`. JAX traces the "
            "function: it needs `jax.numpy`, and `jnp.where` instead of `if`.)"
        ) from problem
    expected = "the shape of the state" if shape else "a scalar"
    if not hasattr(seen, "shape") and not isinstance(seen, (int, float)):
        raise TypeError(
            f"ControlProblem: `{name}` must return one real array, got {type(seen).__name__}."
        )
    if jnp.issubdtype(getattr(seen, "dtype", float), jnp.complexfloating):
        raise TypeError(f"ControlProblem: `{name}` must return real numbers, not {seen.dtype}.")
    seen_shape = getattr(seen, "shape", ())
    if seen_shape != shape:
        raise ValueError(
            f"ControlProblem: `{name}` must return {expected}, {shape}, for a state of shape "
            f"{args[0].shape}, but returns shape {seen_shape}."
        )


def _stage_bounds(side: str, problem: ControlProblem, T: int, m: int, dtype) -> Array:
    bounds = Bounds() if problem.control_bounds is None else problem.control_bounds
    value = getattr(bounds, side)
    if value.shape not in ((), (m,), (T, m)):
        raise ValueError(
            f"ControlProblem: `control_bounds.{side}` must have shape (), ({m},) or ({T}, {m}), "
            f"but has shape {value.shape}."
        )
    return jnp.broadcast_to(value.astype(dtype), (T, m))


def _callable(name: str, signature: str, value) -> Callable:
    if not callable(value):
        raise TypeError(
            f"ControlProblem: `{name}` must be a callable {signature}, got {type(value).__name__}."
        )
    return value


def _size(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"ControlProblem: `{name}` must be an integer, got {value!r}.")
    if value < 1:
        raise ValueError(f"ControlProblem: `{name}` must be at least 1, got {value}.")
    return int(value)


def _as_bound(side: str, value: Numbers, never: float) -> Array:
    array = as_floats(side, value)
    if known_to(array, np.isnan):
        raise ValueError(f"Bounds: `{side}` holds NaN; use -inf and inf for unbounded controls.")
    if known_to(array, lambda values: values == never):
        raise ValueError(f"Bounds: `{side}` holds {never}, which no control satisfies.")
    return array
