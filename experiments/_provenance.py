"""What numbers were computed with."""

import functools
import subprocess
from pathlib import Path
from typing import Any

from diffcontrol._cli.versions import versions


@functools.cache
def provenance() -> dict[str, Any]:
    """Versions of packages, and the commit of this project, with "+" where files have changed."""
    return {"versions": versions(), "commit": _commit()}


def _commit() -> str | None:
    git = lambda *arguments: subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        # Not the results, which every run writes.
        changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)experiments/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
