"""Where a single file may be written."""

from pathlib import Path

from .errors import UserError


def check_destination(path: Path, flag: str, suffix: str) -> None:
    """Raise `UserError` if a file of this kind cannot be written there, or would overwrite one."""
    if path.suffix != suffix:
        raise UserError(f"{path} is to be a {suffix} file; give {flag} a name that ends so.")
    if path.exists():
        raise UserError(f"{path} exists and is not overwritten; give another {flag}.")
    if not path.parent.is_dir():
        raise UserError(
            f"The folder {path.parent} does not exist; make it, or give another {flag}."
        )
