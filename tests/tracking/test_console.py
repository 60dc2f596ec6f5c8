"""The terminal: what a run shows in a pipe, on a terminal, and at its end."""

import io
import re
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from example_run import example_run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedlearn.tracking.console import ConsoleTracker, comparison_table
from fedlearn.tracking.tables import matrix_table
from fedlearn.tracking.words import counted, human_bytes, human_seconds


def shown(console_options, events, summary, run_dir=Path("runs/x")):
    """Return everything that a run prints."""
    file = io.StringIO()
    console = Console(file=file, highlight=False, **console_options)
    tracker = ConsoleTracker(console)
    tracker.start(run_dir, {}, {})
    for event in events:
        tracker.event(event)
    tracker.finish(summary)
    return file.getvalue()


def text_of(renderable, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_a_pipe_gets_one_line_a_round_and_the_result_without_colour():
    events, summary = example_run()
    text = shown({"width": 80, "force_terminal": False}, events, summary)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len([line for line in lines if re.match(r"round \d/6 ", line)]) == 6
    told = events[1]["server"]
    assert (
        f"round 1/6 · experience 0 (1 of 3) · accuracy {100 * told['accuracy']:.1f} % · "
        "loss 1.0000 · 0.20 s"
    ) in lines
    assert max(len(line) for line in lines if line.startswith(("│", "╭", "╰"))) <= 80
    for row in summary["accuracy_matrix"]:
        assert all(f"{100 * value:.1f}" in text for value in row)
    cl, client = summary["cl"], summary["client"]
    assert re.search(rf"average accuracy +{100 * cl['average_accuracy']:.1f} %", text)
    assert f"{100 * cl['bwt']:+.1f}" in text
    assert f"{client['jain']:.3f}" in text
    assert "18.0 kB up · 36.0 kB down" in text
    assert "12.5 s · training 9.00 s · 0.20 s a round (median)" in text
    assert "run   runs/x" in lines
    assert lines[-1] == (
        "next  fedlearn run -m scenario=split_digits continual=replay,naive aggregation=fedavg "
        "seed=0,1,2"
    )


def test_a_terminal_gets_a_bar_and_colours_but_no_line_a_round():
    events, summary = example_run()
    options = {"width": 80, "force_terminal": True, "color_system": "truecolor"}
    text = shown(options, events, summary)
    assert "\x1b[?25h" in text, "the cursor is given back"
    assert "round 6/6" in text
    assert "\nround" not in text
    assert "\x1b[" in text
    assert "48;2;" in text, "the matrix has background colours"


@pytest.mark.parametrize("terminal", [True, False])
def test_troubles_name_the_client(terminal):
    events, summary = example_run()
    events[2]["quarantined"] = [{"client": 7, "reason": "'0.weight' holds NaN"}]
    events[2]["failed"] = [{"client": k, "reason": "ValueError: x"} for k in range(9)]
    events.insert(4, {"event": "warning", "message": "disk almost full"})
    text = shown({"width": 300, "force_terminal": terminal}, events, summary)
    assert "round 2: client 7 quarantined: '0.weight' holds NaN" in text
    assert "round 2: client 4 failed: ValueError: x" in text
    assert "client 5 failed" not in text
    assert "round 2: 4 more clients failed" in text
    assert "warning: disk almost full" in text


def test_divergence_is_one_line_a_round_and_counted_at_the_end():
    events, summary = example_run()
    told = [{"client": k, "reason": "the loss is nan"} for k in range(7)]
    events[2]["diverged"] = told[:2]
    events[4]["diverged"] = told
    summary["turns"] |= {"diverged": 9, "failed": 1}
    lines = shown({"width": 300}, events, summary).splitlines()
    two = "round 2: diverged: client 0 (the loss is nan), client 1 (the loss is nan)"
    assert two in lines
    many = [line for line in lines if "client 4 (the loss is nan), 2 more" in line]
    assert len(many) == 1
    assert any("lost turns" in line and "9 diverged · 1 failed" in line for line in lines)


def test_what_clients_keep_is_shown_where_they_keep_anything():
    events, summary = example_run()
    assert "320 B a client (mean) · 320 B at most" in shown({"width": 100}, events, summary)
    summary["storage"] = {"client_state_bytes_max": 0, "client_state_bytes_mean": 0.0}
    text = shown({"width": 100}, events, summary)
    assert "at most" not in text
    assert "lost turns" not in text


def test_text_in_brackets_is_text_and_no_markup():
    events, summary = example_run()
    events.append({"event": "warning", "message": "[red]shape [1, 2][/red]"})
    assert "[red]shape [1, 2][/red]" in shown({"width": 80}, events, summary)


def test_an_interrupted_run_shows_what_it_has_measured():
    events, summary = example_run(stop_after=3)
    text = shown({"width": 80}, events, summary)
    assert "interrupted" in text
    assert "3 of 6" in text
    assert f"{100 * summary['accuracy_matrix'][0][0]:.1f}" in text
    assert "·     ·     ·" in text
    assert "next" not in text


def test_a_run_that_measured_nothing_still_ends_well():
    events, summary = example_run(stop_after=0)
    text = shown({"width": 80}, events, {**summary, "status": "failed"})
    assert "failed" in text
    assert "0 of 6" in text


def test_a_run_that_failed_before_its_first_event_still_ends_well():
    _, summary = example_run(stop_after=0)
    assert "failed" in shown({"width": 80}, [], {**summary, "status": "failed"})


def test_rounds_without_a_test_show_no_accuracy():
    events, summary = example_run(evaluate_every=2)
    lines = shown({"width": 80}, events, summary).splitlines()
    assert "round 1/6 · experience 0 (1 of 3) · 0.20 s" in lines


def test_commands_are_printed_whole_whatever_the_width():
    events, summary = example_run()
    folder = "runs/" + "x" * 60 + "/wandb/offline-run-1"
    summary["wandb"] = {"mode": "offline", "id": "i", "dir": folder}
    text = shown({"width": 60}, events, summary)
    assert f"W&B   wandb sync {folder}\n" in text
    summary["wandb"] = {"mode": "online", "id": "digits-1", "dir": folder}
    assert "W&B   online, run digits-1" in shown({"width": 60}, events, summary)


def test_a_terminal_that_knows_ascii_only_gets_ascii():
    events, summary = example_run(stop_after=3)
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    tracker = ConsoleTracker(Console(file=file, width=80))
    tracker.start(Path("x"), {}, {})
    for event in events:
        tracker.event(event)
    tracker.finish(summary)
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "average accuracy" in text
    assert "+-" in text


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from example_run import example_run
        from fedlearn.tracking.console import ConsoleTracker
        from fedlearn.tracking.jsonl import JsonlTracker
        from fedlearn.tracking.tracker import Trackers
        events, summary = example_run(rounds=2000, clients=1)
        trackers = Trackers([ConsoleTracker(), JsonlTracker()])
        trackers.start(Path(sys.argv[1]), {}, {})
        for event in events:
            trackers.event(event)
        trackers.finish(summary)
        """
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parent), "PATH": ""},
    )
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    errors = run.stderr.read()
    run.stderr.close()
    assert (run.wait(), errors) == (0, b"")
    assert (tmp_path / "summary.json").is_file()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(24, 160))
def test_the_matrix_fits_any_terminal_and_keeps_its_corners(length, width):
    matrix = [[(i + j / 100) / 100 for j in range(length)] for i in range(length)]
    lines = text_of(matrix_table(matrix, width), width).rstrip("\n").splitlines()
    assert max(len(line) for line in lines) <= width
    first, last = lines[1].split(), lines[-1].split()
    assert first[0] == "0"
    assert last[0] == str(length - 1)
    assert float(last[-1]) == pytest.approx(100 * matrix[-1][-1], abs=0.51)


def summaries(**accuracy_by_label):
    runs = []
    for label, accuracies in accuracy_by_label.items():
        for seed, value in enumerate(accuracies):
            _, summary = example_run()
            cl = {**summary["cl"], "average_accuracy": value, "forgetting": 1 - value}
            runs.append((label, {**summary, "seed": seed, "cl": cl}))
    return runs


def test_comparison_shows_mean_and_sample_deviation_over_seeds():
    values = (0.2, 0.3, 0.7)
    text = text_of(comparison_table(summaries(naive=values, replay=(0.9,)), 200))
    naive = next(line for line in text.splitlines() if "naive" in line)
    assert f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}" in naive
    assert re.search(r"naive +3 ", naive)
    replay = next(line for line in text.splitlines() if "replay" in line)
    assert "90.0" in replay
    assert "±" not in replay


def test_comparison_never_averages_what_did_not_complete():
    runs = summaries(naive=(0.2, 0.4))
    runs[1][1]["status"] = "interrupted"
    text = text_of(comparison_table(runs, 200))
    assert "naive (interrupted)" in text
    assert "20.0" in text
    assert "40.0" in text
    assert "30.0" not in text


def test_comparison_marks_the_best_of_each_column_and_takes_what_is_missing():
    runs = summaries(naive=(0.2, 0.2), replay=(0.9, 0.9))
    runs[0][1]["cl"]["forgetting"] = None
    runs[1][1]["cl"] = {}
    table = comparison_table(runs, 80)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert [cell.style for cell in cells["accuracy"]] == ["", "bold"]
    assert cells["forgetting"][0].plain == "-"
    assert text_of(comparison_table([], 80))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 150])
def test_comparison_fits_the_terminal(width):
    runs = summaries(**{"continual=replay,partition.alpha=0.1": (0.2, 0.4), "b": (0.1, 0.2)})
    lines = text_of(comparison_table(runs, width), width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert "…" not in "".join(lines)
    assert "30.0 ± 14.1" in "".join(lines)


def test_numbers_as_people_read_them():
    assert [human_bytes(n) for n in (0, 999, 1000, 75_400, 999_600, 7.5e6, 2e9, 3e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "75.4 kB",
        "1.0 MB",
        "7.5 MB",
        "2.0 GB",
        "3000.0 TB",
    ]
    assert [human_seconds(s) for s in (0.004, 9.994, 9.996, 99.9, 100, 3599.6, 3600, 7290)] == [
        "0.00 s",
        "9.99 s",
        "10.0 s",
        "99.9 s",
        "1 min 40 s",
        "1 h 00 min",
        "1 h 00 min",
        "2 h 02 min",
    ]
    assert counted(1, "client") == "1 client"
    assert counted(12345, "parameter") == "12 345 parameters"
