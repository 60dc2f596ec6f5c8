"""Pictures and tables of a protocol: what they hold, and that they can be read."""

import itertools
import os
import re
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from fedlearn.heterogeneity import measure
from fedlearn.review import canvas as canvas_module
from fedlearn.review.canvas import Canvas, palette
from fedlearn.review.clock import count_by_round, draw_clock
from fedlearn.review.partition import draw_partition
from fedlearn.review.protocol import headline, numbers_table, sizes_table, write_pictures
from fedlearn.review.samples import COLUMNS, draw_samples, drawable
from fedlearn.review.topics import topic_names
from fedlearn.types import Samples
from scenarios.build import build_scenario
from scenarios.clocks import Clock
from scenarios.dataset import Dataset
from scenarios.datasets.synthetic import synthetic
from scenarios.partitions import Dirichlet, Iid
from scenarios.skews import Skew
from scenarios.streams.class_incremental import ClassIncremental
from scenarios.streams.domain_incremental import Permuted, Rotated
from scenarios.streams.independent import Independent
from scenarios.streams.instance_incremental import InstanceIncremental


def protocol(
    num_clients=5,
    stream=None,
    clock=None,
    partition=None,
    skew=None,
    dataset=None,
    num_classes=10,
    rounds=4,
):
    """Build a scenario and its schedule."""
    dataset = dataset or synthetic(num_classes, (1, 6, 6), 110, 12)
    clock = clock or Clock()
    scenario = build_scenario(
        "toy",
        dataset,
        stream or ClassIncremental(5),
        partition or Dirichlet(0.5, min_samples=0),
        num_clients,
        0.1,
        3,
        clock,
        skew,
    )
    return scenario, clock.schedule(num_clients, scenario.num_experiences, rounds, 3)


def regression():
    """Build a dataset of real targets."""
    y = torch.tensor([1.0, -1.0] * 30)[:, None]
    samples = Samples(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), y)
    return Dataset("line", samples, samples, 1, "")


def figure_of(monkeypatch, draw, *arguments):
    """Draw, and return the figure instead of saving it."""
    figures = []
    monkeypatch.setattr(Canvas, "save", lambda self, path: figures.append(self.figure) or path)
    draw(*arguments, None)
    return figures[0]


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def boxes_of(monkeypatch, figure):
    """Draw, and return the texts that can be seen, each with the pixels that it takes."""
    renderer, seen = FigureCanvasAgg(figure).get_renderer(), []
    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", lambda self, *_: seen.append(self))
        figure.draw(renderer)
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in seen
        if text.get_text() and text.get_visible()
    ]


def bubbles_of(axes):
    """Return the bubbles of a panel as {(column, client): samples in units of the area}."""
    (bubbles,) = [each for each in axes.collections if isinstance(each, EllipseCollection)]
    widths = 2 * bubbles._widths
    return {tuple(at): width**2 for at, width in zip(bubbles.get_offsets(), widths, strict=True)}


def touching(bubbles):
    """Return the pairs of bubbles that are nearer to each other than their radii allow."""
    return [
        (one, other)
        for (one, area), (other, another) in itertools.combinations(bubbles.items(), 2)
        if np.hypot(*np.subtract(one, other)) < (np.sqrt(area) + np.sqrt(another)) / 2
    ]


# --- files --------------------------------------------------------------------------------------


def test_the_pictures_are_written_and_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas_module, "DPI", 40)
    paths = write_pictures(*protocol(), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["partition.png", "clock.png", "samples.png"]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    again = write_pictures(*protocol(), tmp_path / "new" / "folder")
    assert [path.read_bytes() for path in again] == contents


def test_inputs_that_are_no_images_have_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas_module, "DPI", 40)
    rows = protocol(dataset=synthetic(10, (7,), 20, 2))
    assert [path.name for path in write_pictures(*rows, tmp_path)] == ["partition.png", "clock.png"]
    assert not drawable(protocol(dataset=synthetic(10, (2, 4, 4), 20, 2))[0])  # of which colours?
    assert drawable(protocol(dataset=synthetic(10, (3, 4, 4), 20, 2))[0])


