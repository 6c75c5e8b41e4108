"""Imports run downward.

The package has floors. A file may import from lower floors, and on its own floor from what stands
before it in the list. Within a folder of algorithms, files may import the folder's shared parts,
and nothing else; so no algorithm knows a sibling. Within any folder there is no circle.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffcontrol

PACKAGE = Path(diffcontrol.__file__).parent

FLOORS = (
    ("_types", "_captured", "_lone_scalars", "_result", "_tree", "_undifferentiable"),
    ("_trajectory",),
    (
        "_cost",
        "_discretise",
        "_control_problem",
        "_linear_quadratic",
        "_optimality",
        "_plan_cost",
        "_solution",
    ),
    ("_kernel", "_expansion", "systems", "models"),
    ("_adjoint", "_lqr", "_terminal_value"),
    ("_iterate",),
    ("_solver", "_planner"),
    ("_solve", "_certificate", "_value"),
    ("_simulate", "_mpc"),
    ("environments", "learning", "testing", "_torch_operation", "torch"),
    ("__init__", "_cli", "__main__"),
)
ORDER = [room for floor in FLOORS for room in floor]

# In these folders only the named files may be imported by their siblings. In the others it is
# enough that there is no circle.
SHARED = {
    "_kernel": {"cholesky", "riccati", "box_qp", "native", "products"},
    "_adjoint": {"base"},
    "_planner": {"base", "sampling"},
    "_solver": {"box_ddp", "line_search", "regularisation", "settings"},
}


def imported(file: Path, source: str, package: Path = PACKAGE) -> Iterator[tuple[str, ...]]:
    """What a file of the package imports from the package, as parts of a path."""
    here = file.relative_to(package).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith(NAME)):
            if node.level:
                base = here[: len(here) - node.level + 1]
                parts = base + tuple(node.module.split(".") if node.module else ())
            else:
                parts = tuple(node.module.split("."))[1:]
            for alias in node.names:
                inner = package.joinpath(*parts, alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield (*parts, alias.name) if is_module else parts
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == NAME:
                    yield tuple(alias.name.split("."))[1:]


NAME = "diffcontrol"


def objections(file: Path, source: str) -> list[str]:
    """Why the imports of a file break the rule, one sentence for each that does."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    room, inside = parts[0], len(parts) > 1
    if room not in ORDER:
        return [f"`{room}` is on no floor: name its floor in FLOORS, and in docs/architecture.md."]
    found = []
    for target in imported(file, source):
        other = target[0] if target else "__init__"
        if other not in ORDER:
            found.append(f"{'/'.join(parts)} imports `{other}`, which is on no floor.")
        elif other != room and ORDER.index(other) >= ORDER.index(room):
            found.append(f"{'/'.join(parts)} imports `{other}`, which stands above it.")
        elif other == room and inside and room in SHARED and parts[-1] != "__init__":
            sibling = target[1] if len(target) > 1 else "__init__"
            if sibling not in SHARED[room]:
                found.append(
                    f"{'/'.join(parts)} imports its sibling `{sibling}`, which is no shared part."
                )
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward(file):
    assert not objections(file, file.read_text())


@pytest.mark.parametrize(
    "folder", sorted({f.parent for f in FILES} - {PACKAGE}), ids=lambda f: f.name
)
def test_no_circle_within_a_folder(folder):
    files = {f.stem: f for f in folder.glob("*.py") if f.stem != "__init__"}
    here = folder.relative_to(PACKAGE).parts
    waits_for = {
        stem: {
            target[len(here)]
            for target in imported(file, file.read_text())
            if target[: len(here)] == here
            and len(target) > len(here)
            and target[len(here)] in files
        }
        for stem, file in files.items()
    }
    while ready := [stem for stem, needs in waits_for.items() if not needs & waits_for.keys()]:
        for stem in ready:
            del waits_for[stem]
    assert not waits_for, f"These files import each other in a circle: {sorted(waits_for)}."


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("_trajectory.py", "from ._solve import solve", "above"),
        ("_tree.py", "from diffcontrol._mpc import MPC", "above"),
        ("_tree.py", "import diffcontrol._mpc", "above"),
        ("_cost.py", "def f():\n    from ._control_problem import Bounds", "above"),
        ("_kernel/riccati.py", "from .._optimality import Point\nfrom .. import _solve", "above"),
        ("_solver/ilqr.py", "from .ddp import DDP", "sibling"),
        ("_adjoint/implicit.py", "from . import unrolled", "sibling"),
        ("_solver/ddp.py", "from .. import solve", "above"),
        ("_solve.py", "from ._nowhere import x", "no floor"),
        ("_nowhere.py", "", "no floor"),
    ],
)
def test_a_bad_import_is_found(file, source, complaint):
    (sentence,) = objections(PACKAGE / file, source)
    assert complaint in sentence
