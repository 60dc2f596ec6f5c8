"""What is left when a user or the machine ends a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "fedlearn", "run", "continual=naive", "rounds_per_experience=9999"]


def _rounds(run_dir: Path) -> int:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return sum('"event":"round"' in line for line in lines)


@pytest.fixture
def running(tmp_path: Path):
    """Start a run that would take hours; yield it, its directory and stderr after some rounds."""
    errors = tmp_path / "stderr"
    # What a shell runs in the background ignores Ctrl-C, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "tracker=none", f"out={tmp_path}"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        )
    signal.signal(signal.SIGINT, before)
    try:
        for _ in range(1200):
            found = list(tmp_path.rglob("metrics.jsonl"))
            if found and _rounds(found[0].parent) >= 3:
                break
            assert process.poll() is None, errors.read_text()
            time.sleep(0.1)
        yield process, found[0].parent, errors
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_keeps_what_was_measured_and_exits_130(running):
    process, run_dir, errors = running
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert errors.read_text() == "interrupted\n"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 3 <= summary["rounds"] <= _rounds(run_dir)
    assert len(summary["digest"]) == 64
    assert (run_dir / "plots" / "accuracy_over_rounds.png").is_file()
    with pytest.raises(ProcessLookupError):  # nobody of its process group is left
        os.killpg(process.pid, 0)


def test_a_killed_run_leaves_every_finished_round(running):
    process, run_dir, _ = running
    process.kill()
    process.wait()
    *complete, _ = (run_dir / "metrics.jsonl").read_text().split("\n")
    events = [json.loads(line) for line in complete]
    assert [event["round"] for event in events[1:]] == list(range(1, len(events)))
    assert (run_dir / "manifest.json").is_file()
