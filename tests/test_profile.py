"""Where a run's time goes: spans, and the profile that is made of them."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import timeit
from collections import Counter, defaultdict
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlearn import spans
from fedlearn.cli import main
from fedlearn.runtimes.workers import Workers
from fedlearn.spans import absorb, drain, is_recording, recording, span
from fedlearn.tracking.profile import PROFILE, TRACE, Profile, profile_table, profiled

TINY = [
    "tracker=none",
    "continual=naive",
    "num_clients=3",
    "rounds_per_experience=1",
    "scenario.num_experiences=2",
    "local.epochs=1",
]
HERE = os.getpid()
BEGAN = 123_456_789_012
ENDED = BEGAN + 1_000_000_000


class Clock:
    """A clock that stands still until told how many nanoseconds pass."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now

    def passes(self, nanoseconds: int) -> None:
        self.now += nanoseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spans, "perf_counter_ns", clock)
    return clock


def a_round(clock: Clock) -> None:
    """10 + (1 + (5 + 2 + 5)) + 100 nanoseconds."""
    with span("round", round=7):
        clock.passes(10)
        with span("train"):
            clock.passes(1)
            for client in (0, 1):
                with span("turn", client=client):
                    clock.passes(5)
                clock.passes(2 * (client == 0))
        clock.passes(100)


# --- spans --------------------------------------------------------------------------------------


def test_spans_nest_and_their_own_times_add_up(clock: Clock) -> None:
    with recording():
        a_round(clock)
        recorded = drain()
        assert drain() == []
    thread = threading.get_ident()
    turn = ("round", "train", "turn")
    assert recorded == [
        (turn, 1_011, 5, 5, HERE, thread, {"client": 0}),
        (turn, 1_018, 5, 5, HERE, thread, {"client": 1}),
        (("round", "train"), 1_010, 13, 3, HERE, thread, {}),
        (("round",), 1_000, 123, 110, HERE, thread, {"round": 7}),
    ]
    assert sum(own for _, _, _, own, *_ in recorded) == 123


def test_a_span_is_recorded_however_its_block_ends(clock: Clock) -> None:
    with recording():
        with pytest.raises(KeyboardInterrupt), span("round"), span("train"):
            raise KeyboardInterrupt
        with span("after"):
            clock.passes(1)
        paths = [path for path, *_ in drain()]
    assert paths == [("round", "train"), ("round",), ("after",)]


def test_a_span_that_does_not_hear_of_its_end_ends_with_what_is_around_it(clock: Clock) -> None:
    taken: list[spans.Span] = []
    with recording(taken.extend):
        with span("round"):
            span("train").__enter__()  # Ctrl-C can come just before __exit__
            clock.passes(1)
            with span("turn"):
                clock.passes(2)
        span("round").__enter__()
        with span("finish"):
            clock.passes(4)
        clock.passes(8)
    assert [(path, duration, own) for path, _, duration, own, *_ in taken] == [
        (("round", "train", "turn"), 2, 2),
        (("round", "train"), 3, 1),
        (("round",), 3, 0),
        (("round", "finish"), 4, 4),
        (("round",), 12, 8),
    ]


def test_nothing_is_recorded_outside_recording(clock: Clock) -> None:
    with span("before"):
        pass
    absorb([(("x",), 0, 1, 1, 1, 1, {})])
    assert drain() == []
    assert not is_recording()
    with recording():
        assert is_recording()
        assert drain() == []
        with span("inside"):
            pass
    assert drain() == []
    with pytest.raises(ZeroDivisionError), recording():
        raise ZeroDivisionError
    with recording():
        assert drain() == []


def test_recording_twice_at_a_time_is_refused() -> None:
    with recording():
        with pytest.raises(RuntimeError, match="one run at a time"), recording():
            pass
        with span("still recorded"):
            pass
        assert len(drain()) == 1


