"""Following a run: its story arrives once and in order, whatever happens to the line."""

import itertools
import json
import math
import random
from types import SimpleNamespace

import httpx
import pytest

from fedlearn.cli import main
from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.deployment import submission
from fedlearn.deployment.control import Control, Status
from fedlearn.deployment.folder import init
from fedlearn.deployment.serving import MARK, Story, read_story
from fedlearn.deployment.submission import LostRunError, follow, submit

RUN = 77


@pytest.fixture
def clock(monkeypatch):
    """Time goes on by sleeping."""
    made = SimpleNamespace(now=1000.0)

    def sleep(seconds):
        made.now += seconds

    clock = SimpleNamespace(monotonic=lambda: made.now, sleep=sleep)
    monkeypatch.setattr(submission, "time", clock)
    return made


class FakeControl:
    """A line to a SuperLink whose streams are given, each with how it ends.

    Attributes:
        asked: How often the stream was begun.
    """

    def __init__(self, streams, statuses=()):
        """Make one.

        Args:
            streams: Of each attempt, pieces of text and, maybe, an error at the end; the last one
                is there for ever.
            statuses: What the SuperLink says of the run after each stream that ended well.
        """
        self._streams = list(streams)
        self._statuses = list(statuses)
        self.asked = 0

    def logs(self, run_id):
        assert run_id == RUN
        self.asked += 1
        for piece in self._streams.pop(0) if len(self._streams) > 1 else self._streams[0]:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def status(self, run_id):
        assert run_id == RUN
        told = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if isinstance(told, Exception):
            raise told
        return told


RUNNING = Status(RUN, "running", "", "")
BROKEN = [
    httpx.ReadError("broken"),
    httpx.ConnectError("refused"),
    httpx.RemoteProtocolError("peer closed connection"),
    ValueError("Truncated protobuf stream frame"),  # Flower's, for a stream cut within a message
    ConfigError("the SuperLink refused"),
]


def ended(details="", outcome="failed"):
    return Status(RUN, "finished", outcome, details)


def tell(what, value):
    return f"{MARK}{what} {json.dumps(value)}\n"


def a_run(rounds=5):
    """The stories of a run, and the text that its server app prints."""
    stories = [("manifest", {"seed": 0})]
    stories += [("event", {"event": "round", "round": at}) for at in range(1, rounds + 1)]
    stories += [("summary", {"status": "completed"})]
    return stories, [tell(*story) for story in stories]


def in_pieces(text, seed):
    draw, pieces = random.Random(seed), []
    while text:
        length = draw.randrange(1, 40)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


# --- what is told -------------------------------------------------------------------------------


def test_a_story_arrives_as_it_was_told(clock):
    stories, lines = a_run()
    control = FakeControl([lines])
    assert list(follow(control, RUN)) == stories
    assert control.asked == 1


@pytest.mark.parametrize("seed", range(10))
def test_lines_that_were_cut_are_joined(seed, clock):
    stories, lines = a_run()
    assert list(follow(FakeControl([in_pieces("".join(lines), seed)]), RUN)) == stories


def test_lines_of_others_are_skipped(clock):
    stories, lines = a_run()
    others = itertools.cycle(
        [
            "INFO :      Starting Flower ServerApp\n",
            "\n",
            "fedlearn event {}\n",
            'event {"event": "round"}\n',
            "\x1e\n",
            "\x1efedlearn\n",
            MARK + "\n",
            MARK + "event\n",
            MARK + 'event {"torn": \n',
            MARK + "event [\n",
            MARK + 'gossip {"a": 1}\n',
            "Ünïcödé \u2028 \u0085 \x0b \x1c x\r\n",
        ]
    )
    text = "".join(next(others) + next(others) + line for line in lines for _ in range(1))
    assert list(follow(FakeControl([in_pieces(text, 3)]), RUN)) == stories


def test_what_others_began_on_the_same_line_takes_nothing_away(clock):
    stories, lines = a_run()
    text = "".join("50%|#####     | " + line for line in lines)
    assert list(follow(FakeControl([[text]]), RUN)) == stories


