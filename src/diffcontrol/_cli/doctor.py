"""`diffcontrol doctor`: what this installation runs on."""

import dataclasses
import os

import jax

from .._kernel import native
from .versions import versions


@dataclasses.dataclass(frozen=True)
class Options:
    """Say versions, devices and which kernel does the linear algebra."""


def run(options: Options) -> None:
    """Print one fact a line."""
    for name, version in versions().items():
        print(f"{name:12} {version}")
    print(f"{'devices':12} {', '.join(str(device) for device in jax.devices())}")
    print(f"{'cores':12} {os.cpu_count()}")
    print(f"{'kernel':12} {native.description()}")
