"""One run of one contender, in a process of its own, watched from outside."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from speed.contenders import Contender
from speed.memory import tree_mib
from speed.stopwatch import STARTED
from speed.venvs import UnavailableError, interpreter

LOOKING = 0.02
"""Share of the time in which memory is looked at: to walk the page tables of a gigabyte takes a
core 0.1 s, and whoever is looked at waits."""

ONE_THREAD = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")


@dataclass
class Trial:
    """What came of it.

    Attributes:
        startup_s: From the process's start to the end of its first round.
        seconds: Of each later round.
        mib: The largest proportional set size of all its processes that was seen.
        skipped: Why it did not run; None if it did.
        failed: Why it did not end well; None if it did.
        distance: Of the final weights from what they must be; None where that is not known.
    """

    startup_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    mib: float = 0.0
    skipped: str | None = None
    failed: str | None = None
    distance: float | None = None

    @property
    def ran(self) -> bool:
        """Whether there is anything to compare."""
        return self.skipped is None and self.failed is None

    def rate(self, cohort: int, whole: bool) -> float:
        """Return client updates a second: of the median round, or of all timed rounds together."""
        middle = statistics.mean if whole else statistics.median
        return cohort / middle(self.seconds)


def run_trial(
    contender: Contender, plan: Path, data: Path, weights: Path, patience_s: float
) -> Trial:
    """Run a contender once; what goes wrong is in the result.

    Args:
        contender: Who.
        plan: The plan's file.
        data: The samples as fedlearn reads them.
        weights: Where the final weights go.
        patience_s: After so many seconds it has failed, and is ended with all its processes.
    """
    try:
        python = interpreter(contender.peer) if contender.peer else Path(sys.executable)
    except UnavailableError as error:
        return Trial(skipped=str(error))
    arguments = contender.arguments(str(plan), str(weights))
    if contender.group == "fedlearn":
        arguments += ["--data", str(data)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(python), *arguments],
            cwd=folder,
            env=_environment(started),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        mib, late = 0.0, False
        try:
            while process.poll() is None and time.monotonic() - started < patience_s:
                looked = time.perf_counter()
                mib = max(mib, tree_mib(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, (time.perf_counter() - looked) / LOOKING))
        finally:
            if process.poll() is None:  # it is late, or we are interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                late = True
        if late:
            return Trial(failed=f"took longer than {patience_s:g} s")
        output.seek(0)
        return _read(output.read(), process.returncode, mib)


def _environment(started: float) -> dict[str, str]:
    return {
        **os.environ,
        **{f"{name}_NUM_THREADS": "1" for name in ONE_THREAD},
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "WANDB_MODE": "offline",
        STARTED: repr(started),
    }


def _read(output: str, status: int, mib: float) -> Trial:
    """Return what a contender printed, whose line is the last one that is ours."""
    lines = [line for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith(('{"startup_s"', '{"skipped"')):
            told = json.loads(line)
            if "skipped" in told:
                return Trial(skipped=told["skipped"])
            told["mib"] = max(told["mib"], mib)
            return Trial(**told)
    last = lines[-1].strip() if lines else "it printed nothing"
    return Trial(failed=f"exit status {status}: {last}")
