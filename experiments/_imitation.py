r"""The papers' imitation experiments: data, learners and their training protocol.

Experts and learners are receding-horizon controllers of pendulum and cartpole; the loss is the mean
squared difference of planned controls,

    loss = mean_{trajectory, t, i} (u_t,i - u*_t,i)^2

over plans of T = 20 controls from random states. What a learner knows decides its mode:

    nn            nothing: an LSTM from the state to the controls
    sysid         the cost; its dynamics are fitted to the recorded steps
    mpc.dx        the cost; its dynamics are learned by the loss above
    mpc.cost      the dynamics; its cost is learned by the loss above
    mpc.cost.dx   neither

Protocol (DiffMPC, section 5, and its released code): RMSprop with learning rate 1e-2 and decay 0.5
(nn: Adam with 1e-4), minibatches of 32, warm starts from the last plan of each trajectory that are
forgotten every 50 epochs, goal and weights of a learned cost taking turns every 10 epochs, and the
epoch of the lowest validation loss is kept. The learned cost is

    1/2 sum_i q_i tau_i^2 + sum_i sqrt(q_i) p_i tau_i        q = sigmoid(w), w = 0, p = 0 at first

What differs from the released code: gradients are exact unless Gauss-Newton is asked for, solves
that do not converge are left out and counted instead of counted with a gradient of zero, test
losses start every solve from zero controls as the expert did, and the learning rate may fall along
a cosine, since a constant one keeps RMSprop about 1e-2 away from any optimum.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc
from diffcontrol import systems
from diffcontrol.learning import LSTMPolicy

HORIZON, BATCH, FORGET, TURN, CHUNK = 20, 32, 50, 10, 50
MODES = ("nn", "sysid", "mpc.dx", "mpc.cost", "mpc.cost.dx")
# Class of the dynamics, and the learner's first parameters, in the order of the released code.
SYSTEMS = {
    "pendulum": (systems.pendulum, systems.Pendulum, (15.0, 3.0, 0.5)),
    "cartpole": (systems.cartpole, systems.Cartpole, (9.8, 3.0, 0.1, 1.0)),
}
SOLVER = dc.DDP(max_iterations=100)
EXACT, GAUSS_NEWTON = dc.ImplicitAdjoint(), dc.GaussNewtonAdjoint()


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        system: pendulum or cartpole.
        mode: what is learned, see above.
        train: number of trajectories to learn from.
        seed: of the order of minibatches, and of the network's weights.
        epochs: passes over them.
        data_seed: of the 120 initial states.
        gauss_newton: take DiffMPC's gradient in place of the exact one.
        constant: keep the learning rate constant, as the papers do.
        logarithmic: learn the parameters of the dynamics through their logarithms.
        first: the learner's first parameters; empty is the papers'.
        complex_plant: the expert's pendulum is DiffMPC's that the learner cannot represent.
        patience: stop after so many epochs without a better validation loss; 0 never.
    """

    system: str
    mode: str
    train: int
    seed: int
    epochs: int
    data_seed: int = 0
    gauss_newton: bool = False
    constant: bool = False
    logarithmic: bool = False
    first: tuple[float, ...] = ()
    complex_plant: bool = False
    patience: int = 0


class Data(NamedTuple):
    """Expert plans: initial states `(N, n)`, states `(N, T+1, n)`, controls `(N, T, m)`."""

    x0: jax.Array
    states: jax.Array
    controls: jax.Array

    def take(self, start: int, stop: int) -> "Data":
        return Data(*(part[start:stop] for part in self))


def expert_data(trial: Trial) -> Data:
    """100 plans to train on, 10 to validate and 10 to test."""
    return _expert_data(trial.system, trial.complex_plant, trial.data_seed)


