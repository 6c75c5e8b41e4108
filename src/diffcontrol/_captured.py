"""What plain functions see besides their arguments.

`jax.jit` remembers a function by its identity, so a function that reads a global or closed-over
value which is changed later would silently be run with the old one: an everyday event in a
notebook. The front door therefore makes what a problem's functions see part of what a compiled
solve is remembered by.
"""

import functools
import types
from collections.abc import Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

# Larger NumPy arrays are told apart by identity only, not by content.
_LARGEST_COMPARED = 4096
_LIBRARIES = ("diffcontrol", "equinox", "jax", "jaxtyping", "numpy", "optax")


class Same:
    """Hashes and compares by the identity of what it holds, which it keeps alive."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value


def captured(tree: PyTree) -> tuple[Hashable, ...]:
    """A key that changes when a value seen by some function in `tree` is replaced."""
    return tuple(_of_value(tree, seen=set(), depth=0))


def _of_value(value: Any, seen: set[int], depth: int) -> Iterator[Hashable]:
    """Depth 0 is the problem itself, whose own arrays are arguments and need no key."""
    if isinstance(value, types.MethodType):
        yield from _of_value(value.__self__, seen, depth + 1)
        value = value.__func__
    value = getattr(value, "__wrapped__", value) if callable(value) else value
    if isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _of_value(part, seen, depth + 1)
    elif isinstance(value, types.FunctionType):
        if id(value) not in seen:
            seen.add(id(value))
            yield from _of_function(value, seen, depth)
    elif isinstance(value, eqx.Module):
        yield from _of_code(value, seen, depth)
        for part in vars(value).values():
            yield from _of_value(part, seen, depth)
    elif depth > 0 or not _is_array_or_number(value):
        yield from _of_data(value, seen, depth)


def _is_array_or_number(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def _of_code(value: Any, seen: set[int], depth: int) -> Iterator[Hashable]:
    """What the `__call__` of an object's class reads besides the object."""
    call = getattr(type(value), "__call__", None)
    call = getattr(call, "__wrapped__", call)
    if isinstance(call, types.FunctionType) and id(call) not in seen:
        seen.add(id(call))
        yield from _of_function(call, seen, depth)


def _of_function(function: types.FunctionType, seen: set[int], depth: int) -> Iterator[Hashable]:
    for cell in function.__closure__ or ():
        try:
            yield from _of_value(cell.cell_contents, seen, depth + 1)
        except ValueError:  # a cell that is not filled yet
            continue
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield from _of_value(default, seen, depth + 1)
    if function.__module__.partition(".")[0] in _LIBRARIES:
        return  # the globals of libraries do not change
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield from _of_value(function.__globals__[name], seen, depth + 1)


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that a function or a function defined inside it may read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _of_data(value: Any, seen: set[int], depth: int) -> Iterator[Hashable]:
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        yield value
    elif isinstance(value, (np.ndarray, np.generic)):
        small = value.size <= _LARGEST_COMPARED
        yield (value.dtype.str, value.shape, value.tobytes()) if small else Same(value)
    elif isinstance(value, jax.Array):
        yield Same(value)
    elif isinstance(value, (types.ModuleType, type)):
        return
    elif depth < 8 and not isinstance(value, jax.core.Tracer):
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, (tuple, list)):
            parts = list(value)
        elif isinstance(value, dict):
            parts = list(value.values())
        else:
            yield from _of_code(value, seen, depth)
            parts = list(getattr(value, "__dict__", {}).values())
        for part in parts:
            yield from _of_value(part, seen, depth + 1)
