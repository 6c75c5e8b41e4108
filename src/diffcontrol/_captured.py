"""What functions see besides their arguments.

`jax.jit` remembers a function by its identity, so a function that reads a global or closed-over
value, or calls a helper, which is replaced later would silently be run with the old one: an
everyday event in a notebook. `remembered_jit` therefore makes what the functions among its
arguments see part of what a compiled program is remembered by.

Followed are closures, defaults, globals, the code of functions, and the state of objects. Of
modules and classes, whose contents are many, only attributes count that some function names.
Libraries do not change; their own globals are not followed, and their objects that hold no
function are told apart by identity.
"""

import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Larger NumPy arrays are told apart by identity only, not by content.
_LARGEST_COMPARED = 4096
_LIBRARIES = {"diffcontrol", "equinox", "jax", "jaxlib", "jaxtyping", "numpy", "optax"}
_INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_LABELS = {*functools.WRAPPER_ASSIGNMENTS, "__annotations__"}


def remembered_jit(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`eqx.filter_jit` that compiles again when something its arguments' functions see changes."""

    @eqx.filter_jit
    def compiled(seen, args, kwargs):
        del seen  # static: it only keeps compiled programs of changed functions apart
        return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return compiled(captured(args, kwargs), args, kwargs)

    return call


class Key:
    """A tuple that is one leaf of a pytree."""

    def __init__(self, parts: tuple[Hashable, ...]):
        self.parts = parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.parts == other.parts


class Same:
    """Hashes and compares by the identity of what it holds, which it keeps alive."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value


def captured(*trees: PyTree) -> Key:
    """A key that changes when something seen by a function in `trees` is replaced."""
    walk = _Walk()
    walk.visit_all(trees)
    return Key(tuple(walk.key))


class _Walk:
    """Visits everything once, and writes down what it sees so that only equal things read alike.

    Attributes:
        key: what has been seen.
        ahead: what is to be visited, and whether it is still part of the arguments, whose own
            arrays are traced and need no key.
        seen: the number of each visit, with the object to keep its `id` from being used again.
        names: all that functions name, as a global or as an attribute.
        spaces: what modules and classes hold and nobody has named yet.
    """

    def __init__(self) -> None:
        self.key: list[Any] = []
        self.ahead: list[tuple[Any, bool]] = []
        self.seen: dict[tuple[int, bool], tuple[int, Any]] = {}
        self.names: set[str] = set()
        self.spaces: list[dict[str, Any]] = []

    def visit_all(self, trees: Iterable[Any]) -> None:
        self.ahead = [(tree, True) for tree in trees]
        while self.ahead:
            while self.ahead:
                self.visit(*self.ahead.pop())
            for space in self.spaces:
                for name in sorted(self.names & space.keys()):
                    self.key.append(name)
                    self.ahead.append((space.pop(name), False))

    def visit(self, value: Any, own: bool) -> None:
        kind: Any = type(value)
        is_leaf, is_node, parts_of = _way_of(kind)
        if is_leaf:
            if not own:
                parts_of(self, value)
            return
        first = self.seen.get((id(value), own))
        if first is not None:
            self.key.append(first[0])
            return
        self.seen[id(value), own] = (len(self.seen), value)
        parts = parts_of(self, value)
        self.key += (kind, len(parts))
        own = own and (is_node or not jax.tree_util.all_leaves([value]))
        self.ahead += [(part, own) for part in parts]

    # What is to be visited in place of a value. What the value is besides goes into the key.

    def of_plain(self, value: Any) -> list[Any]:
        self.key += (type(value), repr(value))  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        return []

    def of_numpy(self, value: np.ndarray | np.generic) -> list[Any]:
        small = value.size <= _LARGEST_COMPARED and not value.dtype.hasobject
        content = (value.dtype.str, value.shape, value.tobytes()) if small else Same(value)
        self.key.append(content)
        return []

    def of_identity(self, value: Any) -> list[Any]:
        self.key.append(Same(value))
        return []

    def of_function(self, function: types.FunctionType) -> list[Any]:
        parts = [_content(cell) for cell in function.__closure__ or ()]
        space = function.__globals__
        if _is_library(space.get("__name__")):
            self.key.append(Same(function))
            return parts
        self.key.append(function.__code__)
        parts += function.__defaults__ or ()
        parts.append(function.__kwdefaults__)
        names = _names(function.__code__)
        self.names |= names
        return parts + [space[name] for name in sorted(names & space.keys())]

    def of_module(self, module: types.ModuleType) -> list[Any]:
        self.key.append(Same(module))
        if not _is_library(module.__name__):
            self.spaces.append(dict(vars(module)))
        return []

    def of_class(self, kind: type) -> list[Any]:
        self.key.append(Same(kind))
        if _is_library(kind.__module__):
            return []
        # Operators and calls are not named by who uses them.
        space = dict(vars(kind))
        is_special = lambda name: name.startswith("__") and callable(space[name])
        special = [space.pop(name) for name in sorted(filter(is_special, space))]
        self.spaces.append(space)
        return [*kind.__bases__, *special]

    def of_object(self, value: Any) -> list[Any]:
        kind: Any = type(value)
        slots, held = _slots(kind), getattr(value, "__dict__", None)
        if held is None and not slots:  # written in C: what it holds cannot be seen
            return self.of_identity(value)
        state = {name: part for name, part in (held or {}).items() if name not in _LABELS}
        state |= {name: getattr(value, name, None) for name in slots}
        self.key.append(tuple(state))
        return [kind, *state.values()]


_WRAPPERS = (staticmethod, classmethod, type(jax.jit(lambda: 0)), type(functools.cache(lambda: 0)))

# The first fit counts. An object of a library that holds no function is told by its identity.
_WAYS: tuple[tuple[Any, Callable[[_Walk, Any], list[Any]]], ...] = (
    ((type(None), bool, int, float, complex, str, bytes), _Walk.of_plain),
    ((np.ndarray, np.generic), _Walk.of_numpy),
    ((jax.Array, jax.core.Tracer, np.ufunc), _Walk.of_identity),
    (types.FunctionType, _Walk.of_function),
    (types.MethodType, lambda _, method: [method.__func__, method.__self__]),
    (types.ModuleType, _Walk.of_module),
    (type, _Walk.of_class),
    ((tuple, list), lambda _, values: [*_class_of(values, tuple, list), *values]),
    (dict, lambda _, values: [*_class_of(values, dict), *values.keys(), *values.values()]),
    (property, lambda _, value: [value.fget]),
    (functools.partial, lambda _, value: [value.func, value.args, value.keywords]),
    (_WRAPPERS, lambda _, value: [value.__wrapped__]),
    ((eqx.Module, types.SimpleNamespace), _Walk.of_object),
)


@functools.cache
def _way_of(kind: Any) -> tuple[bool, bool, Callable[[_Walk, Any], list[Any]]]:
    """For a class of values: whether they are leaves, are surely not, and what visits them."""
    for kinds, way in _WAYS:
        if issubclass(kind, kinds):
            break
    else:
        holds_functions = not {"__call__", "__get__"}.isdisjoint(dir(kind))
        opaque = _is_library(kind.__module__) and not holds_functions
        way = _Walk.of_identity if opaque else _Walk.of_object
    leaf = way in (_Walk.of_plain, _Walk.of_numpy, _Walk.of_identity)
    return leaf, issubclass(kind, (tuple, list, dict, eqx.Module)), way


@functools.cache
def _slots(kind: Any) -> tuple[str, ...]:
    slots = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [n for some in slots for n in ((some,) if isinstance(some, str) else some)]
    return tuple(name for name in names if not name.startswith("__"))


def _class_of(value: Any, *but: type) -> list[type]:
    """The class, which may have methods, unless it is a plain one."""
    return [] if type(value) in but else [type(value)]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    """Names of globals and attributes that a function, or one defined inside it, may read."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether a module comes with Python or is installed, and so is not edited while it runs."""
    if module is None or module == "__main__":
        return False
    if module.partition(".")[0] in _LIBRARIES | sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and file.startswith(_INSTALLED)
