"""What the experiments share: sweeps, rows, results, the report; and that each of them runs."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _imitation, _main, _rows, _timing, reproduce
from experiments._rows import Row, publish, short, verdict
from experiments._sweep import sweep

NAMES = tuple(reproduce.EXPERIMENTS)


# --- Sweeps; workers import what they run, so it stands at the top -------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    number: int
    what: str = "square"


def run(job: Job):
    if job.what == "fail":
        raise ArithmeticError("no square today")
    if job.what == "crash":
        os._exit(7)
    kind = str(jnp.asarray(1.0).dtype)
    return {"square": job.number**2, "nan": float("nan"), "process": os.getpid(), "kind": kind}


def run_in(job: Job, scratch: Path):
    """A job that remembers how often it was started."""
    scratch.mkdir(exist_ok=True)
    count = len(list(scratch.iterdir())) + 1
    (scratch / str(count)).touch()
    if count == 1:
        raise ArithmeticError("not yet")
    return {"starts": count}


def run_asleep(job: Job):
    print("asleep", flush=True)
    time.sleep(60.0)
    return {}


def jobs(count, **others):
    return {f"job-{k}": Job(k) for k in range(count)} | others


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two workers, of whose jobs one fails and one takes its worker with it."""
    folder = tmp_path_factory.mktemp("sweep")
    asked = {"bad": Job(1, "fail"), "gone": Job(2, "crash")} | jobs(4)
    return folder, sweep(run, asked, folder, workers=2)


def test_a_job_that_fails_or_crashes_loses_itself_alone(swept):
    folder, found = swept
    assert {name: result["square"] for name, result in found.items()} == {
        f"job-{k}": k * k for k in range(4)
    }
    # Workers run no `main`: what it sets would not reach them.
    assert {result["kind"] for result in found.values()} == {"float64"}
    record = json.loads((folder / "job-3.json").read_text())
    assert record["config"] == {"number": 3, "what": "square"} and record["result"]["nan"] is None
    assert {"versions", "commit", "seconds"} <= record.keys()
    assert not list(folder.glob("*.part"))


def test_a_rerun_does_only_what_is_missing(swept, capsys):
    folder, first = swept
    (folder / "job-2.json").unlink()
    again = sweep(run, jobs(4), folder, workers=1)
    assert "[1/1] job-2" in capsys.readouterr().err
    same = [name for name in again if again[name]["process"] == first[name]["process"]]
    assert same == ["job-0", "job-1", "job-3"]


def test_a_job_goes_on_from_its_own_folder(tmp_path):
    for expected in ({}, {"job-0": {"starts": 2}}):
        assert sweep(run_in, jobs(1), tmp_path, workers=1, scratch=True) == expected


def test_results_of_another_configuration_are_not_taken(swept):
    folder, _ = swept
    with pytest.raises(ValueError, match="number"):
        sweep(run, {"job-1": Job(5)}, folder)


