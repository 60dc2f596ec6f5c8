"""Pictures of one run, from its ``metrics.jsonl``: the accuracy matrix, accuracy, forgetting.

Figures are made without pyplot, so neither a display nor matplotlib's global state is touched. The
colours are told apart by colour-blind readers (Okabe & Ito, 2008) up to seven experiences; beyond
that experiences run along the viridis scale, dark to light.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlearn import metrics
from fedlearn.review.canvas import GREY, INK, palette
from fedlearn.tracking.jsonl import read_events
from fedlearn.tracking.tracker import Event
from fedlearn.tracking.words import score_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = Sequence[Sequence[float | None]]
"""a[i, j] as JSON holds it: T lists of T fractions, None where not measured."""

PLOTS = "plots"
DPI = 200

_MOST_NUMBERS = 25  # above so many experiences, numbers in the cells would be unreadable
_MOST_NAMES = 12  # above so many, a legend names the first and the last only


class PlotsTracker:
    """Draws a run's pictures when it ends; see `write_plots`."""

    def __init__(self) -> None:
        self._run_dir = Path()

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Keep where the run's files are."""
        self._run_dir = run_dir

    def event(self, event: Event) -> None:
        """Do nothing: what there is to draw will stand in ``metrics.jsonl``."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Draw what was measured."""
        write_plots(self._run_dir)


def write_plots(run_dir: Path) -> dict[str, Path]:
    """Draw everything that a run's events hold into ``<run_dir>/plots``, finished or not.

    Returns:
        The path of each picture that could be drawn: ``accuracy_matrix``, ``forgetting`` (from two
        experiences on) and ``accuracy_over_rounds``.

    Raises:
        FileNotFoundError: The run has no ``metrics.jsonl``.
    """
    events = read_events(run_dir)
    folder = run_dir / PLOTS
    paths: dict[str, Path] = {}
    matrix, score = matrix_of(events), _score(events)
    if matrix is not None:
        path = folder / "accuracy_matrix.png"
        paths["accuracy_matrix"] = draw_accuracy_matrix(matrix, path, score)
        if len(_learned(matrix)) > 1:
            paths["forgetting"] = draw_forgetting(matrix, folder / "forgetting.png", score)
    if any(_evaluated(event) for event in events):
        path = folder / "accuracy_over_rounds.png"
        paths["accuracy_over_rounds"] = draw_accuracy_over_rounds(events, path)
    return paths


def matrix_of(events: Sequence[Mapping[str, Any]]) -> Matrix | None:
    """Return a[i, j] from the ``experience`` events, None in rows not reached; None without any."""
    rows = {e["experience"]: e["accuracy"] for e in events if e["event"] == "experience"}
    if not rows:
        return None
    length = len(next(iter(rows.values())))
    return [rows.get(i, [None] * length) for i in range(length)]


