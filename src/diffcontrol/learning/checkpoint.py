"""A pytree of arrays and a few facts about it, in one file."""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .files import written_whole


def save_checkpoint(path: str | os.PathLike, tree: PyTree, facts: dict[str, Any]) -> None:
    """Write one line of JSON and then the arrays, whole or not at all; nothing is pickled."""
    with written_whole(path) as file:
        file.write(json.dumps(facts).encode() + b"\n")
        eqx.tree_serialise_leaves(file, tree)


def load_checkpoint(path: str | os.PathLike, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Args:
        path: the file.
        like: a pytree of the structure, shapes and types that are expected.

    Raises:
        ValueError: if the file is damaged or holds something else.
    """
    try:
        with Path(path).open("rb") as file:
            facts = json.loads(file.readline())
            tree = eqx.tree_deserialise_leaves(file, like)
    except FileNotFoundError:
        raise
    except (ValueError, RuntimeError, EOFError, UnicodeDecodeError):
        raise ValueError(
            f"{path}: this is no checkpoint of the same model and settings; start anew in another "
            "folder."
        ) from None
    return tree, facts
