"""Plots of reports as inline SVG in one style."""

import io
from collections.abc import Callable
from typing import Any

BLUE, GREEN, GREY, RED, ORANGE = "#5b8def", "#1f9d61", "#9aa5b1", "#d64545", "#e08e2b"


def svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """An SVG element; `size` in inches. The same figures give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    text = io.StringIO()
    # The ids of clip paths are random otherwise.
    with matplotlib.rc_context({"svg.hashsalt": "lorikeet"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    element = text.getvalue()
    return element[element.index("<svg") :]


def plain(axes: Any) -> Any:
    """Apply the common style: no frame, a light grid behind the values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6ebf0", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
