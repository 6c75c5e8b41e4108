"""What a compiled program is remembered by: everything that functions see, and nothing else."""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._captured import captured


def module(source: str, **names) -> types.ModuleType:
    """A user's module, as a notebook or a file would make it."""
    made = types.ModuleType("users_own")
    vars(made).update(jax=jax, jnp=jnp, eqx=eqx, functools=functools, **names)
    exec(source, vars(made))
    return made


CHANGES = {
    "a helper function": (
        "def drag(x): return -x\ndef f(x): return drag(x)",
        "def drag(x): return x",
    ),
    "a helper's helper": (
        "def a(x): return x\ndef b(x): return a(x)\ndef f(x): return b(x)",
        "def a(x): return -x",
    ),
    "an activation": ("act = jnp.tanh\ndef f(x): return act(x)", "act = jnp.sin"),
    "a NumPy function": (
        "import numpy\nact = numpy.sin\ndef f(x): return act(x)",
        "act = numpy.cos",
    ),
    "a transformation": (
        "def g(x): return x * x\nh = jax.grad(g)\ndef f(x): return h(x)",
        "h = jax.jit(g)",
    ),
    "under jit": (
        "def g(x): return x\nh = jax.jit(g)\ndef f(x): return h(x)",
        "h = jax.jit(jnp.sin)",
    ),
    "under lru_cache": (
        "@functools.lru_cache\ndef g(): return 1\ndef f(x): return g() * x",
        "@functools.lru_cache\ndef g(): return 2",
    ),
    "a number": ("a = 1\ndef f(x): return a * x", "a = 1.0"),
    "the sign of zero": ("a = 0.0\ndef f(x): return a * x", "a = -0.0"),
    "an array": ("a = jnp.ones(2)\ndef f(x): return a * x", "a = jnp.ones(2)"),
    "an order": (
        "acts = [jnp.tanh, jnp.sin, jnp.tanh]\ndef f(x): return acts[2](acts[1](acts[0](x)))",
        "acts[2] = jnp.sin",
    ),
    "the key of a dictionary": (
        "a = {'mass': 1}\ndef f(x): return x",
        "a = {'length': 1}\ndef f(x): return a",
    ),
    "the structure": ("a = [[1], 2]\ndef f(x): return a", "a = [1, [2]]"),
    "an attribute of a class": (
        "class settings: gain = 1.0\ndef f(x): return settings.gain * x",
        "settings.gain = 2.0",
    ),
    "an attribute of a class in a class": (
        "class settings:\n  class plant: gain = 1.0\ndef f(x): return settings.plant.gain * x",
        "settings.plant.gain = 2.0",
    ),
    "an attribute of a module": ("def f(x): return other.gain * x", "other.gain = 2.0"),
    "a function of a module": ("def f(x): return other.push(x)", "other.push = jnp.sin"),
    "a global of a method that the call calls": (
        "gain = 1.0\nclass F:\n  def __call__(self, x): return self.inner(x)\n"
        "  def inner(self, x): return gain * x\nf = F()",
        "gain = 2.0",
    ),
    "the same of an Equinox module": (
        "gain = 1.0\nclass F(eqx.Module):\n  def __call__(self, x): return self.inner(x)\n"
        "  @property\n  def factor(self): return gain\n"
        "  def inner(self, x): return self.factor * x\nf = F()",
        "gain = 2.0",
    ),
    "a static method": (
        "class F:\n  def __call__(self, x): return self.g(x)\n  @staticmethod\n"
        "  def g(x): return x\nf = F()",
        "F.g = staticmethod(lambda x: -x)",
    ),
    "an operator": (
        "gain = 1.0\nclass G:\n  def __mul__(self, x): return gain * x\n"
        "g = G()\ndef f(x): return g * x",
        "gain = 2.0",
    ),
    "the class of an object": (
        "class A:\n  def __call__(self, x): return x\n"
        "class B:\n  def __call__(self, x): return -x\n"
        "g = A()\ndef f(x): return g(x)",
        "g = B()",
    ),
    "a slot": (
        "class A:\n  __slots__ = ('gain',)\na = A()\na.gain = 1.0\ndef f(x): return a.gain * x",
        "a.gain = 2.0",
    ),
    "a default": ("def g(x, a=1): return a * x\ndef f(x): return g(x)", "g.__defaults__ = (2,)"),
    "a partial": (
        "def g(a, x): return a * x\nh = functools.partial(g, 1)\ndef f(x): return h(x)",
        "h = functools.partial(g, 2)",
    ),
    "a custom derivative": (
        "@jax.custom_jvp\ndef g(x): return x\n"
        "g.defjvp(lambda p, t: (p[0], t[0]))\ndef f(x): return g(x)",
        "g.defjvp(lambda p, t: (p[0], 2 * t[0]))",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    before, change = CHANGES[name]
    other = module("gain = 1.0\ndef push(x): return x")
    users = module(before, other=other)
    key = captured(users.f)
    assert captured(users.f) == key and hash(captured(users.f)) == hash(key)
    exec(change, vars(users))
    assert captured(users.f) != key


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ("def g(x): return x\ndef f(x): return g(x)", "def g(x): return x"),
        ("log = []\ndef f(x): return x", "log.append(1)"),
        ("class A:\n  log = []\n  def __call__(self, x): return x\nf = A()", "A.log.append(1)"),
        ("def f(x): return other.gain", "other.runs = 3"),
    ],
    ids=["the same function again", "another global", "an unread class attribute", "of a module"],
)
def test_what_is_not_seen_does_not_count(before, change):
    users = module(before, other=module("gain = 1.0\nruns = 0"))
    key = captured(users.f)
    exec(change, vars(users))
    assert captured(users.f) == key


