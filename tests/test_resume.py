"""A run that was broken off and resumed is, bit by bit, the run that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedlearn.checkpoint import Checkpoints
from fedlearn.cli import main
from fedlearn.server import Server
from fedlearn.tracking.jsonl import read_events

SMALL = [
    "num_clients=4",
    "rounds_per_experience=4",
    "scenario.num_experiences=2",
    "local.epochs=1",
    "checkpoint_every=3",
]
FUNCTIONAL = ["engine=functional", "continual=ewc_replay", "fraction_train=0.5"]
MOST = "fraction_train=0.5"

CASES = [
    ["continual=replay", MOST],
    ["continual=ewc", MOST, "local.max_grad_norm=1"],
    ["continual=naive", "model=cnn", MOST],
    ["continual=ewc", "faults.drop_out=0.4", "faults.straggle=0.5", "max_failed_rounds=9"],
    ["continual=naive", "cohort=by_loss", MOST, "clock=staggered"],
    ["continual=replay", "cohort=round_robin", MOST, "clock=shuffled", "evaluate_every=3"],
    ["continual=replay", "runtime.executor=process", "runtime.workers=2", MOST],
    ["continual=replay", "runtime.executor=process", "runtime.state_dir=states", MOST],
    [*FUNCTIONAL, "runtime.executor=serial"],
    [*FUNCTIONAL, "runtime.executor=vectorized", "runtime.workers=2"],
    [*FUNCTIONAL, "runtime.executor=vectorized", "runtime.workers=1", "aggregation=fedmedian"],
    ["continual=ewc", "aggregation=fedadam", "checkpoint_every=null"],
]


def run(out: Path, *overrides: str) -> tuple[int, Path]:
    """Run something small; return the exit status and the run's directory."""
    status = main(["run", "tracker=none", *SMALL, f"out={out}", *overrides])
    (found,) = out.rglob("metrics.jsonl")
    return status, found.parent


def result(run_dir: Path) -> tuple[Any, Any]:
    """All that a run came to but seconds: its summary, and its events."""
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "completed"
    del summary["time"], summary["wandb"]
    events = [
        {key: value for key, value in event.items() if key != "time"}
        for event in read_events(run_dir)
        if event["event"] != "start"
    ]
    return summary, events


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch):
    """Have Ctrl-C come in the middle of a round: the clients have trained, nothing is summed."""
    aggregate = Server._aggregate

    def at(round_: int | None) -> None:
        def interrupted(self, screened, server_round):
            if server_round == round_:
                raise KeyboardInterrupt
            return aggregate(self, screened, server_round)

        monkeypatch.setattr(Server, "_aggregate", interrupted)

    return at


