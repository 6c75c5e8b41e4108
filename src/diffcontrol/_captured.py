"""What plain functions see besides their arguments.

`jax.jit` remembers a function by its identity, so a function that reads a global or closed-over
value which is changed later would silently be run with the old one: an everyday event in a
notebook. The front door therefore makes what a problem's functions see part of what a compiled
solve is remembered by.
"""

import types
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

# Larger NumPy arrays are told apart by identity only, not by content.
_LARGEST_COMPARED = 4096


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
    seen: set[int] = set()
    return tuple(key for leaf in jax.tree.leaves(tree) for key in _of_value(leaf, seen, depth=0))


def _of_value(value: Any, seen: set[int], depth: int) -> Iterator[Hashable]:
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        if id(value) not in seen:
            seen.add(id(value))
            yield from _of_function(value, seen, depth)
    elif depth > 0:
        yield from _of_data(value, seen, depth)


def _of_function(function: types.FunctionType, seen: set[int], depth: int) -> Iterator[Hashable]:
    for cell in function.__closure__ or ():
        try:
            yield from _of_value(cell.cell_contents, seen, depth + 1)
        except ValueError:  # a cell that is not filled yet
            continue
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
        leaves = jax.tree.leaves(value)
        if len(leaves) != 1 or leaves[0] is not value:
            for leaf in leaves:
                yield from _of_value(leaf, seen, depth + 1)
        elif callable(value):
            yield Same(value)