@functools.cache
def _expert_data(system: str, complex_plant: bool, seed: int) -> Data:
    module, dynamics, _ = SYSTEMS[system]
    problem = module.problem(HORIZON, systems.ComplexPendulum() if complex_plant else dynamics())
    x0 = jax.vmap(module.start)(jax.random.split(jax.random.key(seed), 120))
    found = jax.jit(jax.vmap(lambda x0: dc.solve(problem, x0, dc.DDP(), throw=False)))(x0)
    if not bool(jnp.all(found.result == dc.RESULTS.successful)):
        raise ValueError(f"{system}: not all of the expert's plans converge.")
    return Data(x0, found.states, found.controls)


# --- What is learned -----------------------------------------------------------------------------


class LearnedCost(eqx.Module):
    """The papers' cost of weights q and goal; see above."""

    w: jax.Array
    p: jax.Array

    def __call__(self, x, u, t):
        tau, q = jnp.concatenate([x, u]), jax.nn.sigmoid(self.w)
        return jnp.sum(0.5 * q * tau**2 + jnp.sqrt(q) * self.p * tau)


def first_coordinates(trial: Trial) -> Any:
    """Where the learner begins."""
    module, _, usual = SYSTEMS[trial.system]
    if trial.mode == "nn":
        n = 3 if trial.system == "pendulum" else 5
        policy = LSTMPolicy(n, 1, HORIZON, key=jax.random.key(trial.seed))
        # Single precision halves the time and is what the papers used.
        return jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32), eqx.filter(policy, eqx.is_inexact_array)
        )
    coordinates = {}
    if trial.mode != "mpc.cost":
        parameters = jnp.array(trial.first or usual)
        coordinates["dx"] = jnp.log(parameters) if trial.logarithmic else parameters
    if trial.mode in ("mpc.cost", "mpc.cost.dx"):
        size = module.cost().weights.size
        coordinates |= {"p": jnp.zeros(size), "w": jnp.zeros(size)}
    return coordinates


def parameters_of(trial: Trial, coordinates: Any) -> jax.Array:
    """Those of the dynamics, `(k,)`, in the order of the released code."""
    return jnp.exp(coordinates["dx"]) if trial.logarithmic else coordinates["dx"]


def learner(trial: Trial, coordinates: Any) -> dc.ControlProblem:
    """The problem that the learner believes in."""
    module, dynamics, _ = SYSTEMS[trial.system]
    problem = module.problem(HORIZON)
    if "dx" in coordinates:
        problem = module.problem(HORIZON, dynamics(*parameters_of(trial, coordinates)))
    if "p" in coordinates:
        cost = LearnedCost(coordinates["w"], coordinates["p"])
        problem = dataclasses.replace(problem, stage_cost=cost)
    return problem


def plan_loss(trial: Trial, coordinates, sample: Data, guess):
    """Imitation loss of one trajectory, whether it means anything, and the plan."""
    if trial.mode == "nn":
        static = eqx.filter(_network(trial.system), eqx.is_inexact_array, inverse=True)
        policy = eqx.combine(coordinates, static)
        controls = policy(sample.x0.astype(jnp.float32))
        return jnp.mean((controls - sample.controls) ** 2), jnp.array(True), guess
    adjoint = GAUSS_NEWTON if trial.gauss_newton else EXACT
    problem = learner(trial, coordinates)
    found = dc.solve(problem, sample.x0, SOLVER, guess=guess, adjoint=adjoint, throw=False)
    value = jnp.mean((found.controls - sample.controls) ** 2)
    return value, found.result == dc.RESULTS.successful, jax.lax.stop_gradient(found.controls)


@functools.cache
def _network(system: str) -> LSTMPolicy:
    return LSTMPolicy(3 if system == "pendulum" else 5, 1, HORIZON, key=jax.random.key(0))


def step_loss(trial: Trial, coordinates, sample: Data, guess):
    """Mean squared error of the predicted next states."""
    dynamics = learner(trial, coordinates).dynamics
    following = jax.vmap(lambda x, u: dynamics(x, u, 0))(sample.states[:-1], sample.controls)
    value = jnp.mean((following - sample.states[1:]) ** 2)
    return value, jnp.isfinite(value), guess


# --- Training ------------------------------------------------------------------------------------


