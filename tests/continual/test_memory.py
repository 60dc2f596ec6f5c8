"""Batches and memory: what is drawn, from where, and how much is kept."""

import pytest
import torch
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from hypothesis import given, settings
from hypothesis import strategies as st
from lone_client import DIGITS, TRAINING, live, mlp, permuted, split, turn_at

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import State
from strategies.continual.avalanche.agem import agem
from strategies.continual.avalanche.dataset import dataset_of, gather, identity, pairs_of
from strategies.continual.avalanche.der_plus_plus import der_plus_plus
from strategies.continual.avalanche.replay import replay
from strategies.continual.batches import MemoryBatches, ReplayBatches, TensorBatches

sizes = st.integers(1, 40)
REMEMBERING = {"replay": replay, "agem": agem, "der_plus_plus": der_plus_plus}


def memory_of(size: int, batch_size: int, drop_last: bool = False, seed: int = 0) -> MemoryBatches:
    """Return batches from a memory of the numbers from 1000 on."""
    generator = torch.Generator().manual_seed(seed)
    return MemoryBatches([torch.arange(1000, 1000 + size)], batch_size, generator, drop_last)


@given(sizes, sizes)
def test_an_epoch_holds_every_sample_once_in_the_given_order(size: int, batch_size: int) -> None:
    order = torch.randperm(size)
    loader = TensorBatches([torch.arange(size), -torch.arange(size)], batch_size, order)
    batches = list(loader)
    assert len(loader) == len(batches) == -(-size // batch_size)
    assert all(len(batch[0]) == batch_size for batch in batches[:-1])
    for column, sign in ((0, 1), (1, -1)):
        assert torch.equal(torch.cat([batch[column] for batch in batches]), sign * order)


@given(sizes, sizes, st.booleans())
def test_memory_is_used_up_before_a_sample_comes_again(
    size: int, batch_size: int, drop_last: bool
) -> None:
    memory = memory_of(size, batch_size, drop_last)
    a_batch = min(size, batch_size)
    whole = size - size % a_batch if drop_last else size
    orders = []
    for _ in range(3):
        drawn: list[int] = []
        while len(drawn) < whole:
            drawn += next(memory)[0].tolist()
        assert len(drawn) == len(set(drawn)) == whole
        orders.append(drawn)
    assert memory.drawn == 3 * whole
    assert size < 20 or orders[0] != orders[1]


@given(sizes, sizes, sizes, sizes)
@settings(max_examples=25)
def test_replay_batches_are_composed_as_avalanches(
    current: int, memory: int, batch_size: int, memory_batch_size: int
) -> None:
    ours = ReplayBatches(
        TensorBatches([torch.arange(current)], batch_size, torch.arange(current)),
        memory_of(memory, memory_batch_size),
    )
    rows = torch.arange(current + memory)
    stream = [split(1)[0]]
    data, remembered = (
        dataset_of(stream.__getitem__, torch.stack([torch.zeros_like(part), part], dim=1))
        for part in (rows[:current], rows[current:])
    )
    with borrowed_global_rng(0):
        theirs = ReplayDataLoader(
            data,
            remembered,
            oversample_small_tasks=True,
            batch_size=batch_size,
            batch_size_mem=memory_batch_size,
            shuffle=True,
        )
        composed = [len(labels) for _, labels, _ in theirs]
    batches = [batch[0].tolist() for batch in ours]
    assert len(ours) == len(batches)
    assert [len(batch) for batch in batches] == composed
    for batch in batches:  # the current batch first, then memory
        kinds = [number >= 1000 for number in batch]
        assert kinds == sorted(kinds)
    assert [number for batch in batches for number in batch if number < 1000] == list(
        range(current)
    )


def rows_in(state: State) -> torch.Tensor:
    """Return (n, 2) experience and row of every sample that a state remembers."""
    kept = [tensor for key, tensor in state.tensors.items() if key.split("/")[-1] == "rows"]
    return torch.cat(kept) if kept else torch.empty(0, 2, dtype=torch.int64)


@pytest.mark.parametrize("size", [1, 3, 20, 1000])
@pytest.mark.parametrize("domain", [False, True])
@pytest.mark.parametrize("name", REMEMBERING)
def test_memory_is_bounded_and_holds_the_past_only(name: str, domain: bool, size: int) -> None:
    stream = permuted(4) if domain else split(4)
    strategy = REMEMBERING[name](training=TRAINING, memory_per_client=size)
    reports = live(strategy, mlp(), stream, rounds=2)
    for place, report in enumerate(reports):
        entered = place // 2
        rows = rows_in(report.state)
        assert len(rows) == len({tuple(pair) for pair in rows.tolist()})
        available = sum(len(experience) for experience in stream[:entered])
        assert len(rows) == min(size, available)
        for experience in stream[:entered]:
            held = rows[rows[:, 0] == experience.index, 1]
            assert set(held.tolist()) <= set(experience.rows.tolist())
        assert set(rows[:, 0].tolist()) <= set(range(entered))
        assert (report.replayed > 0) is (entered > 0)


@pytest.mark.parametrize("name", ["replay", "agem"])
def test_memory_is_shared_equally_by_the_experiences(name: str) -> None:
    strategy = REMEMBERING[name](training=TRAINING, memory_per_client=20)
    rows = rows_in(live(strategy, mlp(), split(4))[-1].state)
    assert sorted(torch.bincount(rows[:, 0]).tolist()) == [6, 7, 7]


def test_ders_memory_is_shared_equally_by_the_classes() -> None:
    strategy = der_plus_plus(training=TRAINING, memory_per_client=20)
    rows = rows_in(live(strategy, mlp(), split(4))[-1].state)
    assert sorted(torch.bincount(DIGITS.y[rows[:, 1]]).tolist()) == [3, 3, 3, 3, 4, 4]


def test_memory_is_drawn_from_the_whole_experience() -> None:
    """Over many clients every sample of experience 0 is kept by somebody."""
    strategy, stream = replay(training=TRAINING), split(2, size=40)
    kept = set()
    for client_id in range(30):
        state = live(strategy, mlp(), stream, client_id=client_id)[-1].state
        kept |= set(rows_in(state)[:, 1].tolist())
    assert kept == set(stream[0].rows.tolist())


def test_replayed_samples_come_in_the_domain_of_their_own_experience() -> None:
    stream = permuted(3)
    pairs = torch.tensor([[2, 145], [0, 3], [1, 75], [0, 1]])
    x, y, t = gather(stream.__getitem__, pairs)
    for place, (index, row) in enumerate(pairs.tolist()):
        expected, label = stream[index].gather(torch.tensor([row]))
        assert torch.equal(x[place], expected[0])
        assert y[place] == label[0]
        assert t[place] == 0


def test_samples_keep_their_identity_through_subsets_and_concatenations() -> None:
    stream = split(3, task=True)
    one, other = (dataset_of(stream.__getitem__, pairs_of(stream[index])) for index in (0, 2))
    mixed = one.concat(other).subset([3, 80, 5, 139]).train().subset(torch.tensor([2, 1, 0]))
    pairs = identity(mixed)
    assert pairs[:, 0].tolist() == [0, 2, 0]
    x, y, t = gather(stream.__getitem__, pairs)
    for place in range(3):
        sample, label, task = mixed[place]
        assert torch.equal(sample, x[place])
        assert label == int(y[place])
        assert task == int(t[place])


def test_report_counts_what_came_from_memory() -> None:
    strategy = replay(training=TRAINING, memory_per_client=20, memory_batch_size=7)
    reports = live(strategy, mlp(), split(2), epochs=2)  # 70 samples: 3 steps an epoch
    assert [report.replayed for report in reports] == [0, 2 * (7 + 7 + 6)]


def test_two_memories_of_one_epoch_are_shuffled_differently() -> None:
    strategy, stream = agem(training=TRAINING), split(1)
    oracle = strategy._strategy(mlp(), stream.__getitem__, turn_at(0))
    oracle.experience = strategy._seen(stream[0], stream.__getitem__)
    orders = []
    with borrowed_global_rng(0):
        for _ in range(2):
            oracle._before_training_epoch()
            orders += [next(oracle.draw_from([torch.arange(40)], 40))[0] for _ in range(2)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