def test_a_span_costs_next_to_nothing_while_nothing_is_recorded() -> None:
    def used() -> None:
        with span("turn", client=3):
            pass

    nothing = nullcontext()

    def least() -> None:
        with nothing:
            pass

    def bare() -> None:
        pass

    # The least of many short repeats in turns, because other processes share the machine.
    seconds = [
        [timeit.timeit(each, number=500) for each in (used, least, bare)] for _ in range(300)
    ]
    span_s, context_s, call_s = map(min, zip(*seconds, strict=True))
    assert span_s - call_s < 2 * (context_s - call_s)


def test_what_is_recorded_is_handed_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "BLOCK", 10)
    blocks: list[int] = []
    with recording(lambda block: blocks.append(len(block))):
        for _ in range(25):
            with span("turn"):
                pass
        absorb([(("x",), 0, 1, 1, 1, 1, {})] * 7)
    assert blocks == [10, 10, 12, 0]


def test_threads_have_spans_of_their_own() -> None:
    def work() -> None:
        with span("gather"):
            pass

    with recording():
        with span("train"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        gather, train = drain()
    assert gather[0] == ("gather",)
    assert gather[5] != train[5] == threading.get_ident()
    assert train[2] == train[3]  # nothing of another thread is inside it


def test_no_span_is_lost_when_threads_record_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "BLOCK", 7)
    counts: Counter[int] = Counter()

    def work() -> None:
        for _ in range(2_000):
            with span("gather"):
                pass

    with recording(lambda block: counts.update(each[5] for each in block)):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(counts.values()) == 8_000


# --- workers ------------------------------------------------------------------------------------


def _worker(pipe: Any) -> None:
    with span("turn", client=1), span("steps"):
        time.sleep(0.01)
    pipe.send(drain())


