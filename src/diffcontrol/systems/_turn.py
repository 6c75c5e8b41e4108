"""Turning a direction that a state holds as cosine and sine."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def turned(
    cos: Float[Array, ""], sin: Float[Array, ""], angle: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine and sine of `atan2(sin, cos) + angle` [rad].

    By addition theorems and a division by the length, in two thirds of the time of the inverse
    tangent. A direction of length zero counts as the angle zero, as it does for `atan2`, and has no
    derivative.
    """
    size = jnp.maximum(jnp.abs(cos), jnp.abs(sin))
    # In a unit in which no square over- or underflows: powers of two, which cost no division.
    power = 2.0 ** (jnp.finfo(size.dtype).maxexp // 2 - 4)
    small, one, large = (jnp.asarray(unit, size.dtype) for unit in (1.0 / power, 1.0, power))
    unit = jnp.where(size < small, large, jnp.where(size > large, small, one))
    cos, sin = jnp.where(size == 0, one, cos * unit), sin * unit
    over = jax.lax.rsqrt(cos**2 + sin**2)
    c, s = jnp.cos(angle), jnp.sin(angle)
    return (cos * c - sin * s) * over, (sin * c + cos * s) * over


@turned.defjvp
def _turned_jvp(primals, tangents):
    # What is returned lies on the unit circle: it moves by (-sin, cos) times the change of angle.
    cos, sin, angle = primals
    d_cos, d_sin, d_angle = tangents
    c, s = turned(cos, sin, angle)
    size = jnp.maximum(jnp.abs(cos), jnp.abs(sin))
    cos, sin = cos / size, sin / size
    d = (cos * d_sin - sin * d_cos) / (size * (cos**2 + sin**2)) + d_angle
    return (c, s), (-s * d, c * d)
