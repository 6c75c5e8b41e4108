"""How derivatives of a solution come out.

`implicit.py` differentiates the optimality conditions, `unrolled.py` the iterations. Neither
knows a solver: the run is handed in as a function.
"""