def test_what_comes_after_the_summary_is_not_waited_for(clock):
    stories, lines = a_run()

    def stream():
        yield from lines
        raise AssertionError("nobody should ask")

    control = SimpleNamespace(logs=lambda _: stream())
    assert list(follow(control, RUN)) == stories


# --- a line that breaks -------------------------------------------------------------------------


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("seed", range(4))
def test_each_thing_is_told_once_and_in_order_though_the_line_breaks(error, seed, clock):
    stories, lines = a_run(9)
    text, draw = "".join(f"other\n{line}" for line in lines), random.Random(seed)
    streams = []
    for end in sorted(draw.randrange(len(text)) for _ in range(12)):
        streams.append([*in_pieces(text[:end], end), error])
    streams.append(in_pieces(text, 0))
    control = FakeControl(streams)
    assert list(follow(control, RUN)) == stories
    assert control.asked == 13


@pytest.mark.parametrize("seed", range(4))
def test_and_though_it_ends_within_a_line_without_an_error(seed, clock):
    stories, lines = a_run(9)
    text, draw = "".join(lines), random.Random(seed)
    ends = sorted(draw.randrange(len(text)) for _ in range(12))
    streams = [*([text[:end]] for end in ends), [text]]
    assert list(follow(FakeControl(streams, [RUNNING]), RUN)) == stories


def test_the_line_may_be_gone_again_and_again_but_not_for_too_long(clock, monkeypatch):
    monkeypatch.setattr(submission, "PATIENCE_S", 20.0)
    stories, lines = a_run()
    broken = [httpx.ConnectError("refused")]
    streams = []
    for end in range(1, len(lines)):
        streams += [broken] * 15 + [[*lines[:end], httpx.ReadError("broken")]]
    assert list(follow(FakeControl([*streams, lines]), RUN)) == stories

    streams = [[*lines[:3], httpx.ReadError("broken")], [httpx.ConnectError("no way")]]
    told, begun = [], clock.now
    with pytest.raises(LostRunError) as caught:
        told.extend(follow(FakeControl(streams), RUN))
    assert told == stories[:3]
    assert str(caught.value) == f"run {RUN} cannot be followed any more: no way"
    assert 20 <= clock.now - begun <= 23


def test_what_arrived_before_the_line_broke_was_told_at_once(clock):
    stories, lines = a_run()
    streams = [[*lines[:3], httpx.ReadError("broken")], lines]
    following = follow(FakeControl(streams), RUN)
    assert [next(following) for _ in range(3)] == stories[:3]
    assert clock.now == 1000
    assert list(following) == stories[3:]


def test_a_quiet_run_is_not_a_lost_one(clock, monkeypatch):
    """Its streams end without a line, and the SuperLink says that it goes on."""
    monkeypatch.setattr(submission, "PATIENCE_S", 20.0)
    stories, lines = a_run()
    streams = [[], [httpx.ReadError("broken")]] * 50
    assert list(follow(FakeControl([*streams, lines], [RUNNING]), RUN)) == stories
    assert clock.now > 1090


# --- a run that ends ----------------------------------------------------------------------------


def test_a_run_that_ends_without_a_summary_is_lost_and_says_why(clock):
    stories, lines = a_run()
    control = FakeControl([lines[:-1]], [RUNNING, ended("RunFailedError: no valid reply")])
    told = []
    with pytest.raises(LostRunError) as caught:
        told.extend(follow(control, RUN))
    assert told == stories[:-1]
    expected = "ended at the server without a result: RunFailedError: no valid reply"
    assert str(caught.value) == f"run {RUN} {expected}"


def test_without_details_the_outcome_is_told(clock):
    with pytest.raises(LostRunError, match="without a result: stopped"):
        list(follow(FakeControl([[]], [ended(outcome="stopped")]), RUN))


@pytest.mark.parametrize("missing", [1, 2, 6])
def test_the_last_lines_of_a_run_that_has_just_ended_are_not_missed(missing, clock):
    """A stream may end before the lines that were printed just before the run did."""
    stories, lines = a_run()
    control = FakeControl([lines[:-missing], lines], [ended()])
    assert list(follow(control, RUN)) == stories


