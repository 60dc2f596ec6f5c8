"""Weights & Biases: one run for each experiment, online where there are credentials, else offline.

Curves have the keys of `fedlearn.tracking.charts`: ``cl/...`` and ``client_accuracy/...`` over
``experience``, all others over ``round``; nothing depends on W&B's own step. With more than 20
clients each experience also logs the Table ``client/accuracy_table``. At the end come the Table
``cl/accuracy_matrix``, the same as a picture, ``cl/accuracy_matrix_picture``, and the run's summary
under ``final/``. The config holds the composed configuration, the environment and the manifest's
scalars, all redacted; the whole manifest is a file of the run.

Whatever goes wrong with W&B costs one warning and some seconds, never the run.
"""

import contextlib
import io
import netrc
import os
import re
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fedlearn.tracking.charts import Charts, flatten
from fedlearn.tracking.environment import describe_environment
from fedlearn.tracking.jsonl import read_events, write_json
from fedlearn.tracking.redaction import redact
from fedlearn.tracking.tracker import Event, TrackerError
from fedlearn.tracking.words import score_of

Mode = Literal["auto", "online", "offline", "disabled"]

PROBE_TIMEOUT_S, INIT_TIMEOUT_S = 5.0, 20.0
FINISH_TIMEOUT_S = 20.0
"""How long the last upload may take; W&B adds another 20 s of its own when the server is gone."""

_MODES = ("auto", "online", "offline", "disabled")
_SYNONYMS = {"dryrun": "offline", "run": "online"}  # values of WANDB_MODE that W&B accepts too
_STEPS = {
    "round": ("server/*", "client/*", "node/*", "comm/*", "time/*", "cohort/*", "aggregated/*"),
    "experience": ("cl/*", "client_accuracy/*"),
}


