"""A batch that is shared out over devices gives the numbers of one device.

Within `jax.shard_map` each device runs on its part of the batch what one device would run on the
whole. Samples have nothing in common, so nothing is communicated.

`jax.jit` of sharded arrays leaves it to XLA to cut the program up. Then the numbers are right, too,
but XLA cuts neither the slots that a batch is worked off through nor the compiled kernel: every
device does all of it.

The devices are simulated, which JAX must know before it starts. So this file is also the program
that the tests run, in a process of its own.
"""

import json
import os
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import diffcontrol as dc
from diffcontrol.systems import pendulum

DEVICES = 8
# More samples on each device than there are slots.
BATCH = 17 * DEVICES
COMMUNICATION = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+)(?:-start)?\("
)


def solved(gravity, x0):
    plant = pendulum.Pendulum(gravity=gravity)
    return dc.solve(pendulum.problem(horizon=10, dynamics=plant), x0, throw=False)


def regulated(data, x0):
    T = 8
    stages = {name: jnp.tile(data[name], (T,) + (1,) * data[name].ndim) for name in "CcFf"}
    ends = {"C_terminal": jnp.eye(3), "c_terminal": jnp.ones(3)}
    return dc.lqr(dc.LinearQuadraticProblem(**stages, **ends), x0, throw=False)


def regulated_data():
    root = jax.random.normal(jax.random.key(1), (4, 4))
    return {"C": jnp.eye(4) + root @ root.T, "c": root[0], "F": 0.5 * root[1:], "f": root[0, :3]}


def loss(solution):
    return jnp.sum(solution.states**2) + jnp.sum(solution.controls**2)


def numbers(solution):
    """All but the stationarity, which is rounding."""
    return eqx.tree_at(lambda solution: solution.stats, solution, solution.stats.iterations)


def solutions(solve, theta):
    return jax.vmap(lambda x0: numbers(solve(theta, x0)))


def solutions_and_gradients(solve, theta):
    """Of each sample; gradients with respect to the parameters and the initial state."""

    def loss_and_numbers(theta, x0):
        solution = solve(theta, x0)
        return loss(solution), numbers(solution)

    def one(x0):
        gradients, solution = jax.grad(loss_and_numbers, (0, 1), has_aux=True)(theta, x0)
        return solution, gradients

    return jax.vmap(one)


def mean_gradient(solve, theta):
    """What training needs: of the mean over the batch, with respect to the parameters."""

    def mean(theta, x0s):
        return jnp.mean(jax.vmap(lambda x0: loss(solve(theta, x0)))(x0s))

    return lambda x0s: jax.grad(mean)(theta, x0s)


def compare(name, function, x0s, expected):
    """Print how far off the numbers are, and how the program came by them."""
    program = jax.jit(function).lower(x0s).compile()
    leaves = jax.tree.leaves(program(x0s))
    errors = [
        np.max(np.abs(np.asarray(leaf, float) - known)) / max(1e-300, np.max(np.abs(known)))
        for leaf, known in zip(leaves, jax.tree.leaves(expected), strict=True)
    ]
    found = {
        "error": float(np.max(errors)),
        "held": sorted({leaf.addressable_shards[0].data.size / leaf.size for leaf in leaves}),
        "communication": sorted(set(COMMUNICATION.findall(program.as_text()))),
    }
    print(json.dumps({name: found}))


def main():
    assert jax.device_count() == DEVICES
    x0s = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(0), BATCH))
    batch, everywhere = PartitionSpec("batch"), PartitionSpec()
    mesh = jax.make_mesh((DEVICES,), ("batch",))
    mesh_for_xla = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    on_devices = jax.device_put(x0s, NamedSharding(mesh, batch))
    on_devices_for_xla = jax.device_put(x0s, NamedSharding(mesh_for_xla, batch))

    def over_devices(function, out):
        # JAX would check which values differ between devices. Equinox loses that.
        return jax.shard_map(function, mesh=mesh, in_specs=batch, out_specs=out, check_vma=False)

    for name, solve, theta in (
        ("solve", solved, jnp.asarray(10.0)),
        ("lqr", regulated, regulated_data()),
    ):
        each = solutions_and_gradients(solve, theta)
        expected, (d_theta, d_x0) = jax.tree.map(np.asarray, jax.jit(each)(x0s))
        assert np.all(expected.result == dc.RESULTS.successful)
        assert all(np.any(leaf) for leaf in jax.tree.leaves((d_theta, d_x0)))
        over = over_devices(each, batch)
        compare(f"{name}, each", over, on_devices, (expected, (d_theta, d_x0)))

        of_part = mean_gradient(solve, theta)
        over = over_devices(lambda x0s, f=of_part: jax.lax.pmean(f(x0s), "batch"), everywhere)
        mean = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), d_theta)
        compare(f"{name}, mean", over, on_devices, mean)

        compare(f"{name}, plain jit", solutions(solve, theta), on_devices_for_xla, expected)


@pytest.fixture(scope="module")
def found():
    devices = f"--xla_force_host_platform_device_count={DEVICES}"
    run = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}",
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = map(json.loads, run.stdout.splitlines())
    return {name: each for line in lines for name, each in line.items()}


@pytest.mark.parametrize("what", ["solve", "lqr"])
class TestABatchOverDevices:
    @pytest.mark.parametrize("way", ["each", "mean", "plain jit"])
    def test_has_the_numbers_of_one_device(self, found, what, way):
        assert found[f"{what}, {way}"]["error"] <= 1e-12

    def test_communicates_nothing(self, found, what):
        assert found[f"{what}, each"]["communication"] == []
        assert found[f"{what}, each"]["held"] == [1 / DEVICES]

    def test_communicates_a_mean_and_nothing_else(self, found, what):
        assert found[f"{what}, mean"]["communication"] == ["all-reduce"]


if __name__ == "__main__":
    main()
