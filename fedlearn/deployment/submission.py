"""Submitting a run to a deployment, and following it to its end."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import httpx

from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.deployment.configuration import signed
from fedlearn.deployment.control import Control
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.serving import read_story

PATIENCE_S = 300.0
"""Seconds without a SuperLink after which following it is given up; the run may go on."""

FINISHED, STOPPED = "finished", "stopped"


class LostRunError(RuntimeError):
    """The run cannot be followed to its end; the message is one line for the user."""


class DeadServerError(LostRunError):
    """The server's app ended without a result: it was killed, or could not run."""


def new_name() -> str:
    """Return a name for a run, which it keeps when it is submitted again."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{token_hex(3)}"


def submit(control: Control, folder: Folder, job: Composed, run: str) -> int:
    """Start a run at a deployment's SuperLink, or go on with it from its last checkpoint there.

    Args:
        control: The line to the SuperLink.
        folder: The deployment.
        job: What to run.
        run: The run's own name.

    Returns:
        Flower's id of it.

    Raises:
        ConfigError: The SuperLink does not answer, or refuses.
    """
    nodes, clients = folder.facts.nodes, job.tree["num_clients"]
    if clients != nodes:
        raise ConfigError(
            f"num_clients={clients}: {folder.path.name} has {nodes} nodes, each of them one client"
        )
    quorum = job.tree["runtime"]["quorum"]
    if quorum > nodes:
        raise ConfigError(
            f"runtime.quorum={quorum}: must be at most {nodes}, the nodes of {folder.path.name}"
        )
    return control.submit(signed(run, job, folder.admin_key))


def follow(control: Control, run_id: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a run's server tells, from the beginning to the end, each thing once.

    Args:
        control: The line to the SuperLink; it may break and come back.
        run_id: Flower's.

    Raises:
        DeadServerError: The server's app ended without a summary.
        LostRunError: It was stopped, or the SuperLink is gone for good.
    """
    told = 0
    ended = False
    lost_at: float | None = None
    while True:
        try:
            for number, line in enumerate(_lines(control, run_id)):
                lost_at = None
                story = read_story(line)
                if number < told or story is None:
                    continue
                told = number + 1
                yield story
                if story[0] == "summary":
                    return
            status = control.status(run_id)
            lost_at = None
            if ended:
                why = status.details or status.outcome
                kind = LostRunError if status.outcome == STOPPED else DeadServerError
                raise kind(f"run {run_id} ended at the server without a result: {why}")
            # the lines that came just before the end may be missing from what was read: once more
            ended = status.status.startswith(FINISHED)
        # a ValueError is Flower's for a stream that ended within a message, and a `ConfigError`
        except (httpx.HTTPError, ValueError) as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > PATIENCE_S:
                raise LostRunError(f"run {run_id} cannot be followed any more: {error}") from error
        time.sleep(1.0)


def _lines(control: Control, run_id: int) -> Iterator[str]:
    """Yield whole lines, as they become complete; what is left of a stream that broke is none."""
    begun = ""
    for text in control.logs(run_id):
        *lines, begun = (begun + text).split("\n")
        yield from lines
