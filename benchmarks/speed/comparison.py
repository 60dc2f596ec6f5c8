"""One workload done by all contenders, and what is wrong with any of them."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from speed.contenders import Contender
from speed.planning import make_plan, write_data
from speed.reference import TOLERANCE, distance, train_sequentially
from speed.tables import Results
from speed.trial import run_trial
from speed.workloads import Workload
from torch import Tensor


def compare(
    work: Workload, contenders: Sequence[Contender], repeats: int, patience_s: float
) -> Results:
    """Return the trials of every contender, repeat by repeat, with their distances."""
    results: Results = {each.name: [] for each in contenders}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, plan_path = folder / "data.pt", folder / "plan.pt"
        write_data(work, data)
        plan = make_plan(work, data)
        plan.save(plan_path)
        initial = plan.weights
        reference = train_sequentially(plan) if work.experiences == 1 else None
        del plan
        for repeat in range(repeats):
            finals: dict[str, list[Tensor]] = {}
            for contender in contenders:
                print(f"{work.name} {repeat + 1}/{repeats} {contender.name}", file=sys.stderr)
                weights = folder / "weights.pt"
                trial = run_trial(contender, plan_path, data, weights, patience_s)
                results[contender.name].append(trial)
                if trial.ran:
                    final = torch.load(weights, weights_only=True)
                    if contender.like in (None, contender.name) or reference is None:
                        finals[contender.name] = final
                    goal = reference or finals.get(contender.like or "")
                    if goal is not None and contender.like != contender.name:
                        trial.distance = distance(final, goal, initial)
                    weights.unlink()
    return results


def complaints(work: Workload, contenders: Sequence[Contender], results: Results) -> list[str]:
    """Return a line for each contender that is wrong, and for each of ours that failed."""
    lines = []
    for contender in contenders:
        for trial in results[contender.name]:
            if trial.distance is not None and not trial.distance <= TOLERANCE:
                lines.append(
                    f"{work.name} {contender.name}: final weights are wrong: "
                    f"distance {trial.distance:.1e}, at most {TOLERANCE:.0e}"
                )
            if trial.failed is not None and contender.group != "peers":
                lines.append(f"{work.name} {contender.name}: {trial.failed}")
    return list(dict.fromkeys(lines))
