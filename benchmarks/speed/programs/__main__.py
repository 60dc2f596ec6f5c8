"""Runs a program without any framework: ``python -m speed.programs PLAN WEIGHTS``."""

import argparse
from pathlib import Path

import torch
from speed.plan import read_plan
from speed.programs.convolutions import convolutions
from speed.programs.plain_loop import plain_loop
from speed.programs.processes import run
from speed.programs.stacked_layers import stacked_layers
from speed.stopwatch import Stopwatch


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--program", choices=["loop", "best"], required=True)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = read_plan(arguments.plan)
    watch = Stopwatch(len(plan.cohorts))
    best = convolutions if plan.workload.widths else stacked_layers
    make = plain_loop if arguments.program == "loop" else best
    final = run(plan, make, arguments.processes, watch.round_ends)
    watch.report(final, arguments.weights)


if __name__ == "__main__":
    main()