def _from_a_worker() -> list[spans.Span]:
    """Fork a worker in the middle of a span and return what it recorded."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_worker, args=(theirs,))
    worker.start()
    received = ours.recv()
    worker.join()
    assert worker.exitcode == 0
    return received


def test_a_worker_begins_with_no_spans_and_shares_our_clock() -> None:
    with recording():
        with span("build"):
            pass
        with span("train"):
            received = _from_a_worker()
        *_, train = drain()
    assert [path for path, *_ in received] == [("turn", "steps"), ("turn",)]
    assert {process for *_, process, _, _ in received}.isdisjoint({HERE})
    for _, start, duration, *_ in received:
        assert train[1] < start < start + duration < train[1] + train[2]


def test_spans_of_a_worker_end_up_on_a_track_of_their_own(tmp_path: Path) -> None:
    with profiled(tmp_path), span("train"):
        absorb(_from_a_worker())
    numbers = json.loads((tmp_path / PROFILE).read_text())
    assert [phase["path"] for phase in numbers["server"]["phases"]] == [["train"]]
    workers = numbers["workers"]
    assert workers["count"] == 1
    assert [phase["path"] for phase in workers["phases"]] == [["turn"], ["turn", "steps"]]
    assert workers["phases"][1]["total_s"] >= 0.01
    events = json.loads((tmp_path / TRACE).read_text())["traceEvents"]
    process = {event["name"]: event["pid"] for event in events if event["ph"] == "X"}
    assert process["train"] == HERE
    assert process["turn"] == process["steps"] != HERE
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {HERE: "server", process["turn"]: "worker 1"}


# --- the profile --------------------------------------------------------------------------------


def _profile(kept: int = 1_000, rounds: int = 3, workers: int = 2) -> Profile:
    """Return the profile of a run from `BEGAN` to `ENDED`: rounds of 0.2 s, workers that train."""
    profile = Profile(BEGAN, kept)
    ms = 1_000_000
    thread = threading.get_ident()
    for index in range(rounds):
        at = BEGAN + index * 200 * ms
        taken: list[spans.Span] = []
        for worker in range(1, workers + 1):
            for turn in range(4):
                start, own = at + 10 * ms + turn * 40 * ms, HERE + worker
                taken += [
                    (("turn", "load"), start, 4 * ms, 4 * ms, own, 1, {}),
                    (("turn", "steps"), start + 4 * ms, 20 * ms, 20 * ms, own, 1, {}),
                    (("turn",), start, 30 * ms, 6 * ms, own, 1, {"client": turn}),
                ]
        taken += [
            (("round", "train"), at, 160 * ms, 160 * ms, HERE, thread, {}),
            (("round", "aggregate"), at + 160 * ms, 20 * ms, 20 * ms, HERE, thread, {}),
            (("round",), at, 200 * ms, 20 * ms, HERE, thread, {"round": index + 1}),
        ]
        profile.take(taken)
    return profile


def _shares_add_up(numbers: dict[str, Any]) -> None:
    """Check that no phase takes more than what is around it, and that the rest is accounted for."""
    for section in (numbers["server"], numbers["workers"]):
        inside: dict[tuple[str, ...], float] = defaultdict(float)
        for phase in section["phases"]:
            inside[tuple(phase["path"][:-1])] += phase["share"]
        for phase in section["phases"]:
            assert inside.get(tuple(phase["path"]), 0.0) <= phase["share"] + 1e-12
        if section["count"]:
            assert section["unaccounted_share"] >= 0
            assert inside[()] + section["unaccounted_share"] == pytest.approx(1)
            whole = section["count"] * numbers["wall_s"]
            own = sum(phase["self_s"] for phase in section["phases"])
            assert own + section["unaccounted_s"] == pytest.approx(whole)


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    numbers = _profile().numbers(ENDED)
    _shares_add_up(numbers)
    assert (numbers["wall_s"], numbers["spans"], numbers["spans_left_out"]) == (1.0, 81, 0)
    assert numbers["server"] == {
        "count": 1,
        "phases": [
            {
                "path": path,
                "count": 3,
                "total_s": pytest.approx(total),
                "mean_ms": pytest.approx(total / 3 * 1_000),
                "self_s": pytest.approx(own),
                "share": pytest.approx(total),
            }
            for path, total, own in (
                (["round"], 0.6, 0.06),
                (["round", "train"], 0.48, 0.48),
                (["round", "aggregate"], 0.06, 0.06),
            )
        ],
        "unaccounted_s": pytest.approx(0.4),
        "unaccounted_share": pytest.approx(0.4),
    }
    workers = numbers["workers"]
    assert workers["count"] == 2
    assert [(phase["path"], phase["count"]) for phase in workers["phases"]] == [
        (["turn"], 24),
        (["turn", "load"], 24),
        (["turn", "steps"], 24),
    ]
    assert workers["phases"][0]["share"] == pytest.approx(24 * 0.03 / 2)
    assert workers["unaccounted_s"] == pytest.approx(2 - 24 * 0.03)


def test_totals_take_in_what_the_trace_leaves_out(tmp_path: Path) -> None:
    all_of_it, some = _profile(), _profile(kept=50)
    whole, part = all_of_it.numbers(ENDED), some.numbers(ENDED)
    assert (part.pop("spans_left_out"), whole.pop("spans_left_out")) == (31, 0)
    assert part == whole
    some.write_trace(tmp_path / TRACE)
    trace = json.loads((tmp_path / TRACE).read_text())
    assert trace["otherData"] == {"spans_left_out": 31}
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == 50


def test_memory_is_bounded_however_many_turns_a_run_has() -> None:
    profile = Profile(BEGAN, kept=100)
    with recording(profile.take):
        recorder = spans._recorder
        most = 0
        for client in range(3 * spans.BLOCK):
            with span("turn", client=client):
                pass
            most = max(most, len(recorder.spans))
    assert most < spans.BLOCK
    assert len(profile._spans) == 100
    assert profile.numbers(ENDED)["server"]["phases"][0]["count"] == 3 * spans.BLOCK


def _events_by_track(path: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return a trace's complete events by track, after checking that it is a valid one."""
    trace = json.loads(path.read_text(), parse_constant=pytest.fail)
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    named = set()
    for event in trace["traceEvents"]:
        where = event["pid"], event["tid"]
        assert all(type(each) is int for each in where)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")
            named.add(where)
        else:
            assert event["ph"] == "X"
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert isinstance(event["name"], str)
            assert isinstance(event["args"], dict)
            tracks[where].append(event)
    assert named >= tracks.keys()
    return tracks


