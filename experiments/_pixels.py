"""A pendulum in pictures: how it is drawn, the networks from pictures to states and back, strips.

DiLQR's architecture (appendix A.3) for grey pictures: four of them stacked -> five convolutions
with ReLU and max-pooling -> three fully connected layers -> cosine, sine and angular speed; the
decoder mirrors it with five transposed convolutions and a sigmoid. The line is white on black, so
three colours would be three copies. There is no batch normalisation, which would make what a
picture means depend on the others of its batch; with He's initial weights training needs none.

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

FRAMES = 4
CHANNELS = (8, 16, 32, 32, 32)
SPEED = 8.0  # [rad/s], of a fall from upright to hanging; scales what the networks see


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

    def __init__(self, size: int, key):
        keys = jax.random.split(key, 8)
        sizes = (FRAMES, *CHANNELS)
        self.convolutions = [
            _he(eqx.nn.Conv2d, sizes[i], sizes[i + 1], 3, padding=1, key=keys[i]) for i in range(5)
        ]
        self.layers = _dense((CHANNELS[-1] * (size // 32) ** 2, 128, 64, 3), keys[5:])

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

    def __init__(self, size: int, key):
        keys = jax.random.split(key, 8)
        self.side = size // 32
        self.layers = _dense((3, 64, 128, CHANNELS[-1] * self.side**2), keys[5:])
        sizes = (*CHANNELS[::-1], 1)
        # With stride 2 a kernel of 4 meets each pixel with 2 x 2 of its weights.
        transposed = functools.partial(_he, eqx.nn.ConvTranspose2d, share=4, stride=2, padding=1)
        self.convolutions = [transposed(sizes[i], sizes[i + 1], 4, key=keys[i]) for i in range(5)]

    def __call__(self, state):
        x = jnp.stack([state[0], state[1], state[2] / SPEED]).astype(jnp.float32)
        x = jax.nn.relu(_through(self.layers, x)).reshape(-1, self.side, self.side)
        for convolution in self.convolutions[:-1]:
            x = jax.nn.relu(convolution(x))
        # Most of a picture is black.
        return jax.nn.sigmoid(self.convolutions[-1](x)[0] - 3.0)


@eqx.filter_jit
def perceived(encoder: Encoder, pictures):
    return jax.vmap(encoder)(pictures)


@eqx.filter_jit
def drawn(decoder: Decoder, states):
    """Pictures of states `(batch, steps, 3)`."""
    return jax.vmap(jax.vmap(decoder))(states)


@eqx.filter_jit
def next_picture(encoder: Encoder, decoder: Decoder, pictures):
    """What the auto-encoder predicts from `(batch, FRAMES, size, size)`."""
    return jax.vmap(lambda pictures: decoder(encoder(pictures)))(pictures)


def continued(encoder: Encoder, decoder: Decoder, pictures, count: int):
    """The next `count` pictures, each predicted from the last four: `(batch, count, ...)`."""
    for _ in range(count):  # XLA's convolutions are slow inside its own loops
        following = next_picture(encoder, decoder, pictures[:, -FRAMES:])
        pictures = jnp.concatenate([pictures, following[:, None]], axis=1)
    return pictures[:, FRAMES:]


def _he(kind, *sizes, key, share: int = 1, **settings):
    """A layer with normal weights of variance 2 / inputs and no offset, in float32."""
    # Only shapes: weights of its own would be drawn in vain.
    layer = eqx.filter_eval_shape(kind, *sizes, key=key, **settings)
    inputs = math.prod(layer.weight.shape[1:]) / share
    weight = jnp.sqrt(2.0 / inputs) * jax.random.normal(key, layer.weight.shape)
    new = (weight.astype(jnp.float32), jnp.zeros(layer.bias.shape, jnp.float32))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, new)


def _dense(sizes, keys):
    return [_he(eqx.nn.Linear, sizes[i], sizes[i + 1], key=keys[i]) for i in range(len(sizes) - 1)]


def _through(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(layer(x))
    return layers[-1](x)


def _halved(x):
    """Max-pooling 2 x 2 of `(channels, size, size)`; its gradient is quick as a maximum."""
    channels, size, _ = x.shape
    return x.reshape(channels, size // 2, 2, size // 2, 2).max(axis=(2, 4))


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
