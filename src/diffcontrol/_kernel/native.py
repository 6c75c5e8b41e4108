"""The compiled kernel: the same functions as `riccati.py` and `box_sweep.py`, for CPUs.

The library is built from `native/` when the package is installed and reached through JAX's foreign
function interface. Where it could not be built, or for other devices, the JAX functions serve.

Arguments that `jax.vmap` leaves unbatched arrive with batch axes of size one, and the kernel reads
them with strides of zero, so nothing is broadcast in memory.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_TARGETS = ("factor", "factor_solve", "solve", "sweep", "outer")
# Beyond this the control block is no longer small, and the arrays on the kernel's stack end.
_MOST_CONTROLS = 64


@functools.cache
def library() -> ctypes.CDLL | None:
    """The shared library with its functions registered, or None; says so once where it is None."""
    if os.environ.get("DIFFCONTROL_KERNEL") == "jax":
        return None
    found = sorted(Path(__file__).parent.glob("_native*.so"))
    try:
        loaded = ctypes.CDLL(str(found[0]))
    except (IndexError, OSError):
        logging.getLogger("diffcontrol").warning(
            "The compiled kernel is not there (no C++ compiler when diffcontrol was installed?); "
            "the slower kernel in JAX serves instead."
        )
        return None
    for name in _TARGETS:
        symbol = getattr(loaded, f"diffcontrol_{name}")
        jax.ffi.register_ffi_target(f"diffcontrol_{name}", jax.ffi.pycapsule(symbol), "cpu")
    loaded.diffcontrol_instruction_set.restype = ctypes.c_char_p
    loaded.diffcontrol_set_threads(_threads_from_environment())
    return loaded


def _threads_from_environment() -> int:
    value = os.environ.get("DIFFCONTROL_THREADS", "0")
    if not value.isdecimal():
        raise ValueError(f"DIFFCONTROL_THREADS must be a number from 0 on, but is {value!r}.")
    return int(value)


def description() -> str:
    """Which kernel serves on CPUs, in words."""
    loaded = library()
    if loaded is None:
        return "JAX (no compiled kernel)"
    return f"compiled, {loaded.diffcontrol_instruction_set().decode()}"


def set_threads(count: int) -> None:
    """How many threads the compiled kernel may use for one call.

    Args:
        count: at least 1, or 0 for as many as JAX uses. The environment variable
            `DIFFCONTROL_THREADS` sets it at the start.

    Raises:
        TypeError: for anything but an integer.
        ValueError: for a negative count.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"`count` must be an integer, got {count!r}.")
    if count < 0:
        raise ValueError(f"`count` must not be negative, got {count}.")
    if (loaded := library()) is not None:
        loaded.diffcontrol_set_threads(count)


def batch_first(tree: Any) -> Any:
    """The same arrays, with the axis that `jax.vmap` adds at the front.

    `jax.custom_jvp` takes for granted that a function and its rule put that axis at the same
    place. The compiled kernel has it at the front, a scan after the time; and JAX does not notice.
    Adding and removing an axis moves it, and costs nothing once compiled.
    """

    def move(leaf):
        return jax.lax.squeeze(jax.lax.expand_dims(leaf, (0,)), (0,))

    return jax.tree.map(move, tree)


def dispatch(compiled: Callable, in_jax: Callable, controls: int, *args: Any) -> Any:
    """`compiled(*args)` where it can serve, else `in_jax(*args)`; both return the same tree."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(args)} - {jnp.dtype(bool)}
    known = dtypes <= {jnp.dtype("float32")} or dtypes <= {jnp.dtype("float64")}
    elsewhere = lambda *args: batch_first(in_jax(*args))
    if not known or controls > _MOST_CONTROLS or library() is None:
        return elsewhere(*args)
    if all(device.platform == "cpu" for device in jax.devices()):
        return compiled(*args)
    return jax.lax.platform_dependent(*args, cpu=compiled, default=elsewhere)


def factor(H: Array, H_N: Array, F: Array, free: Array) -> tuple[Array, ...]:
    """`K, V, L, pivots` of `riccati.factor`."""
    T, n, m = _sizes(F, free)
    return _call("factor", _factors(T, n, m), H, H_N, F, free)


def factor_solve(
    H: Array, H_N: Array, F: Array, free: Array, g: Array, g_N: Array, r: Array
) -> tuple[Array, ...]:
    """`K, V, L, pivots` and `x, u, costate` of `riccati.solve`, reading the data once."""
    T, n, m = _sizes(F, free)
    shapes = _factors(T, n, m) + _unknowns(T, n, m)
    return _call("factor_solve", shapes, H, H_N, F, free, g, g_N, r)


def solve(
    F: Array, free: Array, K: Array, V: Array, L: Array, g: Array, g_N: Array, r: Array
) -> tuple[Array, ...]:
    """`x, u, costate` of `riccati.solve`."""
    return _call("solve", _unknowns(*_sizes(F, free)), F, free, K, V, L, g, g_N, r)


def sweep(
    H: Array,
    D: Array | None,
    H_N: Array,
    F: Array,
    g: Array,
    g_N: Array,
    lower: Array,
    upper: Array,
    regularisation: Array,
    worthwhile: Array,
    wanted: Array,
) -> tuple[Array, ...]:
    """`K, k, linear, quadratic, positive` of `box_sweep.sweep`."""
    T, n, m = _sizes(F, lower)
    dtype = F.dtype
    results = [jax.ShapeDtypeStruct(s, dtype) for s in ((T, m, n), (T, m), (), ())]
    results.append(jax.ShapeDtypeStruct((), jnp.bool_))
    call = jax.ffi.ffi_call("diffcontrol_sweep", results, vmap_method="expand_dims")
    curvature = () if D is None else (D,)
    return tuple(
        call(H, H_N, F, g, g_N, lower, upper, regularisation, worthwhile, wanted, *curvature)
    )


def outer(scale: float, p: Array, q: Array, r: Array, s: Array) -> Array:
    """`products.outer`."""
    shape = jax.ShapeDtypeStruct((*p.shape, q.shape[-1]), p.dtype)
    call = jax.ffi.ffi_call("diffcontrol_outer", shape, vmap_method="expand_dims")
    return call(p, q, r, s, scale=np.float64(scale))


def _sizes(F: Array, controls: Array) -> tuple[int, int, int]:
    """`T, n, m`; `F` may have only one stage for all, but not what belongs to the controls."""
    T, m = controls.shape
    return T, F.shape[1], m


def _factors(T: int, n: int, m: int) -> tuple[tuple[int, ...], ...]:
    return (T, m, n), (T + 1, n, n), (T, m, m), (T, m)


def _unknowns(T: int, n: int, m: int) -> tuple[tuple[int, ...], ...]:
    return (T + 1, n), (T, m), (T + 1, n)


def _call(name: str, shapes: tuple[tuple[int, ...], ...], *args: Array) -> tuple[Array, ...]:
    results = [jax.ShapeDtypeStruct(shape, args[0].dtype) for shape in shapes]
    return tuple(jax.ffi.ffi_call(f"diffcontrol_{name}", results, vmap_method="expand_dims")(*args))