def test_made_anew_and_alike_is_the_same():
    make = lambda: (dc.DDP(), dc.ImplicitAdjoint(), dc.MPC(dc.systems.pendulum.problem(horizon=2)))
    assert captured(make()) == captured(make())


def test_own_arrays_need_no_key_also_inside_sums():
    cost = lambda w: dc.GoalCost([w, 1.0], [0.0]) + dc.GoalCost([1.0, w], [0.0])
    assert captured(cost(1.0)) == captured(cost(2.0))


def test_a_model_that_is_both_an_argument_and_closed_over():
    model = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    closed_over = lambda x: model(x)
    key = captured((model, closed_over))
    model = eqx.nn.Linear(2, 2, key=jax.random.key(1))
    assert captured((model, closed_over)) != key


def test_circles_and_long_chains_end():
    @dataclass
    class Link:
        next: object

    chain = first = Link(None)
    for _ in range(5000):
        chain = Link(chain)
    first.next = chain
    captured(lambda x: chain)


def test_a_module_without_a_name():
    function = eval("lambda x: a * x", {"a": 1.0})
    function.__module__ = None
    captured(function)


def problem_of(users: types.ModuleType) -> dc.ControlProblem:
    return dc.ControlProblem(
        dynamics=users.dynamics,
        stage_cost=dc.GoalCost([1, 0.1], [0]),
        horizon=3,
        control_size=1,
    )


def test_no_front_door_runs_an_old_helper():
    source = "def drag(x): return 0.{}*x\ndef dynamics(x, u, t): return drag(x) + u"
    users, problem = module(source.format(5)), None
    for gain in (5, 9):
        exec(source.format(gain).partition("\n")[0], vars(users))
        problem = problem or problem_of(users)
        fresh = module(source.format(gain))
        wanted = everything(problem_of(fresh), fresh)
        for seen, expected in zip(everything(problem, users), wanted, strict=True):
            np.testing.assert_allclose(seen, expected, rtol=1e-10, atol=1e-12)


class Offset(dc.learning.AbstractLoss):
    """The squared output of a function that may read what it likes."""

    function: Callable = eqx.field(static=True)

    def start(self, sample):
        return None

    def __call__(self, model, sample, memory):
        return dc.learning.Judged(self.function(model - sample) ** 2, jnp.asarray(True), None)


def test_no_loss_runs_an_old_helper():
    users = module("def scale(x): return x\ndef f(x): return scale(x)")
    loss, model, samples = Offset(users.f), jnp.asarray(1.0), jnp.zeros(2)
    assert dc.learning.evaluate(loss, model, samples).loss == 1.0
    users.scale = lambda x: 3.0 * x
    assert dc.learning.evaluate(loss, model, samples).loss == 9.0


def push_back(x):
    return -0.1 * x


def everything(problem, users):
    x0 = jnp.ones(1)
    solution = dc.solve(problem, x0)
    return [
        solution.cost,
        dc.certify(problem, x0, solution).smallest_curvature,
        dc.terminal_value(problem, [0.0], [0.0]).P,
        dc.simulate(push_back, users.dynamics, x0, 2).states,
    ]
