"""A regression stream from end to end, from the command to the summary."""

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.linear_model import LinearRegression

from fedlearn.cli import main
from scenarios.datasets.diabetes import diabetes


def summary_of(out: Path, *overrides: str) -> dict[str, Any]:
    assert main(["run", "experiment=regression", "tracker=none", f"out={out}", *overrides]) == 0
    (path,) = out.rglob("summary.json")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


@pytest.mark.parametrize("engine", ["avalanche", "functional"])
def test_a_linear_model_comes_to_least_squares(tmp_path: Path, engine: str) -> None:
    """One client, whole batches, one experience: scikit-learn's solution, and its score."""
    summary = summary_of(
        tmp_path,
        f"engine={engine}",
        "scenario.num_experiences=1",
        "scenario.held_out=0",
        "num_clients=1",
        "rounds_per_experience=1",
        "continual=naive",
        "model.hidden_sizes=[]",
        "optimizer.lr=0.2",
        "local.epochs=1500",
        "local.batch_size=1000",
        "local.max_grad_norm=null",
    )
    data = diabetes()
    solution = LinearRegression().fit(data.train.x, data.train.y)
    errors = ((solution.predict(data.test.x) - data.test.y.numpy()) ** 2).mean()
    assert summary["score"] == "R²"
    assert summary["cl"]["average_accuracy"] == pytest.approx(1 - errors, abs=1e-3)
    assert summary["baseline"][0] < 0.2


def test_what_a_client_tests_on_adds_up_to_what_all_test_on(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, "scenario.held_out=0.5", "rounds_per_experience=2")
    assert summary["turns"]["accepted"] == 5 * 2 * 5
    matrices = summary["client_accuracy_matrix"]
    assert sorted(matrices) == [str(client_id) for client_id in range(5)]
    assert all(value is not None and value <= 1 for m in matrices.values() for value in m[-1])
    pooled = summary["client"]["weighted"]
    means = [sum(matrix[-1]) / 5 for matrix in matrices.values()]
    assert pooled == pytest.approx(sum(means) / 5, abs=0.02)  # sizes differ by one sample at most


def test_replay_keeps_what_naive_training_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    naive = summary_of(tmp_path / "naive", "continual=naive")
    replay = summary_of(tmp_path / "replay", "continual=replay")
    assert replay["cl"]["forgetting"] < naive["cl"]["forgetting"] - 0.03
    out = capsys.readouterr().out
    assert "average R²" in out
    assert "accuracy" not in out
