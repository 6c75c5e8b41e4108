"""A pytree of arrays and a few facts about it, in one file."""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .files import written_whole


class CheckpointError(ValueError):
    """What a folder holds is not what training could go on from."""


def save_checkpoint(path: str | os.PathLike, tree: PyTree, facts: dict[str, Any]) -> None:
    """Write one line of JSON and then the arrays, whole or not at all; nothing is pickled.

    Args:
        path: the file, which is replaced if it exists.
        tree: a pytree of arrays.
        facts: JSON-like values about it.
    """
    with written_whole(path) as file:
        file.write(json.dumps(facts).encode() + b"\n")
        eqx.tree_serialise_leaves(file, tree)


def load_checkpoint(path: str | os.PathLike, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Args:
        path: the file.
        like: a pytree of the structure, shapes and types that are expected.

    Returns:
        The pytree, and the facts about it.

    Raises:
        CheckpointError: if the file is damaged or holds something else.
        FileNotFoundError: if there is none.
    """
    try:
        with Path(path).open("rb") as file:
            facts = json.loads(file.readline())
            tree = eqx.tree_deserialise_leaves(file, like)
    except (ValueError, RuntimeError, EOFError, UnicodeDecodeError):
        raise CheckpointError(
            f"{path}: this is no checkpoint of the same model and settings; start anew in another "
            "folder."
        ) from None
    return tree, facts
