"""Medians over the repeats, ratios, and a table for people."""

import statistics
from collections.abc import Callable, Sequence

from speed.contenders import BEST, FLOWER, Contender
from speed.trial import Trial
from speed.workloads import Workload

Results = dict[str, list[Trial]]
"""The trials of each contender by name, one a repeat, in the order of the contenders."""


def table(work: Workload, contenders: Sequence[Contender], results: Results) -> str:
    """Return a workload's table, a line a contender.

    A rate is the median over the repeats, its spread the lowest and the highest. A ratio is the
    median over the repeats of the ratios within each, because noise that lasts hits both sides.
    """
    rates = {name: _rates(work, trials) for name, trials in results.items()}
    ran = {name for name, found in rates.items() if found}
    columns: list[tuple[str, Callable[[Contender], str | None]]] = []
    if work.experiences == 1:
        peers = {each.name for each in contenders if each.group == "peers"} & ran
        fastest = max(peers, key=lambda name: statistics.median(rates[name]), default=None)
        columns = [
            ("/flower", lambda _: FLOWER),
            (f"/{fastest or 'peer'}", lambda _: fastest),
            (f"/{BEST}", lambda _: BEST),
        ]
    else:
        columns = [("time/naive", lambda contender: contender.base)]
    head = f"{'':30}{'updates/s':>11}{'spread':>19}"
    head += "".join(f"{title:>12}" for title, _ in columns)
    lines = [
        f"{work.name}: {work.title}",
        f"{head}{'start-up s':>12}{'peak MiB':>10}{'distance':>10}",
    ]
    for contender in contenders:
        trials, own = results[contender.name], rates[contender.name]
        if not own:
            lines.append(f"{contender.name:30}{_reason(trials)}")
            continue
        line = f"{contender.name:30}{_number(statistics.median(own)):>11}"
        line += f"{_number(min(own)) + ' - ' + _number(max(own)):>19}"
        for _, other in columns:
            ratio = _ratio(own, rates.get(other(contender) or "", []))
            line += f"{_inverse(ratio) if work.experiences > 1 else _shown(ratio):>12}"
        done = [trial for trial in trials if trial.ran]
        line += f"{statistics.median(trial.startup_s for trial in done):12.1f}"
        line += f"{max(trial.mib for trial in done):10.0f}"
        distances = [trial.distance for trial in done if trial.distance is not None]
        line += f"{max(distances):10.1e}" if distances else f"{'-':>10}"
        lines.append(line if len(done) == len(trials) else f"{line}  {_reason(trials)}")
    return "\n".join(lines)


def _rates(work: Workload, trials: Sequence[Trial]) -> list[float]:
    # consolidation comes in some rounds only, so where there is any all rounds count
    whole = work.experiences > 1
    return [trial.rate(work.cohort, whole) for trial in trials if trial.ran]


def _ratio(own: Sequence[float], other: Sequence[float]) -> float | None:
    if not other:
        return None
    if len(own) != len(other):  # not all of them ended well
        return statistics.median(own) / statistics.median(other)
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def _shown(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2f}x"


def _inverse(ratio: float | None) -> str:
    return "-" if ratio is None else f"{1 / ratio:.2f}x"


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _reason(trials: Sequence[Trial]) -> str:
    for trial in trials:
        if trial.failed is not None:
            return f"FAILED: {trial.failed}"
    return next((f"skipped: {each.skipped}" for each in trials if each.skipped is not None), "")
