"""Checkpoints on disk: folders that are whole or not there, each file with its checksum.

    checkpoints/
      round-20/          what the server knows: server.safetensors, server.json, manifest.json
      clients/           what clients keep: round-20.safetensors, round-20.json, ...

A folder is written under another name, each file synchronised with the disk, the manifest last,
and then renamed: whoever is killed, or finds the disk full, leaves the checkpoint before as it was.
What a client keeps is written in the checkpoint after its turn and named by all later ones, until
the client's next turn. Nothing is pickled, and no file is used whose checksum is not the
manifest's.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlearn.client_state import UsedTurn
from fedlearn.tensor_files import (
    DRAFT,
    draft_of,
    read_tensors,
    read_values,
    synchronise,
    write,
    write_tensors,
    write_values,
)
from fedlearn.turn_files import CLIENTS, read_turns, turn_files, write_turns

FOLDER = "checkpoints"
"""In a run's directory."""

LATEST = 2
"""Checkpoints that stay, beside those at the experiences' ends."""

FORMAT = 1

_MANIFEST = "manifest.json"
_NAME = re.compile(r"round-(\d+)")
_FILE = re.compile(r"(round-\d+/server|clients/round-\d+)\.(safetensors|json)")


class NoCheckpointError(ValueError):
    """There is no checkpoint to go on from; the message is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        server_round: The round.
        tensors: What the server knows (`fedlearn.server.Server.state`).
        values: Likewise, JSON values.
        turns: Where clients go on from, by client id.
        damaged: Of each later checkpoint, why it cannot be used; one line each.
        source: Where it was read, and where later ones go.
    """

    server_round: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    turns: dict[int, UsedTurn]
    damaged: list[str]
    source: "Checkpoints"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path) -> None:
        """Open a run's folder of checkpoints, which need not be there.

        Args:
            run_dir: The run's directory.
        """
        self._folder = run_dir / FOLDER
        self._homes: dict[int, int] = {}  # of each client, the round in whose file it is
        self._crowds: Counter[int] = Counter()  # of each such round, the clients in its file
        self._files: dict[int, dict[str, str]] = {}  # of each checkpoint, its files' checksums
        self._lasting: set[int] = set()

    def rounds(self) -> list[int]:
        """Return the rounds of which there are checkpoints, damaged or not, ascending."""
        if not self._folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def clear(self) -> None:
        """Remove all checkpoints: those of an earlier run in the same directory."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def drop_later(self, server_round: int) -> None:
        """Remove those of later rounds: damaged ones, in the way of the rounds to come."""
        for later in self.rounds():
            if later > server_round:
                shutil.rmtree(self._folder / f"round-{later}")

    def crowded(self, changed: Collection[int]) -> set[int]:
        """Return clients to write again, though nothing has changed, so that old files can go.

        Those whose file is about to be less than half in use; so the files hold no more than twice
        what clients keep, however seldom some of them take a turn.

        Args:
            changed: Clients that are going to be written anyway.
        """
        left = {k: home for k, home in self._homes.items() if k not in changed}
        live = Counter(left.values())
        return {k for k, home in left.items() if 2 * live[home] < self._crowds[home]}

    def write(
        self,
        server_round: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        turns: Mapping[int, UsedTurn],
        lasting: bool,
    ) -> None:
        """Write the checkpoint of a round; then remove those that are no longer needed.

        Args:
            server_round: Later than that of any checkpoint that is there.
            tensors: What the server knows.
            values: Likewise, JSON values.
            turns: Of the clients that have changed since the checkpoint before.
            lasting: Whether it stays.

        Raises:
            OSError: The disk is full, or has another fault; what was there is still there.
        """
        clients = self._folder / CLIENTS
        clients.mkdir(parents=True, exist_ok=True)
        homes, crowds = {**self._homes, **dict.fromkeys(turns, server_round)}, self._crowds.copy()
        known = {name: sha for files in self._files.values() for name, sha in files.items()}
        if turns:
            crowds[server_round] = len(turns)
            written = write_turns(self._folder, server_round, turns)
            known |= dict(zip(turn_files(server_round), written, strict=True))
            synchronise(clients)
        live = sorted(set(homes.values()))
        folder = self._folder / f"round-{server_round}"
        draft = draft_of(folder)
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir()
        clients_in: dict[int, list[int]] = {home: [] for home in live}
        for client_id, home in homes.items():
            clients_in[home].append(client_id)
        own = f"round-{server_round}/server"
        files = {
            f"{own}.safetensors": write_tensors(draft / "server.safetensors", tensors),
            f"{own}.json": write_values(
                draft / "server.json", {"values": values, "clients": clients_in}
            ),
            **{name: known[name] for home in live for name in turn_files(home)},
        }
        manifest = {"format": FORMAT, "round": server_round, "lasting": lasting, "files": files}
        write(draft / _MANIFEST, [json.dumps(manifest, indent=1).encode()])
        synchronise(draft)
        draft.rename(folder)
        synchronise(self._folder)
        self._homes, self._crowds, self._files[server_round] = homes, crowds, files
        if lasting:
            self._lasting.add(server_round)
        self._tidy()

    def newest(self, device: torch.device) -> Checkpoint:
        """Return the latest checkpoint that is whole.

        Args:
            device: Where tensors go that were not in the host's memory.

        Raises:
            NoCheckpointError: There is none, or none is whole.
        """
        rounds = self.rounds()
        damaged: list[str] = []
        if not rounds:
            raise NoCheckpointError("there is no checkpoint")
        for server_round in reversed(rounds):
            try:
                found = self._read(server_round, device, damaged)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                told = " ".join(f"{type(error).__name__}: {error}".split())
                damaged.append(f"the checkpoint of round {server_round} is damaged ({told})")
                continue
            self._look_back(rounds[: rounds.index(server_round)])
            return found
        raise NoCheckpointError("; ".join(damaged))

    def _read(self, server_round: int, device: torch.device, damaged: list[str]) -> Checkpoint:
        manifest = self._manifest(server_round)
        files = manifest["files"]
        own = f"round-{server_round}/server"
        tensors = read_tensors(
            self._folder / f"{own}.safetensors", files[f"{own}.safetensors"], device
        )
        whole = read_values(self._folder / f"{own}.json", files[f"{own}.json"])
        turns: dict[int, UsedTurn] = {}
        crowds: Counter[int] = Counter()
        for home, client_ids in whole["clients"].items():
            checksums = [files[name] for name in turn_files(home)]
            found, crowds[int(home)] = read_turns(self._folder, home, checksums, client_ids, device)
            turns |= found
        self._homes = {k: int(home) for home, ids in whole["clients"].items() for k in ids}
        self._crowds = crowds
        self._book(server_round, manifest)
        return Checkpoint(server_round, tensors, whole["values"], turns, damaged, self)

    def _manifest(self, server_round: int) -> dict[str, Any]:
        manifest = json.loads((self._folder / f"round-{server_round}" / _MANIFEST).read_bytes())
        if (manifest["format"], manifest["round"]) != (FORMAT, server_round):
            raise ValueError(f"{_MANIFEST} is of another format or round")
        for name in manifest["files"]:
            if not _FILE.fullmatch(name):
                raise ValueError(f"{_MANIFEST} names {name!r}")
        return dict(manifest)

    def _book(self, server_round: int, manifest: Mapping[str, Any]) -> None:
        self._files[server_round] = dict(manifest["files"])
        if manifest["lasting"]:
            self._lasting.add(server_round)

    def _look_back(self, rounds: Collection[int]) -> None:
        """Note what earlier checkpoints need; one that does not say so goes as any old one."""
        for server_round in rounds:
            try:
                self._book(server_round, self._manifest(server_round))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue

    def _tidy(self) -> None:
        """Remove checkpoints that are not needed, then clients' files that none of the rest name.

        A folder that is going is no checkpoint any more before the first of its files goes.
        """
        rounds = self.rounds()
        for server_round in set(rounds[:-LATEST]) - self._lasting:
            path = self._folder / f"round-{server_round}"
            path.rename(draft_of(path))
            self._files.pop(server_round, None)
        for draft in self._folder.glob(f"round-*{DRAFT}"):
            shutil.rmtree(draft)
        named = {name for files in self._files.values() for name in files}
        for path in (self._folder / CLIENTS).glob("*"):
            if f"{CLIENTS}/{path.name}" not in named:
                path.unlink()
