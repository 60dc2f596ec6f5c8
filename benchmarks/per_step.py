"""What one training step costs: a plain PyTorch loop, `engine=avalanche`, `engine=functional`.

One client, in the last of five class-incremental experiences, so that memories are full and
penalties are all there; its turn is 10 passes over 640 samples in batches of 32, on one thread.
What a turn costs beside its steps is shared out over them, 200 for everybody. All subjects take
turns, `--repeats` times; the figure is the median, and what counts is the ratio to the plain loop
(naive fine-tuning), because machines differ:

    python benchmarks/per_step.py
    python benchmarks/per_step.py --model cnn --method naive
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import torch
from torch.nn import functional as F

from fedlearn.config.choices import find_choices
from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import Experiment, build, prepare
from fedlearn.types import State, Turn

MODELS = {
    "mlp": ["model=mlp", "model.hidden_sizes=[200,200]", "dataset.input_shape=[1,28,28]"],
    "cnn": ["model=cnn", "dataset.input_shape=[3,32,32]"],
}
ENGINES = ("avalanche", "functional")
EXPERIENCES, SAMPLES, EPOCHS, BATCH_SIZE = 5, 640, 10, 32


def experiment(model: str, method: str, engine: str) -> Experiment:
    """Return one client's experiment on synthetic images.

    Raises:
        ConfigError: The method does not exist in this engine or scenario.
    """
    return build(
        prepare(
            compose(
                [
                    "dataset=synthetic",
                    f"dataset.samples_per_class={SAMPLES // 2}",
                    "dataset.test_samples_per_class=1",
                    "scenario=class_incremental",
                    "scenario.held_out=0",
                    "partition=iid",
                    "num_clients=1",
                    "tracker=none",
                    "runtime.devices=cpu",
                    "optimizer.lr=0.01",
                    *MODELS[model],
                    f"continual={method}",
                    f"engine={engine}",
                ]
            )
        )
    )


def turns_of(made: Experiment) -> Callable[[], object]:
    """Return what takes one turn in the last experience."""
    model, stream = made.build_model(), made.scenario.stream(0)
    state, previous = State(), None
    clock = Turn(0, 0, 1, 0, 1, BATCH_SIZE)
    for index, experience in enumerate(stream):
        turn = replace(clock, server_round=index + 1, first_epoch=index, previous=previous)
        state = made.continual.train_turn(model, experience, stream.__getitem__, turn, state).state
        previous = experience
    last = replace(clock, server_round=EXPERIENCES + 1, first_epoch=EXPERIENCES, epochs=EPOCHS)

    def take() -> object:
        return made.continual.train_turn(model, stream[-1], stream.__getitem__, last, state)

    return take


def plain_loop(made: Experiment) -> Callable[[], object]:
    """Return a turn of the loop that everybody writes: no memory, no penalty, no framework."""
    model, experience = made.build_model(), made.scenario.stream(0)[-1]

    def take() -> None:
        x, y = experience.gather()
        optimizer = made.training.optimizer(model.parameters())
        generator = torch.Generator().manual_seed(0)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(y), generator=generator).split(BATCH_SIZE):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()

    return take


def microseconds(take: Callable[[], object]) -> float:
    """Return the microseconds a step of one turn."""
    started = time.perf_counter()
    take()
    return 1e6 * (time.perf_counter() - started) / (EPOCHS * SAMPLES // BATCH_SIZE)


def main() -> None:
    """Print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--method", action="append", help="of `fedlearn list`; all by default")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = arguments.method or [choice.name for choice in find_choices()["continual"]]
    for model in arguments.model or MODELS:
        print(f"{model}: one step, microseconds (ratio to the plain loop)")
        print(f"{'':24}{'plain loop':>12}" + "".join(f"{engine:>20}" for engine in ENGINES))
        for method in methods:
            subjects = {"plain": plain_loop(experiment(model, "naive", "avalanche"))}
            for engine in ENGINES:
                try:
                    subjects[engine] = turns_of(experiment(model, method, engine))
                except ConfigError:  # no twin, or not a class-incremental method
                    continue
            times: dict[str, list[float]] = {name: [] for name in subjects}
            for _ in range(arguments.repeats):
                for name, take in subjects.items():
                    times[name].append(microseconds(take))
            plain = statistics.median(times["plain"])
            line = f"{method:24}{plain:12.0f}"
            for engine in ENGINES:
                if engine in times:
                    ratio = statistics.median(
                        own / other
                        for own, other in zip(times[engine], times["plain"], strict=True)
                    )
                    line += f"{statistics.median(times[engine]):13.0f} ({ratio:4.2f})"
                else:
                    line += f"{'-':>20}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