SLEEPING = """
from pathlib import Path
from experiments._sweep import sweep
from tests.test_experiments import jobs, run_asleep
sweep(run_asleep, jobs(1), Path({folder!r}), workers=1)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    command = [sys.executable, "-c", SLEEPING.format(folder=str(tmp_path))]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "asleep\n"
        parent.kill()
        # The worker writes there, too: it ends where nobody holds it any more.
        assert parent.communicate(timeout=20.0)[0] == ""


@pytest.mark.slow
def test_a_ray_cluster_does_the_same(tmp_path, capsys):
    pytest.importorskip("ray")
    found = sweep(run, jobs(2, bad=Job(1, "fail")), tmp_path, ray="local")
    assert {name: result["square"] for name, result in found.items()} == {"job-0": 0, "job-1": 1}
    assert "no square today" in capsys.readouterr().err


# --- Rows and results ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, bar, lower, said",
    [
        (1.0, 1.0, True, "reached"),
        (0.5, 1.0, True, "beyond"),
        (1.1, 1.0, True, "short"),
        (0.0, 1.0, True, "beyond"),
        (1.0, 1.0, False, "reached"),
        (2.0, 1.0, False, "beyond"),
        (0.9, 1.0, False, "short"),
        (float("inf"), 1.0, True, "short"),
        (float("nan"), 1.0, False, "short"),
    ],
)
def test_verdicts(ours, bar, lower, said):
    assert verdict(ours, bar, lower=lower) == said


ROW = Row("DiLQR", "Fig. 2", "fast", "ratio [1]", 128.0, 140.0, 1, "reached")


def test_a_miss_needs_a_reason_and_a_result_a_number():
    with pytest.raises(ValueError, match="reason"):
        dataclasses.replace(ROW, verdict="short")
    with pytest.raises(ValueError, match="nan"):
        dataclasses.replace(ROW, ours=float("nan"))


def test_the_summary_takes_the_full_run(tmp_path, monkeypatch):
    monkeypatch.setattr(_rows, "RESULTS", tmp_path)
    for size, ours in (("full", 150.0), ("reduced", 90.0)):
        publish("speed", size, "run it", [dataclasses.replace(ROW, ours=ours)], {"found": {}})
    publish("other", "reduced", "run that", [ROW], {"found": {}})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["ours"], row["size"]) for row in summary] == [(140.0, "reduced"), (150.0, "full")]


def test_numbers_are_shortened():
    assert short({"a": [1.23456789, float("nan"), 3], "b": np.array([2.0])}) == {
        "a": [1.2346, None, 3],
        "b": [2.0],
    }


def test_the_committed_summary_says_what_is_asked():
    rows = json.loads((_rows.RESULTS / "summary.json").read_text())
    for row in rows:
        assert row["paper"] in ("DiffMPC", "DiLQR")
        assert row["verdict"] in ("beyond", "reached", "explained", "short")
        assert row["why"] or row["verdict"] in ("beyond", "reached")
        assert np.isfinite(row["ours"]) and row["seeds"] >= 1
        assert row["command"].startswith("python -m experiments.")
    stored = [json.loads(path.read_text())["rows"] for path in _rows.chosen().values()]
    assert rows == [row for each in stored for row in each if row["paper"] in _rows.SUMMARISED]


def test_the_report_needs_no_other_file(tmp_path):
    pytest.importorskip("matplotlib")
    from experiments import report

    assert report.main(["--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for name in _rows.chosen():
        assert f'<h2 id="{name}">' in page


# --- The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("diffmpc_lqr", "--workers", "0"),
        ("diffmpc_lqr", "--workers", "-1"),
        ("diffmpc_lqr", "--seeds", "0"),
        ("diffmpc_lqr", "--seeds", "-1"),
        ("diffmpc_imitation", "--epochs", "0"),
        ("diffmpc_imitation", "--patience", "-1"),
        ("diffmpc_imitation", "--trajectories", "500"),
        ("diffmpc_imitation", "--modes", "sysid guess"),
        ("diffmpc_runtime", "--systems", "foo"),
        ("diffmpc_runtime", "--systems", ""),
        ("diffmpc_runtime", "--iterations", "8 0"),
        ("dilqr_learning", "--trajectories", "500"),
        ("dilqr_learning", "--modes", "dcost"),
        ("gradient_accuracy", "--plans", "500"),
        ("mismatch", "--cases", "3"),
    ],
)
def test_settings_without_a_result_are_refused(name, option, value, tmp_path, capsys):
    def measure(*_):
        raise AssertionError("not refused")

    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    experiment = dataclasses.replace(experiment, measure=measure)
    out = tmp_path / "out"
    try:
        code = _main.main(experiment, [option, *value.split(), "--out", str(out)])
    except SystemExit as ended:  # tyro's way
        code = ended.code
    assert code == 2 and not out.exists()
    assert option in capsys.readouterr().err


def test_a_run_without_rows_publishes_nothing(tmp_path, monkeypatch, capsys):
    for module in (_main, _rows):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    experiment = importlib.import_module("experiments.diffmpc_lqr").EXPERIMENT
    experiment = dataclasses.replace(
        experiment, measure=lambda *_: {}, rows=lambda *_: [], draw=lambda *_: None
    )
    assert _main.main(experiment, ["--out", str(tmp_path / "out")]) == 2
    assert "nothing" in capsys.readouterr().err and not (tmp_path / "results").exists()


# --- What rows say of results --------------------------------------------------------------------


def stored(name):
    """An experiment, the configuration of its committed results and what was found."""
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    record = json.loads(_rows.chosen()[name].read_text())
    usual = experiment.sizes["full"]
    config = dataclasses.replace(usual, **_main._settings(usual, record["config"]))
    return experiment, config, record["found"]


def test_the_first_call_of_each_turn_is_timed_apart():
    last = []

    def run(name):
        time.sleep(0.002 if last == [name] else 0.05)
        last[:] = [name]

    runs = {name: lambda name=name: run(name) for name in ("one", "other")}
    for warm, cold in _timing.medians(runs, rounds=3).values():
        assert warm < 0.05 <= cold


@pytest.mark.parametrize("name", ["diffmpc_runtime", "dilqr_runtime"])
def test_the_ratio_when_cold_is_stated_where_it_was_kept(name):
    experiment, config, found = stored(name)
    counts = [of_count for part in found.values() for of_count in part.values()]
    said = lambda: sum("Cold" in row.why for row in experiment.rows(config, found))
    for of_count in counts:
        of_count.pop("cold", None)  # results of before have none
    assert said() == 0
    for of_count in counts:
        of_count["cold"] = of_count["seconds"]
    assert said() == 2


def test_a_gradient_that_is_not_ours_falls_short():
    experiment, config, found = stored("dilqr_safe_pdp")
    found["gradients"]["IDOC"]["apart"][0] = 1e-3
    (row,) = (row for row in experiment.rows(config, found) if "IDOC's gradient" in row.claim)
    assert row.verdict == "short"


# --- The papers' protocol ------------------------------------------------------------------------


def test_the_learned_cost_has_its_minimum_where_the_papers_say():
    import jax
    import jax.numpy as jnp

    w, p = jnp.array([0.3, -1.0, 2.0]), jnp.array([-0.5, 0.2, 0.0])
    cost = _imitation.LearnedCost(w, p)
    q = jax.nn.sigmoid(w)
    best = -p / jnp.sqrt(q)
    slope = jax.grad(lambda tau: cost(tau[:2], tau[2:], 0))(best)
    np.testing.assert_allclose(slope, 0.0, atol=1e-15)


@pytest.mark.slow
def test_training_recovers_what_plans_depend_on():
    trial = _imitation.Trial("pendulum", "sysid", 50, seed=0, epochs=600)
    result = _imitation.train(trial)
    assert result["epochs"] == 600 and len(result["curve"]["train"]) == 200
    found = _imitation.identifiable("pendulum", result["parameters"])
    np.testing.assert_allclose(found, [10.0, 1.0], rtol=1e-3)
    assert result["test"] < 1e-6 and result["left_out"] == 0.0


# --- Each experiment -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_three_sizes_and_says_what_it_is(name):
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    assert experiment.name == name and experiment.sizes.keys() == {"full", "reduced", "quick"}
    for config in experiment.sizes.values():
        json.dumps(dataclasses.asdict(config))
        _main._check(config, experiment.sizes["full"], workers=1)
    readme = Path(importlib.import_module("experiments").__file__).with_name("README.md")
    assert f"experiments.{name}" in readme.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs(name, tmp_path):
    command = [sys.executable, "-m", f"experiments.{name}", "--quick", "--out", str(tmp_path)]
    root = Path(__file__).parent.parent
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
