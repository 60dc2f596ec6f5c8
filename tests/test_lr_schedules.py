"""Learning-rate schedules: against torch's own and hand arithmetic; pure functions of the round."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.lr_schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    LrSchedule,
    Step,
    check_warmup,
)
from fedlearn.schedule import Schedule

ALL = [Constant, Step, Cosine, Exponential, Linear]


def _torchs(make, rounds):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(rounds):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Constant(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (Step(every=3, gamma=0.1), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.1)),
        (Exponential(gamma=0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (Cosine(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12)),
        (Cosine(end=0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12, 0.1)),
        (Linear(end=0.2), lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 11)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LrSchedule) else "",
)
def test_they_are_torchs_schedules_by_the_round(ours, theirs):
    assert [ours.factor(t, 12) for t in range(12)] == pytest.approx(_torchs(theirs, 12))


def test_linear_ends_where_it_says():
    assert Linear(end=0.25).factor(9, 10) == pytest.approx(0.25)
    assert Linear(end=0.25).factor(0, 1) == 1


@pytest.mark.parametrize("kind", ALL)
def test_the_warm_up_grows_linearly_and_the_schedule_starts_after_it(kind):
    warm, cold = kind(warmup=4), kind()
    assert [warm.factor(t, 20) for t in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [warm.factor(4 + t, 20) for t in range(16)] == [cold.factor(t, 16) for t in range(16)]
    assert warm.factor(4, 20) == 1


@given(
    st.sampled_from(ALL),
    st.integers(0, 5),
    st.integers(1, 400).flatmap(
        lambda rounds: st.tuples(st.integers(0, rounds - 1), st.just(rounds))
    ),
)
def test_a_factor_is_greater_than_0_and_at_most_1(kind, warmup, place):
    assert 0 < kind(warmup=warmup).factor(*place) <= 1


def test_a_rate_that_falls_for_ever_never_reaches_0():
    assert Exponential(gamma=0.1).factor(5000, 10_000) > 0


@pytest.mark.parametrize(("over", "most"), [("run", 12), ("experience", 4)])
def test_a_warm_up_must_leave_rounds_to_train(over, most):
    schedule = Schedule.in_step(1, num_experiences=3, rounds_per_experience=4)
    check_warmup(Constant(over=over, warmup=most - 1), schedule)
    with pytest.raises(
        ValueError, match=f"lr_schedule.warmup={most}: must be less than the {most}"
    ):
        check_warmup(Constant(over=over, warmup=most), schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(over="rounds"), "lr_schedule.over=rounds: must be one of"),
        (lambda: Constant(warmup=-1), "lr_schedule.warmup=-1: must be at least 0"),
        (lambda: Step(every=0), "lr_schedule.every=0: must be at least 1"),
        (lambda: Step(gamma=1.5), "lr_schedule.gamma=1.5: must be in"),
        (lambda: Exponential(gamma=0), "lr_schedule.gamma=0: must be in"),
        (lambda: Cosine(end=-0.1), "lr_schedule.end=-0.1: must be in"),
        (lambda: Linear(end=0), "lr_schedule.end=0: must be in"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
