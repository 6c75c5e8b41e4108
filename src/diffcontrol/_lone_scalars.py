"""Which of a function's scalars it leaves scalars until they meet its other arguments.

Where many samples share a parameter, its derivative is a sum over all of them. That sum may be
taken at the end, over derivatives that each sample has gathered for itself, as if it had a
parameter of its own. But then all that is made of the parameter alone is differentiated once for
each sample: a product of two masses costs nothing, the exponential of a matrix far too much.
"""

from collections.abc import Callable, Sequence

import jax
from jax.extend.core import Literal, jaxprs_in_params
from jaxtyping import Array


def lone_scalars(
    function: Callable, scalars: Sequence[Array], others: object, most: int
) -> list[bool]:
    """Whether of each scalar `function(scalars, others)` makes nothing that has more than `most`
    entries, by single operations, before it meets what depends on `others`.

    What a loop, a branch or another function is given counts as more.
    """
    jaxpr = jax.make_jaxpr(function)(scalars, others).jaxpr
    mine, theirs = jaxpr.invars[: len(scalars)], set(jaxpr.invars[len(scalars) :])
    made_of = {var: {var} for var in mine}
    more: set = set()
    for equation in jaxpr.eqns:
        inputs = [var for var in equation.invars if not isinstance(var, Literal)]
        of = set().union(*(made_of.get(var, set()) for var in inputs))
        meets = not theirs.isdisjoint(inputs)
        large = any(var.aval.size > most for var in equation.outvars)
        nested = next(iter(jaxprs_in_params(equation.params)), None) is not None
        if nested or (large and not meets):
            more |= of
        if meets:
            theirs.update(equation.outvars)
        else:
            made_of.update(dict.fromkeys(equation.outvars, of))
    return [var not in more for var in mine]