def _check_nesting(events: list[dict[str, Any]]) -> None:
    """Check that each event lies wholly inside or outside of each other one."""
    open_until: list[int] = []
    last = 0
    for event in events:  # in the order of their begin
        begin = round(event["ts"] * 1_000)
        end = begin + round(event["dur"] * 1_000)
        assert begin >= last
        last = begin
        while open_until and open_until[-1] <= begin:
            open_until.pop()
        assert not open_until or end <= open_until[-1]
        open_until.append(end)


def _check_sums(tracks: dict[tuple[int, int], list[dict[str, Any]]], numbers: Any) -> None:
    """Check that a trace's events add up to the numbers of ``profile.json``."""
    seconds: dict[tuple[bool, str], float] = defaultdict(float)
    counts: Counter[tuple[bool, str]] = Counter()
    for (_, track), events in tracks.items():
        for event in events:
            seconds[track == 0, event["name"]] += event["dur"] / 1e6
            counts[track == 0, event["name"]] += 1
    told: dict[tuple[bool, str], float] = defaultdict(float)
    told_counts: Counter[tuple[bool, str]] = Counter()
    for at_server in (True, False):
        for phase in numbers["server" if at_server else "workers"]["phases"]:
            told[at_server, phase["path"][-1]] += phase["total_s"]
            told_counts[at_server, phase["path"][-1]] += phase["count"]
    assert counts == told_counts
    assert told == pytest.approx(dict(seconds))


def test_the_trace_nests_and_adds_up_to_the_numbers(tmp_path: Path) -> None:
    profile = _profile()
    profile.write_trace(tmp_path / TRACE)
    tracks = _events_by_track(tmp_path / TRACE)
    assert list(tracks) == [(HERE, 0), (HERE + 1, 1), (HERE + 2, 2)]
    for events in tracks.values():
        _check_nesting(events)
    _check_sums(tracks, profile.numbers(ENDED))
    turns = [event for event in tracks[HERE + 1, 1] if event["name"] == "turn"]
    assert turns[1] == {
        "name": "turn",
        "ph": "X",
        "ts": 50_000,
        "dur": 30_000,
        "pid": HERE + 1,
        "tid": 1,
        "args": {"client": 1},
    }


def _shown(numbers: dict[str, Any], terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, legacy_windows=False)
    console.print(profile_table(numbers))
    return file.getvalue()


def test_the_table_shows_every_phase_below_what_is_around_it() -> None:
    numbers = _profile().numbers(ENDED)
    lines = [" ".join(line.split()) for line in _shown(numbers, terminal=False).splitlines()]
    for line in (
        "where 1.00 s went",
        "phase total share self count mean",
        "round 0.60 s 60.0 % 0.06 s 3 200.000 ms",
        "train 0.48 s 48.0 % 0.48 s 3 160.000 ms",
        "unaccounted for 0.40 s 40.0 %",
        "2 workers",
        "steps 0.48 s 24.0 % 0.48 s 24 20.000 ms",
        "unaccounted for 1.28 s 64.0 %",
    ):
        assert line in lines
    assert [line.split(" ")[0] for line in lines].index("round") < lines.index("2 workers")
    assert "\x1b[" in _shown(numbers, terminal=True)
    assert "worker" not in _shown(_profile(workers=0).numbers(ENDED), terminal=False)


def test_a_run_without_spans_has_a_profile(tmp_path: Path) -> None:
    with profiled(tmp_path):
        pass
    numbers = json.loads((tmp_path / PROFILE).read_text())
    assert (numbers["spans"], numbers["server"]["unaccounted_share"]) == (0, 1)
    assert not _events_by_track(tmp_path / TRACE)


def test_a_profile_that_cannot_be_written_does_not_cost_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with profiled(tmp_path / "gone"), span("train"):
        pass
    assert "the profile is not written" in caplog.text
    out = capsys.readouterr().out
    assert "warning: the profile is not written" in out
    assert "train" in out
    assert TRACE not in out.splitlines()[-1]


# --- runs ---------------------------------------------------------------------------------------


def _run_dirs(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob("**/summary.json"))]


