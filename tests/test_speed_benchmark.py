"""benchmarks/speed: contenders do the same work, and one that does not is found out."""

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from speed import fedlearn_run, stopwatch, venvs  # noqa: E402
from speed.comparison import complaints  # noqa: E402
from speed.contenders import ALONE, CONTINUAL, Contender, Group, chosen  # noqa: E402
from speed.memory import tree_mib  # noqa: E402
from speed.models import network  # noqa: E402
from speed.plan import Plan, read_plan  # noqa: E402
from speed.planning import make_plan, write_data  # noqa: E402
from speed.programs.convolutions import convolutions  # noqa: E402
from speed.programs.plain_loop import plain_loop  # noqa: E402
from speed.programs.processes import run  # noqa: E402
from speed.programs.stacked_layers import stacked_layers  # noqa: E402
from speed.programs.trainer import MakeTrainer  # noqa: E402
from speed.reference import TOLERANCE, distance, train_sequentially  # noqa: E402
from speed.tables import table  # noqa: E402
from speed.trial import Trial, run_trial  # noqa: E402
from speed.workloads import W1, W2, W3, W4, Workload  # noqa: E402

TINY = {
    "W1": replace(
        W1,
        input_shape=(3, 9, 10),
        widths=(4, 5),
        hidden_sizes=(7,),
        num_clients=6,
        cohort=4,
        samples=6,
        batch_size=3,
        lr=0.05,
        rounds=3,
    ),
    "W2": replace(
        W2,
        input_shape=(1, 4, 5),
        hidden_sizes=(8, 6),
        num_clients=9,
        cohort=5,
        samples=6,
        batch_size=2,
        rounds=3,
        chunk=2,
    ),
    "W3": replace(
        W3, hidden_sizes=(5,), num_clients=7, cohort=7, samples=4, batch_size=2, chunk=4, rounds=3
    ),
}
CLOSE = 2e-5
"""Largest distance of float32 sums in another order on these few clients."""


@pytest.fixture(scope="module", params=list(TINY))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny workload's data and plan."""
    folder = tmp_path_factory.mktemp(request.param)
    work = TINY[request.param]
    write_data(work, folder / "data.pt")
    make_plan(work, folder / "data.pt").save(folder / "plan.pt")
    return folder


def read(folder: Path) -> Plan:
    return read_plan(str(folder / "plan.pt"))


def test_a_plan_has_each_clients_samples_once_and_distinct_orders(tiny: Path) -> None:
    plan = read(tiny)
    work = plan.workload
    held = torch.load(tiny / "data.pt", weights_only=True)
    assert plan.x.shape == (work.num_clients, work.samples, *work.input_shape)
    rows = plan.x.flatten(2).flatten(0, 1)
    assert torch.equal(rows.sum(1).sort().values, held["x_train"].flatten(1).sum(1).sort().values)
    assert plan.cohorts.shape == (work.rounds, work.cohort)
    for cohort in plan.cohorts:
        assert len(set(cohort.tolist())) == work.cohort
    assert torch.equal(plan.orders.sort(2).values[0, 0], torch.arange(work.samples))
    assert (plan.orders.sort(2).values == torch.arange(work.samples)).all()
    assert len(set(map(tuple, plan.orders.flatten(0, 1).tolist()))) > 1


