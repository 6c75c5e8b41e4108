"""A pendulum in pictures: how it is drawn, networks from pictures to states and back, training.

DiLQR's architecture (appendix A.3) for grey pictures: four of them stacked -> five convolutions
with ReLU and max-pooling -> three fully connected layers -> cosine, sine and angular speed; the
decoder mirrors it with five transposed convolutions and a sigmoid. The line is white on black, so
three colours would be three copies. There is no batch normalisation, which would make what a
picture means depend on the others of its batch; with He's initial weights training needs none.

An angle that the encoder misses by 0.01 rad is a speed that is wrong by 0.2 rad/s. So `refined`
moves the angles in the last two pictures to where the decoder draws what was seen.

Networks compute in float32 also where the controller computes in float64.
"""

import base64
import functools
import math
import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc

from ._sweep import say

DT = 0.05  # [s]
FRAMES = 4
BATCH = 64  # windows a step of the first training
CHANNELS = (8, 16, 32, 32, 32)
SPEED = 8.0  # [rad/s], of a fall from upright to hanging; scales what the networks see


@functools.partial(jax.jit, static_argnames="size")
def render(states, size: int):
    """Pictures `(..., size, size)` in [0, 1] of states `(..., 3)`, upright upwards.

    The line runs from the centre to 0.45 of the side, 1/16 of the side thick. A pixel is as bright
    as the share of it that the line covers, but for corners: linear in its distance to the line.
    """
    cos, sin = (states[..., i, None, None].astype(jnp.float32) for i in (0, 1))
    at = jnp.arange(size, dtype=jnp.float32) + 0.5 - size / 2
    right, up = at[None, :], -at[:, None]
    along = jnp.clip(right * sin + up * cos, 0.0, 0.45 * size)
    distance = jnp.sqrt((right - along * sin) ** 2 + (up - along * cos) ** 2 + 1e-12)
    return jnp.clip(size / 32 + 0.5 - distance, 0.0, 1.0)


