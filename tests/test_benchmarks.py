"""The harness of the benchmark: what it computes about answers, and that it survives its peers."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import benchmarks.__main__ as run
import diffcontrol as dc
from benchmarks import gate, judge, limits, plots, report, scaling
from benchmarks.cases import FULL, LQ, MPC, Case, data
from benchmarks.measure import measure
from benchmarks.peers import WORKERS, Peer, available
from benchmarks.published import stand_ins
from diffcontrol.systems import Pendulum, pendulum

SMALL = Case("lq", 3, 2, 4, 5)


# Lower bounds.

# Work [Mflop] and traffic [MB], forward and with the gradient, as `speed.md` counts them.
COUNTED = [
    (Case("lq", 3, 3, 5, 32), (0.063, 0.108), (0.09, 0.18)),
    (Case("lq", 4, 1, 20, 128), (0.95, 1.64), (1.2, 2.4)),
    (Case("lq", 4, 1, 50, 128), (2.4, 4.1), (3.0, 6.0)),
    (Case("lq", 12, 4, 50, 64), (26.3, 34.4), (12.6, 25.2)),
    (Case("lq", 32, 8, 100, 16), (197, 224), (38.3, 76.6)),
]


@pytest.mark.parametrize(("case", "work", "moved"), COUNTED, ids=lambda value: str(value)[:40])
def test_least_work_and_traffic(case, work, moved):
    assert np.divide(limits.flops(case), 1e6) == pytest.approx(work, rel=0.015)
    assert np.divide(limits.traffic(case), 1e6) == pytest.approx(moved, rel=0.015)


def test_a_bound_is_the_slower_of_work_and_traffic_at_the_better_speed(monkeypatch):
    caches = {"L1": 48 << 10, "L2": 2 << 20, "L3": 105 << 20}
    monkeypatch.setattr(limits, "cache_sizes", lambda: caches)
    _, _, memory, _, work = (case for case, _, _ in COUNTED)
    assert limits.lower_bounds(memory, {}) == pytest.approx((104e-6, 208e-6), rel=0.01)
    assert limits.lower_bounds(work, {}) == pytest.approx((1.64e-3, 2.64e-3), rel=0.01)
    slow = {"flops": 1e9, "read": {"L3": 1e9}}
    assert limits.lower_bounds(memory, slow) == limits.lower_bounds(memory, {})
    fast = {"flops": 1e15, "read": {"L3": 290e9}}
    assert limits.lower_bounds(memory, fast)[0] == pytest.approx(10.4e-6, rel=0.01)


def test_without_a_compiler_the_limits_say_so(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "nowhere" in limits.measured()["error"]


# Answers.


def lq_answer(arrays):
    """As a worker gives it, by the library."""
    names = ("C", "c", "F", "f", "x0")

    def solve(C, c, F, f, x0):
        solution = dc.lqr(dc.LinearQuadraticProblem(C, c, F, f), x0, throw=False)
        return solution.states[:-1], solution.controls

    def loss(inputs):
        x, u = jax.vmap(solve)(*inputs)
        return jnp.sum(arrays["wx"] * x) + jnp.sum(arrays["wu"] * u), u

    inputs = tuple(jnp.asarray(arrays[name]) for name in names)
    gradients, controls = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    found = {f"d{name}": np.array(g) for name, g in zip(names, gradients, strict=True)}
    return {"controls": np.array(controls), **found}


@pytest.fixture(scope="module")
def small():
    arrays = data(SMALL)
    return arrays, lq_answer(arrays)


def test_the_reference_agrees_with_the_library(small):
    arrays, answer = small
    found = judge.judge(SMALL, answer, arrays)
    assert found["projected_gradient"] < 1e-12
    assert found["control_error"] < 1e-12
    assert found["gradient_error"] < 1e-12


@pytest.mark.parametrize("name", ["dC", "dc", "dF", "df", "dx0"])
def test_a_wrong_gradient_of_any_input_shows(small, name):
    arrays, answer = small
    # The last stage's dynamics lead nowhere, so that the first stage is the one to spoil.
    wrong = answer[name].copy()
    wrong[:, 0] += 1e-3 * np.abs(wrong).max()
    found = judge.judge(SMALL, answer | {name: wrong}, arrays)
    assert found["gradient_error"] == pytest.approx(1e-3, rel=0.01)


def test_controls_off_the_optimum_show(small):
    arrays, answer = small
    best = judge.judge(SMALL, answer, arrays)
    found = judge.judge(SMALL, answer | {"controls": answer["controls"] + 1e-3}, arrays)
    assert found["control_error"] == pytest.approx(1e-3 / np.abs(answer["controls"]).max())
    assert found["projected_gradient"] > 1e-4
    assert found["mean_cost"] > best["mean_cost"]


PENDULUM = Case("pendulum", 3, 1, 6, 3)


@jax.jit
def run_pendulum(dynamics, u, x0):
    """States and cost."""
    stage_cost = pendulum.cost()
    advance = lambda x, u: (dynamics(x, u, 0), (x, stage_cost(x, u, 0)))
    x, costs = jax.lax.scan(advance, x0, u.reshape(-1, 1))[1]
    return x, jnp.sum(costs)


cost_and_slope = jax.jit(jax.value_and_grad(lambda u, *args: run_pendulum(args[0], u, args[1])[1]))


def best_controls(dynamics, x0s):
    """By SciPy, of the pendulum problem."""
    T, settings = PENDULUM.T, dict(ftol=0, gtol=1e-12)
    minimise = lambda x0: scipy.optimize.minimize(
        cost_and_slope,
        np.zeros(T),
        (dynamics, x0),
        jac=True,
        bounds=[(-2, 2)] * T,
        options=settings,
    )
    return np.stack([minimise(x0).x for x0 in x0s])[..., None]


def loss(dynamics, x0s):
    u = best_controls(dynamics, x0s)
    x = np.stack([run_pendulum(dynamics, *one)[0] for one in zip(u, x0s, strict=True)])
    return np.mean(x**2) + np.mean(u**2)


@pytest.mark.slow
def test_the_exact_gradient_of_a_system_is_that_of_finite_differences():
    # Some controls are held and some free, so that both kinds count.
    x0s = np.array([[np.cos(a), np.sin(a), v] for a, v in ((0.01, 0.02), (0.1, 0.0), (-0.4, 0.3))])
    u = best_controls(Pendulum(), x0s)
    assert 0.1 < np.mean(np.abs(u) == 2) < 0.9
    gradient, residual = judge._exact_gradient("pendulum", jnp.asarray(u), jnp.asarray(x0s))
    assert residual < 1e-12
    step = 1e-3  # minimisers are known to about 1e-7, the error of a central difference is step^2
    for index, name in enumerate(("gravity", "mass", "length")):
        nominal = {"gravity": 10.0, "mass": 1.0, "length": 1.0}
        either = []
        for sign in (1, -1):
            dynamics = Pendulum(**nominal | {name: nominal[name] + sign * step})
            either.append(loss(dynamics, x0s))
        difference = (either[0] - either[1]) / (2 * step)
        assert abs(difference) > 1e-3
        assert gradient[0][index] == pytest.approx(difference, rel=1e-3)
    answer = {
        "controls": u,
        "ddynamics": np.array(gradient[0]) * 1.1,
        "dweights": np.array(gradient[1]),
        "dgoal": np.array(gradient[2]),
    }
    found = judge.judge(PENDULUM, answer, {"x0": x0s})
    assert found["projected_gradient"] < 1e-4
    assert found["gradient_error"] == pytest.approx(0.1, rel=1e-3)


# Peers.

WORKER = """
import os, sys, time
sys.path.insert(0, {workers!r})
import numpy as np
from protocol import Unable, serve

