from hypothesis import given
from hypothesis import strategies as st

from fedlearn.cohort import cohort_size, sample_clients


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 60), st.floats(0.01, 1.0))
def test_cohort_is_a_pure_sorted_sample_of_the_clients(run_seed, server_round, count, fraction):
    ids = list(range(0, 2 * count, 2))
    cohort = sample_clients(run_seed, "cohort", server_round, ids, fraction)
    assert cohort == sample_clients(run_seed, "cohort", server_round, ids, fraction)
    assert cohort == sorted(set(cohort))
    assert set(cohort) <= set(ids)
    assert len(cohort) == cohort_size(count, fraction) >= 1


def test_cohorts_change_with_the_round_the_seed_and_the_purpose():
    draws = {
        tuple(sample_clients(seed, purpose, server_round, list(range(50)), 0.2))
        for seed in range(3)
        for server_round in range(1, 6)
        for purpose in ("cohort", "evaluate")
    }
    assert len(draws) == 30


def test_every_client_is_sampled_about_equally_often():
    counts = [0] * 20
    for server_round in range(1, 1001):
        for client_id in sample_clients(0, "cohort", server_round, list(range(20)), 0.25):
            counts[client_id] += 1
    assert sum(counts) == 5000
    assert 200 < min(counts) <= max(counts) < 300  # 250 expected, 3.6 standard deviations
