"""Environments of the peers: made when first asked for, each from its own pinned requirements.

An environment sees our packages behind its own where both are for one version of Python, so that
all contenders run the same PyTorch.
"""

import shutil
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
VENVS = Path(__file__).parent / ".venvs"

PYTHONS = {"blazefl": (3, 14)}
"""The least version of Python that a peer takes, where ours may be too old."""

_DONE = "requirements.txt"
"""Copied into an environment once it is complete."""


class UnavailableError(RuntimeError):
    """A peer cannot be installed here; the message is one line."""


def interpreter(peer: str) -> Path:
    """Return the Python of a peer's environment, which is made unless it is there.

    Raises:
        UnavailableError: It cannot be made.
    """
    requirements, venv = PEERS / f"{peer}.txt", VENVS / peer
    python, done = venv / "bin" / "python", venv / _DONE
    if done.exists() and done.read_text() == requirements.read_text():
        return python
    base = _base(peer)
    print(f"installing {peer} into {venv}", file=sys.stderr, flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    _check(peer, [str(base), "-m", "venv", str(venv)])
    if base == Path(sys.executable):
        _share_packages(venv)
    _check(peer, [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
    shutil.copyfile(requirements, done)
    return python


def _base(peer: str) -> Path:
    least = PYTHONS.get(peer, (0, 0))
    if sys.version_info >= least:
        return Path(sys.executable)
    name = "python" + ".".join(map(str, least))
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(f"{peer} needs {name}, which is not installed")
    return Path(found)


def _share_packages(venv: Path) -> None:
    import torch

    ours = Path(torch.__file__).parents[1]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (venv / "lib" / version / "site-packages" / "zz_shared.pth").write_text(f"{ours}\n")


def _check(peer: str, command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or result.stderr.splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"{peer} cannot be installed: {reason}")