SHAPES = {
    "one client": {"num_clients": 1, "stream": InstanceIncremental(1)},
    "five clients": {},
    "forty clients": {"num_clients": 40, "clock": Clock(order="shuffled", pausing=0.5)},
    "a thousand clients": {"num_clients": 1000, "clock": Clock(delay=10, leaving=0.3)},
    "many experiences": {"num_clients": 12, "stream": Independent(20, 3)},
    "many topics": {"num_clients": 60, "stream": Independent(8, 3)},
    "a hundred classes": {"num_classes": 100, "stream": ClassIncremental(10)},
    "two hundred classes": {"num_classes": 200, "stream": ClassIncremental(10)},
    "domains": {"stream": Rotated(5), "skew": Skew(rotation=30), "num_clients": 25},
    "a regression": {"dataset": regression(), "stream": InstanceIncremental(6), "partition": Iid()},
    "a large regression": {
        "dataset": regression(),
        "stream": Permuted(3),
        "partition": Iid(),
        "num_clients": 50,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_lies_on_another(shape, monkeypatch):
    scenario, schedule = protocol(**SHAPES[shape])
    drawn = [
        figure_of(monkeypatch, draw_partition, scenario),
        figure_of(monkeypatch, draw_clock, scenario, schedule),
    ]
    if drawable(scenario):
        drawn.append(figure_of(monkeypatch, draw_samples, scenario))
    for figure in drawn:
        boxes = boxes_of(monkeypatch, figure)
        assert len(boxes) > 1
        for (one, box), (other, another) in itertools.combinations(boxes, 2):
            apart = (
                min(box.x1, another.x1) - max(box.x0, another.x0) < 1
                or min(box.y1, another.y1) - max(box.y0, another.y0) < 1
            )
            assert apart, f"{one!r} lies on {other!r}"


# --- who holds what -----------------------------------------------------------------------------


def test_bubbles_are_in_proportion_to_samples_and_do_not_touch(monkeypatch):
    scenario, _ = protocol(num_clients=7, clock=Clock(order="shuffled"))
    figure = figure_of(monkeypatch, draw_partition, scenario)
    per_sample, panels = set(), figure.axes
    for index, axes in enumerate(panels):
        classes = [int(label.get_text()) for label in axes.get_xticklabels()]
        bubbles = bubbles_of(axes)
        held = {}
        for client_id in range(7):
            y = scenario.train.y[scenario.shares[client_id, index]]
            for label, count in zip(*y.unique(return_counts=True), strict=True):
                held[classes.index(label), client_id] = int(count)
        assert bubbles.keys() == held.keys()
        per_sample |= {round(area / held[at], 9) for at, area in bubbles.items()}
        assert not touching(bubbles)
    assert len(panels) == 5
    assert len(per_sample) == 1
    colours = {tuple(each) for axes in panels for each in axes.collections[0].get_facecolors()}
    assert len(colours) == 5
    assert {"topic 0: classes 0, 1", "topic 4: classes 8, 9"} <= set(texts_of(figure))
    totals = [f"{total:,}" for total in scenario.shares.sizes().sum(1).tolist()]
    assert set(totals) <= set(texts_of(figure))


@pytest.mark.parametrize(
    "shape",
    [
        {"dataset": regression(), "stream": InstanceIncremental(2)},
        {"num_clients": 1, "stream": InstanceIncremental(2)},
        {"stream": Permuted(2)},
    ],
)
def test_bubbles_of_equals_fill_their_cells_and_do_not_touch(shape, monkeypatch):
    scenario, _ = protocol(**shape, partition=Iid())
    for axes in figure_of(monkeypatch, draw_partition, scenario).axes:
        bubbles = bubbles_of(axes)
        assert not touching(bubbles)
        assert 0.8 < np.sqrt(max(bubbles.values())) < 1


def test_domains_of_the_same_samples_are_one_panel(monkeypatch):
    figure = figure_of(monkeypatch, draw_partition, protocol(stream=Permuted(4))[0])
    assert len(figure.axes) == 1
    assert "the same samples in each of 4 experiences" in texts_of(figure)
    dealt = protocol(num_clients=1, stream=InstanceIncremental(5), partition=Iid())[0]
    assert dealt.shares.sizes().unique().numel() <= 2  # as many, but not the same
    assert len(figure_of(monkeypatch, draw_partition, dealt).axes) == 5


@pytest.mark.parametrize("shape", [{"num_clients": 41}, {"num_classes": 120}])
def test_where_bubbles_have_no_room_shares_are_drawn(shape, monkeypatch):
    scenario, _ = protocol(**shape)
    figure = figure_of(monkeypatch, draw_partition, scenario)
    clients, experiences, sizes, quantiles = figure.axes
    shown = clients.images[0].get_array()
    assert shown.shape == (scenario.num_clients, scenario.num_classes)
    assert np.allclose(shown.sum(1), 1)
    main = shown.argmax(1)
    assert (np.diff(main) >= 0).all()
    stream = experiences.images[0].get_array()
    assert [tuple(np.flatnonzero(row)) for row in stream] == list(scenario.classes)
    widths = sorted(bar.get_width() for bar in sizes.patches)
    assert widths == sorted(scenario.shares.sizes().sum(1).tolist())
    medians = [segment[0, 1] for segment in quantiles.collections[0].get_segments()]
    assert medians == np.median(scenario.shares.sizes().numpy(), axis=0).tolist()


def test_of_very_many_clients_evenly_spaced_ones_are_drawn_and_empty_ones_come_last(monkeypatch):
    scenario, _ = protocol(num_clients=900, partition=Dirichlet(0.05, min_samples=0))
    figure = figure_of(monkeypatch, draw_partition, scenario)
    shown = figure.axes[0].images[0].get_array().sum(1)
    assert len(shown) == 200
    assert set(shown.round(6)) == {0, 1}
    assert (np.diff(shown) <= 0).all()
    empty = (scenario.shares.sizes().sum(1) == 0).double().mean().item()
    assert 1 - shown.mean() == pytest.approx(empty, abs=0.01)
    assert any(text.startswith("200 of 900 clients") for text in texts_of(figure))


def test_a_regression_has_sizes_and_no_classes(monkeypatch):
    few = {"dataset": regression(), "stream": InstanceIncremental(3), "partition": Iid()}
    figure = figure_of(monkeypatch, draw_partition, protocol(**few)[0])
    assert len(figure.axes) == 3
    assert "class" not in texts_of(figure)
    figure = figure_of(monkeypatch, draw_partition, protocol(**few, num_clients=50)[0])
    assert len(figure.axes) == 2
    assert not any(axes.images for axes in figure.axes)


# --- who learns what when -----------------------------------------------------------------------


CLOCKS = [
    Clock(),
    Clock("shuffled", delay=5, spread=0.5),
    Clock("shuffled", delay=3, joining=0.4, leaving=0.5, pausing=1.0),
]


@pytest.mark.parametrize("clock", CLOCKS)
def test_clients_are_counted_round_by_round_as_the_schedule_has_them(clock):
    scenario, schedule = protocol(num_clients=30, clock=clock)
    counts = count_by_round(scenario.orders.numpy(), schedule, 5)
    expected = np.zeros((5, schedule.num_rounds), dtype=int)
    for at in range(schedule.num_rounds):
        for client_id in schedule.present(at + 1):
            index = schedule.experience(client_id, at + 1)
            expected[scenario.orders[client_id, index], at] += 1
    assert (counts == expected).all()
    assert counts.sum() > 0


@pytest.mark.parametrize("clock", CLOCKS)
def test_every_experience_is_a_bar_of_its_rounds_in_the_colour_of_its_topic(clock, monkeypatch):
    scenario, schedule = protocol(num_clients=6, clock=clock)
    figure = figure_of(monkeypatch, draw_clock, scenario, schedule)
    bars = [bar for group in figure.axes[0].containers for bar in group]
    learned, away = bars[:30], bars[30:]
    colours = [matplotlib.colors.to_rgba(colour) for colour in palette(5)]
    found = {
        (round(bar.get_y() + bar.get_height() / 2), bar.get_x() + 0.5): (
            bar.get_width(),
            colours.index(bar.get_facecolor()),
        )
        for bar in learned
    }
    for (client_id, index), topic in np.ndenumerate(scenario.orders.numpy()):
        begin, end = schedule.begins[client_id, index], schedule.ends[client_id, index]
        assert found[client_id, begin] == (end - begin + 1, topic)
    hatched = [bar for bar in away if bar.get_hatch()]
    assert len(hatched) == (0 if schedule.away is None else len(away) // 2)
    for bar in hatched:
        client_id = round(bar.get_y() + bar.get_height() / 2)
        start, stop = schedule.away[client_id]
        assert bar.get_x() + 0.5 == start
        assert bar.get_width() == min(stop, schedule.num_rounds + 1) - start
    assert ("hatched: away" in texts_of(figure)) == (schedule.away is not None)


def test_many_clients_are_counted_by_topic_or_by_experience(monkeypatch):
    few = figure_of(monkeypatch, draw_clock, *protocol(num_clients=100))
    assert len(few.axes[0].patches) == 5
    assert "topic 4: classes 8, 9" in texts_of(few)
    scenario, schedule = protocol(num_clients=100, stream=Independent(4, 4))
    assert len(scenario.topics) > 50
    many = figure_of(monkeypatch, draw_clock, scenario, schedule)
    assert len(many.axes[0].patches) == 4
    assert "experience 3" in texts_of(many)


def test_bars_are_numbered_where_there_are_more_topics_than_colours(monkeypatch):
    scenario, schedule = protocol(stream=Independent(5, 2))
    assert len(scenario.topics) > 12
    axes = figure_of(monkeypatch, draw_clock, scenario, schedule).axes[0]
    written = [int(text.get_text()) for text in axes.texts]
    assert written == scenario.orders.flatten().tolist()


# --- what inputs look like ----------------------------------------------------------------------


def tiles_of(axes, side=6, gap=1):
    """Cut a mosaic into its images: (rows, columns, side, side), of the first channel."""
    mosaic = np.asarray(axes.images[0].get_array())[..., 0]
    rows = mosaic.shape[0] // (side + gap)
    return mosaic.reshape(rows, side + gap, COLUMNS, side + gap).transpose(0, 2, 1, 3)[
        :, :, :side, :side
    ]


def test_domains_show_the_same_images_each_in_its_own_way(monkeypatch):
    scenario, _ = protocol(stream=Rotated(3))
    (axes,) = figure_of(monkeypatch, draw_samples, scenario).axes
    plain, quarter, half = tiles_of(axes)
    assert np.allclose(quarter, np.rot90(plain, 1, (1, 2)), atol=1e-5)
    assert np.allclose(half, np.rot90(plain, 2, (1, 2)), atol=1e-5)
    assert len({image.tobytes() for image in plain}) == COLUMNS


def test_a_topic_shows_its_own_classes_as_many_of_one_as_of_another(monkeypatch):
    scenario, _ = protocol()
    (axes,) = figure_of(monkeypatch, draw_samples, scenario).axes
    tiles = tiles_of(axes)
    x = scenario.test.x[:, 0].numpy()
    for topic, row in enumerate(tiles):
        # brightness is an affine map: correlation finds each image again
        best = [max(range(len(x)), key=lambda n: np.corrcoef(x[n].flat, t.flat)[0, 1]) for t in row]
        assert scenario.test.y[best].tolist() == [2 * topic] * 5 + [2 * topic + 1] * 5


def test_images_kept_as_bytes_are_shown_as_they_were(monkeypatch):
    x = torch.arange(4 * 36, dtype=torch.uint8).view(4, 1, 6, 6)
    samples = Samples(x, torch.tensor([0, 1, 0, 1]), (0.3,), (0.2,))
    scenario, _ = protocol(
        1, ClassIncremental(1), partition=Iid(), dataset=Dataset("bytes", samples, samples, 2, "")
    )
    (axes,) = figure_of(monkeypatch, draw_samples, scenario).axes
    shown = tiles_of(axes)[0, :4]
    assert np.allclose(shown, x[[0, 2, 1, 3], 0].numpy() / 255, atol=1e-6)
    assert (tiles_of(axes)[0, 4:] == 1).all()  # there are no more


def test_clients_with_views_have_rows_of_their_own(monkeypatch):
    scenario, _ = protocol(num_clients=3, skew=Skew(rotation=40))
    topics, clients = figure_of(monkeypatch, draw_samples, scenario).axes
    seen = tiles_of(clients)
    assert len(seen) == 3
    assert all(abs(row - tiles_of(topics)[0]).max() > 0.01 for row in seen)
    same = protocol(num_clients=3)[0]
    assert len(figure_of(monkeypatch, draw_samples, same).axes) == 1


# --- tables -------------------------------------------------------------------------------------


def printed(table, width=80, encoding="utf-8"):
    with Path(os.devnull).open("w", encoding=encoding) as nowhere:
        console = Console(width=width, file=nowhere, record=True)
        console.print(table)
        return console.export_text()


def rows_of(text):
    lines = [line.split() for line in text.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0] in (*NAMES, "...")}


NAMES = [str(number) for number in range(1000)] + ["smallest", "median", "largest"]


def test_the_table_has_every_client_s_numbers():
    scenario, _ = protocol()
    rows = rows_of(printed(sizes_table(scenario, 80)))
    for client_id in range(5):
        sizes = scenario.shares.sizes()[client_id].tolist()
        aside = int(scenario.held_out.sizes()[client_id].sum())
        labels = torch.cat([scenario.train.y[each.rows] for each in scenario.stream(client_id)])
        expected = [*sizes, sum(sizes), aside, len(labels.unique())]
        assert rows[str(client_id)] == [f"{number:,}" for number in expected]


def test_of_many_clients_and_experiences_the_table_shows_the_ends_and_quantiles():
    scenario, _ = protocol(num_clients=200, stream=InstanceIncremental(30))
    text = printed(sizes_table(scenario, 80))
    assert max(map(len, text.splitlines())) <= 80
    rows = rows_of(text)
    assert [name for name in rows if name.isdigit()] == ["0", "1", "2", "198", "199"]
    totals = scenario.shares.sizes().sum(1)
    assert rows["smallest"][-3] == str(int(totals.min()))
    assert rows["largest"][-3] == str(int(totals.max()))
    assert "..." in rows["0"]


def test_tables_can_be_read_on_a_terminal_without_unicode():
    scenario, _ = protocol(num_clients=50)
    for table in (sizes_table(scenario, 80), numbers_table(scenario)):
        assert printed(table, encoding="ascii").isascii()


def test_the_numbers_are_those_of_the_heterogeneity():
    scenario, _ = protocol()
    found = measure(scenario.shares, scenario.train.y, 10)
    text = printed(numbers_table(scenario), width=120)
    for name, value in (
        ("between clients", found.between_clients),
        ("from all", found.from_all),
        ("over time", found.over_time),
        ("imbalance", found.gini),
    ):
        assert re.search(rf"^{name} +{value:.3f} ", text, re.MULTILINE)
    assert f"{found.smallest:,} to {found.largest:,}" in text


def test_of_a_regression_nothing_is_said_about_labels():
    scenario, schedule = protocol(
        dataset=regression(), stream=InstanceIncremental(3), partition=Iid()
    )
    text = printed(numbers_table(scenario)) + printed(sizes_table(scenario, 80))
    assert "divergence" not in text
    assert "classes" not in text
    line = headline(scenario, schedule, scenario.manifest())
    assert line.startswith("toy: line with 60 training samples, 1 output, 5 clients, 3 experiences")


def test_the_headline_names_the_protocol():
    scenario, schedule = protocol(stream=Independent(4, 2))
    manifest = scenario.manifest()
    line = headline(scenario, schedule, manifest)
    topics = len(scenario.topics)
    assert line == (
        "toy: synthetic with 1 100 training samples, 10 classes, 5 clients, "
        f"4 experiences (of {topics} topics), 16 rounds, seed 3, hash {manifest['hash'][:12]}"
    )


def test_topics_are_named_by_their_classes_where_those_differ():
    assert topic_names(protocol(stream=ClassIncremental(10))[0])[3] == "topic 3: class 3"
    assert topic_names(protocol(stream=Permuted(2))[0]) == ["topic 0", "topic 1"]
    long = topic_names(protocol(num_classes=20, stream=ClassIncremental(2))[0])
    assert long[1] == "topic 1: 10 classes, 10 to 19"
