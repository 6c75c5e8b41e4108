"""Words for types that jaxtyping does not have."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from jaxtyping import ArrayLike

# What constructors turn into arrays: arrays, numbers, and nested lists of them.
Numbers: TypeAlias = ArrayLike | Sequence[Any]
