"""Speed side by side: fedlearn, its peers and programs without any framework, on the same work.

    python benchmarks/speed
    python benchmarks/speed --workloads W2 W3 --contenders fedlearn programs --repeats 5

Every contender trains the same model from the same weights on the same samples, with the same
clients in the same rounds and the same batches, by plain SGD and FedAvg in float32; see
`speed.plan`. Nothing is evaluated in the timed part, which is every round but the first, from the
end of the one before it to its own; the first is part of start-up. Orders of samples are drawn
beforehand for everyone but fedlearn, which draws its own within the timed part. Each contender runs
in a process of its own with one thread a process; in each repeat all of them take their turn.

The distance of the final weights from those of a sequential reference is the L2 norm of the
difference as a share of how far the reference came from the initial weights. Above 1e-4 the command
fails, however fast that was. In W4 the reference is `engine=avalanche` run serially.

Peers are installed on demand, each into its own environment under benchmarks/speed/.venvs.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from speed.comparison import compare, complaints
from speed.contenders import chosen, known_names
from speed.tables import table
from speed.workloads import WORKLOADS, Workload


def main() -> int:
    """Print a table for each workload; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument(
        "--contenders", nargs="+", choices=known_names(), metavar="NAME", default=[]
    )
    parser.add_argument("--rounds", type=int, help="of each run; the first is not timed")
    parser.add_argument("--repeats", type=int, help="by default each workload's own number")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds a run may take")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, dict[str, list[dict[str, object]]]] = {}
    wrong: list[str] = []
    for name in arguments.workloads:
        work = _resized(WORKLOADS[name], arguments.rounds, parser)
        contenders = chosen(arguments.contenders, work.experiences > 1)
        if not contenders:
            continue
        results = compare(work, contenders, arguments.repeats or work.repeats, arguments.patience)
        print(f"\n{table(work, contenders, results)}", flush=True)
        measured[name] = {each: [asdict(t) for t in trials] for each, trials in results.items()}
        wrong += complaints(work, contenders, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


def _resized(work: Workload, rounds: int | None, parser: argparse.ArgumentParser) -> Workload:
    if rounds is None:
        return work
    if rounds < 2 or rounds % work.experiences:
        multiple = f", a multiple of {work.experiences}" if work.experiences > 1 else ""
        parser.error(f"--rounds={rounds}: {work.name} needs at least 2{multiple}")
    return replace(work, rounds=rounds)