class State(NamedTuple):
    """What training goes on from."""

    coordinates: Any
    optimiser: Any
    guesses: jax.Array
    best: Any
    best_loss: jax.Array
    best_epoch: jax.Array


class Told(NamedTuple):
    """What is recorded of an epoch."""

    train: jax.Array
    validation: jax.Array
    left_out: jax.Array
    nonphysical: jax.Array
    coordinates: Any


def optimiser_of(trial: Trial) -> optax.GradientTransformation:
    """Directions; the learning rate comes after it."""
    if trial.mode == "nn":
        return optax.scale_by_adam()
    return optax.scale_by_rms(decay=0.5, eps=1e-8, eps_in_sqrt=False)


def learning_rate(trial: Trial, amount: "Amount", epochs_done):
    """After so many epochs, with a fraction."""
    if trial.mode == "nn":
        return 1e-4
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * epochs_done / amount.epochs))
    return 1e-2 * jnp.where(amount.constant, 1.0, fall)


class Amount(NamedTuple):
    """What may differ between runs of one compiled program: how many trajectories and epochs, and
    whether the learning rate is constant."""

    train: jax.Array
    epochs: jax.Array
    constant: jax.Array


def make_epochs(trial: Trial):
    """A compiled function of the next `CHUNK` epochs, as many of them as are left:
    (state, key, first epoch, amount, training, validation) -> state, `Told` of each.

    `training` has 100 rows, of which the first `amount.train` are used. Compiling takes longer
    than training, so one program serves all trials that differ in amount, seed, data or first
    parameters.
    """
    return _make_epochs(_program_of(trial))


def _program_of(trial: Trial) -> Trial:
    return Trial(
        trial.system,
        trial.mode,
        train=0,
        seed=0,
        epochs=0,
        gauss_newton=trial.gauss_newton,
        logarithmic=trial.logarithmic,
    )