@pytest.mark.parametrize("engine", ["functional", "avalanche"])
def test_the_plan_is_what_fedlearn_does(
    tiny: Path, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, weights = read(tiny), tmp_path / "weights.pt"
    monkeypatch.setenv(stopwatch.STARTED, repr(time.monotonic()))
    arguments = [str(tiny / "plan.pt"), str(weights), "--data", str(tiny / "data.pt")]
    monkeypatch.setattr(sys, "argv", ["fedlearn_run", *arguments, "--engine", engine])
    fedlearn_run.main()
    final = torch.load(weights, weights_only=True)
    assert distance(final, train_sequentially(plan), plan.weights) < CLOSE


@pytest.mark.parametrize("processes", [1, 2])
def test_programs_agree_with_the_reference(tiny: Path, processes: int) -> None:
    plan = read(tiny)
    reference = train_sequentially(plan)
    best: MakeTrainer = convolutions if plan.workload.widths else stacked_layers
    for make in (plain_loop, best):
        ends = itertools.count()
        final = run(plan, make, processes, ends.__next__)
        assert next(ends) == plan.workload.rounds
        assert distance(final, reference, plan.weights) < CLOSE, make.__name__


def logistic_plan() -> Plan:
    """Return one round of two clients with one step each on a model without hidden layers."""
    work = Workload("T", "", (1, 2, 2), (), (), 3, 2, 4, 4, 0.5, 1)
    draws = torch.Generator().manual_seed(3)
    return Plan(
        workload=work,
        x=torch.randn(3, 4, 1, 2, 2, generator=draws),
        y=torch.randint(10, (3, 4), generator=draws),
        cohorts=torch.tensor([[0, 2]]),
        orders=torch.tensor([[[3, 1, 0, 2], [0, 2, 1, 3]]]),
        weights=[torch.randn(10, 4, generator=draws), torch.randn(10, generator=draws)],
    )


def test_the_reference_takes_steps_of_softmax_regression_and_averages_them() -> None:
    plan = logistic_plan()
    weight, bias = (each.double() for each in plan.weights)
    changes: list[tuple[Tensor, Tensor]] = []
    for client in (0, 2):
        x, y = plan.x[client].flatten(1).double(), plan.y[client]
        scores = (x @ weight.T + bias).exp()
        error = scores / scores.sum(1, keepdim=True) - torch.eye(10, dtype=torch.float64)[y]
        changes.append((error.T @ x / 4, error.sum(0) / 4))
    expected = [
        initial - 0.5 * sum(change) / 2
        for initial, *change in zip((weight, bias), *changes, strict=True)
    ]
    final = train_sequentially(plan)
    for own, other in zip(final, expected, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-6, atol=1e-6)


def test_other_orders_cohorts_and_rates_are_found_out(tiny: Path) -> None:
    plan = read(tiny)
    reference = train_sequentially(plan)
    mistakes = {
        "orders": replace(plan, orders=plan.orders.flip(2).roll(1, 2)),
        "cohorts": replace(plan, cohorts=(plan.cohorts + 1) % plan.workload.num_clients),
        "lr": replace(plan, workload=replace(plan.workload, lr=plan.workload.lr * 1.01)),
        "rounds": replace(plan, cohorts=plan.cohorts[:-1], orders=plan.orders[:-1]),
    }
    for what, wrong in mistakes.items():
        far = distance(train_sequentially(wrong), reference, plan.weights)
        assert far > 10 * TOLERANCE, what


def test_distance_is_relative_to_the_change() -> None:
    initial, reference = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
    assert distance(reference, reference, initial) == 0
    assert distance(initial, reference, initial) == 1
    assert distance([torch.tensor([3.0, 4.5])], reference, initial) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="must be"):
        distance([torch.zeros(3)], reference, initial)


def test_w1s_network_has_the_parameters_that_its_title_says() -> None:
    model = network(
        input_shape=W1.input_shape, num_classes=10, widths=W1.widths, hidden_sizes=W1.hidden_sizes
    )
    assert sum(each.numel() for each in model.parameters()) == 1_626_442
    for work in (W1, W2, W3, W4):
        assert work.samples % work.batch_size == 0
        assert work.rounds % work.experiences == 0


def test_a_fast_wrong_number_fails() -> None:
    contenders = [Contender("quick", "programs", ""), Contender("right", "programs", "")]
    results = {
        "quick": [Trial(1.0, [1e-9], 1.0, distance=2 * TOLERANCE)],
        "right": [Trial(1.0, [1.0], 1.0, distance=0.5 * TOLERANCE)],
    }
    (complaint,) = complaints(W1, contenders, results)
    assert complaint.startswith("W1 quick: final weights are wrong")
    results["right"] = [Trial(1.0, [1.0], 1.0, distance=float("nan"))]
    assert len(complaints(W1, contenders, results)) == 2


def test_only_a_peer_may_fail() -> None:
    expected: dict[Group, int] = {"peers": 0, "fedlearn": 1, "programs": 1}
    for group, count in expected.items():
        contender = Contender("one", group, "")
        failed = {"one": [Trial(failed="exit status 1: no")]}
        assert len(complaints(W1, [contender], failed)) == count
        assert not complaints(W1, [contender], {"one": [Trial(skipped="no such")]})


