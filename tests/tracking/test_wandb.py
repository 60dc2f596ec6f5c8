"""W&B: what arrives there, what never does, and what its failures cost."""

import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_run import example_run

from fedlearn.tracking import wandb as module
from fedlearn.tracking.tracker import NoTracker, TrackerError, Trackers
from fedlearn.tracking.wandb import WandbTracker, answers, has_credentials

SECRET = "sesame-open-sesame"


class FakeRun:
    """Stands in for a W&B run."""

    def __init__(self, folder, failing=()):
        self.dir, self.failing = str(folder / "files"), failing
        self.rows, self.summary, self.exit_code = [], {}, None

    def log(self, row):
        if "log" in self.failing:
            raise RuntimeError("the service\nis gone")
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code
        if "finish" in self.failing:
            raise TimeoutError


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replace `wandb.init` and friends; `fake.asked` holds the mode and id of each attempt."""
    told = SimpleNamespace(asked=[], failing=(), logged_in=False, reachable=True, run=None)

    def init(self, mode, run_id, event):
        told.asked.append((mode, run_id))
        if mode in told.failing:
            raise RuntimeError(f"no {mode}\ntoday")
        (tmp_path / "wandb").mkdir(exist_ok=True)
        told.run = FakeRun(tmp_path, told.failing)
        return told.run

    monkeypatch.setattr(WandbTracker, "_init", init)
    monkeypatch.setattr(module, "has_credentials", lambda *_: told.logged_in)
    monkeypatch.setattr(module, "answers", lambda *_: told.reachable)
    monkeypatch.delenv("WANDB_MODE")
    return told


def begin(run_dir, tracker=None, **changes):
    """Start a tracker on an example run; return it and what it had to say."""
    events, summary = example_run()
    tracker = tracker or WandbTracker()
    tracker.start(run_dir, {}, {"hash": "x"})
    try:
        tracker.event({**events[0], **changes})
        said = None
    except TrackerError as error:
        said = str(error)
    return tracker, said, events[1:], summary


def inspect(folder):
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_offline_run_holds_everything_but_secrets_and_prints_nothing(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setattr(sys, "argv", ["fedlearn", f"x={SECRET}", "tracker.token=abcdefgh"])
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    events, summary = example_run(clients=21)
    tracker = WandbTracker(tags=["a"])
    config = {"seed": 4, "dataset": {"url": f"https://h/{SECRET}", "api_key": "k"}, "n": [1]}
    tracker.start(tmp_path, config, {"hash": "x", "num_clients": 21, "sizes": [[1] * 3] * 21})
    for event in events:
        tracker.event(event)
    tracker.finish({**summary, **tracker.info})
    assert drawn == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert capfd.readouterr() == ("", "")

    info = tracker.info["wandb"]
    assert info["mode"] == "offline"
    assert info["id"].startswith("digits-er-seed4-")
    folder = Path(info["dir"])
    assert folder.parent == tmp_path / "wandb"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert b"abcdefgh" not in content, path
    assert json.loads((folder / "files" / "manifest.json").read_text())["sizes"] == [[1] * 3] * 21
    assert list((folder / "files").rglob("*accuracy_matrix_picture*.png"))

    records = inspect(folder)
    run = next(r["run"] for r in records if r["type"] == "run")
    assert run["run_id"] == info["id"]
    assert run["job_type"] == "server"
    assert run["tags"] == ["a"]
    said = run["config"]["update"]
    assert said["dataset"] == {"url": "https://h/[redacted]", "api_key": "[redacted]"}
    assert said["manifest"] == {"hash": "x", "num_clients": 21}
    assert said["environment"]["command"] == [
        "fedlearn",
        "x=[redacted]",
        "tracker.token=[redacted]",
    ]
    steps = {
        r["metric"].get("glob_name"): r["metric"].get("step_metric")
        for r in records
        if r["type"] == "metric"
    }
    assert steps["server/*"] == steps["client/*"] == steps["comm/*"] == steps["time/*"] == "round"
    assert steps["cl/*"] == "experience"
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    rounds = [row for row in rows if "server/accuracy" in row]
    assert [row["round"] for row in rounds] == [1, 2, 3, 4, 5, 6]
    assert [row["server/accuracy"] for row in rounds] == [
        e["server"]["accuracy"] for e in events if e["event"] == "round"
    ]
    learned = [row for row in rows if "cl/average_accuracy" in row]
    assert [row["experience"] for row in learned] == [0, 1, 2]
    assert learned[2]["cl/forgetting"] == summary["cl"]["forgetting"]
    assert [row["client/accuracy_table.nrows"] for row in learned] == [21] * 3
    assert rows[-1]["cl/accuracy_matrix._type"] == "table-file"
    assert (rows[-1]["cl/accuracy_matrix.nrows"], rows[-1]["cl/accuracy_matrix.ncols"]) == (3, 4)
    assert rows[-1]["cl/accuracy_matrix_picture._type"] == "image-file"
    last = {
        k: v for r in records if r["type"] == "summary" for k, v in r["summary"]["update"].items()
    }
    assert last["final/status"] == "completed"
    assert last["final/cl/bwt"] == summary["cl"]["bwt"]


def test_a_server_that_never_answers_costs_seconds_and_one_line(tmp_path):
    """A whole run of its own process, with credentials, against a socket that stays silent."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from example_run import example_run
        from fedlearn.tracking import wandb
        from fedlearn.tracking.jsonl import JsonlTracker
        from fedlearn.tracking.tracker import Trackers
        wandb.PROBE_TIMEOUT_S = 0.5
        run_dir = Path(sys.argv[1])
        events, summary = example_run()
        trackers = Trackers([JsonlTracker(), wandb.WandbTracker()])
        trackers.start(run_dir, {}, {"hash": "x"})
        for event in events:
            trackers.event(event)
        trackers.finish(summary)
        """
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **{key: value for key, value in os.environ.items() if key != "WANDB_MODE"},
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parent),
            "WANDB_API_KEY": "a" * 40,
            "WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "NO_PROXY": "127.0.0.1",
        }
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert time.perf_counter() - started < 30  # a few seconds, mostly imports, on an idle machine
    assert (done.stdout, done.stderr) == ("", "")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warnings = [line["message"] for line in lines if line["event"] == "warning"]
    assert len(warnings) == 1
    assert "does not answer" in warnings[0]
    assert "wandb sync" in warnings[0]
    info = json.loads((tmp_path / "summary.json").read_text())["wandb"]
    assert info["mode"] == "offline"
    assert list(Path(info["dir"]).glob("*.wandb"))


def test_without_credentials_auto_is_offline_without_a_word(tmp_path, fake):
    tracker, said, _, _ = begin(tmp_path)
    assert said is None
    assert tracker.info["wandb"]["mode"] == "offline"


def test_with_credentials_auto_is_online(tmp_path, fake):
    fake.logged_in = True
    tracker, said, _, _ = begin(tmp_path)
    assert said is None
    assert tracker.info["wandb"] == {
        "mode": "online",
        "id": fake.asked[0][1],
        "dir": str(tmp_path),
    }


@pytest.mark.parametrize(("asked", "mode"), [("disabled", "disabled"), ("dryrun", "offline")])
def test_auto_respects_wandb_mode_whatever_the_credentials(
    tmp_path, fake, monkeypatch, asked, mode
):
    fake.logged_in = True
    monkeypatch.setenv("WANDB_MODE", asked)
    tracker, said, rest, summary = begin(tmp_path)
    for event in rest:
        tracker.event(event)
    tracker.finish(summary)
    assert said is None
    assert tracker.info["wandb"]["mode"] == mode
    assert [m for m, _ in fake.asked] == ([] if mode == "disabled" else [mode])


def test_a_mode_that_was_chosen_wins_over_wandb_mode(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    tracker, said, _, _ = begin(tmp_path, WandbTracker(mode="disabled"))
    assert (said, fake.asked) == (None, [])
    assert tracker.info["wandb"]["mode"] == "disabled"


def test_a_mistyped_wandb_mode_is_told(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    _, said, _, _ = begin(tmp_path)
    assert "WANDB_MODE=ofline is none of online, offline, disabled" in said


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"logged_in": False}, "no credentials"),
        ({"logged_in": True, "reachable": False}, "does not answer"),
        ({"logged_in": True, "failing": ("online",)}, "RuntimeError: no online today"),
    ],
)
def test_online_falls_back_to_offline_and_says_why(tmp_path, fake, state, reason):
    vars(fake).update(state)
    tracker, said, rest, summary = begin(tmp_path, WandbTracker(mode="online"))
    assert said.startswith("W&B is offline (")
    assert reason in said
    assert "\n" not in said
    assert f"wandb sync {tmp_path}" in said
    assert tracker.info["wandb"]["mode"] == "offline"
    for event in rest:
        tracker.event(event)
    tracker.finish({**summary, "accuracy_matrix": [[None]]})
    assert len([row for row in fake.run.rows if "server/loss" in row]) == 6
    assert fake.run.exit_code == 0
    ids = [run_id for _, run_id in fake.asked]
    assert len(set(ids)) == len(ids), "W&B refuses an id it has failed on"


def test_when_nothing_works_the_run_goes_on_without(tmp_path, fake):
    fake.failing, fake.logged_in = ("online", "offline"), True
    tracker, said, rest, summary = begin(tmp_path)
    assert said == "W&B failed, the run goes on without it: RuntimeError: no offline today"
    for event in rest:
        tracker.event(event)
    tracker.finish(summary)
    assert tracker.info["wandb"] == {"mode": "disabled", "id": None, "dir": None}


def test_a_service_that_dies_costs_one_warning(tmp_path, fake):
    fake.failing = ("log",)
    heard = []

    class Listener(NoTracker):
        def event(self, event):
            if event["event"] == "warning":
                heard.append(event["message"])

    trackers = Trackers([WandbTracker(), Listener()])
    events, summary = example_run()
    trackers.start(tmp_path, {}, {})
    for event in events:
        trackers.event(event)
    trackers.finish(summary)
    assert heard == ["W&B failed, the run goes on without it: RuntimeError: the service is gone"]


def test_an_upload_that_does_not_end_is_left_to_wandb_sync(tmp_path, fake):
    fake.failing = ("finish",)
    tracker, _, _, summary = begin(tmp_path)
    with pytest.raises(TrackerError, match=r"not everything was uploaded in .*wandb sync"):
        tracker.finish({**summary, "accuracy_matrix": [[None]], "status": "interrupted"})
    assert fake.run.exit_code == 1


def test_a_resumed_run_keeps_its_id_and_a_fresh_one_gets_its_own(tmp_path, fake):
    begin(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    begin(tmp_path, resumed_from=3)
    begin(tmp_path)
    (_, first), (_, resumed), (_, fresh) = fake.asked
    assert first == resumed != fresh


def test_ids_are_made_of_what_wandb_accepts(tmp_path, fake):
    begin(tmp_path, name="scenario=split digits/äé, " + "x" * 200)
    (_, run_id) = fake.asked[0]
    assert run_id.startswith("scenario-split-digits-x")
    assert set(run_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(run_id) <= 64


def test_credentials_are_found_where_wandb_looks_without_asking_anyone(tmp_path, monkeypatch):
    url, path = "https://wandb.example.org", tmp_path / "netrc"
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(path))
    assert not has_credentials(url, None)
    assert has_credentials(url, "from settings")
    path.write_text("machine elsewhere.org login user password x")
    assert not has_credentials(url, None)
    path.write_text("machine wandb.example.org login user password x")
    assert has_credentials(url, None)
    assert not has_credentials("https://other.example.org", None)
    path.write_text("machine api.wandb.ai login user password x")
    assert has_credentials("https://api.any-name-of-the-public-cloud.com", None)
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example.org")
    assert not has_credentials("https://other.example.org", None)
    path.write_text("this is no netrc file")
    assert not has_credentials(url, None)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_credentials(url, None)


def test_any_status_is_an_answer():
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.server_port}", 5)


def test_silence_and_closed_ports_are_no_answer_and_cost_no_more_than_allowed():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.perf_counter()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        assert time.perf_counter() - started < 2
        port = silent.getsockname()[1]
    assert not answers(f"http://127.0.0.1:{port}", 5)
    assert not answers("not a url", 5)


def test_bad_arguments_get_one_line():
    with pytest.raises(ValueError, match=r"tracker\.mode=cloud: must be one of auto, online"):
        WandbTracker(mode="cloud")
    with pytest.raises(ValueError, match=r"tracker\.project: must not be empty"):
        WandbTracker(project="")
