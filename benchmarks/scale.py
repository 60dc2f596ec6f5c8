"""Many clients: what a round takes, and how much memory, where only some of them train in it.

The same cohort of 1 000 trains a small MLP (64-32-10, 20 samples each, 2 steps of 10) out of 1 000
clients and out of 100 000; a round ought to take as long, and memory to grow with the samples, not
with clients x model. Once with plain fine-tuning, which keeps nothing, and once with online EWC,
whose clients keep three models each, on disk.

    python benchmarks/scale.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
sys.path.insert(0, str(Path(__file__).parent / "speed"))

from memory import tree_mib

COHORT, SAMPLES = 1000, 20
NUM_EXPERIENCES = 2
METHODS = {
    "naive": [],
    "ewc_online": ["local.max_grad_norm=1"],
}


def overrides(num_clients: int, method: str, rounds: int, folder: str) -> list[str]:
    """Return what ``fedlearn run`` is to be told."""
    return [
        "engine=functional",
        "runtime.executor=vectorized",
        "dataset=synthetic",
        f"dataset.samples_per_class={num_clients * SAMPLES * NUM_EXPERIENCES // 10}",
        "dataset.input_shape=[64]",
        "model=mlp",
        "model.hidden_sizes=[32]",
        "partition=iid",
        "scenario=class_incremental",
        f"num_clients={num_clients}",
        f"fraction_train={COHORT / num_clients}",
        "fraction_evaluate=0",
        "evaluate_every=1000000",
        f"rounds_per_experience={rounds}",
        "local.epochs=1",
        "local.batch_size=10",
        f"continual={method}",
        "optimizer.lr=0.01",
        "tracker=none",
        "checkpoint_every=null",
        f"out={folder}/runs",
        *METHODS[method],
        *([] if method == "naive" else [f"runtime.state_dir={folder}"]),
    ]


def measure(num_clients: int, method: str, rounds: int) -> dict[str, float]:
    """Return seconds of a round, of the start and of the whole run, and the most MiB held."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedlearn", "run"]
        started = time.perf_counter()
        run = subprocess.Popen(
            [*command, *overrides(num_clients, method, rounds, folder)], stdout=subprocess.DEVNULL
        )
        sizes = [0.0]

        def watch() -> None:
            while run.poll() is None:
                looked = time.perf_counter()
                sizes.append(tree_mib(run.pid))
                time.sleep(50 * (time.perf_counter() - looked))  # who is looked at waits

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = run.wait()
        total = time.perf_counter() - started
        watcher.join()
        if status:
            raise SystemExit(f"fedlearn run exited with {status}")
        (metrics,) = Path(folder).glob("runs/*/*/metrics.jsonl")
        rounds_told = [
            event for line in metrics.open() if (event := json.loads(line))["event"] == "round"
        ]
    seconds = [each["time"]["round_s"] - each["time"]["evaluate_s"] for each in rounds_told]
    return {
        "round_s": statistics.median(seconds[1:]),
        "start_s": total - sum(each["time"]["round_s"] for each in rounds_told),
        "total_s": total,
        "peak_mib": max(sizes),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both sizes, side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs=2, default=[1000, 100_000])
    parser.add_argument("--rounds", type=int, default=10, help="in each experience")
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args(arguments)
    print(
        f"{COHORT} clients a round, {SAMPLES} samples each in each of {NUM_EXPERIENCES} experiences"
    )
    print(
        f"{'':12}{'clients':>9}{'round':>10}{'ratio':>7}{'outside rounds':>16}{'peak memory':>13}"
    )
    for method in METHODS:
        found: dict[int, list[dict[str, float]]] = {number: [] for number in told.clients}
        for _ in range(told.repeats):
            for number in told.clients:
                found[number].append(measure(number, method, told.rounds))
        rounds = {
            number: statistics.median(each["round_s"] for each in runs)
            for number, runs in found.items()
        }
        for number, runs in found.items():
            start = statistics.median(each["start_s"] for each in runs)
            peak = statistics.median(each["peak_mib"] for each in runs)
            ratio = rounds[number] / rounds[told.clients[0]]
            print(
                f"{method:12}{number:9,}{1e3 * rounds[number]:7.1f} ms{ratio:7.2f}"
                f"{start:14.1f} s{peak:9,.0f} MiB"
            )


if __name__ == "__main__":
    main()
