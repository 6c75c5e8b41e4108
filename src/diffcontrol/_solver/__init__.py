"""Algorithms, one a file. `box_ddp.py` is the loop that `ilqr.py` and `ddp.py` share."""
