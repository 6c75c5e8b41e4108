"""Receding horizon and closed loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol.systems import Pendulum, pendulum

X0 = jnp.array([jnp.cos(0.15), jnp.sin(0.15), 0.1])


def effort(mass):
    """Closed-loop cost of a controller that believes in `mass`, on the true plant."""
    controller = dc.MPC(pendulum.problem(horizon=12, dynamics=Pendulum(mass=mass)))
    run = dc.simulate(controller, Pendulum(), X0, 8)
    return jnp.sum(run.states[:, 1] ** 2) + 0.1 * jnp.sum(run.controls**2)


def test_gradient_through_the_closed_loop():
    h = 1e-5
    of = jax.jit(effort)
    difference = (of(1.1 + h) - of(1.1 - h)) / (2 * h)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(jax.jit(jax.grad(effort))(1.1), difference, rtol=1e-5)


@pytest.mark.slow
def test_model_and_plant_alike_follow_the_plan():
    """Without disturbance a second solve from the next state continues the first plan's tail."""
    problem = pendulum.problem(horizon=30)
    controller = dc.MPC(problem)
    memory = controller.init(X0)
    control, memory = eqx.filter_jit(controller)(X0, memory)
    solution = dc.solve(problem, X0)
    np.testing.assert_allclose(control, solution.controls[0], atol=1e-7)
    np.testing.assert_allclose(memory.states[0], solution.states[1], atol=1e-7)
    np.testing.assert_allclose(memory.gains[0], solution.gains[1], atol=1e-5)
    np.testing.assert_allclose(memory.costates[0], solution.costates[1], atol=1e-5)
    assert memory.time == 1 and memory.result == dc.RESULTS.successful


A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([0.0, 0.1])


def test_callables_see_absolute_time_and_arrays_run_from_the_current_step():
    seen_at = lambda x, u, t: A @ x + B * (u[0] + 0.1 * t)
    goal = jnp.linspace(0, 1, 5)[:, None] * jnp.ones(2)
    problem = dc.ControlProblem(
        dynamics=seen_at, stage_cost=dc.GoalCost([1, 1, 0.1], goal), horizon=5, control_size=1
    )
    shifted = eqx.tree_at(
        lambda p: p.dynamics, problem, lambda x, u, t: A @ x + B * (u[0] + 0.1 * (t + 3))
    )
    controller = dc.MPC(problem)
    memory = eqx.tree_at(lambda m: m.time, controller.init(jnp.zeros(2)), jnp.asarray(3, jnp.int32))
    plan = controller.plan(jnp.ones(2), memory)
    np.testing.assert_allclose(plan.controls, dc.solve(shifted, jnp.ones(2)).controls, atol=1e-8)


def test_a_new_reference_at_each_call():
    build = lambda goal: dc.ControlProblem(
        dynamics=lambda x, u, t: A @ x + B * u[0],
        stage_cost=dc.GoalCost([1, 1, 0.1], goal),
        horizon=5,
        control_size=1,
    )
    controller = dc.MPC(build(jnp.zeros(2)))
    memory = controller.init(jnp.zeros(2))
    still, _ = controller(jnp.zeros(2), memory)
    moved, _ = controller(jnp.zeros(2), memory, problem=build(jnp.ones(2)))
    assert abs(float(still[0])) < 1e-8 and float(moved[0]) > 0.1


@pytest.mark.slow
def test_starts_find_the_better_minimum():
    """The swing-up from hanging: zero torque is a saddle, the starts lead away from it."""
    problem = pendulum.problem(horizon=40)
    hanging = jnp.array([-1.0, 0.0, 0.0])
    push = jnp.concatenate([jnp.full((6, 1), -2.0), jnp.full((34, 1), 2.0)])
    controller = dc.MPC(problem, starts=jnp.stack([push, -push]))
    alone = dc.MPC(problem).plan(hanging, dc.MPC(problem).init(hanging))
    best = controller.plan(hanging, controller.init(hanging))
    assert best.cost < alone.cost - 1.0 and best.result == dc.RESULTS.successful
    with pytest.raises(ValueError, match="starts"):
        dc.MPC(problem, starts=push).plan(hanging, controller.init(hanging))


def test_bad_calls_are_named():
    problem = pendulum.problem(horizon=5)
    controller = dc.MPC(problem)
    memory = controller.init(X0)
    with pytest.raises(ValueError, match=r"MPC: `memory` was made for .*\(5, 1\).*\(6, 1\)"):
        controller(X0, memory, problem=pendulum.problem(horizon=6))
    with pytest.raises(TypeError, match="`x` must be real"):
        controller.plan(X0 * 1j, memory)
    with pytest.raises(ValueError, match="starts.*shape"):
        dc.MPC(problem, starts=[[0.0]] * 5).plan(X0, memory)
    assert dc.MPC(problem, starts=[[[0]] * 5]).plan(X0, memory).controls.shape == (5, 1)
    with pytest.raises(ValueError, match="rollout_in: `steps`"):
        dc.rollout_in(None, controller, steps=0, seed=0)
    with pytest.raises(ValueError, match=r"`x0` must have shape \(n,\)"):
        dc.simulate(controller, Pendulum(), 1.0, 3)


def test_solves_that_fail_in_a_closed_loop_are_seen():
    hasty = dc.MPC(pendulum.problem(horizon=12), solver=dc.DDP(max_iterations=1))
    lying = jnp.array([jnp.cos(2.5), jnp.sin(2.5), 0.0])
    run = dc.simulate(hasty, Pendulum(), lying, 3)
    assert run.memory.iterations.shape == (3,) and run.memory.states.shape == (3, 13, 3)
    results = jax.vmap(lambda result: result == dc.RESULTS.successful)(run.memory.result)
    assert results.shape == (3,) and not results[0]


class Integrator(eqx.Module):
    """A policy with a memory that has a derivative."""

    gain: jax.Array

    def init(self, x0):
        return jnp.zeros(())

    def __call__(self, x, memory):
        memory = memory + self.gain * x[0]
        return -memory[None], memory


class OneStep:
    """The smallest environment."""

    def reset(self, seed):
        return np.ones(1), {}

    def step(self, action):
        return np.ones(1) - action, 1.0, False, False, {}


def test_the_memory_of_a_policy_is_returned():
    last = lambda gain: dc.simulate(Integrator(gain), lambda x, u, t: x + u, jnp.ones(1), 2).memory[
        -1
    ]
    # By hand: g, then g + g (1 - g).
    np.testing.assert_allclose(jax.value_and_grad(last)(0.5), (0.75, 1.0))
    episode = dc.rollout_in(OneStep(), Integrator(jnp.asarray(0.5)), 2, seed=0)
    np.testing.assert_allclose(episode.memory, [0.5, 1.25])


def test_plain_functions_are_policies():
    run = dc.simulate(lambda x: -x[:1], lambda x, u, t: x + 0.1 * u[0], jnp.ones(2), 4)
    assert run.states.shape == (5, 2) and run.controls.shape == (4, 1)
    with pytest.raises(ValueError, match="steps"):
        dc.simulate(lambda x: x, lambda x, u, t: x, jnp.ones(2), 0)
    with pytest.raises(ValueError, match="plant"):
        dc.simulate(lambda x: x, lambda x, u, t: x[:1], jnp.ones(2), 2)
