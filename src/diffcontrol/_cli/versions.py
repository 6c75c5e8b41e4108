"""What numbers were computed with."""

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Versions of the packages that numbers may depend on, and of Python."""
    found = {"python": platform.python_version()}
    for name in ("diffcontrol", "jax", "jaxlib", "equinox", "numpy", "gymnasium", "mujoco"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
