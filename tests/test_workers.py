"""The pool does every job once, whatever becomes of its workers, and leaves nothing behind."""

import faulthandler
import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from fedlearn.runtimes.workers import Crashed, Keeper, Parcel, Raised, Workers
from fedlearn.spans import drain, recording, span

NUMEL = 1000
BYTES = NUMEL * 4


def handle(job, shared, keeper: Keeper):
    """Does what the tests ask for."""
    what, *rest = job
    if what == "echo":
        return rest[0]
    if what == "pid":
        return os.getpid()
    if what == "sleep":
        time.sleep(rest[0])
        return os.getpid()
    if what == "sum":
        return float(shared["w"].sum()), shared["w"] + rest[0]
    if what == "address":
        return shared["w"].data_ptr(), id(shared)
    if what == "raise":
        raise ValueError("of\nno use")
    if what == "exit":
        sys.exit(3)
    if what == "unpicklable":
        return [torch.zeros(NUMEL), lambda: None]
    if what == "die":
        faulthandler.disable()  # the tests' own, whose report would look like theirs
        os.kill(os.getpid(), rest[0])
        time.sleep(60)
    if what == "die once":
        if not rest[0].exists():
            rest[0].touch()
            os._exit(5)
        return "alive"
    if what == "pack":
        return keeper.pack({"own": torch.full((NUMEL,), rest[0]), "shared": shared["w"]})
    if what == "pack, no use":
        keeper.pack(torch.ones(NUMEL))
        return None
    if what == "open":
        return float(keeper.open(rest[0])["own"].sum())
    if what == "repack":
        old = keeper.open(rest[0])
        return keeper.pack({"own": old["own"], "part": old["own"][3:5], "new": torch.ones(NUMEL)})
    if what == "repack changed":
        old = keeper.open(rest[0])
        return keeper.pack({"own": old["own"].add_(1)})
    if what == "same":
        return keeper.pack(keeper.open(rest[0])).blob == rest[0].blob
    if what == "threads":
        square = torch.ones(rest[0], rest[0])
        return torch.get_num_threads(), float((square @ square).sum())
    if what == "span":
        with span("there", job=rest[0]):
            return os.getpid()
    raise AssertionError(what)


W = {"w": torch.arange(float(NUMEL))}


@pytest.fixture(scope="module", params=["fork", "spawn"])
def pool(request):
    with Workers(handle, 2, request.param) as workers:
        yield workers


@pytest.fixture
def forked():
    with Workers(handle, 2) as workers:
        yield workers


@pytest.fixture(params=["memory", "files"])
def keeping(request, tmp_path):
    folder = None if request.param == "memory" else tmp_path / "kept"
    with Workers(handle, 2, parcel_dir=folder) as workers:
        yield workers


def test_results_come_in_the_order_of_the_jobs(pool):
    jobs = [("echo", i) for i in range(300)]
    assert pool.map(jobs) == list(range(300))
    assert pool.map(jobs, costs=[i % 7 for i in range(300)]) == list(range(300))
    assert pool.map([]) == []


def test_jobs_are_spread_over_workers_that_live_on(pool):
    pids = set(pool.map([("pid",)] * 100))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert set(pool.map([("pid",)] * 100)) == pids


def test_tensors_go_there_and_come_back(pool):
    results = pool.map([("sum", i) for i in range(5)], W)
    for i, (total, moved) in enumerate(results):
        assert total == W["w"].sum()
        assert torch.equal(moved, W["w"] + i)


def test_what_is_shared_is_written_and_read_once(forked):
    told = forked.map([("address",)] * 20, W)
    assert len({address for address, _ in told}) == 1  # the same memory in all processes
    assert len({identity for _, identity in told}) <= 2  # one object a worker
    before = forked._arenas[0].top
    assert before < 3 * BYTES
    forked.map([("echo", W["w"])] * 20, W)  # jobs that hold it do not write it again
    assert forked._arenas[0].top == before


