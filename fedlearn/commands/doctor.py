"""``fedlearn doctor``: what this machine has, what would go wrong, and how to mend it."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from rich.console import Console

from fedlearn.commands.launch import check_folder
from fedlearn.config.choices import find_choices
from fedlearn.config.composition import Composed, compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, load_dataset, prepare
from fedlearn.runtimes.cohort_worker import trainer_of
from fedlearn.runtimes.inprocess import InProcess
from fedlearn.tracking.wandb import WandbTracker

HELP = """\
usage: fedlearn doctor [key=value ...]

Prints versions, devices, data sets and the W&B mode, how the configuration's cohorts would be
trained by runtime.executor=vectorized and why so, and what would go wrong with how to mend it.
Exits with 0 where `fedlearn run key=value ...` can run, with 1 where it cannot.
"""
LEAST_FREE = 1e9
"""Bytes below which a disk is called nearly full."""


@dataclass
class Findings:
    """What was found.

    Attributes:
        facts: Lines of (what, found), by heading.
        advice: What would go wrong in some runs, with how to mend it.
        broken: What stops ``fedlearn run`` itself.
    """

    facts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def note(self, heading: str, what: str, found: str) -> None:
        """Add a fact."""
        self.facts.setdefault(heading, []).append((what, found))


def command(arguments: Sequence[str]) -> int:
    """Examine this machine, print what was found, and return 0 where a run can run, else 1.

    Raises:
        ConfigError: An argument is no override.
    """
    if set(arguments) & {"--help", "-h"}:
        sys.stdout.write(HELP)
        return 0
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"fedlearn doctor {argument}: takes key=value arguments only")
    # what is no configuration at all is a mistake, not a finding
    findings = examine(compose(list(arguments)))
    console = Console(highlight=False, soft_wrap=True)
    for heading, facts in findings.facts.items():
        console.print(f"[bold]{heading}[/]")
        for what, found in facts:
            console.print(f"  {what:<16} {found}", markup=False)
    for line in findings.advice:
        console.print(f"[yellow]note[/]   {line}")
    for line in findings.broken:
        console.print(f"[red]broken[/] {line}")
    if not findings.broken:
        console.print("[green]ready[/]  fedlearn run can run")
    return 1 if findings.broken else 0


def examine(composed: Composed) -> Findings:
    """Return what there is to say about this machine, and about a run of a configuration."""
    findings = Findings()
    for check in (_versions, _devices, _data, _tracking):
        check(findings)
    _disk(findings, composed)
    _run(findings, composed)
    return findings


def _versions(findings: Findings) -> None:
    findings.note("versions", "python", sys.version.split()[0])
    for requirement in _requirements():
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.note("versions", requirement.name, "missing")
            findings.broken.append(
                f"{requirement.name} is not installed: pip install '{requirement}'"
            )
            continue
        findings.note("versions", requirement.name, version)
        if version not in requirement.specifier:
            findings.advice.append(
                f"{requirement.name} {version} is not what fedlearn was tested with: "
                f"pip install '{requirement}'"
            )


def _requirements() -> Iterator[Requirement]:
    yield Requirement("fedlearn")
    for text in metadata.requires("fedlearn") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _devices(findings: Findings) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    pinned = os.environ.get("OMP_NUM_THREADS")
    findings.note("devices", "cpu", f"{cores} cores, {threads} torch threads")
    findings.note("devices", "OMP_NUM_THREADS", pinned or "not set")
    if cores is not None and threads > cores:
        findings.advice.append(
            f"torch uses {threads} threads on {cores} cores, which is slow: "
            f"export OMP_NUM_THREADS={cores}"
        )
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        findings.note(
            "devices", f"cuda:{index}", f"{device.name}, {device.total_memory / 1e9:.0f} GB"
        )
    if not torch.cuda.is_available():
        findings.note("devices", "cuda", "none")
        if shutil.which("nvidia-smi"):
            findings.advice.append(
                "there is an NVIDIA driver, but torch sees no CUDA device: "
                f"torch {torch.__version__} may be too new for the driver, or built without CUDA"
            )


def _data(findings: Findings) -> None:
    for choice in find_choices()["dataset"]:
        composed = compose([f"dataset={choice.name}"])
        root = composed.tree["dataset"].get("root")
        where = f" under {Path(root).expanduser().absolute()}" if root else ""
        try:
            dataset = load_dataset(composed)
        except ConfigError as error:
            findings.note("data", choice.name, f"missing{where}")
            findings.advice.append(str(error))
            continue
        sizes = f"{len(dataset.train):,} + {len(dataset.test):,} samples"
        shape = "x".join(map(str, dataset.train.x.shape[1:]))
        findings.note("data", choice.name, f"{sizes} of {shape}{where}")


def _tracking(findings: Findings) -> None:
    mode, problem = WandbTracker().choose_mode()
    asked = os.environ.get("WANDB_MODE")
    if problem:
        why = problem
    elif asked:
        why = f"WANDB_MODE={asked}"
    elif mode == "online":
        why = "there are credentials"
    else:
        why = "no credentials; for online: wandb login"
    findings.note("W&B", "mode", f"{mode} ({why})")
    if problem:
        findings.advice.append(f"W&B will be {mode}: {problem}")


def _disk(findings: Findings, composed: Composed) -> None:
    out = Path(str(composed.tree["out"])).absolute()
    existing = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    findings.note("disk", "runs go into", f"{out} ({free / 1e9:.0f} GB free)")
    try:
        check_folder(str(out))
    except ConfigError as error:
        findings.broken.append(f"{error}; set out=DIRECTORY")
    if free < LEAST_FREE:
        findings.advice.append(f"out={out}: only {free / 1e6:.0f} MB are free there")


def _run(findings: Findings, composed: Composed) -> None:
    try:
        experiment = build(prepare(composed))
    except ConfigError as error:
        findings.broken.append(str(error))
        return
    devices = ", ".join(map(str, experiment.runtime.devices))
    findings.note("this run", "devices", devices)
    if not isinstance(experiment.runtime, InProcess):
        return
    model = experiment.build_model()
    try:
        trainer = trainer_of(experiment.continual, model, experiment.runtime.formulation)
    except ValueError as error:
        findings.note("this run", "vectorized", f"no: {error}")
        return
    told = f"{trainer.formulation}, {trainer.chunk} clients at once: {trainer.why}"
    findings.note("this run", "vectorized", told)