def test_the_tables_ratios_are_within_repeats() -> None:
    work = replace(W1, cohort=10)
    contenders = [
        Contender("fedlearn-serial", "fedlearn", ""),
        Contender("flower", "peers", ""),
        Contender("pfl-1", "peers", ""),
        Contender("fluke", "peers", ""),
        Contender("best-2", "programs", ""),
    ]
    results = {  # the second repeat is ten times slower for everybody
        "fedlearn-serial": [Trial(2.0, [1.0, 1.0, 9.0], 80.0, distance=1e-6), Trial(4.0, [10.0])],
        "flower": [Trial(20.0, [4.0]), Trial(20.0, [40.0])],
        "pfl-1": [Trial(3.0, [2.0]), Trial(3.0, [20.0])],
        "fluke": [Trial(skipped="not here")] * 2,
        "best-2": [Trial(1.0, [0.5]), Trial(1.0, [5.0])],
    }
    lines = {line.split()[0]: line for line in table(work, contenders, results).splitlines()[2:]}
    heads = table(work, contenders, results).splitlines()[1].split()
    assert heads[:5] == ["updates/s", "spread", "/flower", "/pfl-1", "/best-2"]
    own = lines["fedlearn-serial"].split()
    assert own[1:] == ["5.5", "1.0", "-", "10.0", "4.00x", "2.00x", "0.50x", "3.0", "80", "1.0e-06"]
    assert lines["fluke"].split(maxsplit=1)[1] == "skipped: not here"


def test_continual_strategies_are_timed_against_naive_over_all_rounds() -> None:
    naive, ewc = (
        next(each for each in CONTINUAL if each.name == f"{name}/functional/serial")
        for name in ("naive", "ewc")
    )
    results = {naive.name: [Trial(1.0, [1.0, 1.0])], ewc.name: [Trial(1.0, [1.0, 4.0])]}
    line = table(W4, [naive, ewc], results).splitlines()[-1].split()
    assert line[:1] == ["ewc/functional/serial"]
    assert "2.50x" in line


def test_contenders_are_chosen_by_name_or_group() -> None:
    assert chosen([], False) == list(ALONE)
    assert {each.group for each in chosen(["peers"], False)} == {"peers"}
    assert [each.name for each in chosen(["flower", "best-2"], False)] == ["flower", "best-2"]
    assert chosen(["flower"], True) == []
    bases = {each.name for each in CONTINUAL}
    assert all({each.base, each.like} <= bases for each in CONTINUAL)


def test_a_trial_runs_a_contender_in_its_own_process(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = logistic_plan()
    twice = replace(plan, cohorts=plan.cohorts.expand(2, -1), orders=plan.orders.expand(2, -1, -1))
    twice.save(tmp_path / "plan.pt")
    contender = next(each for each in ALONE if each.name == "best-2")
    weights = tmp_path / "weights.pt"
    trial = run_trial(contender, tmp_path / "plan.pt", tmp_path / "data.pt", weights, 100.0)
    assert trial.ran, trial
    assert len(trial.seconds) == 1
    assert trial.startup_s > trial.seconds[0] > 0
    assert trial.mib > 10
    final = torch.load(weights, weights_only=True)
    assert distance(final, train_sequentially(twice), plan.weights) < CLOSE


def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    missing = run_trial(Contender("x", "programs", "speed.none"), tmp_path, tmp_path, tmp_path, 60)
    assert missing.failed is not None
    assert "No module named speed.none" in missing.failed
    slow = run_trial(Contender("x", "programs", "timeit"), tmp_path, tmp_path, tmp_path, 0.0)
    assert slow.failed == "took longer than 0 s"


def test_memory_counts_children() -> None:
    code = "import sys; held = bytearray(64 << 20); print(1, flush=True); sys.stdin.read()"
    before = tree_mib(_own_pid())
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert tree_mib(child.pid) > 64
        assert tree_mib(_own_pid()) > before + 60


def _own_pid() -> int:
    return int(Path("/proc/self").readlink().name)


def test_a_peer_without_its_python_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(venvs, "VENVS", tmp_path)
    monkeypatch.setitem(venvs.PYTHONS, "blazefl", (9, 99))
    contender = next(each for each in ALONE if each.name == "blazefl-1")
    trial = run_trial(contender, tmp_path, tmp_path, tmp_path, 1.0)
    assert trial.skipped == "blazefl needs python9.99, which is not installed"
    assert not list(tmp_path.iterdir())