def test_results_stay_what_they_are_while_someone_holds_them(forked):
    held = forked.map([("sum", 1.0)] * 4, W)
    for i in range(5):
        forked.map([("sum", float(i))] * 4, W)
    for _, moved in held:
        assert torch.equal(moved, W["w"] + 1)
    assert forked.kept_bytes == 4 * 4096
    del held, moved
    gc.collect()
    assert forked.kept_bytes == 0


def test_memory_is_used_again(forked):
    for i in range(50):
        forked.map([("sum", float(i))] * 4, W)
    tops = [os.fstat(arena.fd).st_blocks * 512 for arena in forked._arenas]
    assert max(tops) <= 16 * BYTES


def test_large_messages_pass_both_ways(forked):
    large = list(range(200_000))
    assert forked.map([("echo", large)] * 6) == [large] * 6
    assert forked.map([("echo", b"x" * 10**7)] * 3) == [b"x" * 10**7] * 3
    assert forked.kept_bytes == 0


def test_the_longest_jobs_are_begun_first_and_nobody_waits_for_nothing(forked):
    seconds = [0.02] * 10 + [0.2]
    forked.map([("sleep", 0.0)] * 2)
    started = time.perf_counter()
    forked.map([("sleep", each) for each in seconds], costs=seconds)
    assert time.perf_counter() - started < 0.3  # begun last, the long one would end at 0.3
    assert min(forked.busy) > 0.15


def test_a_job_that_waits_is_not_bound_to_a_busy_worker(forked):
    started = time.perf_counter()
    forked.map([("sleep", each) for each in (0.3, 0.1, 0.1, 0.1)])
    assert time.perf_counter() - started < 0.39


def test_an_exception_is_a_value(pool):
    crashes = pool.crashes
    results = pool.map([("raise",), ("echo", 1), ("exit",), ("unpicklable",), ("echo", 2)])
    assert [results[1], results[4]] == [1, 2]
    assert isinstance(results[0], Raised)
    assert results[0].reason == "ValueError: of no use"
    assert "in handle" in results[0].traceback
    assert results[2].reason == "SystemExit: 3"
    assert isinstance(results[3], Raised)
    assert pool.crashes == crashes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_job_that_kills_is_tried_twice(forked, number):
    results = forked.map([("echo", 0), ("die", number), *(("echo", i) for i in range(40))])
    assert results[0] == 0
    assert results[2:] == list(range(40))
    assert isinstance(results[1], Crashed)
    assert results[1].reason == f"the worker was ended by {number.name}"
    assert forked.crashes == 2
    assert len(set(forked.map([("sleep", 0.05)] * 4))) == 2


def test_a_worker_that_dies_once_costs_nothing(pool, tmp_path):
    crashes = pool.crashes
    jobs = [("die once", tmp_path / str(i)) for i in range(3)]
    assert pool.map([*jobs, ("sum", 0)], W)[:3] == ["alive"] * 3
    assert pool.crashes == crashes + 3


def test_a_worker_killed_while_idle_is_replaced(forked):
    for pid in set(forked.map([("sleep", 0.02)] * 4)):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert forked.map([("echo", i) for i in range(10)]) == list(range(10))
    assert forked.crashes == 2


def test_parcels_outlive_rounds_and_open_anywhere(keeping):
    parcels = keeping.map([("pack", float(i)) for i in range(6)], W)
    assert all(isinstance(parcel, Parcel) for parcel in parcels)
    for _ in range(3):
        keeping.map([("sum", 0)] * 6, {"w": torch.zeros(NUMEL)})  # what was shared has gone
    for _ in range(10):  # by whichever worker is free
        opened = keeping.map([("open", parcel) for parcel in parcels])
        assert opened == [NUMEL * float(i) for i in range(6)]
    for i, parcel in enumerate(parcels):
        here = keeping.open(parcel)
        assert (here["own"] == i).all()
        assert torch.equal(here["shared"], W["w"])


def test_what_is_shared_is_kept_once_a_worker(keeping):
    parcels = keeping.map([("pack", float(i)) for i in range(10)], W)
    assert keeping.kept_bytes == (10 + 2) * 4096
    assert len({extent for parcel in parcels for extent in parcel.extents}) == 12


