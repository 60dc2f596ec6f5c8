"""The environment of a run: versions, code, machine and command, for whoever repeats it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedlearn.tracking.redaction import redact

PACKAGES = (
    "fedlearn",
    "torch",
    "torchvision",
    "flwr",
    "avalanche-lib",
    "hydra-core",
    "omegaconf",
    "wandb",
    "ray",
    "numpy",
    "scikit-learn",
)

_GIT_TIMEOUT_S = 5


def describe_environment() -> dict[str, Any]:
    """Return versions, git state, machine and command line as JSON values, secrets redacted.

    No package is imported to learn its version, and no environment variable is copied but
    ``OMP_NUM_THREADS``, on which the last bit of a result may depend.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__)),
        "command": redact(list(sys.argv)),
    }


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the ``commit`` that `file` is under, and whether tracked files differ (``dirty``).

    None where git does not track the file: an installed package inside someone else's repository is
    not that repository's code.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
