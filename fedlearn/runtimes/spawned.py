"""A zygote in a new Python process, for where a fork of the main process would not do.

It inherits descriptors of the pool's memory, and gets a copy of what handles jobs; writing to the
tensors in it changes nobody else's, as after a fork.
"""

import json
import mmap
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from fedlearn.runtimes.arenas import Arena, Shelf
from fedlearn.runtimes.shared import Keeping, dumps_any, loads
from fedlearn.runtimes.worker import Handle, Worker
from fedlearn.runtimes.zygote import Zygote, serve
from fedlearn.spans import is_recording, recording


def spawn_zygote(
    handle: Handle, arenas: Sequence[Arena], shelves: Sequence[Shelf], threads: int
) -> Zygote:
    """Return a zygote of workers that have a copy of `handle`."""
    estate = Arena(len(arenas) + len(shelves), arenas[0].size)
    blob = dumps_any(handle, estate.put)
    where = estate.put_bytes(blob).offset, len(blob)
    plan = {
        "arenas": [[space.number, space.size, space.fd] for space in arenas],
        "shelves": [[space.number, space.fd] for space in shelves],
        "estate": [estate.number, -(-estate.top // mmap.PAGESIZE) * mmap.PAGESIZE, estate.fd],
        "handle": where,
        "late": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        "threads": threads,
        "profile": is_recording(),
    }
    fds = [*(space.fd for space in arenas), *(space.fd for space in shelves), estate.fd]
    return Zygote.spawn(__name__, [json.dumps(plan)], fds)


class _Late:
    """A handle that each worker unpickles for itself: CUDA does not survive a fork."""

    def __init__(self, estate: Arena, where: tuple[int, int]) -> None:
        self._estate = estate
        self._where = where
        self._handle: Handle | None = None

    def __call__(self, job: Any, shared: Any, keeper: Keeping) -> Any:
        if self._handle is None:
            self._handle = self.load()
        return self._handle(job, shared, keeper)

    def load(self) -> Handle:
        handle: Handle = loads(self._estate.bytes_at(*self._where), self._estate.view)
        return handle


def main(fd: str, parent: str, plan: str) -> None:
    """Be the zygote.

    Args:
        fd: Of the connection to the main process.
        parent: The main process's id.
        plan: What `spawn_zygote` tells.
    """
    torch.set_num_threads(1)  # a thread pool made here would be a dead one in the workers
    told = json.loads(plan)
    number, size, estate_fd = told["estate"]
    late = _Late(Arena(number, size, estate_fd, private=True), told["handle"])
    arenas = [Arena(number, size, fd) for number, size, fd in told["arenas"]]
    shelves = [Shelf(number, None, fd) for number, fd in told["shelves"]]
    handle: Handle = late if told["late"] else late.load()
    work = Worker(handle, arenas, shelves, told["threads"])
    with recording() if told["profile"] else nullcontext():
        serve(socket.socket(fileno=int(fd)), work, int(parent))
    os._exit(0)  # nothing here is worth the time that taking it down in order takes


if __name__ == "__main__":
    main(*sys.argv[1:])