class Encoder(eqx.Module):
    """Four stacked pictures `(4, size, size)`, the oldest first -> state `(3,)`, on the circle."""

    convolutions: list[eqx.nn.Conv2d]
    layers: list[eqx.nn.Linear]

    def __init__(self, size: int, rng: np.random.Generator):
        sizes = (FRAMES, *CHANNELS)
        self.convolutions = [
            _he(eqx.nn.Conv2d, sizes[i], sizes[i + 1], 3, padding=1, rng=rng) for i in range(5)
        ]
        self.layers = _dense((CHANNELS[-1] * (size // 32) ** 2, 128, 64, 3), rng)

    def __call__(self, pictures):
        x = pictures.astype(jnp.float32)
        for convolution in self.convolutions:
            x = _halved(jax.nn.relu(convolution(x)))
        cos, sin, speed = _through(self.layers, x.reshape(-1)).astype(float)
        norm = jnp.sqrt(cos**2 + sin**2 + 1e-8)
        return jnp.stack([cos / norm, sin / norm, SPEED * speed])


class Decoder(eqx.Module):
    """State `(3,)` -> picture `(size, size)` in [0, 1]."""

    layers: list[eqx.nn.Linear]
    convolutions: list[eqx.nn.ConvTranspose2d]
    side: int = eqx.field(static=True)

    def __init__(self, size: int, rng: np.random.Generator):
        self.side = size // 32
        self.layers = _dense((3, 64, 128, CHANNELS[-1] * self.side**2), rng)
        sizes = (*CHANNELS[::-1], 1)
        # With stride 2 a kernel of 4 meets each pixel with 2 x 2 of its weights.
        transposed = functools.partial(_he, eqx.nn.ConvTranspose2d, share=4, stride=2, padding=1)
        self.convolutions = [transposed(sizes[i], sizes[i + 1], 4, rng=rng) for i in range(5)]

    def __call__(self, state):
        x = jnp.stack([state[0], state[1], state[2] / SPEED]).astype(jnp.float32)
        x = jax.nn.relu(_through(self.layers, x)).reshape(-1, self.side, self.side)
        for convolution in self.convolutions[:-1]:
            x = jax.nn.relu(convolution(x))
        # Most of a picture is black.
        return jax.nn.sigmoid(self.convolutions[-1](x)[0] - 3.0)


class Model(eqx.Module):
    """Everything that is learned; the physical parameters by their logarithms."""

    encoder: Encoder
    decoder: Decoder
    logarithms: dict[str, jax.Array]


def refined(model: Model, pictures):
    """The state in the last of four pictures, from the encoder's and two Gauss-Newton steps.

    They fit the angles in the last two pictures, each through the decoder. The speed is the
    difference of the two: the pendulum's Euler step says so, whatever the torque.
    """
    state = model.encoder(pictures)
    angle, speed = jnp.arctan2(state[1], state[0]), state[2]

    def fitted(angle, picture):
        draw = lambda angle: model.decoder(jnp.stack([jnp.cos(angle), jnp.sin(angle), speed]))
        for _ in range(2):
            found, slope = jax.jvp(draw, (angle,), (jnp.ones_like(angle),))
            # About 2000 for a clean line; where nothing is drawn yet, the 1 keeps a step small.
            angle -= jnp.sum(slope * (found - picture)) / (jnp.sum(slope**2) + 1.0)
        return angle

    before, now = jax.vmap(fitted)(jnp.stack([angle - DT * speed, angle]), pictures[-2:])
    return jnp.stack([jnp.cos(now), jnp.sin(now), (now - before) / DT])


@eqx.filter_jit
def estimated(model: Model, pictures, refine: bool = True):
    """States in the last of the pictures `(batch, FRAMES, size, size)`."""
    return jax.vmap(functools.partial(refined, model) if refine else model.encoder)(pictures)


@eqx.filter_jit
def drawn(model: Model, states):
    """Pictures of states `(batch, steps, 3)`."""
    return jax.vmap(jax.vmap(model.decoder))(states)


@eqx.filter_jit
def next_picture(model: Model, pictures):
    """What the auto-encoder predicts from `(batch, FRAMES, size, size)`."""
    return jax.vmap(lambda pictures: model.decoder(model.encoder(pictures)))(pictures)


def continued(model: Model, pictures, count: int):
    """The next `count` pictures, each predicted from the last four: `(batch, count, ...)`."""
    for _ in range(count):  # XLA's convolutions are slow inside its own loops
        following = next_picture(model, pictures[:, -FRAMES:])
        pictures = jnp.concatenate([pictures, following[:, None]], axis=1)
    return pictures[:, FRAMES:]


# --- Training ------------------------------------------------------------------------------------


def windows(runs, key, count: int, ahead: int):
    """`(count, FRAMES + ahead, 3)` of recorded states: of what is seen and of what follows."""
    which, start = jax.random.split(key)
    which = jax.random.randint(which, (count,), 0, len(runs))
    start = jax.random.randint(start, (count,), 0, runs.shape[1] + 1 - FRAMES - ahead)
    cut = lambda i, k: jax.lax.dynamic_slice_in_dim(runs[i], k, FRAMES + ahead)
    return jax.vmap(cut)(which, start)


def random_window(key):
    """Four states of a pendulum under random torques."""
    keys = jax.random.split(key, 3)
    angle = jax.random.uniform(keys[0], minval=-jnp.pi, maxval=jnp.pi)
    speed = jax.random.uniform(keys[1], minval=-1.2 * SPEED, maxval=1.2 * SPEED)
    torques = jax.random.uniform(keys[2], (FRAMES - 1, 1), minval=-2.0, maxval=2.0)
    first = jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])
    step = lambda x, u: (dc.systems.Pendulum()(x, u, 0),) * 2
    return jnp.concatenate([first[None], jax.lax.scan(step, first, torques)[1]])


def perceive(model: Model, key, runs, size: int):
    """Loss of the first training: states of pictures, and pictures of states.

    The decoder sees the true states: from the encoder's it would learn pictures blurred and bent by
    the encoder's errors, to which `refined` is sensitive. Half of the windows are of the expert's
    runs, half of a pendulum under random torques.
    """
    keys, half = jax.random.split(key), BATCH // 2
    others = jax.vmap(random_window)(jax.random.split(keys[1], half))
    states = jnp.concatenate([windows(runs, keys[0], half, 0), others])
    pictures, states = render(states, size), states[:, -1]
    # An angle weighs about as much as in pixels of the line.
    missed = (jax.vmap(model.encoder)(pictures) - states) / jnp.array([0.4, 0.4, SPEED])
    difference = jax.vmap(model.decoder)(states) - pictures[:, -1]
    return jnp.mean(missed**2) + jnp.mean(difference**2)


def predict(model: Model, states, size: int):
    """Loss of the auto-encoder, of all pictures after the first four."""
    pictures = render(states, size)
    found = continued(model, pictures[:, :FRAMES], states.shape[1] - FRAMES)
    return jnp.mean((found - pictures[:, FRAMES:]) ** 2)


def train(what: str, model: Model, loss, steps: int, rate: float, seed: int, wait: int = 0):
    """Adam with a falling rate; a larger one for the physical parameters.

    Where full torque changes sides, plans have steep derivatives: of the gradient with respect to
    the physical parameters only the direction counts, and that of the networks is clipped.

    Args:
        wait: steps before the networks are learned.
        loss: (model, key, share of the steps that are done) -> loss, share of samples left out.

    Returns:
        The model, and of every step loss, share left out, and gravity and mass.
    """
    learn, fixed = eqx.partition(model, eqx.is_array)
    falling = lambda rate, steps: optax.cosine_decay_schedule(rate, steps, alpha=0.02)
    networks = optax.join_schedules(
        [optax.constant_schedule(0.0), falling(rate, steps - wait)], [wait]
    )
    optimiser = optax.partition(
        {
            # As one vector: 36 arrays would be compiled one by one.
            "networks": optax.flatten(
                optax.chain(optax.clip_by_global_norm(0.1), optax.adam(networks))
            ),
            "physics": optax.chain(
                optax.normalize_by_update_norm(), optax.adam(falling(0.03, steps))
            ),
        },
        Model("networks", "networks", "physics"),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(learn, state, count):
        key = jax.random.fold_in(jax.random.key(seed), count)
        of = lambda learn: loss(eqx.combine(learn, fixed), key, count / steps)
        (value, left_out), gradient = jax.value_and_grad(of, has_aux=True)(learn)
        update, state = optimiser.update(gradient, state, learn)
        physics = {name: jnp.exp(v) for name, v in learn.logarithms.items()}
        return optax.apply_updates(learn, update), state, (value, left_out, physics)

    learn = jax.tree.map(jnp.array, learn)  # copies, since the step reuses their memory
    state, told = optimiser.init(learn), []
    for count in range(steps):
        learn, state, news = step(learn, state, count)
        told.append(jax.device_get(news))
        if (count + 1) % max(1, steps // 4) == 0:
            say(f"  seed {seed}, {what}: step {count + 1} of {steps}, loss {told[-1][0]:.2g}")
    return eqx.combine(learn, fixed), jax.tree.map(lambda *rows: np.stack(rows), *told)


# --- Layers --------------------------------------------------------------------------------------


def _he(kind, *sizes, rng, share: int = 1, **settings):
    """A layer with normal weights of variance 2 / inputs and no offset, in float32."""
    # Only shapes: weights of its own would be drawn in vain.
    layer = eqx.filter_eval_shape(kind, *sizes, key=jax.random.key(0), **settings)
    inputs = math.prod(layer.weight.shape[1:]) / share
    # NumPy's numbers, since JAX compiles for every shape.
    weight = math.sqrt(2.0 / inputs) * rng.standard_normal(layer.weight.shape)
    new = (jnp.asarray(weight, jnp.float32), jnp.zeros(layer.bias.shape, jnp.float32))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)


def _dense(sizes, rng):
    return [_he(eqx.nn.Linear, sizes[i], sizes[i + 1], rng=rng) for i in range(len(sizes) - 1)]


def _through(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(layer(x))
    return layers[-1](x)


def _halved(x):
    """Max-pooling 2 x 2 of `(channels, size, size)`; its gradient is quick as a maximum."""
    channels, size, _ = x.shape
    return x.reshape(channels, size // 2, 2, size // 2, 2).max(axis=(2, 4))


# --- For the figure ------------------------------------------------------------------------------


def packed(pictures) -> dict:
    """Pictures as JSON: bytes, compressed."""
    values = np.round(255 * np.clip(np.asarray(pictures), 0, 1)).astype(np.uint8)
    text = base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
    return {"shape": list(values.shape), "zlib, base64": text}


def unpacked(stored: dict):
    """Pictures in [0, 1] again."""
    raw = zlib.decompress(base64.b64decode(stored["zlib, base64"]))
    return np.frombuffer(raw, np.uint8).reshape(stored["shape"]) / 255.0


def strips(ax, sheet, names):
    """One strip of pictures a name, below each other."""
    size = sheet[names[0]].shape[1]
    framed = lambda picture: np.pad(picture, ((1, 1), (1, 1)), constant_values=0.4)
    rows = [np.concatenate([framed(p) for p in sheet[name]], axis=1) for name in names]
    ax.imshow(np.concatenate(rows), cmap="gray", vmin=0.0, vmax=1.0)
    ax.set_xticks([])
    ax.set_yticks((np.arange(len(names)) + 0.5) * (size + 2), names, fontsize=8)