def _outcome(run_dir: Path) -> tuple[Any, Any, int]:
    summary = json.loads((run_dir / "summary.json").read_text())
    events = (run_dir / "metrics.jsonl").read_text().splitlines()
    return summary["digest"], summary["manifest_hash"], len(events)


def test_a_run_tells_where_its_time_went_and_comes_to_the_same(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *TINY]) == 0
    plain = capsys.readouterr().out
    assert main(["run", "profile=true", *TINY]) == 0
    out = capsys.readouterr().out
    without, run_dir = _run_dirs(runs)
    assert _outcome(without) == _outcome(run_dir)
    assert not (without / PROFILE).exists()
    assert not (without / TRACE).exists()
    assert "unaccounted" not in plain
    assert "unaccounted for" in out
    assert out.splitlines()[-1].startswith("profile profile.json and trace.json")

    numbers = json.loads((run_dir / PROFILE).read_text())
    _shares_add_up(numbers)
    counts = {tuple(phase["path"]): phase["count"] for phase in numbers["server"]["phases"]}
    assert {("build",), ("query",), ("baseline",), ("experience", "evaluate")} <= counts.keys()
    for name in ("cohort", "configure", "train", "screen", "aggregate", "evaluate", "track"):
        assert counts["round", name] == 2
    turn = ("round", "train", "turn")
    assert counts[turn] == 6
    for name in ("restore", "load", "train_turn", "check", "stage", "reply"):
        assert counts[*turn, name] == 6
    tracks = _events_by_track(run_dir / TRACE)
    (events,) = tracks.values()
    _check_nesting(events)
    _check_sums(tracks, numbers)
    told = [event["args"]["client"] for event in events if event["name"] == "turn"]
    assert sorted(told) == [0, 0, 1, 1, 2, 2]
    assert [e["args"] for e in events if e["name"] == "round"] == [{"round": 1}, {"round": 2}]
    assert (
        numbers["wall_s"] >= json.loads((run_dir / "summary.json").read_text())["time"]["total_s"]
    )


def test_every_run_of_a_sweep_has_its_own_profile(runs: Path) -> None:
    assert main(["run", "-m", "seed=0,1", "profile=true", *TINY]) == 0
    first, second = (json.loads((each / PROFILE).read_text()) for each in _run_dirs(runs))
    assert first["spans"] == second["spans"] > 0
    assert first != second


def test_a_dry_run_has_nothing_to_profile(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "dry_run=true", "profile=true", *TINY]) == 0
    assert "unaccounted" not in capsys.readouterr().out
    assert not runs.exists()


def test_a_run_that_fails_has_a_profile(runs: Path) -> None:
    assert main(["run", "profile=true", *TINY, "optimizer.lr=1e30", "max_failed_rounds=1"]) == 1
    (run_dir,) = _run_dirs(runs)
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "failed"
    phases = json.loads((run_dir / PROFILE).read_text())["server"]["phases"]
    assert ["round", "train"] in [phase["path"] for phase in phases]


def test_an_interrupted_run_has_a_profile(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    overrides = ["continual=naive", "tracker=none", "rounds_per_experience=9999", "profile=true"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedlearn", "run", *overrides, f"out={tmp_path}"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("round"):
                break
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "unaccounted for" in out
    (run_dir,) = _run_dirs(tmp_path)
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "interrupted"
    numbers = json.loads((run_dir / PROFILE).read_text())
    _shares_add_up(numbers)
    for events in _events_by_track(run_dir / TRACE).values():
        _check_nesting(events)


def test_the_profile_is_no_part_of_the_protocol() -> None:
    from fedlearn.config.composition import compose
    from fedlearn.config.protocol import protocol_of

    assert compose().tree["profile"] is False
    assert protocol_of(compose(["profile=true"])) == protocol_of(compose())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_either_kind_tell_what_they_did(start):
    with recording():
        with Workers(_worked, 2, start) as workers:
            workers.map(range(4))
        told = [each for each in drain() if each[0][-1] == "worked"]
    assert len(told) == 4
    assert os.getpid() not in {each[4] for each in told}


def _worked(job, shared, keeper):
    with span("worked", job=job):
        return job
