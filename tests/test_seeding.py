import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.schedule import Schedule
from fedlearn.seeding import borrowed_global_rng, generator, seed, seeds


@given(st.integers(), st.text(max_size=8), st.lists(st.integers(0, 99), max_size=3))
def test_seed_is_a_function_of_its_key_and_fits_every_generator(run_seed, purpose, numbers):
    value = seed(run_seed, purpose, *numbers)
    assert value == seed(run_seed, purpose, *numbers)
    assert 0 <= value < 2**63
    assert value != seed(run_seed + 1, purpose, *numbers)
    assert value != seed(run_seed, purpose + "x", *numbers)
    assert value != seed(run_seed, purpose, *numbers, 0)


def test_seed_is_the_same_on_every_machine():
    # printf 0/cohort/1 | sha256sum
    digest = "e62ec0d476ba6ffaeaf99d30bb20a6b85d15acb8ffdd0df4742882c17a98cfe4"
    assert seed(0, "cohort", 1) == int.from_bytes(bytes.fromhex(digest)[:8], "little") >> 1


@given(
    st.integers(),
    st.text(max_size=8),
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)), max_size=3),
)
def test_seeds_of_many_clients_are_those_of_each(run_seed, purpose, pairs):
    clients, numbers = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert seeds(run_seed, purpose, clients, numbers) == [
        seed(run_seed, purpose, *pair) for pair in pairs
    ]


@given(st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=3))
def test_a_key_is_the_run_seed_the_purpose_and_the_numbers(run_seed, purpose, numbers):
    key = "/".join([str(run_seed), purpose, *map(str, numbers)])
    first_bytes = hashlib.sha256(key.encode()).digest()[:8]
    assert seed(run_seed, purpose, *numbers) == int.from_bytes(first_bytes, "little") // 2


def test_neighbouring_keys_do_not_run_together():
    assert seed(0, "a", 11, 1) != seed(0, "a", 1, 11) != seed(0, "a", 111)


def test_borrowed_scope_gives_every_global_generator_back():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with borrowed_global_rng(3):
        first = random.random(), np.random.rand(), torch.rand(1).item()
    with borrowed_global_rng(3):
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == first
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_borrowed_scope_gives_them_back_after_an_exception():
    def draw_and_fail():
        with borrowed_global_rng(3):
            torch.rand(1)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_draws_without_touching_the_global_one():
    before = torch.get_rng_state()
    assert torch.equal(
        torch.rand(3, generator=generator(1, "x", 2)), torch.rand(3, generator=generator(1, "x", 2))
    )
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 7), st.integers(1, 9))
def test_schedule_gives_each_experience_its_rounds_in_order(num_experiences, rounds):
    schedule = Schedule.in_step(1, num_experiences, rounds)
    clock = [schedule.experience(0, r) for r in range(1, schedule.num_rounds + 1)]
    assert clock == sorted(clock)
    assert [clock.count(index) for index in range(num_experiences)] == [rounds] * num_experiences
    ends = [r for r in range(1, schedule.num_rounds + 1) if schedule.finishing(r)]
    assert [clock[r - 1] for r in ends] == list(range(num_experiences))


@pytest.mark.parametrize("server_round", [0, 7, -1])
def test_schedule_refuses_rounds_that_are_not_there(server_round):
    with pytest.raises(ValueError, match=r"round=-?\d+: must be in 1\.\.6"):
        Schedule.in_step(1, 2, 3).experience(0, server_round)
