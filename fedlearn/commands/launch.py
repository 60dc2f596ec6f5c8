"""Launching: every job is checked before the first one starts, then Hydra runs them."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from fedlearn.commands.dry_run import describe
from fedlearn.commands.hydra_main import hydra_main
from fedlearn.commands.sweep import Sweep
from fedlearn.commands.task import LoneTask, SweepTask
from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import Plan, build, prepare
from fedlearn.config.raw import compose_raw, quoted
from fedlearn.run import COMPLETED
from fedlearn.runtimes.deployment import Deployment
from fedlearn.tracking.console import comparison_table
from fedlearn.tracking.jsonl import SUMMARY, read_summary

LONGEST_NAME = 200
"""Characters of overrides that a job's directory may be named after; file systems end at 255."""


def launch(job: Composed, overrides: Sequence[str], config_dir: Path | None) -> int:
    """Run one job and return the exit status.

    Raises:
        ConfigError: The job cannot run; nothing was written.
    """
    plan = prepare(job)
    if isinstance(plan.runtime, Deployment) and not plan.settings.dry_run:
        return _submit(job, plan, overrides, config_dir)
    experiment = build(plan)
    if experiment.settings.dry_run:
        sys.stdout.write(describe(experiment))
        return 0
    check_folder(experiment.settings.out)
    task = LoneTask(job, experiment)
    hydra_main(task, [], overrides, config_dir)
    return task.status


def _submit(job: Composed, plan: Plan, overrides: Sequence[str], config_dir: Path | None) -> int:
    """Have a deployment run a job; the data is at its nodes, and nothing of it is loaded here."""
    assert isinstance(plan.runtime, Deployment)
    from fedlearn.commands.remote import RemoteTask

    check_folder(plan.settings.out)
    task = RemoteTask(job, plan.runtime.folder())
    hydra_main(task, [], overrides, config_dir)
    return task.status


def launch_sweep(jobs: Sequence[Composed], sweep: Sweep, config_dir: Path | None) -> int:
    """Run all jobs, print a table that compares them, and return the worst exit status.

    Raises:
        ConfigError: A job cannot run; none has started.
    """
    plans = [prepare(job) for job in jobs]
    if any(isinstance(plan.runtime, Deployment) for plan in plans):
        raise ConfigError("runtime=deployment: takes one run at a time; submit them without -m")
    if any(plan.settings.dry_run for plan in plans):
        sys.stdout.write("\n".join(describe(build(plan)) for plan in plans))
        return 0
    # named here, so that we know where Hydra puts the runs
    sweep_dir = Path(str(compose_raw(sweep.jobs[0], config_dir).hydra.sweep.dir)).absolute()
    unnamed = ",".join(quoted(key) for key in (*sweep.fixed, *sweep.slashed))
    placed = [
        f"hydra.sweep.dir={quoted(str(sweep_dir))}",
        f"hydra.job.config.override_dirname.exclude_keys=[{unnamed}]",
    ]
    if max(len(sweep.label(job)) for job in sweep.jobs) > LONGEST_NAME:
        placed.append("hydra.sweep.subdir=${hydra:job.num}")
    for plan in plans:
        check_folder(plan.settings.out)
    task = SweepTask()
    hydra_main(task, ["--multirun"], [*sweep.overrides, *placed], config_dir)
    completed = _compare(sweep, sweep_dir)
    # a launcher of other processes keeps what went wrong there to itself
    return task.status or int(completed < len(jobs))


def check_folder(out: str) -> None:
    """Check that run directories can be made in `out`, which need not exist yet.

    Raises:
        ConfigError: They cannot.
    """
    folder = Path(out).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"out={out}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"out={out}: {existing} is not writable")


def _compare(sweep: Sweep, sweep_dir: Path) -> int:
    """Print a table of the runs in `sweep_dir` that came to an end; return how many completed."""
    runs = []
    for run_dir in sorted(sweep_dir.glob("*/"), key=_job_number):
        if (run_dir / SUMMARY).is_file():
            summary = read_summary(run_dir)
            overrides = OmegaConf.load(run_dir / ".hydra" / "overrides.yaml")
            label = sweep.label([str(text) for text in overrides]) or str(summary["name"])
            runs.append((label, summary))
    if runs:
        console = Console(highlight=False)
        console.print(comparison_table(runs, console.width))
        console.print(f"runs {sweep_dir}", soft_wrap=True)
    return sum(summary["status"] == COMPLETED for _, summary in runs)


def _job_number(run_dir: Path) -> tuple[int, str]:
    number = run_dir.name.partition("_")[0]
    return int(number) if number.isdigit() else sys.maxsize, run_dir.name