@functools.cache
def _make_epochs(trial: Trial):
    optimiser = optimiser_of(trial)
    loss = step_loss if trial.mode == "sysid" else plan_loss

    def one(coordinates, sample, guess):
        def objective(coordinates):
            value, good, plan = loss(trial, coordinates, sample, guess)
            return value, (good, plan)

        (value, (good, plan)), gradient = jax.value_and_grad(objective, has_aux=True)(coordinates)
        finite = functools.reduce(
            jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]
        )
        kept = jnp.where(jnp.all(jnp.isfinite(plan)), plan, 0.0)
        return value, gradient, good & finite & jnp.isfinite(value), kept

    def of_plans(coordinates, samples, guesses, present):
        """Mean gradient over the usable samples, sum of their losses, which they are, and plans.

        Sample by sample, so that one bad sample spoils no other.
        """
        value, gradient, good, plans = jax.vmap(one, (None, 0, 0))(coordinates, samples, guesses)
        used = good & present
        number = jnp.maximum(jnp.sum(used), 1)

        def mean(leaf):
            mask = used.reshape((-1,) + (1,) * (leaf.ndim - 1))
            return jnp.sum(jnp.where(mask, leaf, 0.0), axis=0) / number

        return jax.tree.map(mean, gradient), jnp.sum(jnp.where(used, value, 0.0)), used, plans

    def of_network(coordinates, samples, guesses, present):
        """The same at once: a network fails nowhere, and its gradients are large."""

        def objective(coordinates):
            value, _, _ = jax.vmap(functools.partial(loss, trial, coordinates))(samples, guesses)
            total = jnp.sum(jnp.where(present, value, 0.0))
            return total / jnp.sum(present), total

        gradient, total = jax.grad(objective, has_aux=True)(coordinates)
        return gradient, total, present, guesses

    gradient_of = of_network if trial.mode == "nn" else of_plans

    def epoch(carry, number, key, amount, training, validation):
        batches = -(-amount.train // BATCH)
        # A random order of the rows in use, the others behind it.
        drawn = jax.random.uniform(jax.random.fold_in(key, number), (len(training.x0),))
        order = jnp.argsort(jnp.where(jnp.arange(drawn.size) < amount.train, drawn, 2.0))
        order = jnp.concatenate([order, jnp.zeros(BATCH, order.dtype)])
        forget = number % FORGET == 0
        carry = carry._replace(guesses=jnp.where(forget, 0.0, carry.guesses))

        def minibatch(b, carry):
            state, total, count, bad = carry
            rows = jax.lax.dynamic_slice(order, (b * BATCH,), (BATCH,))
            present = b * BATCH + jnp.arange(BATCH) < amount.train
            read = lambda leaf: jnp.take(leaf, rows, axis=0)
            gradient, sums, used, plans = gradient_of(
                state.coordinates, jax.tree.map(read, training), read(state.guesses), present
            )
            if trial.mode in ("mpc.cost", "mpc.cost.dx"):
                # Goal and weights take turns; the other's gradient is zero, as in the paper's code.
                turn = (number // TURN) % 2 == 0
                gradient["p"] = jnp.where(turn, gradient["p"], 0.0)
                gradient["w"] = jnp.where(turn, 0.0, gradient["w"])
            direction, after = optimiser.update(gradient, state.optimiser)
            rate = learning_rate(trial, amount, number + b / batches)
            moved = jax.tree.map(
                lambda x, d: (x - rate * d).astype(x.dtype), state.coordinates, direction
            )
            # A minibatch without any usable sample changes nothing.
            coordinates, after = jax.tree.map(
                lambda new, old: jnp.where(jnp.any(used), new, old),
                (moved, after),
                (state.coordinates, state.optimiser),
            )
            guesses = state.guesses.at[jnp.where(present, rows, len(drawn))].set(plans, mode="drop")
            state = state._replace(coordinates=coordinates, optimiser=after, guesses=guesses)
            return state, total + sums, count + jnp.sum(used), bad + _nonphysical(trial, state)

        nothing = (jnp.array(0.0), jnp.array(0), jnp.array(0))
        state, total, count, bad = jax.lax.fori_loop(0, batches, minibatch, (carry, *nothing))
        judged, share = mean_loss(trial, state.coordinates, validation)
        # A model whose hard plans all fail would look good on the rest.
        is_best = (judged < state.best_loss) & (share < 0.5)
        keep = lambda new, old: jnp.where(is_best, new, old)
        state = state._replace(
            best=jax.tree.map(keep, state.coordinates, state.best),
            best_loss=keep(judged, state.best_loss),
            best_epoch=keep(number, state.best_epoch),
        )
        left_out = (amount.train - count) / amount.train
        path = None if trial.mode == "nn" else state.coordinates
        return state, Told(total / count, judged, left_out, bad / batches, path)

    @jax.jit
    def run(state, key, first, amount, training, validation):
        def next_epoch(state, number):
            return epoch(state, number, key, amount, training, validation)

        nothing = lambda tree: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
        told = nothing(jax.eval_shape(next_epoch, state, first)[1])

        def step(state, number):
            is_left = number < amount.epochs
            return jax.lax.cond(is_left, next_epoch, lambda state, _: (state, told), state, number)

        return jax.lax.scan(step, state, first + jnp.arange(CHUNK))

    return run


def _nonphysical(trial: Trial, state: State):
    """How many parameters of the dynamics are not positive."""
    if trial.mode == "nn" or "dx" not in state.coordinates:
        return jnp.array(0)
    return jnp.sum(parameters_of(trial, state.coordinates) <= 0)


def mean_loss(trial: Trial, coordinates, data: Data):
    """Imitation loss over the plans that converge from zero, and the share of the others.

    For sysid in training, which solves nothing, it is the error of its prediction.
    """
    loss = step_loss if trial.mode == "sysid" else plan_loss
    zeros = jnp.zeros_like(data.controls)
    value, good, _ = jax.vmap(functools.partial(loss, trial, coordinates))(data, zeros)
    good = good & jnp.isfinite(value)
    number = jnp.sum(good)
    mean = jnp.sum(jnp.where(good, value, 0.0)) / number
    return jnp.where(number > 0, mean, jnp.inf), (good.size - number) / good.size


@functools.partial(jax.jit, static_argnums=0)
def _imitation_loss(trial: Trial, coordinates, data: Data):
    # What sysid found is judged as a controller in the end.
    judged = dataclasses.replace(trial, mode="mpc.dx") if trial.mode == "sysid" else trial
    return mean_loss(judged, coordinates, data)


def train(trial: Trial) -> dict[str, Any]:
    """Train one learner.

    Returns:
        "epochs" run, "best_epoch", its "validation" and "test" loss, the share of test plans
        "left_out", the "parameters" of the dynamics at the best epoch, "curve" (epoch, train,
        validation, left out), "path" of the coordinates, and of all parameters of the dynamics
        after each step the share "nonphysical" that is not positive, and of the last ones
        ("nonphysical_last").
    """
    data = expert_data(trial)
    training, validation, test = data.take(0, 100), data.take(100, 110), data.take(110, 120)
    coordinates = first_coordinates(trial)
    state = State(
        coordinates,
        optimiser_of(trial).init(coordinates),
        jnp.zeros_like(training.controls),
        coordinates,
        jnp.array(jnp.inf),
        jnp.array(-1),
    )
    amount = Amount(*map(jnp.array, (trial.train, trial.epochs, trial.constant)))
    run, key = make_epochs(trial), jax.random.key(trial.seed)
    told, done = [], 0
    while done < trial.epochs:
        state, of_chunk = run(state, key, jnp.array(done), amount, training, validation)
        ran = min(CHUNK, trial.epochs - done)
        told.append(jax.tree.map(lambda leaf, ran=ran: np.asarray(leaf)[:ran], of_chunk))
        done += ran
        if trial.patience and done - int(state.best_epoch) > trial.patience:
            break
    told = jax.tree.map(lambda *parts: np.concatenate(parts), *told)
    loss, left_out = _imitation_loss(_program_of(trial), state.best, test)
    every = max(1, done // 200)
    result = {
        "epochs": done,
        "best_epoch": int(state.best_epoch) + 1,
        "validation": float(state.best_loss),
        "test": float(loss),
        "left_out": float(left_out),
        "curve": {
            "epoch": list(range(1, done + 1, every)),
            "train": told.train[::every].tolist(),
            "validation": told.validation[::every].tolist(),
            "left_out": told.left_out[::every].tolist(),
        },
    }
    if trial.mode == "nn":
        return result
    as_lists = lambda tree, rows=slice(None): {
        k: np.asarray(v)[rows].tolist() for k, v in tree.items()
    }
    result |= {
        "path": as_lists(told.coordinates, slice(None, None, every)),
        "best": as_lists(state.best),
    }
    if "dx" in state.best:
        size = state.best["dx"].size
        result |= {
            "parameters": np.asarray(parameters_of(trial, state.best)).tolist(),
            "nonphysical": float(told.nonphysical.mean()) / size,
            "nonphysical_last": int(_nonphysical(trial, state)) / size,
        }
    return result


def work(trial: Trial) -> float:
    """Roughly the time of a trial, in any unit."""
    of_step = {"nn": 10.0, "sysid": 0.01}.get(trial.mode, 1.0)
    compiling = 2000.0  # as long as so many steps
    return compiling + of_step * trial.epochs * -(-trial.train // BATCH)


def true_parameters(system: str) -> np.ndarray:
    """The expert's, in the order of the released code."""
    dynamics = SYSTEMS[system][1]()
    names = ("gravity", "mass", "length")
    if system == "cartpole":
        names = ("gravity", "cart_mass", "pole_mass", "half_length")
    return np.array([float(getattr(dynamics, name)) for name in names])


def identifiable(system: str, parameters) -> np.ndarray:
    """What the optimal controls depend on: for the pendulum g/l and m l^2, else all parameters."""
    p = np.asarray(parameters, float)
    return np.array([p[0] / p[2], p[1] * p[2] ** 2]) if system == "pendulum" else p
