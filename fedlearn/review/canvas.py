"""The canvas of the pictures of a protocol: sizes in inches, colours, and how they are saved.

Figures are made without pyplot, so neither a display nor matplotlib's global state is touched.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
INK, GREY, PALE = "#222222", "#8A8A8A", "#E6E6E6"
_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C564B")


class Canvas:
    """A figure whose axes are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        """Make a figure.

        Args:
            width: In inches; what is drawn outside is in the picture all the same.
            height: Likewise.
        """
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), facecolor="white")
        self._width, self._height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Return new axes, without the frame's upper and right side."""
        axes = self.figure.add_axes(
            (
                left / self._width,
                1 - (top + height) / self._height,
                width / self._width,
                height / self._height,
            )
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK)
        return axes

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write `text`."""
        self.figure.text(
            left / self._width, 1 - top / self._height, text, **{"color": INK, **style}
        )

    def save(self, path: Path) -> Path:
        """Write the picture as PNG, with its directory, and return `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.12)
        return path


def palette(length: int) -> list[Any]:
    """Return so many colours: told apart by colour-blind readers (Okabe & Ito, 2008) up to seven.

    Beyond that they run along the viridis scale, dark to light.
    """
    from matplotlib import colormaps

    if length <= len(_OKABE_ITO):
        return list(_OKABE_ITO[:length])
    return [colormaps["viridis"](value) for value in np.linspace(0, 0.92, length)]
