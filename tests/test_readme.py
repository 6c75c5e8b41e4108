"""Every block of Python in the README runs, and does what the text beside it says."""

import importlib.util
import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_code_of_the_first_screen_runs(capsys):
    assert blocks(), "the README has lost its code"
    names: dict = {}
    for block in blocks():
        if "import torch" in block and importlib.util.find_spec("torch") is None:
            continue
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert "Trustworthy" in capsys.readouterr().out
    upright = np.asarray(names["solution"].states)[-1]
    assert upright[0] > 0.9, "the README says that this swings up"
    gradient = names["gradient"]
    for leaf in (
        gradient.dynamics.mass,
        gradient.dynamics.length,
        gradient.stage_cost.goal,
        gradient.stage_cost.weights,
        gradient.control_bounds.lower,
    ):
        assert np.any(np.asarray(leaf) != 0)
    run, reference = names["run"], np.asarray(names["reference"])
    assert np.mean((np.asarray(run.states)[:100, 0] - reference[:100]) ** 2) < 1e-3, "it tracks"
    tuned = names["tuned"]
    assert tuned.best_loss < 0.9 * tuned.metrics[0]["validation_loss"], "tuning helps"


def test_code_is_on_the_first_screen():
    assert README.splitlines().index("```python") < 45
