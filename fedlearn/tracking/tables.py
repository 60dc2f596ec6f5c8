"""Tables for the terminal: the result of a run, and runs side by side."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.color import Color
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fedlearn.tracking.words import (
    bare_points,
    human_bytes,
    human_seconds,
    percent,
    points,
    score_of,
)

Summary = Mapping[str, Any]
Matrix = Sequence[Sequence[float | None]]

_STATUS_STYLES = {"completed": "green", "interrupted": "yellow", "failed": "red"}
_PALE, _DEEP = (222, 235, 247), (8, 69, 148)  # ends of the scale of blues that the plots use
_FRAME = 4  # a panel's border and padding, both sides


def result_panel(summary: Summary, rows: Iterable[tuple[str, str]], width: int) -> Panel:
    """Return a run's result: the accuracy matrix, the metrics, then `rows` of facts.

    Args:
        summary: The run's summary.
        rows: Name and text of each line below, e.g. ``("sent", "1.5 MB up")``.
        width: Columns of the terminal. The metrics stand beside the matrix if both fit.
    """
    inside = width - _FRAME
    metrics = _metrics_table(summary)
    below = Table.grid(padding=(0, 2))
    below.add_column(style="dim", no_wrap=True)
    below.add_column(overflow="fold")
    for name, text in rows:
        below.add_row(name, text)
    parts: list[RenderableType] = []
    matrix, subtitle = summary["accuracy_matrix"], None
    if any(value is not None for row in matrix for value in row):
        subtitle = Text(
            f"rows: after learning i, columns: {score_of(summary)} (%) on j", style="dim"
        )
        shown = matrix_table(matrix, inside)
        if _width(shown) + 4 + _width(metrics) <= inside:
            beside = Table.grid(padding=(0, 4))
            beside.add_row(shown, metrics)
            parts += [beside, ""]
        else:
            parts += [shown, "", metrics, ""]
    parts.append(below)
    status = summary["status"]
    title = Text.assemble(
        (str(summary.get("name", "run")), "bold"), "  ", (status, _STATUS_STYLES.get(status, ""))
    )
    return Panel(
        Group(*parts),
        title=title,
        title_align="left",
        subtitle=subtitle,
        subtitle_align="left",
        padding=(1, 1),
        expand=False,
    )


def matrix_table(matrix: Matrix, width: int) -> Table:
    """Return a[i, j] in %, a row for each experience learned, a column for each tested.

    The darker, the more accurate; what was not learned yet (j > i) has no colour. Where `width`
    columns do not hold it, decimals go first, then the middle rows and columns.
    """
    length = len(matrix)
    most = max(1, (width - 8) // 6)
    decimals = 1 if length <= most else 0
    if not decimals:
        most = max(2, (width - 8) // 4)
    shown = _ends(length, most)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim")
    for _ in shown:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *(Text(_index(j), style="dim") for j in shown))
    for i in shown:
        cells = [_cell(matrix, i, j, decimals) for j in shown]
        table.add_row(_index(i), *cells)
    return table


def comparison_table(runs: Sequence[tuple[str, Summary]], width: int = 80) -> Table:
    """Return a table of runs, one row a label: mean ± sample standard deviation over its runs.

    Give runs that differ in nothing but the seed the same label. Runs that did not complete measure
    something else than those that did, so they get a row of their own. The best of each column is
    bold.

    Args:
        runs: Label and summary of each run; rows come in the order of their first run.
        width: Columns of the terminal; the more there are, the more metrics.
    """
    groups: dict[tuple[str, str], list[Summary]] = {}
    for label, summary in runs:
        groups.setdefault((label, summary["status"]), []).append(summary)
    columns = [column for column in _COLUMNS if width >= column.from_width]
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption="mean ± standard deviation over seeds; accuracies in %, differences in points",
        caption_justify="left",
    )
    table.add_column("run", overflow="fold", min_width=20)
    table.add_column("seeds", justify="right")
    for column in columns:
        renamed = column is _COLUMNS[0] and runs
        title = score_of(runs[0][1]) if renamed else column.title
        table.add_column(title, justify="right", no_wrap=True)
    best = {column.title: _best(column, groups) for column in columns}
    for (label, status), summaries in groups.items():
        name = label if status == "completed" else f"{label} ({status})"
        cells = [
            Text(
                _spread(column, summaries),
                style="bold" if _mean(column, summaries) == best[column.title] else "",
            )
            for column in columns
        ]
        style = "" if status == "completed" else _STATUS_STYLES.get(status, "")
        table.add_row(Text(name, style=style), str(len(summaries)), *cells)
    return table


class _Column:
    """One number of a summary, in the comparison."""

    def __init__(
        self,
        title: str,
        path: tuple[str, str],
        shown: Callable[[float], str],
        better: Callable[..., float] | None = None,
        from_width: int = 0,
    ) -> None:
        self.title, self.path, self.shown = title, path, shown
        self.better, self.from_width = better, from_width

    def values(self, summaries: Sequence[Summary]) -> list[float]:
        section, key = self.path
        if self.path == ("comm", "total"):
            return [float(sum(summary["comm"].values())) for summary in summaries]
        found = [(summary.get(section) or {}).get(key) for summary in summaries]
        return [float(value) for value in found if value is not None]


_COLUMNS = (
    _Column("accuracy", ("cl", "average_accuracy"), bare_points, max),
    _Column("incremental", ("cl", "average_incremental_accuracy"), bare_points, max, 120),
    _Column("forgetting", ("cl", "forgetting"), bare_points, min),
    _Column("BWT", ("cl", "bwt"), bare_points, max, 100),
    _Column("learning", ("cl", "learning_accuracy"), bare_points, max, 145),
    _Column("worst 10 %", ("client", "worst10"), bare_points, max, 132),
    _Column("kept", ("storage", "client_state_bytes_mean"), human_bytes, None, 152),
    _Column("sent", ("comm", "total"), human_bytes, None, 80),
    _Column("time", ("time", "total_s"), human_seconds, None, 72),
)


def _spread(column: _Column, summaries: Sequence[Summary]) -> str:
    values = column.values(summaries)
    if not values:
        return "-"
    mean = column.shown(statistics.fmean(values))
    if len(values) < 2 or column.better is None:
        return mean
    return f"{mean} ± {column.shown(statistics.stdev(values))}"


def _mean(column: _Column, summaries: Sequence[Summary]) -> float | None:
    values = column.values(summaries)
    return statistics.fmean(values) if values else None


def _best(column: _Column, groups: Mapping[tuple[str, str], list[Summary]]) -> float:
    """Return the best mean of the completed runs; NaN, which nothing equals, if there is none."""
    means = [
        mean
        for (_, status), summaries in groups.items()
        if status == "completed" and (mean := _mean(column, summaries)) is not None
    ]
    return column.better(means) if column.better is not None and len(means) > 1 else math.nan


def _metrics_table(summary: Summary) -> Table:
    cl, client = summary.get("cl") or {}, summary.get("client") or {}
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, key, shown in (
        (f"average {score_of(summary)}", "average_accuracy", percent),
        ("incremental", "average_incremental_accuracy", percent),
        ("learning", "learning_accuracy", percent),
        ("forgetting", "forgetting", bare_points),
        ("backward transfer", "bwt", points),
        ("forward transfer", "fwt", points),
    ):
        if cl.get(key) is not None:
            style = "bold" if key == "average_accuracy" else ""
            table.add_row(name, Text(shown(cl[key]), style=style))
    if client:
        table.add_row("clients, mean", f"{percent(client['mean'])} ± {100 * client['std']:.1f}")
        table.add_row("clients, worst 10 %", percent(client["worst10"]))
    if "jain" in client:
        table.add_row("clients, Jain index", f"{client['jain']:.3f}")
    return table


def _cell(matrix: Matrix, i: int | None, j: int | None, decimals: int) -> Text:
    if i is None or j is None:
        return Text("…", style="dim")
    value = matrix[i][j]
    if value is None:
        return Text("·", style="dim")
    text = f"{100 * value:.{decimals}f}".rjust(5 if decimals else 3)
    if j > i:
        return Text(text, style="dim")
    share = min(max(value, 0.0), 1.0)
    red, green, blue = (
        round(pale + share * (deep - pale)) for pale, deep in zip(_PALE, _DEEP, strict=True)
    )
    ink = Color.from_rgb(255, 255, 255) if share > 0.58 else Color.from_rgb(20, 20, 20)
    return Text(text, style=Style(color=ink, bgcolor=Color.from_rgb(red, green, blue)))


def _ends(length: int, most: int) -> list[int | None]:
    """Return the indices to show; None stands for those left out of the middle."""
    if length <= most:
        return list(range(length))
    first = max(1, (most - 1) // 2)
    last = max(1, most - 1 - first)
    return [*range(first), None, *range(length - last, length)]


def _index(index: int | None) -> str:
    return "…" if index is None else str(index)


def _width(table: Table) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum
