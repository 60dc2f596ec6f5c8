"""The events and the summary of a made-up run, for tests of what consumes them."""

from typing import Any

import numpy as np

from fedlearn.metrics import client_summary, continual_summary


def example_run(
    experiences: int = 3,
    rounds: int = 2,
    clients: int = 3,
    evaluate_every: int = 1,
    stop_after: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the events of a run and its summary.

    Args:
        experiences: T.
        rounds: Rounds in each experience.
        clients: Clients, all of which train in every round.
        evaluate_every: Rounds between tests.
        stop_after: The user interrupts after this round.
    """
    draw = np.random.default_rng(7)
    baseline = draw.uniform(0.05, 0.15, experiences)
    matrix = np.full((experiences, experiences), np.nan)
    start = {
        "event": "start",
        "name": "digits-er",
        "rounds": experiences * rounds,
        "rounds_per_experience": rounds,
        "clients": clients,
        "cohort_size": clients,
        "experiences": experiences,
        "parameters": 7510,
        "seed": 4,
        "manifest_hash": "ab" * 32,
        "device": "cpu",
        "scenario": "split_digits",
        "continual": "replay",
        "aggregation": "fedavg",
    }
    events: list[dict[str, Any]] = [start]
    last = experiences * rounds if stop_after is None else stop_after
    client: dict[str, float] = {}
    for number in range(1, last + 1):
        now = (number - 1) // rounds
        ends = number % rounds == 0
        accuracy = draw.uniform(0, 1, experiences)
        seen = [a if j <= now or ends else None for j, a in enumerate(accuracy.tolist())]
        tested = ends or number % evaluate_every == 0
        events.append(
            {
                "event": "round",
                "round": number,
                "experience": now,
                "server": {
                    "accuracy": float(accuracy[: now + 1].mean()),
                    "loss": 1.0 / number,
                    "per_experience": seen,
                }
                if tested
                else {},
                "clients": {
                    str(k): {
                        "loss": 0.1 * k,
                        "num_examples": 10 + k,
                        "steps": 4,
                        "replayed": 2,
                        "state_bytes": 320,
                    }
                    for k in range(clients)
                },
                "idle": [],
                "dropped": [],
                "diverged": [],
                "quarantined": [],
                "failed": [],
                "comm": {"up_bytes": 1000 * clients, "down_bytes": 2000 * clients},
                "time": {"round_s": 0.2, "train_s": 0.15, "evaluate_s": 0.01},
                "aggregated": {"train_loss": 0.5},
            }
        )
        if ends:
            matrix[now] = accuracy
            rows = {str(k): draw.uniform(0, 1, experiences).tolist() for k in range(clients)}
            client = client_summary([np.mean(row) for row in rows.values()], [20] * clients)
            events.append(
                {
                    "event": "experience",
                    "experience": now,
                    "round": number,
                    "accuracy": accuracy.tolist(),
                    "cl": continual_summary(matrix, baseline),
                    "client": client,
                    "client_accuracy": rows,
                }
            )
    measured = matrix.astype(object)
    measured[np.isnan(matrix)] = None
    return events, {
        "status": "completed" if stop_after is None else "interrupted",
        "name": "digits-er",
        "digest": "cd" * 32,
        "manifest_hash": "ab" * 32,
        "seed": 4,
        "rounds": last,
        "clients": clients,
        "experiences": experiences,
        "accuracy_matrix": measured.tolist(),
        "baseline": baseline.tolist(),
        "cl": continual_summary(matrix, baseline) if client else {},
        "client": client,
        "comm": {"up_bytes": 1000 * clients * last, "down_bytes": 2000 * clients * last},
        "time": {"total_s": 12.5, "train_s": 9.0, "round_s_median": 0.2},
        "turns": {
            "accepted": clients * last,
            "idle": 0,
            "dropped": 0,
            "diverged": 0,
            "quarantined": 0,
            "failed": 0,
        },
        "storage": {"client_state_bytes_max": 320.0, "client_state_bytes_mean": 320.0},
    }
