"""Planners: algorithms that improve a plan for so many iterations and promise nothing about it.

They need no derivatives of the problem, or, as gradient descent, only first ones; nothing says that
their answer is stationary. So their derivative is that of the computation itself: what one would
have got, with the same random numbers, for a problem slightly different.
"""