def check_resumed_is_unbroken(
    tmp_path: Path, interrupt: Any, overrides: list[str], at: int
) -> None:
    _, unbroken = run(tmp_path / "unbroken", *overrides)
    kept = [text for text in overrides if text != "checkpoint_every=null"]
    interrupt(at)
    status, broken = run(tmp_path / "broken", *kept)
    assert status == 130
    assert Checkpoints(broken).rounds()[-1] == at - 1
    interrupt(None)
    assert main(["resume", str(broken)]) == 0
    assert result(broken) == result(unbroken)


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_resumed_equals_unbroken(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    check_resumed_is_unbroken(tmp_path, interrupt, overrides, at=6)


def test_a_run_may_be_resumed_again_and_again(tmp_path: Path, interrupt: Any) -> None:
    _, unbroken = run(tmp_path / "unbroken", MOST, "continual=ewc")
    interrupt(2)
    _, broken = run(tmp_path / "broken", MOST, "continual=ewc")
    for at in (4, 5, 8):
        interrupt(at)
        assert main(["resume", str(broken)]) == 130
    interrupt(None)
    assert main(["resume", str(broken), "runtime.executor=process", "runtime.workers=2"]) == 0
    assert result(broken) == result(unbroken)
    starts = [
        json.loads(line).get("resumed_from")
        for line in (broken / "metrics.jsonl").read_text().splitlines()
        if '"event":"start"' in line
    ]
    assert starts == [None, 1, 3, 4, 7]


def test_the_events_of_rounds_that_do_not_hold_are_gone(tmp_path: Path, interrupt: Any) -> None:
    interrupt(6)
    _, broken = run(tmp_path, "continual=naive")
    checkpoints = Checkpoints(broken)
    assert checkpoints.rounds()[-1] == 5
    (broken / "checkpoints" / "round-5" / "manifest.json").write_text("{}")
    interrupt(None)
    assert main(["resume", str(broken)]) == 0
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["round"] for line in lines if line["event"] == "round"]
    assert rounds == list(range(1, 9))
    assert any("round 5 is damaged" in line.get("message", "") for line in lines)
    assert Checkpoints(broken).rounds() == [4, 6, 8]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=1", "optimizer.lr=1: a run that is resumed keeps its own"),
        ("seed=1", "seed=1: a run that is resumed keeps its own"),
        ("aggregation=fedadam", "aggregation=fedadam: a run that is resumed keeps its own"),
        ("runtime.threads=2", "runtime.threads=2: a run that is resumed keeps its own"),
        ("+extra=1", "+extra=1: a run that is resumed keeps its own"),
        ("~tracker", "'=' is missing"),
        ("hydra.run.dir=x", "hydra.run.dir=x: a run that is resumed keeps its own"),
        ("runtime.worker=2", "did you mean runtime.workers?"),
        ("runtime.workers=0", "runtime.workers=0: must be at least 1"),
        ("runtime.executor=vectorized", "needs engine=functional"),
    ],
)
def test_what_numbers_depend_on_cannot_be_changed(
    override: str,
    said: str,
    tmp_path: Path,
    interrupt: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(3)
    _, broken = run(tmp_path, "continual=naive")
    before = sorted(path for path in broken.rglob("*"))
    capsys.readouterr()
    assert main(["resume", str(broken), override]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(path for path in broken.rglob("*")) == before


def test_cohorts_as_one_program_are_not_what_a_run_began_with(
    tmp_path: Path, interrupt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(3)
    _, broken = run(tmp_path, *FUNCTIONAL)
    capsys.readouterr()
    assert main(["resume", str(broken), "runtime.executor=vectorized"]) == 2
    assert "its configuration has changed in runtime.executor" in capsys.readouterr().err


def test_other_data_are_refused(
    tmp_path: Path, interrupt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    def write(seed: int) -> None:
        draws = np.random.default_rng(seed)
        np.savez(
            tmp_path / "own.npz",
            x_train=draws.random((80, 5), np.float32),
            y_train=np.arange(80) % 4,
            x_test=draws.random((20, 5), np.float32),
            y_test=np.arange(20) % 4,
        )

    write(0)
    interrupt(3)
    own = ["dataset=arrays", f"dataset.path={tmp_path / 'own.npz'}", "scenario=class_incremental"]
    _, broken = run(tmp_path, *own, "continual=naive", "partition=iid")
    capsys.readouterr()
    write(1)
    interrupt(None)
    assert main(["resume", str(broken)]) == 2
    err = capsys.readouterr().err
    assert "its data are not what they were" in err
    assert err.count("\n") == 1


def test_there_must_be_something_to_resume(
    tmp_path: Path, interrupt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, done = run(tmp_path / "done", "continual=naive")
    interrupt(2)
    _, broken = run(tmp_path / "broken", "continual=naive", "checkpoint_every=null")
    capsys.readouterr()
    assert main(["resume", str(done)]) == 0
    assert capsys.readouterr().out == f"{done}: nothing to resume, the run is completed\n"
    for path, said in (
        (broken, "there is no checkpoint in it"),
        (tmp_path / "nowhere", "there is no such directory"),
        (tmp_path, "is no directory of a run"),
    ):
        assert main(["resume", str(path)]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_where_no_checkpoint_is_whole_nothing_starts_afresh(
    tmp_path: Path, interrupt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(6)
    _, broken = run(tmp_path, "continual=naive")
    for path in (broken / "checkpoints").glob("round-*/server.json"):
        path.write_bytes(path.read_bytes().replace(b"rounds", b"rownds", 1))
    before = (broken / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["resume", str(broken)]) == 2
    err = capsys.readouterr().err
    assert "the checkpoint of round 5 is damaged" in err
    assert "the checkpoint of round 4 is damaged" in err
    assert err.count("\n") == 1
    assert (broken / "metrics.jsonl").read_bytes() == before


def test_a_fresh_run_in_an_old_directory_forgets_its_checkpoints(
    tmp_path: Path, interrupt: Any
) -> None:
    fixed = ["continual=naive", f"hydra.run.dir={tmp_path}/here"]
    _, run_dir = run(tmp_path, *fixed)
    assert Checkpoints(run_dir).rounds() == [4, 6, 8]
    interrupt(3)
    run(tmp_path, *fixed)
    assert Checkpoints(run_dir).rounds() == [2]


def test_the_choices_of_a_directory_are_found_again(tmp_path: Path, interrupt: Any) -> None:
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "slow.yaml").write_text(
        "# slow\n_target_: torch.optim.SGD\nlr: 0.001\n"
    )
    mine = ["--config-dir", str(tmp_path / "conf"), "optimizer=slow", "continual=naive"]
    _, unbroken = run(tmp_path / "unbroken", *mine)
    interrupt(4)
    _, broken = run(tmp_path / "broken", *mine)
    interrupt(None)
    assert main(["resume", str(broken)]) == 0
    assert result(broken) == result(unbroken)


def test_other_surroundings_are_told(
    tmp_path: Path, interrupt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(4)
    _, broken = run(tmp_path, "continual=naive")
    interrupt(None)
    monkeypatch.setattr("fedlearn.__version__", "99")
    assert main(["resume", str(broken)]) == 0
    told = [event["message"] for event in read_events(broken) if event["event"] == "warning"]
    assert len(told) == 1
    assert "the last bits may differ" in told[0]
    assert "fedlearn 99 (was " in told[0]


def test_an_aggregation_that_cannot_be_saved_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd_aggregation.py").write_text(
        "import threading\n"
        "from strategies.aggregation.fedavg import FedAvg\n"
        "class Odd(FedAvg):\n"
        "    def __init__(self, **given):\n"
        "        super().__init__(**given)\n"
        "        self.lock = threading.Lock()\n"
    )
    odd = [*SMALL, "tracker=none", "continual=naive", "aggregation._target_=odd_aggregation.Odd"]
    assert main(["run", *odd]) == 2
    err = capsys.readouterr().err
    assert err.startswith("aggregation=fedavg: keeps lock, a lock, which a checkpoint cannot hold")
    assert err.count("\n") == 1
    assert not Path("runs").exists()
    assert main(["run", *odd, "checkpoint_every=null"]) == 0


def test_wandb_goes_on_under_the_same_id(
    tmp_path: Path, interrupt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupt(4)
    assert main(["run", *SMALL, "continual=naive", f"out={tmp_path}"]) == 130
    (found,) = tmp_path.rglob("summary.json")
    before = json.loads(found.read_text())["wandb"]["id"]
    interrupt(None)
    assert main(["resume", str(found.parent)]) == 0
    assert json.loads(found.read_text())["wandb"]["id"] == before
    folders = list((found.parent / "wandb").glob(f"offline-run-*-{before}"))
    assert folders


# --- as processes -------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore:subprocess .* is still running:ResourceWarning"
)
@pytest.mark.slow
def test_clients_on_ray_go_on_in_processes(tmp_path: Path, interrupt: Any) -> None:
    pytest.importorskip("ray")
    _, unbroken = run(tmp_path / "unbroken", "continual=replay", MOST)
    interrupt(6)
    ray = ["runtime=ray", "runtime.address=local"]
    status, broken = run(tmp_path / "broken", "continual=replay", MOST, *ray)
    assert status == 130
    interrupt(8)
    assert main(["resume", str(broken)]) == 130
    interrupt(None)
    assert main(["resume", str(broken), "runtime=inprocess", "runtime.workers=2"]) == 2
    assert main(["resume", str(broken), "runtime=inprocess", "runtime.executor=process"]) == 0
    assert result(broken) == result(unbroken)


def started(out: Path, *overrides: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedlearn", "run", "tracker=none", f"out={out}", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
    )


def wait_for(process: subprocess.Popen[bytes], out: Path, rounds: int) -> Path:
    """Wait until a run has a checkpoint of so many rounds; return its directory."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = list(out.glob("*/*/metrics.jsonl"))
        if found and (Checkpoints(found[0].parent).rounds() or [0])[-1] >= rounds:
            return found[0].parent
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("no checkpoint in time")


@pytest.mark.parametrize("executor", ["serial", "process"])
def test_a_killed_run_loses_no_more_than_the_rounds_since_its_checkpoint(
    executor: str, tmp_path: Path
) -> None:
    overrides = ["continual=replay", "num_clients=4", "local.epochs=1", MOST, "checkpoint_every=2"]
    assert main(["run", "tracker=none", f"out={tmp_path / 'unbroken'}", *overrides]) == 0
    (unbroken,) = (path.parent for path in (tmp_path / "unbroken").rglob("metrics.jsonl"))
    process = started(tmp_path / "broken", *overrides, f"runtime.executor={executor}")
    broken = wait_for(process, tmp_path / "broken", 7)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    told = [event["round"] for event in read_events(broken) if event["event"] == "round"]
    last = Checkpoints(broken).rounds()[-1]
    assert told[:last] == list(range(1, last + 1))  # a checkpoint knows no more than the events
    assert main(["resume", str(broken)]) == 0
    assert result(broken) == result(unbroken)


def test_a_run_that_goes_on_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = started(tmp_path, "continual=naive", "rounds_per_experience=9999")
    run_dir = wait_for(process, tmp_path, 5)
    assert main(["resume", str(run_dir)]) == 2
    assert capsys.readouterr().err == f"{run_dir}: another process is running it\n"
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_disk_that_is_full_ends_the_run_in_one_line(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from fedlearn import checkpoint\n"
        "from fedlearn.cli import main\n"
        "write = checkpoint.Checkpoints.write\n"
        "def limited(self, server_round, *given):\n"
        "    if server_round == 4:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "    write(self, server_round, *given)\n"
        "checkpoint.Checkpoints.write = limited\n"
        f"sys.exit(main(['run', 'tracker=none', 'continual=naive', 'out={tmp_path}', "
        "'checkpoint_every=2', 'num_clients=3', 'local.epochs=1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "a checkpoint cannot be written: [Errno 27] File too large\n"
    (found,) = tmp_path.rglob("metrics.jsonl")
    assert Checkpoints(found.parent).rounds() == [2]
    assert main(["resume", str(found.parent)]) == 0
