"""Who learns what when: a picture of the clients' experiences over the rounds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.review.canvas import GREY, INK, PALE, Canvas, palette
from fedlearn.review.topics import MOST_NAMES, draw_legend, topic_names
from fedlearn.schedule import Schedule
from fedlearn.types import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLIENTS = 40
"""Of more clients, the picture says how many learn what."""
MOST_TOPICS = 50
"""Of more topics, that picture says in which of their experiences clients are."""

_WIDTH, _BAR = 7.0, 0.72  # inches; the part of a row that a bar takes


def draw_clock(scenario: Scenario, schedule: Schedule, path: Path) -> Path:
    """Draw what each client learns in which rounds, whether it is sampled for them or not.

    Few clients: a bar for each experience, in the colour of its topic; hatched while the client is
    away. Many: the number of clients that learn each topic in each round, on top of each other;
    what is missing at the top is away or in no experience.
    """
    orders, names = scenario.orders.numpy(), topic_names(scenario)
    if scenario.num_clients <= MOST_CLIENTS:
        height = max(min(0.28 * scenario.num_clients, 5), 0.17 * scenario.num_clients, 0.6)
        what = "what each client learns"
    else:
        height, what = 3.6, "how many clients learn what"
        if len(names) > MOST_TOPICS:
            orders = np.broadcast_to(np.arange(orders.shape[1]), orders.shape)
            names = [f"experience {index}" for index in range(orders.shape[1])]
            what = "in which of their experiences clients are"
    canvas = Canvas(_WIDTH, height)
    axes = canvas.axes(0, 0, _WIDTH, height)
    end = draw_legend(canvas, names, _WIDTH + 0.15, 0)
    if scenario.num_clients <= MOST_CLIENTS:
        _draw_bars(axes, orders, schedule, palette(len(names)))
        if schedule.away is not None:
            canvas.text(_WIDTH + 0.15, end + 0.1, "hatched: away", fontsize=8, va="center")
    else:
        _draw_areas(axes, count_by_round(orders, schedule, len(names)), scenario.num_clients)
    axes.set_xlim(0.5, schedule.num_rounds + 0.5)
    axes.set_xlabel("round", fontsize=9, color=INK)
    canvas.text(0, -0.12, f"{scenario.name}: {what}", fontsize=10, va="bottom")
    return canvas.save(path)


def count_by_round(
    topics: NDArray[np.int64], schedule: Schedule, num_topics: int
) -> NDArray[np.int64]:
    """Return how many clients are there and learning each topic in each round: (M, R).

    Args:
        topics: (K, T) in [0, num_topics): of each client's experiences.
        schedule: When these are; rounds in which a client is away do not count.
        num_topics: M.
    """
    begins, ends = schedule.begins, schedule.ends + 1
    spans = [(begins, ends, 1)]
    if schedule.away is not None:
        away = np.maximum(begins, schedule.away[:, :1]), np.minimum(ends, schedule.away[:, 1:])
        spans.append((*away, -1))
    steps = np.zeros((num_topics, schedule.num_rounds + 2), dtype=np.int64)
    for begin, end, sign in spans:
        lasts = begin < end
        np.add.at(steps, (topics[lasts], begin[lasts]), sign)
        np.add.at(steps, (topics[lasts], end[lasts]), -sign)
    counts: NDArray[np.int64] = steps.cumsum(1)[:, 1:-1]
    return counts


def _draw_bars(
    axes: "Axes", topics: NDArray[np.int64], schedule: Schedule, colours: list[Any]
) -> None:
    """Draw a row for each client."""
    num_clients, length = topics.shape
    rows = np.arange(num_clients)
    for index in range(length):
        begins, ends = schedule.begins[:, index], schedule.ends[:, index] + 1
        inks = [colours[topic] for topic in topics[:, index]]
        axes.barh(
            rows, ends - begins, _BAR, begins - 0.5, color=inks, edgecolor="white", linewidth=0.6
        )
    if schedule.away is not None:
        start, stop = schedule.away[:, 0], np.minimum(schedule.away[:, 1], schedule.num_rounds + 1)
        gone = np.flatnonzero(start < stop)
        place = gone, (stop - start)[gone], _BAR + 0.05, start[gone] - 0.5
        axes.barh(*place, color="white", alpha=0.8, linewidth=0)
        axes.barh(*place, facecolor="none", edgecolor=GREY, hatch="////", linewidth=0)
    if len(colours) > MOST_NAMES:
        _number(axes, topics, schedule, colours)
    axes.set_ylim(num_clients - 0.5, -0.5)
    axes.set_ylabel("client", fontsize=9, color=INK)
    axes.set_yticks(range(0, num_clients, 1 if num_clients <= 25 else 5))
    axes.tick_params(axis="y", length=0)


def _number(
    axes: "Axes", topics: NDArray[np.int64], schedule: Schedule, colours: list[Any]
) -> None:
    """Write the numbers of topics, which their colours do not tell, into the bars with room."""
    room = _WIDTH / schedule.num_rounds  # inches a round
    for (client_id, index), topic in np.ndenumerate(topics):
        begin, end = (int(each[client_id, index]) for each in (schedule.begins, schedule.ends))
        if (end + 1 - begin) * room > 0.09 * len(str(topic)):
            dark = sum(colours[topic][:3]) < 1.6
            axes.text(
                (begin + end) / 2,
                client_id,
                str(topic),
                fontsize=7,
                color="white" if dark else INK,
                ha="center",
                va="center_baseline",
            )


def _draw_areas(axes: "Axes", counts: NDArray[np.int64], num_clients: int) -> None:
    """Draw the numbers of clients (M, R) on top of each other."""
    edges = np.arange(counts.shape[1] + 1) + 0.5
    tops = counts.cumsum(0)
    for number, top, colour in zip(counts, tops, palette(len(counts)), strict=True):
        axes.stairs(top, edges, baseline=top - number, fill=True, color=colour, linewidth=0)
    axes.set_ylim(0, num_clients)
    axes.set_ylabel("clients", fontsize=9, color=INK)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
