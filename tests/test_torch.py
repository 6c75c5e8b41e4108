"""The PyTorch layer: what it returns, its derivatives of every kind, and what torch does to it."""

import copy
import functools
import importlib
import io
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc

torch = pytest.importorskip("torch")
# Of torch itself, which imports its own deprecated parts for forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

TIGHT = dc.DDP(tolerance=1e-12)
TRACED = []


class Mass(eqx.Module):
    """A mass on a spring that stiffens; remembers when it is traced."""

    mass: jax.Array
    spring: jax.Array

    def __call__(self, x, u, t):
        TRACED.append(t)
        force = u[0] - self.spring * x[0] ** 3
        return jnp.stack([x[0] + 0.3 * x[1], x[1] + 0.3 * force / self.mass])


def problem():
    return dc.ControlProblem(
        dynamics=Mass(jnp.asarray(1.2), jnp.asarray(0.7)),
        stage_cost=dc.GoalCost(weights=[1.0, 0.2, 0.1], goal=[0.1, 0.0]),
        horizon=4,
        control_size=1,
        control_bounds=dc.Bounds(-0.5, 0.4),
    )


X0 = torch.tensor([[1.0, 0.3], [-0.2, 0.1], [-1.2, 0.4]], dtype=torch.float64)
GOALS = torch.tensor([[0.1, 0.0], [0.3, 0.1], [-0.2, 0.0]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Programs of the bridge run for milliseconds and compile for seconds."""
    from diffcontrol import _torch_operation

    monkeypatch.setattr(_torch_operation, "jax", _Jax())


class _Jax:
    jit = staticmethod(jax.jit)

    def __getattr__(self, name):
        return getattr(jax, name)


@functools.cache
def controller(adjoint=None, solver=TIGHT, throw=False):
    return dc.torch.Controller(problem(), solver, adjoint=adjoint, throw=throw)


def x0s():
    return X0.clone().requires_grad_()


def flat(solution):
    """All that has a derivative, for each sample in one row."""
    return torch.cat([part.reshape(len(part), -1) for part in solution[:4]], dim=1)


WEIGHTS = torch.linspace(0.5, 2.0, 3 * (10 + 4 + 10 + 1), dtype=torch.float64).reshape(3, -1)


# What it returns.


def in_jax(adjoint, solver):
    """Gradient of the weighted sum of all numbers of the solutions, and these; without torch."""
    arrays, rest = eqx.partition(problem(), eqx.is_inexact_array)

    def loss(arrays, x0):
        of_one = eqx.combine(arrays, rest)
        s = jax.vmap(lambda x: dc.solve(of_one, x, solver, adjoint=adjoint, throw=False))(x0)
        s = {name: getattr(s, name) for name in ("states", "controls", "costates", "cost")}
        rows = [part.reshape(3, -1) for part in s.values()]
        return jnp.sum(jnp.concatenate(rows, axis=1) * WEIGHTS.numpy()), s

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(arrays, jnp.asarray(X0.numpy()))


ALGORITHMS = [
    pytest.param(None, TIGHT, id="implicit"),
    pytest.param(dc.GaussNewtonAdjoint(), TIGHT, id="gauss_newton", marks=pytest.mark.slow),
    pytest.param(None, dc.DDP(fixed_iterations=1), id="unrolled", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("adjoint", "solver"), ALGORITHMS)
def test_it_is_the_solution_and_gradient_of_jax(adjoint, solver):
    layer = controller(adjoint, solver)
    layer.zero_grad()
    x0 = x0s()
    solution = layer(x0)
    (flat(solution) * WEIGHTS).sum().backward()
    (gradients, d_x0), expected = in_jax(adjoint, solver)
    for name, values in expected.items():
        computed = getattr(solution, name).detach()
        np.testing.assert_allclose(computed, values, atol=1e-12, err_msg=name)
    assert solution.success.all()
    np.testing.assert_allclose(x0.grad, d_x0, rtol=1e-8)
    leaves = jax.tree.leaves(gradients)
    for (name, parameter), gradient in zip(layer.named_parameters(), leaves, strict=True):
        assert np.any(gradient), name
        np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-8, err_msg=name)


def test_arrays_of_one_call():
    """Per sample and broadcast, against calls one by one."""
    layer, mass = controller(), torch.tensor(1.1, dtype=torch.float64)
    solution = layer(X0[:, None], goal=GOALS, mass=mass)
    assert solution.states.shape == (3, 3, 5, 2)
    assert solution.cost.shape == solution.success.shape == (3, 3)
    for i in range(3):
        for j in range(3):
            one = layer(X0[i], **{"stage_cost.goal": GOALS[j], "dynamics.mass": mass})
            torch.testing.assert_close(solution.controls[i, j], one.controls)
    assert not torch.allclose(one.cost, layer(X0[2]).cost)


def test_shapes():
    layer = controller()
    one = layer(X0[0])
    assert one.states.shape == (5, 2) and one.cost.shape == one.result.shape == ()
    assert [len(part) for part in layer(X0[:0])] == [0] * 6
    warm = layer(X0, guess=layer(X0).controls.detach())
    torch.testing.assert_close(warm.controls, layer(X0).controls)
    assert dc.torch.sentence(one.result) == "Solved to the tolerance."


# Derivatives.


def with_bounds_active():
    """A function with derivatives, and its arguments: states and arrays of every kind."""
    layer = controller()
    controls = layer(X0).controls
    low, high = controls == -0.5, controls == 0.4
    assert low.any() and high.any() and not (low | high).all()
    names = ("stage_cost.goal", "dynamics.mass", "control_bounds.lower", "control_bounds.upper")

    def function(x0, *arrays):
        return flat(layer(x0, **dict(zip(names, arrays, strict=True))))

    return function, (x0s(), *(layer.get_parameter(name) for name in names))


def test_gradcheck():
    function, arguments = with_bounds_active()
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)


def test_gradcheck_of_the_gradient():
    function, arguments = with_bounds_active()

    def gradient(*arguments):
        loss = (function(*arguments) * WEIGHTS).sum()
        parts = torch.autograd.grad(loss, arguments, create_graph=True)
        return torch.cat([part.flatten() for part in parts])

    assert torch.autograd.gradcheck(gradient, arguments)


@pytest.mark.slow
def test_gradgradcheck():
    assert torch.autograd.gradgradcheck(*with_bounds_active())


def test_func_transforms():
    layer = controller()
    plan = lambda x: layer(x).controls[:, 0]
    func = torch.func
    torch.testing.assert_close(func.vmap(plan)(X0), layer(X0).controls[..., 0])
    reverse = func.vmap(func.jacrev(plan))(X0)
    torch.testing.assert_close(reverse, func.vmap(func.jacfwd(plan))(X0))
    tangent = torch.tensor([[0.3, -1.0]], dtype=torch.float64).expand(3, 2)
    _, moved = func.jvp(func.vmap(plan), (X0,), (tangent,))
    torch.testing.assert_close(moved, torch.einsum("bti,bi->bt", reverse, tangent))

    curvature = func.vmap(func.hessian(lambda x: layer(x).cost))(X0)
    x0 = x0s()
    (gradient,) = torch.autograd.grad(layer(x0).cost.sum(), x0, create_graph=True)
    rows = [torch.autograd.grad(gradient[:, k].sum(), x0, retain_graph=True)[0] for k in (0, 1)]
    torch.testing.assert_close(curvature, torch.stack(rows, dim=1))
    assert torch.linalg.eigvalsh(curvature).min() > 0.1


def test_forward_ad():
    layer, ad = controller(), torch.autograd.forward_ad
    tangent = torch.ones_like(X0)
    with ad.dual_level():
        moved = ad.unpack_dual(layer(ad.make_dual(X0, tangent)).cost).tangent
    torch.testing.assert_close(moved, layer(X0).costates[:, 0].sum(-1), rtol=1e-8, atol=0.0)


def test_the_backward_pass_does_not_solve_again():
    layer = controller()
    count = 2 + len(layer._names)
    arrays = [np.asarray(X0[0]), np.zeros((4, 1))]
    arrays += [p.detach().numpy() for p in layer.parameters()]
    pull = layer._program.pull((True,) * count, (False, True, False, False))
    point = [part.detach().numpy() for part in layer(X0[0])[:3]]
    loops = lambda function, *args: str(jax.make_jaxpr(function)(*args)).count("while[")
    assert loops(layer._program.call, *arrays) > 0
    assert loops(pull.call, *arrays, *point, np.ones((4, 1))) == 0


def test_compiles_once():
    layer = controller()

    def step():
        x0 = x0s()
        layer(x0).controls.sum().backward()
        torch.func.vmap(torch.func.jacrev(lambda x: layer(x).cost))(X0)

    step()
    seen = len(TRACED)
    step()
    assert seen and len(TRACED) == seen


# Failure.


def test_a_failed_solve_raises_or_is_left_out():
    broken = X0.clone()
    broken[1] = torch.nan
    with pytest.raises(RuntimeError, match="1 of 3 .* sample 1: The problem holds NaN"):
        controller(throw=True)(broken)
    layer, found = controller(), []
    for x0 in (broken, X0.clone()):
        layer.zero_grad()
        solution = layer(x0.requires_grad_())
        (flat(solution) * WEIGHTS)[[0, 2]].sum().backward()
        found.append([x0.grad, *(parameter.grad for parameter in layer.parameters())])
        if x0 is broken:
            assert solution.success.tolist() == [True, False, True]
            assert "NaN" in dc.torch.sentence(solution.result[1])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("error", "sentence", "call"),
    [
        (TypeError, "x0", lambda c: c([1.0, 0.0])),
        (TypeError, "must be float32 or float64, got torch.int64", lambda c: c(X0.long())),
        (
            TypeError,
            "`guess` is torch.float32, but `x0` is torch.float64",
            lambda c: c(X0, torch.zeros(4, 1)),
        ),
        (TypeError, r"`controller.to\(x0.dtype\)` converts", lambda c: c(X0.float())),
        (
            TypeError,
            "`gaol` names no array of the problem; there are dynamics.mass",
            lambda c: c(X0, gaol=GOALS),
        ),
        (ValueError, "on the CPU", lambda c: c(X0.to("meta"))),
        (ValueError, r"`x0` must have shape \(n,\)", lambda c: c(X0[0, 0])),
        (ValueError, r"`guess` must have shape \(4, 1\)", lambda c: c(X0, torch.zeros_like(X0))),
        (ValueError, r"`stage_cost.goal` must have shape \(2,\)", lambda c: c(X0, goal=X0[:, 0])),
        (
            ValueError,
            r"\(3,\) of `x0`, \(2,\) of `stage_cost.goal`",
            lambda c: c(X0, goal=GOALS[:2]),
        ),
        (ValueError, "the problem has n = 3", lambda c: c(torch.zeros(3, dtype=torch.float64))),
        (
            RuntimeError,
            "use torch.func",
            lambda c: torch.autograd.functional.jacobian(lambda x: c(x).cost, X0, vectorize=True),
        ),
        (
            TypeError,
            "`learn` must return floating-point arrays",
            lambda c: dc.torch.Controller(problem(), learn=lambda p: p.terminal_cost),
        ),
        (TypeError, "problem", lambda c: dc.torch.Controller(3)),
        (
            ValueError,
            "UnrolledAdjoint",
            lambda c: dc.torch.Controller(
                problem(), dc.DDP(fixed_iterations=1), adjoint=dc.ImplicitAdjoint()
            ),
        ),
    ],
)
def test_errors_name_the_argument(error, sentence, call):
    with pytest.raises(error, match=sentence):
        call(controller())


def test_a_name_that_fits_twice():
    layer = dc.torch.Controller(
        eqx.tree_at(
            lambda p: p.terminal_cost,
            problem(),
            Mass(jnp.ones(()), jnp.ones(())),
            is_leaf=lambda leaf: leaf is None,
        )
    )
    with pytest.raises(TypeError, match="more than one array; there are dynamics.mass, terminal"):
        layer(X0, mass=X0)


# What torch does to modules and tensors.


def test_names_state_and_copies():
    layer = controller()
    names = [
        "dynamics.mass",
        "dynamics.spring",
        "stage_cost.weights",
        "stage_cost.goal",
        "control_bounds.lower",
        "control_bounds.upper",
    ]
    assert list(layer.state_dict()) == names
    free = eqx.tree_at(lambda p: p.control_bounds, problem(), dc.Bounds(upper=1.0))
    assert len(list(dc.torch.Controller(free).parameters())) == 5
    some = dc.torch.Controller(problem(), learn=lambda p: (p.dynamics, p.stage_cost.goal))
    assert [name for name, _ in some.named_parameters()] == [*names[:2], names[3]]
    assert set(some.state_dict()) == set(names)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.dynamics.mass.mul_(2.0)
    changed = twin(X0).cost
    assert not torch.equal(changed, layer(X0).cost)
    torch.testing.assert_close(
        changed, torch.func.functional_call(layer, twin.state_dict(), (X0,)).cost
    )
    with pytest.raises(TypeError, match="save the `state_dict"):
        torch.save(twin, io.BytesIO())
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(X0).cost, layer(X0).cost)


def test_learns_by_optimiser_and_through_a_logarithm():
    class Exponential(torch.nn.Module):
        def forward(self, value):
            return value.exp()

        def right_inverse(self, value):
            return value.log()

    target = controller()(X0).controls.detach()
    layer = copy.deepcopy(controller())
    torch.nn.utils.parametrize.register_parametrization(layer.dynamics, "mass", Exponential())
    with torch.no_grad():
        layer.dynamics.mass = torch.tensor(2.0, dtype=torch.float64)
    optimiser = torch.optim.Adam(layer.dynamics.parametrizations.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        loss = ((layer(X0).controls - target) ** 2).mean()
        loss.backward()
        optimiser.step()
    assert abs(layer.dynamics.mass.item() - 1.2) < 0.05


def test_single_precision_and_double_where_jax_is_in_32_bit():
    layer = dc.torch.Controller(problem()).float()
    x0 = X0.float().requires_grad_()
    single = layer(x0)
    single.cost.sum().backward()
    assert single.controls.dtype == x0.grad.dtype == layer.dynamics.mass.grad.dtype == torch.float32
    torch.testing.assert_close(single.cost.double(), controller()(X0).cost, rtol=1e-4, atol=0.0)
    with jax.enable_x64(False):
        layer = dc.torch.Controller(problem(), TIGHT)
        assert layer.dynamics.mass.dtype == torch.float32
        layer = layer.double()
        layer.load_state_dict(controller().state_dict())
        x0, x0_wide = x0s(), x0s()
        layer(x0).cost.sum().backward()
    controller()(x0_wide).cost.sum().backward()
    torch.testing.assert_close(x0.grad, x0_wide.grad, rtol=1e-12, atol=0.0)


ODD_MEMORY = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second": lambda x: x.repeat_interleave(2, 0)[::2],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape),
    "negated view": lambda x: torch.complex(x, -x).conj().imag,
    "expanded": lambda x: x[:1].expand(3, 2),
}


@pytest.mark.parametrize("make", ODD_MEMORY.values(), ids=ODD_MEMORY)
def test_memory_of_any_layout(make):
    layer, x0 = controller(), make(X0)
    assert torch.equal(layer(x0).controls, layer(x0.clone().contiguous()).controls)


def test_memory_is_not_shared():
    layer, x0 = controller(), X0.clone()
    solution = layer(x0)
    before = [part.clone() for part in solution]
    x0.zero_()
    del x0
    layer(X0 + 0.1)
    for part, was in zip(solution, before, strict=True):
        assert torch.equal(part, was)
    moving = x0s()
    cost = layer(moving * 1.0).cost
    solution = layer(moving)
    with torch.no_grad():
        solution.states.zero_()
        assert layer.stage_cost.goal[0] == 0.1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.cost.sum().backward()
    cost.sum().backward()


def test_torch_is_imported_on_demand(monkeypatch):
    assert dc.torch is importlib.import_module("diffcontrol.torch")
    assert not hasattr(dc, "nonsense")
    command = "import sys, diffcontrol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
    monkeypatch.delitem(sys.modules, "diffcontrol.torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'diffcontrol\[torch\]'"):
        importlib.import_module("diffcontrol.torch")
