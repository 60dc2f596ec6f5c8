"""Memory of a process and all its descendants, on Linux."""

from collections import defaultdict
from pathlib import Path

_PROC = Path("/proc")


def tree_mib(pid: int) -> float:
    """Return the proportional set size of a process and its descendants, MiB.

    A page that n processes share counts 1/n for each, so that forked workers and shared memory are
    counted once. Processes that end meanwhile, or that may not be read, count nothing.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children[int(fields[1])].append(int(stat.parent.name))
    kib, waiting = 0, [pid]
    while waiting:
        each = waiting.pop()
        kib += _proportional_kib(each)
        waiting += children[each]
    return kib / 1024


def _proportional_kib(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
