"""Figures without a window; one colour has one meaning throughout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito, told apart by most eyes.
COLOURS = {
    "nn": "#999999",
    "sysid": "#E69F00",
    "mpc.dx": "#0072B2",
    "mpc.cost": "#009E73",
    "mpc.cost.dx": "#CC79A7",
    "exact": "#0072B2",
    "Gauss-Newton": "#D55E00",
    "unrolled": "#E69F00",
    "published": "#000000",
}
SEEDS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")


def grid(rows: int, columns: int, width: float, height: float, **settings: Any):
    """A figure and its axes, `(rows, columns)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = np.percentile(np.asarray(values, float), [25, 50, 75])
    return float(low), float(middle), float(high)
