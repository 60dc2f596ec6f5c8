"""Pictures: which are drawn, what they hold, and that nothing global is touched."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fedlearn.metrics import forgetting
from fedlearn.review import plots
from fedlearn.review.plots import (
    PlotsTracker,
    draw_accuracy_matrix,
    draw_accuracy_over_rounds,
    draw_forgetting,
    matrix_of,
    write_plots,
)


def run_events(experiences=3, rounds=2, stop_after=None):
    """The events of a made-up run; `stop_after` rounds it is interrupted."""
    draw = np.random.default_rng(0)
    events = [{"event": "start", "experiences": experiences}]
    for number in range(1, 1 + (stop_after or experiences * rounds)):
        now, ends = (number - 1) // rounds, number % rounds == 0
        accuracy = draw.uniform(0, 1, experiences).tolist()
        seen = [a if j <= now or ends else None for j, a in enumerate(accuracy)]
        server = {"accuracy": float(np.mean(accuracy[: now + 1])), "per_experience": seen}
        events.append({"event": "round", "round": number, "experience": now, "server": server})
        if ends:
            events.append(
                {"event": "experience", "experience": now, "round": number, "accuracy": accuracy}
            )
    return events


def save(run_dir, events):
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run_dir


def figure_of(monkeypatch, draw, *arguments):
    """Draw, and return the figure instead of saving it."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure) or path)
    draw(*arguments, None)
    return figures[0]


@pytest.fixture
def coarse(monkeypatch):
    """Draw few pixels: fast, where nobody looks."""
    monkeypatch.setattr(plots, "DPI", 30)


def test_a_finished_run_has_three_pictures(tmp_path):
    paths = write_plots(save(tmp_path, run_events()))
    assert sorted(paths) == ["accuracy_matrix", "accuracy_over_rounds", "forgetting"]
    for name, path in paths.items():
        assert path == tmp_path / "plots" / f"{name}.png"
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_pictures_of_the_same_run_are_the_same_and_can_be_drawn_again(tmp_path, coarse):
    first = {n: p.read_bytes() for n, p in write_plots(save(tmp_path, run_events())).items()}
    again = {n: p.read_bytes() for n, p in write_plots(tmp_path).items()}
    assert first == again


def test_an_interrupted_run_has_what_it_measured(tmp_path, coarse):
    assert sorted(write_plots(save(tmp_path, run_events(stop_after=3)))) == [
        "accuracy_matrix",
        "accuracy_over_rounds",
    ]
    assert list(write_plots(save(tmp_path, run_events(stop_after=1)))) == ["accuracy_over_rounds"]
    assert write_plots(save(tmp_path, run_events()[:1])) == {}


def test_a_run_without_events_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_plots(tmp_path)


@pytest.mark.parametrize(("experiences", "rounds"), [(1, 1), (2, 1), (12, 1), (40, 1)])
def test_any_number_of_experiences_can_be_drawn(tmp_path, coarse, experiences, rounds):
    paths = write_plots(save(tmp_path, run_events(experiences, rounds)))
    assert ("forgetting" in paths) == (experiences > 1)


def test_the_tracker_draws_when_the_run_ends(tmp_path, coarse):
    tracker = PlotsTracker()
    tracker.start(save(tmp_path, run_events()), {}, {})
    tracker.event({"event": "round"})
    assert not (tmp_path / "plots").exists()
    tracker.finish({})
    assert (tmp_path / "plots" / "accuracy_matrix.png").is_file()


def test_the_matrix_comes_from_the_events():
    events = run_events(stop_after=4)
    matrix = matrix_of(events)
    assert matrix[:2] == [e["accuracy"] for e in events if e["event"] == "experience"]
    assert matrix[2] == [None] * 3
    assert matrix_of(events[:1]) is None


def test_every_measured_cell_has_its_number_and_unlearned_ones_are_paler(monkeypatch):
    matrix = [[0.9, 0.8, None], [0.4, 0.95, 0.8], [None, None, None]]
    axes = figure_of(monkeypatch, draw_accuracy_matrix, matrix).axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {
        (0, 0): "90.0",
        (1, 0): "80.0",
        (0, 1): "40.0",
        (1, 1): "95.0",
        (2, 1): "80.0",
    }
    alpha = np.asarray(axes.images[0].get_array())[..., 3]
    assert alpha[0, 1] == alpha[1, 2] < alpha[1, 0] == 1
    assert axes.get_title(loc="left") == "average accuracy 67.5 %\nforgetting 50.0 points"


def test_curves_begin_with_their_experience_and_the_mean_covers_every_round(monkeypatch):
    events = run_events()
    axes = figure_of(monkeypatch, draw_accuracy_over_rounds, events).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert [lines[f"experience {j}"][0, 0] for j in range(3)] == [1, 3, 5]
    assert lines["experience 0"][-1, 0] == 6
    rounds = [e for e in events if e["event"] == "round"]
    np.testing.assert_allclose(
        lines["mean of seen"], [[e["round"], 100 * e["server"]["accuracy"]] for e in rounds]
    )
    boundaries = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert {2.5, 4.5} <= set(boundaries)


def test_rounds_that_were_not_tested_are_passed_over(monkeypatch):
    events = run_events()
    events[1]["server"] = {}
    axes = figure_of(monkeypatch, draw_accuracy_over_rounds, events).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert lines["mean of seen"][0, 0] == 2


def test_the_last_mean_of_the_forgetting_curve_is_the_metric(monkeypatch):
    matrix = matrix_of(run_events(5, 1))
    axes = figure_of(monkeypatch, draw_forgetting, matrix).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert lines["mean"][-1, 1] == pytest.approx(100 * forgetting(matrix))
    assert [lines[f"experience {j}"][0].tolist() for j in range(4)] == [[j, 0] for j in range(4)]
    two_learned = np.array(matrix)[:2, :2]
    assert lines["mean"][0, 1] == pytest.approx(100 * forgetting(two_learned))


def test_drawing_touches_no_global_state_and_importing_does_not_import_matplotlib(tmp_path):
    program = f"""
import sys
from pathlib import Path
import fedlearn.review.plots as plots
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
plots.write_plots(Path({str(save(tmp_path, run_events()))!r}))
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
