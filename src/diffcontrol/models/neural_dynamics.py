r"""A network as dynamics: it predicts the change of the state over one step.

    x_next = x (+) (mean + scale * network(normalised [x; u]))

For plain entries `(+)` adds. A pair `(cos th, sin th)` is turned by the predicted change of its
angle,

    cos+ = cos cos(d) - sin sin(d),     sin+ = sin cos(d) + cos sin(d)

so that it stays on its circle whatever the network says, over any horizon, and nothing is divided
or wrapped: the map is as smooth as the network. That matters, since the solver uses its second
derivatives; with kinks (ReLU) they are zero almost everywhere and jump in between.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Numbers, as_floats
from .normalisation import Normalisation


class NeuralDynamics(eqx.Module):
    """Dynamics `(x, u, t) -> next x` of a multilayer perceptron, the same at all times.

    Attributes:
        network: normalised inputs, those entries of `[x; u]` that it sees, to normalised change.
        inputs: normalisation of these inputs.
        changes: normalisation of the change of the state over one step: first of the plain
            entries, then of the angle of each pair [rad].
        angles: pairs of positions of a cosine and the sine of the same angle in the state.
        unseen: positions in the state of what the motion does not depend on.

    Args:
        state_size, control_size: n and m.
        angles: see above; pendulum: `((0, 1),)`, cartpole: `((2, 3),)`.
        unseen: see above; cartpole: `(0,)`, since its motion is the same wherever the cart is.
            Otherwise a network learns a little dependence from the noise, and makes much of it
            beyond the data.
        width, depth: of the hidden layers, and their number.
        activation: smooth, for the solver's sake.
        key: random key of the first weights.

    Raises:
        ValueError: for sizes below one, and positions that are not in the state or given twice.
    """

    network: eqx.nn.MLP
    inputs: Normalisation
    changes: Normalisation
    angles: tuple[tuple[int, int], ...] = eqx.field(static=True)
    unseen: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        control_size: int,
        *,
        angles: Sequence[tuple[int, int]] = (),
        unseen: Sequence[int] = (),
        width: int = 32,
        depth: int = 2,
        activation: Callable = jnp.tanh,
        key: Array | PRNGKeyArray,
    ):
        self.angles = tuple((int(cos), int(sin)) for cos, sin in angles)
        self.unseen = tuple(int(position) for position in unseen)
        flat = [position for pair in self.angles for position in pair]
        _check_positions("angles", angles, flat, state_size)
        _check_positions("unseen", unseen, list(self.unseen), state_size)
        for name, size in (("state_size", state_size), ("control_size", control_size)):
            if size < 1:
                raise ValueError(f"NeuralDynamics: `{name}` must be at least 1, got {size}.")
        seen = state_size + control_size - len(self.unseen)
        told = state_size - len(self.angles)
        network = eqx.nn.MLP(seen, told, width, depth, activation, key=key)
        # Nothing is known yet, so nothing changes yet: close to x_next = x the first solves with
        # an untrained model are well behaved.
        last = lambda network: (network.layers[-1].weight, network.layers[-1].bias)
        self.network = eqx.tree_at(last, network, replace_fn=lambda array: 0.1 * array)
        self.inputs, self.changes = Normalisation.none(seen), Normalisation.none(told)

    def fitted_to(self, states: Numbers, controls: Numbers) -> "NeuralDynamics":
        """The same network with its normalisations fitted to recorded steps; do this first.

        Args:
            states: `(N, L+1, n)`, as `learning.Demonstrations` holds them.
            controls: `(N, L, m)`.

        Raises:
            ValueError: for other shapes.
        """
        return self._fitted_to(as_floats("states", states), as_floats("controls", controls))

    def _fitted_to(self, states: Array, controls: Array, known: Callable | None = None):
        sizes = self.inputs.mean.shape[0] + len(self.unseen)
        if (
            states.ndim != 3
            or controls.ndim != 3
            or states.shape[:2] != (controls.shape[0], controls.shape[1] + 1)
            or states.shape[2] + controls.shape[2] != sizes
        ):
            raise ValueError(
                "fitted_to: `states` must have shape (N, L+1, n) and `controls` (N, L, m) with "
                f"n+m = {sizes}, but they have shapes {states.shape} and {controls.shape}."
            )
        x, u, after = (
            rows.reshape(-1, rows.shape[-1]) for rows in (states[:, :-1], controls, states[:, 1:])
        )
        before = x
        if known is not None:
            times = jnp.tile(jnp.arange(controls.shape[1]), controls.shape[0])
            before = jax.vmap(known)(x, u, times)
        changes = jax.vmap(lambda a, b: change(a, b, self.angles))(before, after)
        return eqx.tree_at(
            lambda model: (model.inputs, model.changes),
            self,
            (
                Normalisation.fitted_to(jax.vmap(self._seen)(x, u)),
                Normalisation.fitted_to(changes),
            ),
        )

    def __call__(self, x: Float[Array, " n"], u: Float[Array, " m"], t) -> Float[Array, " n"]:
        return changed(x, self.change(x, u), self.angles)

    def change(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " k"]:
        """The predicted change: of the plain entries, then of the angles [rad]."""
        seen = self.inputs.apply(self._seen(x, u))
        return self.changes.restore(self.network(seen))

    def _seen(self, x: Array, u: Array) -> Array:
        return jnp.concatenate([jnp.delete(x, np.array(self.unseen, int)), u])


def changed(x: Array, by: Array, angles: tuple[tuple[int, int], ...]) -> Array:
    """The state `x` changed `by`: plain entries added, pairs turned."""
    plain = _plain(x.shape[0], angles)
    x = x.at[plain].add(by[: plain.size])
    if angles:
        cos, sin = np.array(angles).T
        turn = by[plain.size :]
        x = (
            x.at[cos]
            .set(x[cos] * jnp.cos(turn) - x[sin] * jnp.sin(turn))
            .at[sin]
            .set(x[sin] * jnp.cos(turn) + x[cos] * jnp.sin(turn))
        )
    return x


def change(before: Array, after: Array, angles: tuple[tuple[int, int], ...]) -> Array:
    """What `changed` has to be given to lead from one state to another."""
    plain = _plain(before.shape[0], angles)
    parts = [after[plain] - before[plain]]
    if angles:
        cos, sin = np.array(angles).T
        across = before[cos] * after[sin] - before[sin] * after[cos]
        along = before[cos] * after[cos] + before[sin] * after[sin]
        parts.append(jnp.arctan2(across, along))
    return jnp.concatenate(parts)


def _plain(size: int, angles: tuple[tuple[int, int], ...]) -> np.ndarray:
    return np.setdiff1d(np.arange(size), np.array(angles, int).ravel())


def _check_positions(name: str, given: Sequence, positions: list[int], size: int) -> None:
    if len(set(positions)) < len(positions) or not all(0 <= p < size for p in positions):
        shape = "pairs (cosine, sine) of positions" if name == "angles" else "positions"
        raise ValueError(
            f"NeuralDynamics: `{name}` must be {shape}, none given twice, in a state of size "
            f"{size}, got {given}."
        )
