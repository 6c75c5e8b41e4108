"""What a run was measured on."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from diffcontrol._cli.versions import versions

from .limits import cache_sizes


def description() -> dict:
    """Machine, versions, commit (with `-dirty` where files differ from it) and date."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "caches [KiB]": {level: size >> 10 for level, size in cache_sizes().items()},
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "versions": versions(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()
