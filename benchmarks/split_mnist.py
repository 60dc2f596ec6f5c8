"""Split-MNIST in three scenarios: one client against Hsu et al. (2018), then the same federated.

"Re-evaluating Continual Learning Scenarios", Table 2: 32x32 inputs, an MLP with two hidden layers
of 400, Adam 1e-3, batches of 128, 4 epochs an experience, 5 experiences of 2 digits; 10 runs there,
`--seeds` here. Differences: Adam starts anew in each experience (as it does in each client turn),
the Fisher of EWC is that of batches and labels (theirs: of single samples and predictions, which
asks for a smaller strength), and SI's path integral is that of the whole loss (theirs: without the
penalty). The strengths are those of `GRIDS` that come nearest to the paper on seed 0, scenario by
scenario, as the authors tuned theirs.

    python benchmarks/split_mnist.py --root DIRECTORY_WITH_MNIST
    python benchmarks/split_mnist.py --root DIRECTORY_WITH_MNIST --clients 10
    python benchmarks/split_mnist.py --root DIRECTORY_WITH_MNIST --tune

With `--clients` the training samples are split by Dirichlet(0.5), and every experience lasts 10
rounds of one epoch; the table has nothing to be compared with. With `--tune` every strength of
`GRIDS` is tried on seed 0.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Published:
    """One cell of the paper's table, in percent."""

    mean: float
    std: float = 0.0

    @property
    def margin(self) -> float:
        """How far from it a reproduction may be: 3 points, or 3 standard deviations if more."""
        return max(3.0, 3 * self.std)


TASK, DOMAIN, CLASS = "task_mnist", "domain_mnist", "split_mnist"
SCENARIOS = {TASK: "task", DOMAIN: "domain", CLASS: "class"}
METHODS: dict[str, list[str]] = {
    "naive": ["continual=naive"],
    "EWC": ["continual=ewc"],
    "online EWC": ["continual=ewc_online"],
    "SI": ["continual=si"],
    "MAS": ["continual=mas"],
    "LwF": ["continual=lwf"],
    "replay 1000": ["continual=replay", "continual.memory_per_client=1000"],
}
GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "EWC": ("ewc_lambda", (1e3, 1e4, 1e5)),
    "online EWC": ("ewc_lambda", (1e3, 3e3, 1e4, 3e4)),
    "SI": ("si_lambda", (10, 100, 1000)),
    "MAS": ("lambda_reg", (0.1, 1, 10)),
    "LwF": ("alpha", (0.5, 1, 2, 3, 4, 8)),
}
STRENGTHS = {
    ("EWC", TASK): 1e4,
    ("EWC", DOMAIN): 1e4,
    ("EWC", CLASS): 1e4,
    ("online EWC", TASK): 1e4,
    ("online EWC", DOMAIN): 3e3,
    ("online EWC", CLASS): 1e4,
    ("SI", TASK): 10,
    ("SI", DOMAIN): 10,
    ("SI", CLASS): 10,
    ("MAS", TASK): 1,
    ("MAS", DOMAIN): 10,
    ("MAS", CLASS): 1,
    ("LwF", TASK): 1,
    ("LwF", DOMAIN): 3,
    ("LwF", CLASS): 1,
}
PUBLISHED = {
    ("naive", TASK): Published(93.5, 2.0),
    ("naive", DOMAIN): Published(55.2),
    ("naive", CLASS): Published(19.7),
    ("EWC", TASK): Published(97.7),
    ("EWC", DOMAIN): Published(58.9),
    ("EWC", CLASS): Published(19.8),
    ("online EWC", TASK): Published(98.0),
    ("online EWC", DOMAIN): Published(57.3),
    ("SI", TASK): Published(98.6),
    ("SI", DOMAIN): Published(64.8),
    ("SI", CLASS): Published(19.7),
    ("MAS", TASK): Published(99.2),
    ("MAS", DOMAIN): Published(68.6, 6.9),
    ("MAS", CLASS): Published(19.5),
    ("LwF", TASK): Published(99.6),
    ("LwF", DOMAIN): Published(71.0),
    ("LwF", CLASS): Published(24.2),
    ("replay 1000", TASK): Published(99.4),
    ("replay 1000", DOMAIN): Published(95.2),
    ("replay 1000", CLASS): Published(90.8),
}


EXPLAINED = {
    ("LwF", CLASS): "cross-entropy over ten outputs undoes what is distilled into the old ones, "
    "whatever alpha; the authors' head grows with the classes",
}
"""Cells known to lie outside, and why."""


