"""A fit that is interrupted or killed ends in the same bits as one that was left alone."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffcontrol import learning
from diffcontrol.learning.files import without_nan, written_whole
from diffcontrol.learning.keeper import Clock
from diffcontrol.learning.metrics import MetricsFile

from . import learners

# A fit without solves compiles in no time; what is resumed does not depend on the loss.
_SCRIPT = """
import sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
from diffcontrol import learning
from tests.test_resume import fit

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
trained = fit(folder, resume=True, report=lambda progress: time.sleep(0.005))
np.save(folder / "final.npy", np.concatenate([trained.model["w"], trained.last["w"]]))
"""


class Remembering(learning.AbstractLoss):
    """A least-squares loss whose value depends on a memory, as warm starts do."""

    def start(self, sample):
        return jnp.zeros(2)

    def __call__(self, model, sample, memory):
        value = (model["w"] @ sample[:2] - sample[2]) ** 2 + 0.1 * jnp.sum(memory * model["w"])
        # Some samples are left out, more at some weights than at others.
        usable = sample[0] > -1.5 + model["w"][0]
        return learning.Judged(value, usable, 0.5 * memory + sample[:2])


def describe_weight(model):
    return {"w0": float(model["w"][0])}


def fit(folder=None, **settings):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(37, 3)).astype(np.float32)
    coordinates, parametrisation = learning.parametrise({"w": jnp.array([0.3, -0.2])})
    settings = {"optimiser": optax.adam(0.03), "epochs": 25, "checkpoint_every": 0.0} | settings
    return learning.train(
        Remembering(), parametrisation, coordinates, jnp.asarray(samples[:30]),
        jnp.asarray(samples[30:]), batch_size=8, key=jax.random.key(1), folder=folder,
        restart_every=3, **({"describe": describe_weight} | settings),
    )  # fmt: skip


_COMMAND = """
import sys
from diffcontrol._cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def run_script(folder: Path) -> subprocess.Popen:
    return start(_SCRIPT, str(folder))


def run_command(folder: Path) -> subprocess.Popen:
    return start(
        _COMMAND,
        *("fit", "tests.learners:problem", str(folder.parent / "runs.npz")),
        *("--out", str(folder), "--resume", "--checkpoint-every", "0.01"),
        *("--start", "mass=2", "drag=0.1", "--epochs", "30", "--batch-size", "8"),
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def outcome(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def kill_and_resume(
    run: Callable[[Path], subprocess.Popen],
    names: tuple[str, ...],
    tmp_path: Path,
    moments: list[float],
) -> None:
    """Kill a fit at each of the moments, given as shares of its time, and finish it each time."""
    # The first process compiles for the cache, if there is one; the second is timed.
    for folder in ("first", "whole"):
        started = time.monotonic()
        finish(run(tmp_path / folder))
        duration = time.monotonic() - started
    expected = outcome(tmp_path / "whole", names)
    killed = 0
    for i, moment in enumerate(moments):
        folder = tmp_path / f"killed-{i}"
        process = run(folder)
        time.sleep(moment * duration)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        finish(run(folder))
        assert outcome(folder, names) == expected, f"killed after {moment:.2f} of the time"
        shutil.rmtree(folder)
    assert killed > 0


def test_killed_fits_end_in_the_same_bits(tmp_path):
    names = ("final.npy", "metrics.jsonl", "checkpoint.eqx")
    kill_and_resume(run_script, names, tmp_path, [0.75, 0.9])


@pytest.mark.slow
def test_commands_killed_at_twenty_moments_end_in_the_same_bits(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    learners.demonstrations().save(tmp_path / "runs.npz")
    names = ("controller.eqx", "parameters.json", "metrics.jsonl", "checkpoint.eqx", "result.json")
    moments = [random.Random(seed + i).random() for i in range(20)]
    kill_and_resume(run_command, names, tmp_path, moments)


def test_ctrl_c_writes_a_checkpoint_and_resumes(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    expected = fit(whole)
    told = []

    def interrupt(progress):
        told.append(progress)
        if len(told) == 42:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        # So long that only Ctrl-C writes one.
        fit(part, report=interrupt, checkpoint_every=1e6)
    later = []
    trained = fit(part, resume=True, report=later.append, checkpoint_every=1e6)
    # Not one minibatch is done twice, and none is left out.
    assert len(told) + len(later) == 25 * 4
    np.testing.assert_array_equal(trained.last["w"], expected.last["w"])
    for name in ("metrics.jsonl", "checkpoint.eqx"):
        assert (whole / name).read_bytes() == (part / name).read_bytes()
    assert trained.metrics == expected.metrics


def test_a_finished_fit_resumes_to_the_same(tmp_path):
    first = fit(tmp_path)
    again = fit(tmp_path, resume=True, report=lambda progress: pytest.fail("trained again"))
    assert again.metrics == first.metrics and again.best_epoch == first.best_epoch
    np.testing.assert_array_equal(again.model["w"], first.model["w"])


def test_metrics_ahead_of_the_checkpoint_are_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    length = file.append({"epoch": 0, "loss": None})
    file.append({"epoch": 1})
    file.close()
    MetricsFile(path, length).close()
    assert path.read_text() == '{"epoch": 0, "loss": null}\n'
    with pytest.raises(ValueError, match="shorter than its checkpoint"):
        MetricsFile(path, length + 1)


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path):
    fit(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.eqx"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense" + whole):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no checkpoint of the same model"):
            fit(tmp_path, epochs=1, resume=True)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="no checkpoint of the same model"):
        fit(tmp_path, epochs=1, resume=True, optimiser=optax.sgd(0.1))


@pytest.mark.parametrize("name", ["checkpoint.eqx", "metrics.jsonl"])
def test_nothing_is_overwritten_unless_resumed(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(learning.CheckpointError, match="is not overwritten"):
        fit(tmp_path, epochs=1)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with written_whole(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), written_whole(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_are_the_same_fresh_and_resumed_where_a_number_is_not_finite(tmp_path):
    nothing = lambda model: {"w0": float("nan")}
    fresh = fit(tmp_path, epochs=1, describe=nothing)
    assert fresh.metrics[0]["parameters"] == {"w0": None}
    assert fit(tmp_path, epochs=1, describe=nothing, resume=True).metrics == fresh.metrics


def test_json_without_nan():
    given = {"a": [float("inf"), 1.0], "b": {"c": float("nan")}, "d": "nan"}
    assert without_nan(given) == {"a": [None, 1.0], "b": {"c": None}, "d": "nan"}


def test_the_clock_leaves_out_the_first_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(total=10)
    assert clock.left() is None
    now[0] = 100.0  # compiling
    clock.tick(4)
    assert clock.left() is None
    now[0] = 102.0
    clock.tick(5)
    assert clock.left() == pytest.approx(10.0)