def test_what_was_kept_is_referred_to_and_freed_with_its_last_parcel(keeping):
    (old,) = keeping.map([("pack", 2.0)], W)
    (new,) = keeping.map([("repack", old)])
    assert set(old.extents) & set(new.extents)
    assert keeping.kept_bytes == 3 * 4096
    keeping.drop(old)  # what was shared goes, what the new one refers to stays
    assert keeping.kept_bytes == 2 * 4096
    for i in range(4):  # would take the place of what was freed too early
        keeping.map([("pack", float(i))] * 3, W)
    seen = keeping.open(new)
    assert (seen["own"] == 2).all()
    assert torch.equal(seen["part"], seen["own"][3:5])
    assert (seen["new"] == 1).all()
    with pytest.raises(ValueError, match="was dropped"):
        keeping.drop(old)


def test_packing_what_was_opened_gives_the_same_parcel(keeping):
    parcels = keeping.map([("pack", float(i)) for i in range(4)], W)
    assert keeping.map([("same", parcel) for parcel in parcels]) == [True] * 4
    assert keeping.kept_bytes == sum({e: e.size for p in parcels for e in p.extents}.values())


def test_what_was_changed_in_place_is_stored_anew(keeping):
    (old,) = keeping.map([("pack", 2.0)], W)
    (new,) = keeping.map([("repack changed", old)])
    assert (keeping.open(new)["own"] == 3).all()


def test_dropped_memory_is_used_again(keeping):
    parcels = keeping.map([("pack", float(i)) for i in range(4)], W)
    for i in range(60):
        kept = parcels
        parcels = keeping.map([("repack", parcel) for parcel in kept], W)
        for parcel in kept:
            keeping.drop(parcel)
        assert keeping.kept_bytes <= 12 * 4096, i
    sizes = [os.fstat(space.fd).st_blocks * 512 for space in keeping._spaces]
    assert max(sizes) < 40 * BYTES


def test_what_is_packed_and_not_sent_is_freed(keeping):
    for _ in range(30):
        keeping.map([("pack, no use",)] * 4)
    assert keeping.kept_bytes == 0
    assert max(os.fstat(space.fd).st_blocks * 512 for space in keeping._spaces) < 6 * BYTES


def test_parcels_survive_their_packer(keeping):
    parcels = keeping.map([("pack", float(i)) for i in range(6)], W)
    keeping.map([("die", signal.SIGKILL)] * 2)
    assert keeping.crashes == 4
    again = keeping.map([("pack", 10.0 + i) for i in range(6)], W)  # by those that took over
    results = keeping.map([("open", parcel) for parcel in (*parcels, *again)])
    assert results == [NUMEL * float(i) for i in (*range(6), *range(10, 16))]
    for parcel in (*parcels, *again):
        keeping.drop(parcel)
    assert keeping.kept_bytes == 0
    assert keeping.map([("pack", 1.0)], W)[0].extents


def test_opened_tensors_stay_what_they_are_once_dropped(keeping):
    (parcel,) = keeping.map([("pack", 4.0)], W)
    seen = keeping.open(parcel)
    keeping.drop(parcel)
    for i in range(4):
        keeping.map([("pack", float(i))] * 4, W)
    assert (seen["own"] == 4).all()


def test_files_hold_parcels_and_have_no_names(tmp_path):
    with Workers(handle, 2, parcel_dir=tmp_path / "deep" / "kept") as workers:
        parcels = workers.map([("pack", float(i)) for i in range(50)], W)
        on_disk = sum(os.fstat(shelf.fd).st_size for shelf in workers._spaces[3:])
        assert on_disk >= 50 * BYTES
        assert not list((tmp_path / "deep" / "kept").iterdir())
    assert (workers.open(parcels[7])["own"] == 7).all()


