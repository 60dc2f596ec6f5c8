"""How busy a node's machine is, as far as it can tell without help."""

import os
from pathlib import Path

import torch


def load_of(device: torch.device) -> dict[str, float]:
    """Return what is in use of this machine, by the names of metrics.

    Args:
        device: Where it trains.

    Returns:
        ``node-load``: processes that want a core, the mean of the last minute, over cores; above 1
        they wait for each other. ``node-memory`` and ``node-gpu-memory``: the share in use, in
        [0, 1]. What the machine does not tell is left out.
    """
    told: dict[str, float] = {}
    if hasattr(os, "getloadavg"):
        told["node-load"] = os.getloadavg()[0] / (os.cpu_count() or 1)
    if (memory := _memory()) is not None:
        told["node-memory"] = memory
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        told["node-gpu-memory"] = 1.0 - free / total
    return told


def _memory(path: Path = Path("/proc/meminfo")) -> float | None:
    """Return the share of memory that is in use, or None where nobody says."""
    if not path.is_file():
        return None
    sizes = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    try:
        total, free = (float(sizes[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except KeyError:
        return None
    return 1.0 - free / total
