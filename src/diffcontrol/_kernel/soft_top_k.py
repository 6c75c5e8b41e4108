r"""Soft choices of k among n: projections of scores onto `{0 <= y <= upper, sum y = k}`.

    limited multi-label      max_y  x'y + temperature sum_i H_b(y_i)      H_b(y) = -y log y
                             0 < y < 1                                          - (1-y) log(1-y)
    constrained softmax      max_y  x'y - sum_i y_i log y_i               0 <= y <= upper
    constrained sparsemax    max_y  x'y - 1/2 sum_i y_i^2                 0 <= y <= upper

Each has one multiplier, of the sum, and is a formula once that is known. So only the multiplier of
the first, a root of a smooth function, needs a derivative rule. The multipliers of the others
follow from which entries are at a bound, which is found by sorting and constant under
differentiation.

Sources: Amos, Koltun, Kolter, The limited multi-label projection layer (2019); Martins and
Kreutzer, Learning what's easy: fully differentiable neural easy-first taggers (2017); Malaviya,
Ferreira, Martins, Sparse and constrained attention for neural machine translation (2018).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Numbers, as_floats, known_to

_STEPS = 200  # of bisection at the most: more than the bits of any bracket


def limited_multi_label(
    scores: Numbers, k: Numbers, temperature: Numbers = 1.0
) -> Float[Array, " n"]:
    r"""Weights in [0, 1] with sum `k`, near one for the `k` largest scores.

        y_i = sigmoid((x_i + nu) / temperature),    nu such that sum y = k

    Towards temperature 0 this is the hard choice of the `k` largest, towards infinity `k / n`
    each. For `k = 1` it is not the softmax (its entropy is another). Equal scores have equal
    weights. A score of infinity has weight 1, one of minus infinity 0, and neither has a
    derivative; with more than `k` infinite ones these share `k` equally. At `k = n` all weights
    are 1 and derivatives by scores are zero, and that by `k` is one-sided.

    Args:
        scores: `(n,)`. Batch with `jax.vmap`.
        k: how many, any real number in [0, n].
        temperature: positive [unit of the scores].

    Returns:
        `(n,)`; derivatives of every order by scores, `k` and temperature. NaN for NaN scores,
        for more than `n - k` scores of minus infinity, and for a `k` or temperature outside its
        range that is not known when traced.

    Raises:
        ValueError: for scores that are not `(n,)`, `k` or temperature out of range.

    Source: Amos, Koltun, Kolter (2019), with a temperature as in Amos and Yarats, The
    differentiable cross-entropy method (2020), section 3.2.
    """
    scores, k, temperature = _floats(scores=scores, k=k, temperature=temperature)
    _check_scalar("temperature", temperature)
    if known_to(temperature, lambda value: ~(value > 0)):
        raise ValueError(
            f"limited_multi_label: `temperature` must be positive, got {temperature}. The limit 0 "
            "is the hard choice of the k largest, whose derivative is zero."
        )
    n = _check_choice("limited_multi_label", scores, k, scores.shape[0] if scores.ndim else 0)
    z = scores / temperature  # which may be infinite where the scores are not
    high, low = z == jnp.inf, z == -jnp.inf
    finite = ~(high | low)
    count = jnp.sum(high)
    rest = k - count
    rest = jnp.where(rest < 0, 0.0, rest)  # not `clip`, which halves the derivative at the end
    z = jnp.where(finite, scores, 0.0) / temperature
    chosen = _choice(z, rest, finite)
    # As many as are infinite cannot be more than k.
    share = jnp.where(count > k, k / jnp.maximum(count, 1), 1.0)
    y = jnp.where(finite, chosen, jnp.where(high, share, 0.0))
    good = (k >= 0) & (k <= n - jnp.sum(low)) & (temperature > 0) & ~jnp.any(jnp.isnan(scores))
    return jnp.where(good, y, jnp.nan)


def _choice(z: Array, k: Array, finite: Array) -> Array:
    """`sigmoid(z + nu)` with sum `k` over the entries that are `finite`."""
    # Scores far apart would cost digits of z + nu where it matters, so they are counted from the
    # one that is nearest to the threshold.
    fixed, fixed_k = jax.lax.stop_gradient((z, k))
    rough = _root(fixed, fixed_k, finite, jnp.zeros((), z.dtype))
    nearest = fixed[jnp.argmin(jnp.where(finite, jnp.abs(fixed + rough), jnp.inf))]
    return _weights(z - nearest, k, finite, rough + nearest)


@jax.custom_jvp
def _weights(z: Array, k: Array, finite: Array, start: Array) -> Array:
    return jnp.where(finite, jax.nn.sigmoid(z + _threshold(z, k, finite, start)), 0.0)


@_weights.defjvp
def _weights_jvp(primals, tangents):
    # y = s(z + nu), w = y (1 - y), p = w / sum w:   dy = w (dz - p'dz) + p dk.
    # p is taken from logarithms: where all of y is 0 or 1 to rounding, w is 0 and p is not.
    z, k, finite, start = primals
    dz, dk, _, _ = tangents
    a = z + _threshold(z, k, finite, start)
    y = jnp.where(finite, jax.nn.sigmoid(a), 0.0)
    w, p = _slopes(a, finite)
    dz = jnp.where(finite, dz, 0.0)
    return y, w * (dz - jnp.sum(p * dz)) + p * dk


def _slopes(a: Array, finite: Array) -> tuple[Array, Array]:
    """Derivative of the sigmoid, and the same divided by its sum."""
    logarithm = jnp.where(finite, -jax.nn.softplus(a) - jax.nn.softplus(-a), -jnp.inf)
    some = jnp.any(finite)
    p = jnp.where(some, jax.nn.softmax(jnp.where(some, logarithm, 0.0)), 0.0)
    return jnp.exp(logarithm), p


@jax.custom_jvp
def _threshold(z: Array, k: Array, finite: Array, start: Array) -> Array:
    # Inside a scan JAX drops the rule below for what it holds constant in the backward pass, and
    # then differentiates this code a second time. So it has the right first derivative, too: that
    # of one step of Newton's method, whose value is zero.
    nu = jax.lax.stop_gradient(_root(*jax.lax.stop_gradient((z, k)), finite, start))
    y = jnp.where(finite, jax.nn.sigmoid(z + nu), 0.0)
    slope, miss = jax.lax.stop_gradient(jnp.sum(y * (1.0 - y))), jnp.sum(y) - k
    return nu - (miss - jax.lax.stop_gradient(miss)) / jnp.where(slope > 0, slope, 1.0)


@_threshold.defjvp
def _threshold_jvp(primals, tangents):
    z, k, finite, start = primals
    dz, dk, _, _ = tangents
    nu = _threshold(z, k, finite, start)
    w, p = _slopes(z + nu, finite)
    return nu, dk / jnp.sum(w) - jnp.sum(p * jnp.where(finite, dz, 0.0))


def _root(z: Array, k: Array, finite: Array, start: Array) -> Array:
    """The `nu` at which the sigmoids of `z + nu` sum to `k`.

    Newton's method in a bracket, on the logit of the mean in place of the sum: its slope is near
    one where all weights are small and where all are large, so it does not stall there.
    """
    n = jnp.maximum(jnp.sum(finite), 1).astype(z.dtype)
    # At k = 0 and k = n finite, but so far away that a sigmoid rounds to 0 and 1.
    tiny = float(jnp.finfo(z.dtype).tiny)
    logit = lambda p: jnp.log(jnp.maximum(p, tiny)) - jnp.log(jnp.maximum(1.0 - p, tiny))
    wanted = logit(k / n)
    low = wanted - jnp.max(jnp.where(finite, z, -jnp.inf), initial=-jnp.inf)
    high = wanted - jnp.min(jnp.where(finite, z, jnp.inf), initial=jnp.inf)
    # About the rounding of the sum itself; the last step corrects most of what is left.
    enough = float(jnp.finfo(z.dtype).eps) * np.sqrt(z.shape[0]) * k

    def unfinished(state):
        step, low, high, nu, miss = state
        middle = 0.5 * (low + high)
        return (step < _STEPS) & (jnp.abs(miss) > enough) & (middle > low) & (middle < high)

    def improve(state):
        step, low, high, nu, _ = state
        y = jnp.where(finite, jax.nn.sigmoid(z + nu), 0.0)
        total = jnp.sum(y)
        slope = jnp.sum(y * (1.0 - y))
        miss = total - k
        low, high = jnp.where(miss < 0, nu, low), jnp.where(miss < 0, high, nu)
        # d logit(S/n) / d nu = slope * n / (S (n - S))
        rest = n - total
        newton = nu - (logit(total / n) - wanted) * total * rest / (n * slope)
        inside = (newton > low) & (newton < high)
        otherwise = jnp.where(jnp.abs(miss) > enough, 0.5 * (low + high), nu)
        return step + 1, low, high, jnp.where(inside, newton, otherwise), miss

    nu = jnp.clip(start, low, high)
    unknown = jnp.asarray(jnp.inf, z.dtype)
    return jax.lax.while_loop(unfinished, improve, (0, low, high, nu, unknown))[3]


def constrained_softmax(scores: Numbers, upper: Numbers, k: Numbers = 1.0) -> Float[Array, " n"]:
    """A softmax whose weights have upper bounds: in [0, upper], with sum `k`.

        y_i = min(upper_i, exp(x_i + nu)),    nu such that sum y = k

    Args:
        scores: `(n,)`; one of infinity has the weight of its bound, one of minus infinity has 0.
        upper: `(n,)` or a scalar; not negative, infinity is none; their sum is at least `k`.
        k: the sum.

    Returns:
        `(n,)`; derivatives of every order by all three. Weights at their bound do not depend on
        scores. Where all are (`sum upper = k`) nothing depends on scores or `k`, and the derivative
        by a bound is that of the weight it holds. NaN for arguments out of range that are not known
        when traced.

    Raises:
        ValueError: for shapes that do not fit, or bounds and `k` that leave no weights.

    Source: Martins and Kreutzer (2017), section 3.1, with a sum of `k`.
    """
    x, bound, k, good = _check_bounded("constrained_softmax", scores, upper, k)
    n = x.shape[0]
    # Beyond this distance a weight is nothing beside the others.
    top = jnp.max(jnp.where(jnp.isfinite(x), x, -jnp.inf), initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    far = 1e4 + 4.0 * jnp.finfo(x.dtype).eps * jnp.abs(top)
    x = jnp.where(x == jnp.inf, top + far, x)
    # As nu grows weights reach their bounds in the order of x - log(upper), so those at a bound are
    # the first few in that order: as few as leave all others below theirs.
    some = jnp.where(bound > 0, bound, 1.0)
    place = jnp.where(bound > 0, x - jnp.log(some), jnp.inf)
    order = jnp.argsort(-jax.lax.stop_gradient(place))
    x, bound, place = x[order], bound[order], place[order]
    fixed, fixed_k = jax.lax.stop_gradient((x, k))
    held_before = jnp.cumsum(bound) - bound
    rest = fixed_k - jnp.where(jnp.isfinite(held_before), held_before, jnp.inf)
    # log sum exp of this one and all after it.
    behind = jax.lax.associative_scan(jnp.logaddexp, fixed, reverse=True)
    below = jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1.0)) + place <= behind, True)
    first = jnp.argmax(jnp.append(below, True))
    held = jnp.arange(n) < first
    s = k - jnp.sum(jnp.where(held, bound, 0.0))
    free = ~held & (x > -jnp.inf)
    shares = jax.nn.softmax(jnp.where(free, x, 0.0), where=free)
    y = jnp.where(held, bound, jnp.where(free, s * shares, 0.0))
    y = jnp.zeros_like(y).at[order].set(y)
    return jnp.where(good, y, jnp.nan)


def constrained_sparsemax(scores: Numbers, upper: Numbers, k: Numbers = 1.0) -> Float[Array, " n"]:
    """The point of `{0 <= y <= upper, sum y = k}` nearest to the scores; most weights at a bound.

        y_i = clip(x_i - nu, 0, upper_i),    nu such that sum y = k

    Args:
        scores: `(n,)`, finite; NaN comes of others that are not known when traced.
        upper: `(n,)` or a scalar; not negative, infinity is none; their sum is at least `k`.
        k: the sum.

    Returns:
        `(n,)`; first derivatives by all three, the others are zero. Where all weights are at a
        bound (with `upper = 1`, a whole `k` and scores apart: almost everywhere) the derivative by
        scores is zero and those by `k` and the bounds are one-sided: what more there is to give
        goes to the largest score that waits. NaN for arguments out of range that are not known when
        traced.

    Raises:
        ValueError: for shapes that do not fit, or bounds and `k` that leave no weights.

    Source: Malaviya, Ferreira, Martins (2018), section 3, with a sum of `k`.
    """
    x, bound, k, good = _check_bounded("constrained_sparsemax", scores, upper, k)
    if known_to(x, np.isinf):
        raise ValueError("constrained_sparsemax: `scores` must be finite.")
    good = good & jnp.all(jnp.isfinite(x))
    fixed, fixed_bound, fixed_k = jax.lax.stop_gradient((x, bound, k))
    # As nu falls from infinity, entry i starts to grow at x_i and stops at x_i - upper_i: the sum
    # is piecewise linear in nu, with a slope that these events change by one.
    events = jnp.concatenate([fixed, fixed - fixed_bound])
    steps = jnp.concatenate([jnp.ones_like(x), -jnp.ones_like(x)])
    order = jnp.argsort(-events)
    events, slopes = events[order], jnp.cumsum(steps[order])
    lengths = jnp.where(jnp.isfinite(events[1:]), events[:-1] - events[1:], jnp.inf)
    gained = jnp.where(slopes[:-1] > 0, slopes[:-1] * lengths, 0.0)
    # The piece on which the sum passes k. The next one at a vertex, which gives the derivatives
    # from the right, unless none follows.
    total = jnp.cumsum(gained)
    piece = jnp.minimum(jnp.sum(total <= fixed_k * (1 + 4 * jnp.finfo(x.dtype).eps)), total.size)
    last = jnp.max(jnp.where(gained > 0, jnp.arange(total.size), 0), initial=0)
    piece = jnp.minimum(piece, last)
    inside = jnp.where(
        jnp.isfinite(events[piece + 1]),
        0.5 * (events[piece] + events[piece + 1]),
        events[piece] - 1.0,
    )
    held = fixed - fixed_bound > inside
    free = (fixed > inside) & ~held
    number = jnp.maximum(jnp.sum(free), 1)
    nu = (jnp.sum(jnp.where(free, x, 0.0)) + jnp.sum(jnp.where(held, bound, 0.0)) - k) / number
    y = jnp.where(held, bound, jnp.where(free, x - nu, 0.0))
    return jnp.where(good, y, jnp.nan)


def _floats(**values: Numbers) -> list[Array]:
    arrays = [as_floats(name, value) for name, value in values.items()]
    dtype = functools.reduce(jnp.promote_types, [array.dtype for array in arrays])
    return [array.astype(dtype) for array in arrays]


def _check_scalar(name: str, value: Array) -> None:
    if value.ndim:
        raise ValueError(f"`{name}` must be one number, but has shape {value.shape}.")


def _check_choice(caller: str, scores: Array, k: Array, most: float | int) -> int:
    """The number of scores."""
    if scores.ndim != 1 or scores.shape[0] == 0:
        raise ValueError(
            f"{caller}: `scores` must have shape (n,), but has shape {scores.shape}. Batch with "
            "jax.vmap."
        )
    _check_scalar("k", k)
    if known_to(k, lambda value: ~((value >= 0) & (value <= most) & (value < np.inf))):
        raise ValueError(f"{caller}: `k` must lie in [0, {most:g}], got {k}.")
    return scores.shape[0]


def _check_bounded(
    caller: str, scores: Numbers, upper: Numbers, k: Numbers
) -> tuple[Array, Array, Array, Array]:
    """Arguments as arrays of one type, and whether their values make sense."""
    x, bound, k = _floats(scores=scores, upper=upper, k=k)
    n = _check_choice(caller, x, k, np.inf)
    if bound.shape not in ((), (n,)):
        raise ValueError(
            f"{caller}: `upper` must have shape () or ({n},), but has shape {bound.shape}."
        )
    bound = jnp.broadcast_to(bound, (n,))
    if known_to(bound, lambda values: ~(values >= 0)):
        raise ValueError(f"{caller}: `upper` must not be negative or NaN.")
    # To rounding, so that bounds whose sum is k are allowed. What scores minus infinity gets none.
    slack = 1 + n * float(jnp.finfo(x.dtype).eps)
    most = jnp.sum(jnp.where(x > -jnp.inf, bound, 0.0))
    enough = most * slack >= k
    if known_to(enough, np.logical_not):
        raise ValueError(
            f"{caller}: the bounds `upper` sum to {most}, less than `k`, {k}. (Scores of minus "
            "infinity do not count.)"
        )
    good = enough & (k >= 0) & (k < jnp.inf) & jnp.all(bound >= 0) & ~jnp.any(jnp.isnan(x))
    return x, bound, k, good
