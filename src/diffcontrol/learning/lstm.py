"""The papers' baseline without a model: a recurrent network that emits a sequence of controls."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .loss import AbstractLoss, Judged
from .windows import Window


class LSTMPolicy(eqx.Module):
    """Controls for T steps from the initial state alone, in open loop.

    The initial state is embedded and fed to an LSTM cell; a decoder reads a control from the
    cell's memory c_t; that control, embedded, is the next input. Each of the three networks has
    three linear layers with ReLU between.

    Attributes:
        horizon: the number T of controls.

    Source: baseline "nn" of DiffMPC (Amos et al. 2018), section 5 and its published settings:
        width 256, decoding from c_t rather than h_t.
    """

    embed_state: eqx.nn.MLP
    embed_control: eqx.nn.MLP
    cell: eqx.nn.LSTMCell
    decode: eqx.nn.MLP
    horizon: int = eqx.field(static=True)

    def __init__(
        self, state_size: int, control_size: int, horizon: int, *, key: Array, width: int = 256
    ):
        """Draw the weights.

        Args:
            state_size, control_size: n and m.
            horizon: the number T of controls.
            key: random key.
            width: of every layer.
        """
        keys = jax.random.split(key, 4)
        network = lambda n_in, n_out, key: eqx.nn.MLP(
            n_in, n_out, width, 2, activation=jax.nn.relu, key=key
        )
        self.embed_state = network(state_size, width, keys[0])
        self.embed_control = network(control_size, width, keys[1])
        self.decode = network(width, control_size, keys[2])
        self.cell = eqx.nn.LSTMCell(width, width, key=keys[3])
        self.horizon = horizon

    def __call__(self, x0: Float[Array, " n"]) -> Float[Array, "T m"]:
        """The controls from `x0` on."""
        embedded = self.embed_state(x0)

        def advance(carry, _):
            memory, embedded = carry
            _, c = memory = self.cell(embedded, memory)
            u = self.decode(c)
            return (memory, self.embed_control(u)), u

        zeros = jnp.zeros_like(embedded)
        _, controls = jax.lax.scan(advance, ((zeros, zeros), embedded), length=self.horizon)
        return controls


class SequenceLoss(AbstractLoss):
    r"""Mean squared difference `mean_{t, i} (u_t,i - u*_t,i)^2` to the expert's controls.

    For a model `x0 -> controls (T, m)`, over the stages that a window holds; value in the unit of
    the controls, squared.

    Source: the imitation loss of DiffMPC (Amos et al. 2018), section 5, for its baseline "nn".
    """

    def start(self, sample: Window) -> None:
        return None

    def __call__(self, model: Any, sample: Window, memory: None) -> Judged:
        controls = model(sample.states[0])[: sample.controls.shape[0]]
        value = jnp.mean((controls - sample.controls) ** 2)
        return Judged(value, jnp.isfinite(value), None)