class WandbTracker:
    """Logs one run to W&B, under ``<run directory>/wandb``."""

    def __init__(
        self,
        project: str = "fedlearn",
        entity: str | None = None,
        mode: Mode = "auto",
        tags: Sequence[str] = (),
    ) -> None:
        """Make a tracker; nothing happens until the run starts.

        Args:
            project: W&B project.
            entity: W&B user or team; None for the default one.
            mode: ``online`` needs credentials and falls back to ``offline``, with a warning;
                ``auto`` is what the environment variable WANDB_MODE says, else ``online`` where
                there are credentials (WANDB_API_KEY, netrc or settings), else ``offline``, without
                a word; ``disabled`` does nothing.
            tags: Tags of the run.

        Raises:
            ValueError: `mode` is unknown, or `project` empty.
        """
        if mode not in _MODES:
            raise ValueError(f"tracker.mode={mode}: must be one of {', '.join(_MODES)}")
        if not project:
            raise ValueError("tracker.project: must not be empty")
        self._project, self._entity, self._mode, self._tags = project, entity, mode, list(tags)
        self._run_dir = Path()
        self._config: dict[str, Any] = {}
        self._manifest: dict[str, Any] = {}
        self._charts = Charts(num_clients=0)
        self._run: Any = None
        self._info: dict[str, Any] = {"mode": "disabled", "id": None, "dir": None}

    @property
    def info(self) -> dict[str, Any]:
        """``{"wandb": {mode, id, dir}}``, for the run's summary."""
        return {"wandb": dict(self._info)}

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Keep what the W&B run will be told; it begins with the ``start`` event."""
        self._run_dir, self._config, self._manifest = run_dir, dict(config), dict(manifest)

    def event(self, event: Event) -> None:
        """Log the event, if W&B takes part.

        Raises:
            TrackerError: W&B is not reachable, or has failed; it is not asked again.
        """
        if event["event"] == "start":
            self._begin(event)
        elif self._run is not None and event["event"] == "round":
            with self._failing_once():
                self._run.log(self._charts.round_row(event))
        elif self._run is not None and event["event"] == "experience":
            with self._failing_once():
                self._run.log({**self._charts.experience_row(event), **self._client_table(event)})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log the accuracy matrix and the summary, and wait for the upload, but not for ever.

        Raises:
            TrackerError: W&B has failed, or could not upload everything in time.
        """
        if self._run is None:
            return
        run, self._run = self._run, None
        with self._failing_once(), _muted():
            try:
                run.log({"round": summary["rounds"], **self._matrix(summary)})
                run.summary.update(flatten(summary, "final/"))
            finally:
                self._close(run, exit_code=0 if summary["status"] == "completed" else 1)

    def _begin(self, event: Event) -> None:
        mode, problem = self.choose_mode()
        if mode == "disabled":
            return
        with self._failing_once():
            self._charts = Charts(event["clients"])
            if event.get("resumed_from") is not None:
                self._charts.count(read_events(self._run_dir))
            run_id = self._run_id(event)
            if mode == "online":
                try:
                    self._run = self._init("online", run_id, event)
                except Exception as error:  # whatever it is, there is still offline
                    mode, problem = "offline", _one_line(error)
                    run_id += "-offline"  # W&B keeps the first id to itself
            if mode == "offline":
                self._run = self._init("offline", run_id, event)
            self._id_file.write_text(run_id + "\n", encoding="utf-8")
            folder = str(Path(self._run.dir).parent)
            self._info = {"mode": mode, "id": run_id, "dir": folder}
        if problem:
            raise TrackerError(
                f"W&B is offline ({problem}); upload the run later with: wandb sync {folder}"
            )

    def choose_mode(self) -> tuple[str, str | None]:
        """Return online, offline or disabled, and the problem if it is not what was asked for."""
        mode: str = self._mode
        if mode == "auto":
            asked = os.environ.get("WANDB_MODE", "").lower()
            mode = _SYNONYMS.get(asked, asked) or "auto"
            if mode not in _MODES:
                return "offline", f"WANDB_MODE={asked} is none of {', '.join(_MODES[1:])}"
        if mode == "disabled":
            return mode, None
        # W&B's usage statistics go out even offline, and wait for the server when the process ends.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if mode == "offline":
            return mode, None
        try:
            import wandb

            with _muted(), _mute_children():
                settings = wandb.setup().settings
        except Exception as error:  # malformed settings
            return "offline", _one_line(error)
        if not has_credentials(str(settings.base_url), settings.api_key):
            return "offline", None if mode == "auto" else "no credentials: see wandb login"
        if not answers(str(settings.base_url), PROBE_TIMEOUT_S):
            return "offline", f"{settings.base_url} does not answer"
        return "online", None

    @property
    def _id_file(self) -> Path:
        return self._run_dir / "wandb" / "run_id"

    def _run_id(self, event: Event) -> str:
        """Return the id of a resumed run, or a new, readable one."""
        if event.get("resumed_from") is not None and self._id_file.is_file():
            return self._id_file.read_text(encoding="utf-8").strip()
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(event["name"]))[:40].strip("-")
        return f"{name}-seed{event['seed']}-{secrets.token_hex(4)}"

    def _init(self, mode: Literal["online", "offline"], run_id: str, event: Event) -> Any:
        import wandb

        with _muted(), _mute_children():
            run = wandb.init(
                project=self._project,
                entity=self._entity,
                id=run_id,
                name=f"{event['name']}-seed{event['seed']}",
                group=str(event["name"]),
                job_type="server",
                tags=self._tags,
                dir=str(self._run_dir),
                config=self._describe(event),
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    finish_timeout_raises=True,
                    # W&B's metadata hold the whole command line, secrets and all, and its git
                    # state is the working directory's: the config has our own of both.
                    x_disable_meta=True,
                    disable_git=True,
                ),
            )
            for step, globs in _STEPS.items():
                run.define_metric(step)
                for glob in globs:
                    run.define_metric(glob, step_metric=step)
            path = Path(run.dir) / "manifest.json"
            write_json(path, self._manifest)
            run.save(str(path), base_path=run.dir, policy="now", glob=False)
        return run

    def _describe(self, event: Event) -> dict[str, Any]:
        """Return the W&B config: what was asked for, of which code, on which protocol."""
        scalars = {
            key: value
            for key, value in self._manifest.items()
            if not isinstance(value, Mapping | list | tuple)
        }
        return {
            **redact(self._config),
            "run": {key: value for key, value in event.items() if key != "event"},
            "manifest": redact(scalars),
            "environment": describe_environment(),
        }

    def _client_table(self, event: Event) -> dict[str, Any]:
        told = event.get("client_accuracy", {})
        if not (self._charts.summarises_clients and told):
            return {}
        import wandb

        columns: list[str | int] = [
            "client",
            *(f"experience {j}" for j in range(len(event["accuracy"]))),
        ]
        rows = [[int(client_id), *accuracies] for client_id, accuracies in told.items()]
        return {"client/accuracy_table": wandb.Table(columns=columns, data=rows)}

    def _matrix(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        matrix = summary["accuracy_matrix"]
        if all(value is None for row in matrix for value in row):
            return {}
        import wandb

        from fedlearn.review.plots import draw_accuracy_matrix

        columns: list[str | int] = [
            "after learning",
            *(f"experience {j}" for j in range(len(matrix))),
        ]
        rows = [[i, *row] for i, row in enumerate(matrix)]
        picture = draw_accuracy_matrix(
            matrix, self._run_dir / "plots" / "accuracy_matrix.png", score_of(summary)
        )
        return {
            "cl/accuracy_matrix": wandb.Table(columns=columns, data=rows),
            "cl/accuracy_matrix_picture": wandb.Image(str(picture)),
        }

    def _close(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError as error:
            raise TrackerError(
                f"W&B: not everything was uploaded in {FINISH_TIMEOUT_S:.0f} s; upload the rest "
                f"with: wandb sync --include-online {self._info['dir']}"
            ) from error

    @contextlib.contextmanager
    def _failing_once(self) -> Iterator[None]:
        """Turn an exception into a `TrackerError`, after which W&B is left alone."""
        try:
            yield
        except TrackerError:
            raise
        except Exception as error:
            self._run = None
            raise TrackerError(
                f"W&B failed, the run goes on without it: {_one_line(error)}"
            ) from error


def has_credentials(url: str, api_key: str | None) -> bool:
    """Whether there is something to log in to the W&B server at `url` with.

    Looks where W&B looks (environment, settings, netrc) and, unlike `wandb.login`, never asks the
    server, which would take as long as the server likes.

    Args:
        url: The server.
        api_key: What W&B's settings hold.
    """
    if api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    hosts: set[str] = set()
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            hosts |= set(netrc.netrc(Path(path).expanduser()).hosts)
    # W&B's public cloud goes by several names.
    return urlsplit(url).netloc in hosts or (
        "WANDB_BASE_URL" not in os.environ and "api.wandb.ai" in hosts
    )


def answers(url: str, timeout_s: float) -> bool:
    """Whether an HTTP server at `url` answers in time, with whatever status.

    Asked in a thread, because looking up a name has no time-out of its own.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=timeout_s).close()
            answered.set()
        except urllib.error.HTTPError as error:
            error.close()
            answered.set()
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # W&B may trust other certificates
                answered.set()
        except (OSError, ValueError):
            return

    thread = threading.Thread(target=ask, name="wandb-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keep W&B's remarks off the terminal; what matters of them arrives as an exception."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _mute_children() -> Iterator[None]:
    """Start processes with standard error closed: W&B's service would write to the terminal."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no standard error: nothing to keep quiet
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
        yield


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
