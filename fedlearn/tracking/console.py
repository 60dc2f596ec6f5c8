"""The terminal: a progress bar and the result; in a pipe, one line a round and the result."""

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from fedlearn.tracking.tables import comparison_table as comparison_table
from fedlearn.tracking.tables import result_panel
from fedlearn.tracking.tracker import Event
from fedlearn.tracking.words import (
    bare_points,
    counted,
    executor_words,
    human_bytes,
    human_seconds,
    percent,
    score_of,
)

MOST_LINES = 5
"""Clients named in one round; a round in which hundreds fail must not bury the rest."""

_ASCII = str.maketrans({"·": "|", "±": "+-", "…": "...", "²": "2"})


class ConsoleTracker:
    """Shows a run while it runs, and what it came to."""

    def __init__(self, console: Console | None = None) -> None:
        """Make a tracker.

        Args:
            console: Where to; standard output by default.
        """
        self._console = console or _Terminal(highlight=False)
        self._ascii = not self._console.encoding.lower().startswith("utf")
        self._run_dir = Path()
        self._start: dict[str, Any] = {}
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._accuracy: float | None = None

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Keep where the run's files are."""
        self._run_dir = run_dir

    def event(self, event: Event) -> None:
        """Show the event."""
        kind = event["event"]
        if kind == "start":
            self._begin(event)
        elif kind == "round":
            self._round(event)
        elif kind == "experience":
            self._experience(event)
        elif kind == "warning":
            self._say(f"warning: {event['message']}", "yellow")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Show the result: the accuracy matrix, the metrics, the costs, where it is, what next."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        facts = [(name, self._readable(text)) for name, text in self._facts(summary)]
        panel = result_panel(summary, facts, self._console.width)
        if self._ascii:
            with self._console.capture() as captured:
                self._console.print(panel)
            self._console.file.write(captured.get().translate(_ASCII))
        else:
            self._console.print(panel)
        for name, text in self._pointers(summary):  # unframed, to be copied
            self._say(f"{name:<5} {text}", whole=True)

    def _begin(self, event: Event) -> None:
        self._start = dict(event)
        facts = [
            event.get("scenario"),
            f"{event.get('continual')} + {event.get('aggregation')}",
            f"{counted(event['experiences'], 'experience')} of "
            f"{counted(event['rounds_per_experience'], 'round')}",
            f"{counted(event['clients'], 'client')}, {event['cohort_size']} a round",
            counted(event["parameters"], "parameter"),
            event.get("device"),
            executor_words(event.get("executor", {})),
            f"seed {event['seed']}",
        ]
        self._say(f"{event['name']}: " + " · ".join(str(fact) for fact in facts if fact), "bold")
        if event.get("resumed_from") is not None:
            self._say(f"resumed from round {event['resumed_from']}")
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[accuracy]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self._console,
            expand=True,
            transient=True,
            refresh_per_second=4,
            # Redirected streams print under the bar's lock, which its thread may hold when a worker
            # process is forked: the worker's next print would then wait for ever.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(
            self._place(0),
            total=event["rounds"],
            completed=event.get("resumed_from") or 0,
            accuracy="",
        )
        self._progress.start()

    def _round(self, event: Event) -> None:
        accuracy = event.get("server", {}).get("accuracy")
        self._accuracy = accuracy if accuracy is not None else self._accuracy
        if self._progress is not None:
            self._progress.update(
                self._task,
                completed=event["round"],
                description=self._place(event["experience"]),
                accuracy="" if self._accuracy is None else self._scored(self._accuracy),
            )
        else:
            total = self._start.get("rounds", event["round"])
            parts = [
                f"round {event['round']:>{len(str(total))}}/{total}",
                self._place(event["experience"]),
            ]
            if accuracy is not None:
                parts.append(self._scored(accuracy))
                parts.append(f"loss {event['server']['loss']:.4f}")
            parts.append(human_seconds(event["time"]["round_s"]))
            self._say(" · ".join(parts))
        if told := event.get("diverged", ()):
            named = [f"client {each['client']} ({each['reason']})" for each in told[:MOST_LINES]]
            if len(told) > MOST_LINES:
                named.append(f"{len(told) - MOST_LINES} more")
            self._say(f"round {event['round']}: diverged: {', '.join(named)}", "yellow")
        for name in ("quarantined", "failed"):
            told = event.get(name, ())
            for each in told[:MOST_LINES]:
                self._say(
                    f"round {event['round']}: client {each['client']} {name}: {each['reason']}",
                    "yellow",
                )
            if len(told) > MOST_LINES:
                more = len(told) - MOST_LINES
                self._say(f"round {event['round']}: {more} more clients {name}", "yellow")

    def _experience(self, event: Event) -> None:
        learned, cl = event["accuracy"][event["experience"]], event["cl"]
        parts = [f"learned experience {event['experience']}"]
        if learned is not None:
            parts[0] += f" to {percent(learned)}"
        if cl.get("average_accuracy") is not None:
            parts.append(f"average {percent(cl['average_accuracy'])}")
        if cl.get("forgetting") is not None:
            parts.append(f"forgetting {bare_points(cl['forgetting'])}")
        self._say(" · ".join(parts), "cyan")

    def _scored(self, accuracy: float) -> str:
        return f"{score_of(self._start)} {percent(accuracy)}"

    def _place(self, experience: int) -> str:
        total = self._start.get("experiences", experience + 1)
        return f"experience {experience} ({experience + 1} of {total})"

    def _facts(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        comm, time, storage = summary["comm"], summary["time"], summary.get("storage") or {}
        turns = summary.get("turns") or {}
        lost = [
            f"{turns[end]:,} {end}"
            for end in ("dropped", "diverged", "quarantined", "failed")
            if turns.get(end)
        ]
        kept = storage.get("client_state_bytes_max")
        planned = self._start.get("rounds", summary["rounds"])
        facts = [
            ("rounds", f"{summary['rounds']} of {planned}, seed {summary['seed']}"),
            (
                "sent",
                f"{human_bytes(comm['up_bytes'])} up · {human_bytes(comm['down_bytes'])} down",
            ),
            (
                "time",
                f"{human_seconds(time['total_s'])} · training {human_seconds(time['train_s'])} · "
                f"{human_seconds(time['round_s_median'])} a round (median)",
            ),
        ]
        if kept:
            mean = human_bytes(storage["client_state_bytes_mean"])
            facts.append(("kept", f"{mean} a client (mean) · {human_bytes(kept)} at most"))
        if lost:
            facts.append(("lost turns", " · ".join(lost)))
        return facts

    def _pointers(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return where the run is, and commands to go on with."""
        wandb, started = summary.get("wandb") or {}, self._start
        pointers = [("run", shlex.quote(_short(self._run_dir)))]
        if wandb.get("mode") == "offline":
            pointers.append(("W&B", f"wandb sync {shlex.quote(_short(Path(wandb['dir'])))}"))
        elif wandb.get("mode") == "online":
            pointers.append(("W&B", f"online, run {wandb['id']}"))
        if summary["status"] == "completed" and started.get("scenario"):
            mine = started["continual"]
            other = "naive" if mine != "naive" else "replay"
            pointers.append(
                (
                    "next",
                    f"fedlearn run -m scenario={started['scenario']} continual={mine},{other} "
                    f"aggregation={started['aggregation']} seed=0,1,2",
                )
            )
        return pointers

    def _say(self, text: str, style: str = "", whole: bool = False) -> None:
        """Print a line; on a terminal it is broken between words unless it must stay `whole`."""
        unbroken = whole or not self._console.is_terminal
        self._console.print(Text(self._readable(text), style=style), soft_wrap=unbroken)

    def _readable(self, text: str) -> str:
        return text.translate(_ASCII) if self._ascii else text


class _Terminal(Console):
    """A console whose reader may go away (``fedlearn run | head``) without ending the run."""

    def on_broken_pipe(self) -> None:
        """Fall silent; rich would exit."""
        self.quiet = True
        with contextlib.suppress(OSError):  # what is still buffered must go somewhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _short(path: Path) -> str:
    """Return `path` relative to the working directory where it lies below it."""
    path = path.resolve()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
