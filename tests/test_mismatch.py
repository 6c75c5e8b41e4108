"""The experiment of mismatch: its arithmetic, its files, and that it goes on where it was left."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import _main, mismatch


def result(cost, imitation=1.0, prediction=1.0):
    return {
        "parameters": {"gravity": 10.0},
        "closed_loop_cost": cost,
        "closed_loop_costs": [cost, cost],
        "cost_of_step": [1.0, 0.5],
        "unsolved": 0.0,
        "imitation_loss": imitation,
        "imitation_left_out": 0.0,
        "prediction_error": prediction,
    }


def test_intervals_are_those_of_student():
    from scipy import stats

    for count in (2, 5, 8):
        values = np.random.default_rng(count).normal(size=count)
        mean, half = mismatch.interval(values)
        low, high = stats.t.interval(0.95, count - 1, mean, stats.sem(values))
        np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=0, atol=2e-3)
    assert mismatch.interval([3.0]) == (3.0, float("inf"))


def test_comparisons_are_made_seed_by_seed():
    identified, imitated, tuned = mismatch.ARMS
    of = {
        identified: [result(10.0, imitation=3.0, prediction=1.0), result(100.0, 6.0, 2.0)],
        imitated: [result(9.0, imitation=1.0, prediction=2.0), result(90.0, 2.0, 4.0)],
        tuned: [result(7.0), result(70.0)],
    }
    compared = mismatch.summarise(of)["comparisons"]
    lowered, better, worse = compared.values()
    np.testing.assert_allclose([lowered[0], better[0], worse[0]], [30.0, 3.0, 2.0])
    np.testing.assert_allclose([lowered[1], better[1], worse[1]], 0.0, atol=1e-9)


def fakes(monkeypatch, log, stop_after=None):
    def learn(arm, case, model, runs, seed, amount):
        if stop_after is not None and len(log) >= stop_after:
            raise KeyboardInterrupt
        log.append((case.name, seed, arm, float(model.dynamics.gravity)))
        return model

    cost = {arm: value for arm, value in zip(mismatch.ARMS, (10.0, 9.0, 7.0), strict=True)}
    judged = lambda case, model, runs, seed, amount: result(cost[log[-1][2]] + seed)
    cases = tuple(
        dataclasses.replace(case, demonstrations=lambda runs: None) for case in mismatch.CASES
    )
    monkeypatch.setattr(mismatch, "CASES", cases)
    monkeypatch.setattr(mismatch, "learn", learn)
    monkeypatch.setattr(mismatch, "judge", judged)


def test_what_is_missing_is_done_and_no_more(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    log, out = [], tmp_path / "mismatch"
    both = ["--out", str(out), "--quick", "--cases", "2"]
    run = lambda *arguments: _main.main(mismatch.EXPERIMENT, arguments)
    with monkeypatch.context() as patched:
        fakes(patched, log, stop_after=4)
        assert run(*both) == 130
    assert len(log) == 4
    with monkeypatch.context() as patched:
        fakes(patched, log)
        assert run(*both) == 0
        assert len(log) == 12 and len(set(log)) == 12
        assert run(*both) == 0
        assert len(log) == 12
        # Another amount is another experiment.
        assert run(*both[:-1], "1") == 2
    # Imitation and task tuning start from what system identification found.
    assert {gravity for *_, arm, gravity in log if arm != mismatch.ARMS[0]} == {10.0}
    assert 10.0 not in {gravity for *_, arm, gravity in log if arm == mismatch.ARMS[0]}
    summary = json.loads((out / "mismatch.json").read_text())
    assert summary.keys() == {"pendulum", "cartpole"}
    assert (out / "mismatch.png").stat().st_size > 10_000
    assert "task tuning lowers the closed-loop cost" in mismatch.table(summary)


@pytest.mark.slow
def test_a_quick_run_from_start_to_end(tmp_path):
    pytest.importorskip("mujoco")
    arguments = ["--out", str(tmp_path / "run"), "--quick", "--seeds", "1", "--cases", "2"]
    assert _main.main(mismatch.EXPERIMENT, arguments) == 0