def draw_accuracy_matrix(matrix: Matrix, path: Path, score: str = "accuracy") -> Path:
    """Draw a[i, j] as a heat map with numbers; what was not learned yet (j > i) is paler."""
    from matplotlib import colormaps

    a = _array(matrix)
    length = len(a)
    side = float(np.clip(0.62 * length, 2.6, 9.0)) if length <= _MOST_NUMBERS else 5.0
    figure, axes = _figure(side + 1.9, side + 1.2, layout="compressed")
    colours = colormaps["Blues"](np.clip(np.nan_to_num(a), 0, 1) * 0.92)
    not_learned = np.triu(np.ones_like(a, dtype=bool), k=1)
    colours[not_learned, 3] = 0.35
    colours[np.isnan(a)] = (1, 1, 1, 1)
    axes.imshow(colours, aspect="equal")
    if length <= _MOST_NUMBERS:
        size = float(np.clip(side / length * 16, 5, 10))
        for i, j in zip(*np.nonzero(~np.isnan(a)), strict=True):
            dark = a[i, j] > 0.62 and j <= i
            axes.text(
                j,
                i,
                f"{100 * a[i, j]:.{1 if length <= 10 else 0}f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else GREY if j > i else INK,
            )
    step = 1 if length <= _MOST_NUMBERS else 5
    axes.set_xticks(range(0, length, step))
    axes.set_yticks(range(0, length, step))
    axes.set_xticks(np.arange(length + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(length + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after learning experience")
    axes.set_title(_headline(a, score), fontsize=10, color=INK, loc="left")
    _colour_bar(figure, axes, score)
    return _save(figure, path)


def draw_accuracy_over_rounds(events: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the accuracy on each experience, from its first round on, and the mean over those seen.

    Args:
        events: At least one evaluated ``round`` among them.
        path: Where the PNG goes.
    """
    rounds = [event for event in events if _evaluated(event)]
    length = len(rounds[0]["server"]["per_experience"])
    figure, axes = _figure(7.2, 3.6)
    for j, colour in enumerate(palette(length)):
        points = [
            (e["round"], 100 * e["server"]["per_experience"][j])
            for e in rounds
            if e["experience"] >= j and e["server"]["per_experience"][j] is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, label=_named(j))
    axes.plot(
        [e["round"] for e in rounds],
        [100 * e["server"]["accuracy"] for e in rounds],
        color=INK,
        linewidth=2.6,
        label="mean of seen",
        zorder=1.9,  # behind the curves, which it would hide in the first experience
    )
    starts = [event["round"] + 0.5 for event in events if event["event"] == "experience"]
    for boundary in starts[:-1] if len(starts) == length else starts:
        width = 0.8 if length <= _MOST_NAMES else 0.3
        axes.axvline(boundary, color=GREY, linewidth=width, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlim(min(0.5, rounds[0]["round"]), max(rounds[-1]["round"] + 0.5, 1.5))
    drawn = [value for line in axes.get_lines() for value in np.ravel(line.get_ydata())]
    lowest = min(min(drawn), 0)  # an R² may be negative, and far from it in the first rounds
    axes.set_ylim(max(lowest, -100) - 2, 102)
    axes.set_xlabel("round (dashed: the next experience begins)")
    axes.set_ylabel(f"test {_score(events)} (%)")
    _whole_ticks(axes)
    _legend(axes, length)
    return _save(figure, path)


def draw_forgetting(matrix: Matrix, path: Path, score: str = "accuracy") -> Path:
    """Draw how much of each experience was forgotten after each later one, and the mean.

    After learning i, experience j < i has lost max_{j≤l<i} a[l, j] - a[i, j]; the mean over j at
    the last i is `fedlearn.metrics.forgetting`.
    """
    a = _array(matrix)[_learned(matrix)][:, _learned(matrix)]
    length = len(a)
    lost = np.full_like(a, np.nan)
    for i in range(1, length):
        lost[i, :i] = 100 * metrics.forgetting_per_experience(a[: i + 1, : i + 1])
    figure, axes = _figure(7.2, 3.6)
    for j, colour in enumerate(palette(length)[: length - 1]):
        axes.plot(
            range(j, length),
            [0.0, *lost[j + 1 :, j]],
            color=colour,
            linewidth=1.3,
            marker="o",
            markersize=3.5,
            label=_named(j),
        )
    means = [np.mean(lost[i, :i]) for i in range(1, length)]
    axes.plot(
        range(1, length), means, color=INK, linewidth=2.6, marker="o", markersize=5, label="mean"
    )
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(-0.15, length - 0.85)
    axes.set_xlabel("after learning experience")
    axes.set_ylabel(f"{score} forgotten (points)")
    _whole_ticks(axes)
    _legend(axes, length - 1)
    return _save(figure, path)


def _evaluated(event: Mapping[str, Any]) -> bool:
    return event["event"] == "round" and event.get("server", {}).get("accuracy") is not None


def _array(matrix: Matrix) -> NDArray[np.float64]:
    return np.array(matrix, dtype=np.float64)


def _learned(matrix: Matrix) -> list[int]:
    return [i for i, row in enumerate(matrix) if any(value is not None for value in row)]


def _score(events: Sequence[Mapping[str, Any]]) -> str:
    return score_of(next((event for event in events if event["event"] == "start"), {}))


def _headline(a: NDArray[np.float64], score: str) -> str:
    summary = metrics.continual_summary(a, np.full(len(a), np.nan))
    average, forgotten = summary["average_accuracy"], summary["forgetting"]
    parts = [] if average is None else [f"average {score} {100 * average:.1f} %"]
    if forgotten is not None:
        parts.append(f"forgetting {100 * forgotten:.1f} points")
    return "\n".join(parts)


def _named(experience: int) -> str:
    return f"experience {experience}"


def _figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    return figure, axes


def _colour_bar(figure: "Figure", axes: "Axes", score: str) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    shown = LinearSegmentedColormap.from_list(
        "accuracy", colormaps["Blues"](np.linspace(0, 0.92, 256))
    )
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100), shown), ax=axes, fraction=0.046, pad=0.03
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label(f"test {score} (%)", fontsize=9)


def _whole_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: "Axes", length: int) -> None:
    """Put the legend beside the axes; of many curves it names the ends of the scale only."""
    handles, labels = axes.get_legend_handles_labels()
    if length > _MOST_NAMES:
        handles, labels = [*handles[:1], *handles[-2:]], [*labels[:1], *labels[-2:]]
    axes.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        borderaxespad=0,
    )


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    return path
