"""What it costs to build a protocol: 10 000 clients x 20 experiences over MNIST, in each stream.

Seconds to build the scenario and its schedule (the dataset being loaded), and the most memory above
what was there before the data was loaded, as a multiple of the data's own size.

    python benchmarks/protocols.py --root DIRECTORY_WITH_MNIST
"""

import argparse
import multiprocessing
import resource
import time
from typing import Any

STREAMS: dict[str, list[str]] = {
    "class-incremental": ["scenario=class_incremental", "scenario.num_experiences=10"],
    "permuted": ["scenario=domain_incremental", "scenario.num_experiences=20"],
    "instance-incremental": ["scenario=instance_incremental", "scenario.num_experiences=20"],
    "online": ["scenario=class_incremental_online", "scenario.num_experiences=20"],
    "repetition": ["scenario=class_incremental_repetition", "scenario.num_experiences=20"],
    "independent": ["scenario=independent", "scenario.num_experiences=20"],
    "independent, shuffled, uneven": [
        "scenario=independent",
        "scenario.num_experiences=20",
        "clock=shuffled",
        "clock.spread=0.5",
    ],
}


def peak() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(answer: Any, root: str, num_clients: int, overrides: list[str]) -> None:
    """Build one protocol in a process of its own; send seconds, bytes above, and the data's own."""
    from fedlearn.config.composition import compose
    from fedlearn.config.experiment import build, load_dataset, prepare

    fixed = [
        "dataset=mnist",
        f"dataset.root={root}",
        f"num_clients={num_clients}",
        "partition=dirichlet",
        "partition.min_samples=0",
        "continual=naive",
        "tracker=none",
        "model.hidden_sizes=[8]",
    ]
    small = compose(["scenario.num_experiences=2", "num_clients=2", "tracker=none"])
    build(prepare(small))  # imports, once
    before = peak()
    composed = compose([*overrides, *fixed])
    started = time.perf_counter()
    dataset = load_dataset(composed)
    loading = time.perf_counter() - started
    size = sum(
        tensor.numel() * tensor.element_size()
        for samples in (dataset.train, dataset.test)
        for tensor in (samples.x, samples.y)
    )
    del dataset
    plan = prepare(composed)
    started = time.perf_counter()
    experiment = build(plan)
    seconds = time.perf_counter() - started - loading
    assert experiment.scenario.num_clients == num_clients
    answer.send((seconds, peak() - before, size))


def main() -> None:
    """Print one line a stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--root", default="data", help="the directory that holds MNIST's files")
    parser.add_argument("--clients", type=int, default=10_000)
    arguments = parser.parse_args()
    print(f"{'':32}{'build, s':>10}{'memory, x data':>16}")
    context = multiprocessing.get_context("spawn")
    for name, overrides in STREAMS.items():
        here, there = context.Pipe()
        process = context.Process(
            target=measure, args=(there, arguments.root, arguments.clients, overrides)
        )
        process.start()
        there.close()
        seconds, above, size = here.recv()
        process.join()
        print(f"{name:32}{seconds:10.2f}{above / size:16.2f}", flush=True)


if __name__ == "__main__":
    main()