def test_results_and_parcels_can_be_read_after_the_end():
    with Workers(handle, 2) as workers:
        results = workers.map([("sum", 1.0)] * 3, W)
        parcels = workers.map([("pack", float(i)) for i in range(3)], W)
    assert all(torch.equal(moved, W["w"] + 1) for _, moved in results)
    assert (workers.open(parcels[2])["own"] == 2).all()
    workers.close()
    with pytest.raises(RuntimeError, match="closed"):
        workers.map([("echo", 1)])


def test_a_job_that_does_not_pickle_closes_the_pool(forked):
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        forked.map([("echo", 1), ("echo", lambda: None)])
    with pytest.raises(RuntimeError, match="closed"):
        forked.map([("echo", 1)])


def test_without_the_zygote_a_dead_worker_is_an_error_and_no_hang(forked):
    (pid,) = forked.map([("pid",)])
    stat = Path(f"/proc/{pid}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="that starts workers has ended"):
        forked.map([("sleep", 0.05)] * 100)


def test_a_spawned_handle_may_be_anything_and_its_tensors_are_its_own():
    held = torch.zeros(NUMEL)

    class Counting:
        def __call__(self, job, shared, keeper):
            held.add_(1)
            return float(held.sum()), os.getpid()

    with Workers(Counting(), 2, "spawn") as workers:
        counts = workers.map([None] * 30)
    assert held.sum() == 0
    for pid in {pid for _, pid in counts}:
        own = sorted(count for count, each in counts if each == pid)
        assert own == [NUMEL * (i + 1) for i in range(len(own))]


def test_workers_compute_whatever_threads_this_process_has_used():
    torch.set_num_threads(2)
    try:
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        for start, threads in (("fork", 1), ("spawn", 2)):
            with Workers(handle, 1, start, threads) as workers:
                assert workers.map([("threads", 1000)]) == [(threads, 1e9)]
        with pytest.raises(ValueError, match="several threads, do not survive it"):
            Workers(handle, 1, "fork", 2)
    finally:
        torch.set_num_threads(1)


def test_what_workers_record_reaches_the_main_process():
    with recording(), Workers(handle, 2) as workers:
        with span("here"):
            pids = workers.map([("span", i) for i in range(10)])
        spans = drain()
    there = [(path, pid, told["job"]) for path, _, _, _, pid, _, told in spans if "job" in told]
    assert sorted(there) == sorted((("there",), pid, i) for i, pid in enumerate(pids))
    names = Counter(path for path, *_ in spans)
    each = (("wait",), ("read",), ("there",), ("answer",))  # of a job
    assert names == {("here",): 1} | dict.fromkeys(each, 10)


def test_a_job_costs_little(forked):
    jobs = [("echo", None)] * 2000
    forked.map(jobs)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        forked.map(jobs)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) / len(jobs) < 300e-6  # some 35 where nothing else runs


SCRIPT = """
import sys, time
from fedlearn.runtimes.workers import Workers

def handle(job, shared, keeper):
    time.sleep(job)

if __name__ == "__main__":
    with Workers(handle, 3, sys.argv[1]) as workers:
        workers.map([0.0] * 9)
        print("ready", flush=True)
        workers.map([60.0] * 9)
"""


def in_session(session: int) -> list[str]:
    """The processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, sid = fields.split()[:4]
        if int(sid) == session and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("fork", signal.SIGINT),
        ("fork", signal.SIGTERM),
        ("fork", signal.SIGKILL),
        ("spawn", signal.SIGKILL),
    ],
)
def test_whatever_ends_the_main_process_ends_the_workers(tmp_path, start, end):
    (tmp_path / "script.py").write_text(SCRIPT)
    before = set(Path("/dev/shm").glob("*"))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), start],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(in_session(process.pid)) == 5  # with the zygote
        if end == signal.SIGINT:
            os.killpg(process.pid, end)  # as a terminal does
        else:
            process.send_signal(end)
        _, errors = process.communicate(timeout=20)
        deadline = time.monotonic() + 5
        while in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert in_session(process.pid) == []
    finally:
        process.kill()
    assert process.returncode == -end
    assert errors.count("Traceback") == (end == signal.SIGINT)
    assert set(Path("/dev/shm").glob("*")) <= before
