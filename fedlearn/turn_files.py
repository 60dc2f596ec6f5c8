"""What clients keep, on disk: two files for all whose turns are new to a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlearn.client_state import UsedTurn, read_back, written
from fedlearn.tensor_files import draft_of, read_tensors, read_values, write_tensors, write_values
from fedlearn.types import State

CLIENTS = "clients"
"""The folder that they are in."""


def turn_files(home: int | str) -> tuple[str, str]:
    """Return the files that were written in a round: tensors, and values."""
    return f"{CLIENTS}/round-{home}.safetensors", f"{CLIENTS}/round-{home}.json"


def write_turns(folder: Path, server_round: int, turns: Mapping[int, UsedTurn]) -> tuple[str, str]:
    """Write turns, by client id; return the sha256 of both files.

    Raises:
        OSError: The disk is full, or has another fault.
    """
    tensors = {
        f"{client_id}/{name}": tensor
        for client_id, turn in turns.items()
        for name, tensor in turn.state.tensors.items()
    }
    values = {
        client_id: {
            "round": turn.server_round,
            "experience": turn.experience,
            "tensors": list(turn.state.tensors),
            "values": {name: written(value) for name, value in turn.state.values.items()},
        }
        for client_id, turn in turns.items()
    }
    of_tensors, of_values = (folder / name for name in turn_files(server_round))
    checksums = (
        write_tensors(draft_of(of_tensors), tensors),
        write_values(draft_of(of_values), values),
    )
    for path in (of_tensors, of_values):
        draft_of(path).replace(path)
    return checksums


def read_turns(
    folder: Path,
    home: int | str,
    checksums: Sequence[str],
    client_ids: Sequence[int],
    device: torch.device,
) -> tuple[dict[int, UsedTurn], int]:
    """Return the turns of some clients, by id, and how many clients the files hold.

    Args:
        folder: Of the checkpoints.
        home: The round in which the files were written.
        checksums: Of both.
        client_ids: Whose turns to return.
        device: Where tensors go that were not in the host's memory.

    Raises:
        ValueError: A file is damaged.
        OSError: It cannot be read.
    """
    of_tensors, of_values = (folder / name for name in turn_files(home))
    tensors = read_tensors(of_tensors, checksums[0], device)
    values = read_values(of_values, checksums[1])
    return {k: _turn(k, values[str(k)], tensors) for k in client_ids}, len(values)


def _turn(client_id: int, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UsedTurn:
    state = State(
        {name: tensors[f"{client_id}/{name}"] for name in told["tensors"]},
        {name: read_back(value) for name, value in told["values"].items()},
    )
    return UsedTurn(state, told["round"], told["experience"])
