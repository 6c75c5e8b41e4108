"""Every example runs, in small; whatever is put into `examples/` joins by itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# All of them compile solvers, which takes more than ten seconds.
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def test_there_are_examples():
    assert EXAMPLES


@every_example
def test_an_example_says_what_it_shows_and_can_be_quick(path):
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert "--quick" in source


@pytest.mark.slow
@every_example
def test_an_example_runs(path, tmp_path):
    if "import torch" in path.read_text():
        pytest.importorskip("torch")
    ran = subprocess.run(
        [sys.executable, str(path), "--quick"],
        cwd=tmp_path,  # so that one that writes files leaves none behind
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.strip(), "an example prints what it found"