def test_a_run_that_is_no_longer_known_is_given_up(clock, monkeypatch):
    monkeypatch.setattr(submission, "PATIENCE_S", 20.0)
    control = FakeControl([[]], [ConfigError("77: is no run of fl")])
    with pytest.raises(LostRunError, match="77: is no run of fl"):
        list(follow(control, RUN))


def test_other_errors_are_not_swallowed(clock):
    with pytest.raises(RuntimeError, match="a bug"):
        list(follow(FakeControl([[RuntimeError("a bug")]]), RUN))


# --- the story ----------------------------------------------------------------------------------

SEEN = {
    "event": "round",
    "round": 3,
    "text": 'ä " \\ \n \r \u2028 \x1e ' + MARK + "summary {}",
    "none": None,
    "flags": [True, False],
    "nested": {"a": {"b": [{"c": [1, [2, [3.5]]]}]}, "empty": {}, "list": []},
    "small": 5e-324,
    "large": 2**70,
}


@pytest.mark.parametrize("what", ["manifest", "event", "summary"])
def test_what_a_story_tells_is_read_as_it_was(what, capsys):
    story = Story()
    if what == "manifest":
        story.start(None, {"config": 1}, SEEN)
    elif what == "event":
        story.event(SEEN)
    else:
        story.finish(SEEN)
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert len(told.removeprefix(MARK).splitlines()) == 1  # as any reader cuts lines
    assert read_story(told.removesuffix("\n")) == (what, SEEN)


def test_numbers_that_json_cannot_hold_are_none_and_others_exact(capsys):
    draw = random.Random(0)
    numbers = [draw.gauss(0, 10 ** draw.randrange(-300, 300)) for _ in range(200)]
    odd = {"loss": math.nan, "deep": [{"x": (math.inf, [-math.inf])}], "fine": numbers}
    Story().event(odd)
    what, value = read_story(capsys.readouterr().out.rstrip("\n"))
    assert what == "event"
    assert value == {"loss": None, "deep": [{"x": [None, [None]]}], "fine": numbers}


def test_a_whole_run_as_its_story_is_told_is_followed(capsys, clock):
    story, stories = Story(), [("manifest", {"m": 1}), ("event", SEEN), ("summary", {"s": "x"})]
    story.start(None, {}, {"m": 1})
    print("INFO: something else")  # noqa: T201
    story.event(SEEN)
    story.finish({"s": "x"})
    pieces = in_pieces(capsys.readouterr().out, 5)
    assert list(follow(FakeControl([pieces]), RUN)) == stories


# --- submitting ---------------------------------------------------------------------------------


def test_a_run_of_more_or_fewer_clients_than_nodes_is_refused(tmp_path):
    folder = init(tmp_path / "fl", 2, ["localhost"])
    for clients in (1, 3):
        with pytest.raises(ConfigError) as caught:
            submit(Control(folder), folder, Composed({"num_clients": clients}, {}), "run")
        told = f"num_clients={clients}: fl has 2 nodes, each of them one client"
        assert str(caught.value) == told


def test_a_sweep_is_refused_before_anything_is_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init(tmp_path / "fl", 2, ["localhost"])
    there = ["runtime=deployment", "runtime.connection=fl", "num_clients=2"]
    assert main(["run", "-m", *there, "seed=0,1"]) == 2
    told = capsys.readouterr().err
    assert told == "runtime=deployment: takes one run at a time; submit them without -m\n"
    assert not (tmp_path / "runs").exists()


def test_a_quorum_of_more_than_there_are_is_refused(tmp_path):
    folder = init(tmp_path / "fl", 2, ["localhost"])
    tree = {"num_clients": 2, "runtime": {"quorum": 3}}
    with pytest.raises(ConfigError, match=r"^runtime\.quorum=3: must be at most 2, the nodes of"):
        submit(Control(folder), folder, Composed(tree, {}), "run")
