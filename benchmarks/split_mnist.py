"""Split-MNIST, one client, against the published table of Hsu et al. (2018).

"Re-evaluating Continual Learning Scenarios", Table 2: 32x32 inputs, an MLP with two hidden layers
of 400, Adam 1e-3, batches of 128, 4 epochs an experience, 5 experiences of 2 digits; 10 runs there,
`--seeds` here. Two differences: Adam starts anew in each experience (as it does with each client
turn), and the strengths of EWC and SI are the best of three tried on seed 0, task-incremental.

    python benchmarks/split_mnist.py --root DIRECTORY_WITH_MNIST
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


@dataclass(frozen=True)
class Published:
    """One cell of the paper's table, in percent."""

    mean: float
    std: float = 0.0

    @property
    def margin(self) -> float:
        """How far from it a reproduction may be: 3 points, or 3 standard deviations if more."""
        return max(3.0, 3 * self.std)


TASK, CLASS = "task_mnist", "split_mnist"
SCENARIOS = {TASK: "task-incremental", CLASS: "class-incremental"}
METHODS: dict[str, list[str]] = {
    "naive": ["continual=naive"],
    "EWC": ["continual=ewc", "continual.ewc_lambda=10000"],
    "SI": ["continual=si", "continual.si_lambda=10"],
    "replay 1000": ["continual=replay", "continual.memory_per_client=1000"],
}
PUBLISHED = {
    ("naive", TASK): Published(93.5, 2.0),
    ("naive", CLASS): Published(19.7),
    ("EWC", TASK): Published(97.7),
    ("EWC", CLASS): Published(19.8),
    ("SI", TASK): Published(98.6),
    ("SI", CLASS): Published(19.7),
    ("replay 1000", TASK): Published(99.4),
    ("replay 1000", CLASS): Published(90.8),
}


def final_accuracy(root: str, overrides: list[str]) -> float:
    """Run one experiment and return its final average accuracy, in percent."""
    from fedlearn.cli import main as fedlearn

    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        arguments = ["experiment=split_mnist_hsu", f"dataset.root={root}", "tracker=none"]
        status = fedlearn(["run", *arguments, f"out={out}", *overrides])
        if status:
            sys.exit(status)
        (summary,) = Path(out).rglob("summary.json")
        return 100 * float(json.loads(summary.read_text())["cl"]["average_accuracy"])


def main() -> None:
    """Print our table beside the paper's; exit 1 if a cell lies outside its margin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data", help="the directory that holds MNIST's files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", choices=list(METHODS), action="append")
    arguments = parser.parse_args()
    outside = 0
    print(f"{'':14}{'scenario':20}{'ours':>14}{'paper':>14}{'difference':>12}{'margin':>8}")
    for (method, scenario), published in PUBLISHED.items():
        if arguments.method and method not in arguments.method:
            continue
        started = time.perf_counter()
        runs = [
            final_accuracy(
                arguments.root, [f"scenario={scenario}", f"seed={seed}", *METHODS[method]]
            )
            for seed in range(arguments.seeds)
        ]
        mean = statistics.mean(runs)
        std = statistics.stdev(runs) if len(runs) > 1 else 0.0
        difference = mean - published.mean
        verdict = "" if abs(difference) <= published.margin else "  OUTSIDE"
        outside += bool(verdict)
        paper = f"{published.mean:.1f}" + (f" ± {published.std:.1f}" if published.std else "")
        print(
            f"{method:14}{SCENARIOS[scenario]:20}{mean:8.1f} ± {std:3.1f}{paper:>14}"
            f"{difference:+12.1f}{published.margin:8.1f}{verdict}"
            f"   ({(time.perf_counter() - started) / len(runs):.0f} s a run)",
            flush=True,
        )
    sys.exit(1 if outside else 0)


if __name__ == "__main__":
    main()