def prepare(case, arrays):
    print("a library that talks")
    return {{
        "forward": lambda: time.sleep(0.002),
        "forward+backward": lambda: sum(range(100_000)),
        "answer": lambda results: {{"sum": results["forward+backward"],
            "cores": len(os.sched_getaffinity(0))}},
    }}

{change}
serve(prepare, "numpy")
"""


def peer(folder, name, change="", **named):
    script = folder / f"{name}.py"
    script.write_text(WORKER.format(workers=str(WORKERS), change=change))
    return Peer(name, script, named.pop("python", sys.executable), True, False)


def test_peers_that_cannot_do_not_stop_the_others(tmp_path):
    peers = [
        peer(tmp_path, "good"),
        peer(tmp_path, "refusing", "def prepare(*_): raise Unable('left out: too long')"),
        peer(tmp_path, "broken", "def prepare(*_): return {'forward': lambda: 1 / 0}"),
        peer(tmp_path, "dying", "def prepare(*_): return {'forward': lambda: os._exit(1)}"),
    ]
    seen = []
    look = lambda case, answer, arrays: seen.append(answer) or {"looked": True}
    good, *others = measure(SMALL, peers, 2, tmp_path, look=look)
    assert good["forward, least"] <= good["forward"] < 0.002  # CPU time, and it slept
    assert good["forward+backward"] > 1e-4
    assert good["memory_mb"] > 5 and good["looked"]
    assert seen[0]["sum"] == sum(range(100_000)) and seen[0]["cores"] == 1
    errors = [row["error"] for row in others]
    assert errors[0] == "left out: too long"
    assert errors[1].startswith("ZeroDivisionError")
    assert errors[2] == "the process ended"


def test_peers_that_do_not_start_say_why(tmp_path):
    peers = [
        peer(tmp_path, "good"),
        peer(tmp_path, "missing", "import a_package_that_nobody_has"),
        peer(tmp_path, "nowhere", python=str(tmp_path / "no" / "python")),
    ]
    able, found = available(peers)
    assert [p.name for p in able] == ["good"]
    assert found["good"]["versions"]["numpy"] == np.__version__
    assert "a_package_that_nobody_has" in found["missing"]["error"]
    assert "No such file" in found["nowhere"]["error"]


def test_a_peer_that_hangs_is_given_up(tmp_path):
    from benchmarks.peers import Worker

    hanging = peer(tmp_path, "hanging", "def prepare(*_): time.sleep(100)")
    with Worker(hanging) as worker:
        np.savez(tmp_path / "case.npz")
        reply = worker.ask(limit=1.0, case={}, arrays=str(tmp_path / "case.npz"))
        assert reply == {"error": "no answer within 1 s"}
        assert "error" in worker.ask(run="forward", times=1)


def test_workers_do_not_move_the_benchmark_to_their_cores(tmp_path):
    before = os.sched_getaffinity(0)
    available([peer(tmp_path, "good")])
    assert os.sched_getaffinity(0) == before


# What stands in for peers that cannot be installed.


def test_stand_ins_are_rescaled_by_mpc_pytorch():
    row = lambda case, **more: {"case": case.name, "threads": 1, "peer": "mpc.pytorch", **more}
    lq, cartpole = LQ[4], MPC[6]
    (hpipm,) = stand_ins(lq, [row(lq, **{"forward": 9.2, "forward+backward": 9.6})])
    assert hpipm["peer"] == "HPIPM" and hpipm["rescaled"]
    assert (hpipm["forward"], hpipm["forward+backward"]) == pytest.approx((1.0, 1.0))
    acados, crocoddyl = stand_ins(cartpole, [row(cartpole, **{"forward": 78.0})])
    assert acados["forward"] == pytest.approx(78.0 / 23.5)
    assert crocoddyl["forward"] == pytest.approx(1.0)
    assert stand_ins(lq, [row(lq, error="not installed")]) == []


def test_every_case_has_its_own_place():
    assert len({(case.name, case.threads) for case in FULL}) == len(FULL)


# Gate.


def rows_of(ours=1.0, mpc=60.0, jax_=5.0):
    times = lambda value: {"forward": value, "forward+backward": 2 * value}
    peers = {"diffcontrol": ours, "mpc.pytorch": mpc, "pure JAX": jax_, "qpax": 900.0}
    row = lambda peer: {"case": LQ[0].name, "peer": peer, "threads": 1, **times(peers[peer])}
    # On two cores everything is different, and does not count.
    return [row(peer) for peer in peers] + [row("mpc.pytorch") | {"threads": 2, "forward": 1e-3}]


def test_the_gate_names_what_has_become_slower(tmp_path):
    baseline = tmp_path / "baseline.json"
    gate.write_baseline(rows_of(), {"processor": "a", "commit": "b", "date": "c"}, baseline)
    assert json.loads(baseline.read_text())["ratios"] == {
        f"{LQ[0].name} | {peer} | {what}": ratio
        for peer, ratio in (("mpc.pytorch", 60.0), ("pure JAX", 5.0))
        for what in ("forward", "forward+backward")
    }
    slower = lambda *args, **named: gate.regressions(rows_of(*args, **named), baseline)
    assert slower() == ([], 4)
    assert slower(ours=1.24) == ([], 4)  # 0.806 of the baseline
    assert slower(ours=0.5) == ([], 4)
    lines, _ = slower(ours=1.26)
    assert len(lines) == 4 and all(LQ[0].name in line for line in lines)
    # A busier machine slows all alike; a peer that gets slower hides nothing of the other.
    assert slower(3.0, 180.0, 15.0) == ([], 4)
    assert len(slower(1.3, 600.0, 5.0)[0]) == 2
    assert len(slower(ours=np.nan)[0]) == 4


def test_the_gate_does_not_pass_when_nothing_is_compared(tmp_path):
    baseline = tmp_path / "baseline.json"
    gate.write_baseline(rows_of(), {}, baseline)
    lines, compared = gate.regressions([row | {"case": "other"} for row in rows_of()], baseline)
    assert compared == 0 and "nothing measured" in lines[0]
    failed = {"case": "other", "peer": "diffcontrol", "threads": 1, "error": "ValueError: no"}
    lines, _ = gate.regressions([*rows_of(), failed], baseline)
    assert len(lines) == 1 and "ValueError" in lines[0]


# Results.


@pytest.fixture
def results():
    bound = {"case": LQ[0].name, "peer": "lower bound", "threads": 1}
    bound |= {"forward": 0.1, "forward+backward": 0.2}
    rows = [bound, *rows_of()]
    rows[2] |= {"rescaled": True}
    rows.append({"case": LQ[0].name, "peer": "cvxpylayers", "threads": 1, "error": "too | long"})
    points = [
        {"sweep": "T", "kind": "lq", "value": T, "seconds": 1e-3 * T, "memory_mb": 3.0}
        for T in (10, 20, 40)
    ]
    found = {"good": {"versions": {"numpy": "2"}}, "qpax": {"error": "No module named 'qpax'"}}
    speeds = {"L1": 5e11, "L2": 2e11, "L3": 1e11, "memory": 4e10}
    speed = {"flops": 1.2e11, "read": speeds, "write": speeds}
    return {
        "machine": {"processor": "a"},
        "limits": speed,
        "peers": found,
        "rows": rows,
        "scaling": points,
    }


def test_results_hold_the_same_in_every_form(results, tmp_path):
    report.write(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len((tmp_path / "results.csv").read_text().splitlines()) == len(results["rows"]) + 1
    text = (tmp_path / "results.md").read_text()
    assert "qpax: not installed: No module named 'qpax'" in text
    assert f"| {LQ[0].name} | cvxpylayers | too / long |" in text
    assert f"| {LQ[0].name} | diffcontrol | 1,000 | 2,000 | 1.00 / 1.00 | 10.0 / 10.0 |" in text
    assert "| mpc.pytorch (*) | 60,000 | 120,000 | 60.0 / 60.0 | 600 / 600 |" in text
    assert "time of lq with T 1.00" in text and "memory of lq with T" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    sections = text.split("\n## ")[1:]
    assert len(tables) > 10
    for section in sections:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_results_without_anything_can_be_written(tmp_path):
    empty = {"machine": {}, "limits": {}, "peers": {}, "rows": [], "scaling": []}
    report.write(empty, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == empty


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.00047123, "0.000471"), (0.5, "0.500"), (12.34, "12.3"), (12345.6, "12,346")],
)
def test_three_digits(value, shown):
    assert report.significant(value) == shown


def test_pictures(results, tmp_path):
    plots.ratios(results["rows"], tmp_path / "ratios.png")
    plots.scaling(results["scaling"], tmp_path / "scaling.png")
    assert all(file.stat().st_size > 10_000 for file in tmp_path.glob("*.png"))


def test_exponent():
    x = [1.0, 2.0, 8.0]
    assert scaling.exponent(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)


@pytest.fixture
def cheap(monkeypatch, tmp_path):
    """A run whose measurements cost nothing; `measured` may be replaced."""
    monkeypatch.setattr(run, "available", lambda peers: ([], {}))
    monkeypatch.setattr(run.limits, "measured", lambda: {})
    monkeypatch.setattr(run.machine, "description", lambda: {"processor": "a"})
    monkeypatch.setattr(run.plots, "ratios", lambda *_: None)
    monkeypatch.setattr(run, "QUICK", LQ[:2])

    def start(measured, *options):
        monkeypatch.setattr(run, "measure", measured)
        monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--out", str(tmp_path), *options])
        code = run.main()
        return code, json.loads((tmp_path / "results.json").read_text())

    return start


def test_an_interrupt_keeps_what_is_measured(cheap):
    def measured(case, *_):
        if case == LQ[1]:
            raise KeyboardInterrupt
        return rows_of()

    code, results = cheap(measured)
    assert code == 130
    assert {row["case"] for row in results["rows"]} == {LQ[0].name}


def test_the_gate_fails_the_run(cheap, tmp_path, capsys):
    baseline = tmp_path / "baseline.json"
    assert cheap(lambda *_: rows_of(), "--write-baseline", str(baseline))[0] == 0
    assert cheap(lambda *_: rows_of(), "--gate", str(baseline))[0] == 0
    assert cheap(lambda *_: rows_of(ours=2.0), "--gate", str(baseline))[0] == 1
    assert f"gate: {LQ[0].name} | mpc.pytorch" in capsys.readouterr().out