def settings_of(method: str, scenario: str, strength: float | None = None) -> list[str]:
    """Return the overrides of one cell; `strength` takes the place of the tuned one."""
    overrides = [f"scenario={scenario}", *METHODS[method]]
    if method in GRIDS:
        value = STRENGTHS[method, scenario] if strength is None else strength
        overrides.append(f"continual.{GRIDS[method][0]}={value:g}")
    return overrides


def federated(num_clients: int) -> list[str]:
    """Return the overrides that make the protocol a federated one."""
    return [
        f"num_clients={num_clients}",
        "partition=dirichlet",
        "rounds_per_experience=10",
        "local.epochs=1",
    ]


def final_accuracy(root: str, engine: str, overrides: Sequence[str]) -> tuple[float, float]:
    """Run one experiment; return its final average accuracy, in percent, and its seconds."""
    from fedlearn.cli import main as fedlearn

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        arguments = ["experiment=split_mnist_hsu", f"dataset.root={root}", "tracker=none"]
        status = fedlearn(["run", *arguments, f"engine={engine}", f"out={out}", *overrides])
        if status:
            raise RuntimeError(f"exit status {status}: {' '.join(overrides)}")
        (summary,) = Path(out).rglob("summary.json")
        accuracy = 100 * float(json.loads(summary.read_text())["cl"]["average_accuracy"])
    return accuracy, time.perf_counter() - started


def tune(pool: Executor, root: str, engine: str, methods: Sequence[str]) -> None:
    """Print the accuracy of every strength in `GRIDS` on seed 0."""
    cells = [
        (method, scenario, strength)
        for method in methods
        if method in GRIDS
        for scenario in SCENARIOS
        for strength in GRIDS[method][1]
    ]
    runs = {
        cell: pool.submit(final_accuracy, root, engine, [*settings_of(*cell), "seed=0"])
        for cell in cells
    }
    print(f"{'':12}{'scenario':10}{'strength':>10}{'seed 0':>8}")
    for (method, scenario, strength), run in runs.items():
        accuracy, _ = run.result()
        print(f"{method:12}{SCENARIOS[scenario]:10}{strength:10g}{accuracy:8.1f}", flush=True)


def table(
    pool: Executor, root: str, engine: str, methods: Sequence[str], seeds: int, clients: int
) -> int:
    """Print every cell, beside the paper's for one client; return how many lie outside."""
    runs = {
        (method, scenario): [
            pool.submit(
                final_accuracy,
                root,
                engine,
                [
                    *settings_of(method, scenario),
                    *(federated(clients) if clients > 1 else []),
                    f"seed={seed}",
                ],
            )
            for seed in range(seeds)
        ]
        for method in methods
        for scenario in SCENARIOS
    }
    against = f"{'paper':>13}{'difference':>12}{'margin':>8}" if clients == 1 else ""
    print(f"{'':12}{'scenario':10}{'ours':>14}{against}")
    outside = 0
    for (method, scenario), futures in runs.items():
        finals, seconds = zip(*(run.result() for run in futures), strict=True)
        mean = statistics.mean(finals)
        std = statistics.stdev(finals) if len(finals) > 1 else 0.0
        line = f"{method:12}{SCENARIOS[scenario]:10}{mean:8.1f} ± {std:3.1f}"
        published = PUBLISHED.get((method, scenario)) if clients == 1 else None
        if published is not None:
            difference = mean - published.mean
            far = abs(difference) > published.margin
            reason = EXPLAINED.get((method, scenario))
            outside += far and reason is None
            paper = f"{published.mean:.1f}" + (f" ± {published.std:.1f}" if published.std else "")
            line += f"{paper:>13}{difference:+12.1f}{published.margin:8.1f}"
            line += f"  OUTSIDE{f': {reason}' if reason else ''}" if far else ""
        print(f"{line}   ({statistics.mean(seconds):.0f} s a run)", flush=True)
    return outside


def main() -> None:
    """Print the table asked for; exit 1 if a cell lies outside its margin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--root", default="data", help="the directory that holds MNIST's files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--engine", choices=["avalanche", "functional"], default="avalanche")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--method", choices=list(METHODS), action="append")
    arguments = parser.parse_args()
    methods = arguments.method or list(METHODS)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        if arguments.tune:
            tune(pool, arguments.root, arguments.engine, methods)
            return
        outside = table(
            pool, arguments.root, arguments.engine, methods, arguments.seeds, arguments.clients
        )
    sys.exit(1 if outside else 0)


if __name__ == "__main__":
    main()
