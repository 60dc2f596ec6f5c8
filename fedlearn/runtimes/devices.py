"""Devices of this process that train a cohort together, each its own clients.

Every client has its place on one device for the whole run: its samples are there, its turns are
taken there, and what it keeps stays there. So little moves: the received weights to each device
once a round, and the sums of models, or the models, back to the first one. Copies between CUDA
devices are peer copies where the machine has them.

On one device a cohort is one program in the caller's thread and nothing is copied. Several have a
thread each, which hand their work to the devices side by side.
"""

import heapq
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlearn.client import Client
from fedlearn.runtimes.cohort_worker import CohortWorker, Done, Job, Received
from fedlearn.runtimes.vectorized import ThisProcess, Unpacked, Vectorized, attempt
from fedlearn.runtimes.worker import Raised
from fedlearn.turns import Integers
from fedlearn.types import State

_CPU = torch.device("cpu")


def on_devices(client: Client, devices: Sequence[torch.device], formulation: str) -> Vectorized:
    """Return the executor that trains cohorts on devices of this process.

    Args:
        client: What the clients share; its model is on the first device, and its training samples
            are too where there is no other.
        devices: At least one.
        formulation: ``"auto"``, or how cohorts are to be trained.

    Raises:
        ValueError: Clients cannot be trained together.
    """
    if len(devices) == 1:
        return Vectorized(client, ThisProcess(CohortWorker(client, formulation)), 1, formulation)
    samples = client.scenario.shares.sizes().sum(1).numpy()
    placement = place(samples, len(devices))
    pool = Devices(client, devices, placement, formulation)
    return Vectorized(client, pool, len(devices), formulation, placement)


def place(loads: Integers, count: int) -> Integers:
    """Return (K,): the device, from 0, on which each client has its place.

    The heaviest client first, each goes to the device with the least load so far: none gets more
    than the mean and one client's load. Ties go to the lowest client id and the first device.

    Args:
        loads: (K,) at least 0, e.g. each client's samples over all its experiences.
        count: Of devices, at least 1.
    """
    placement = np.zeros(len(loads), dtype=np.int64)
    fullness = [(0, device) for device in range(count)]  # a heap
    for client_id in np.argsort(-loads, kind="stable").tolist():
        load, device = fullness[0]
        placement[client_id] = device
        heapq.heapreplace(fullness, (load + int(loads[client_id]), device))
    return placement


class Devices(Unpacked):
    """A pool in this process: a thread for each of several devices; nothing is packed.

    A job holds clients of one device; it is done there, after those given before it.
    """

    def __init__(
        self,
        client: Client,
        devices: Sequence[torch.device],
        placement: Integers,
        formulation: str,
    ) -> None:
        """Give each device its clients' samples and a model of its own.

        Args:
            client: What the clients share.
            devices: Results come back to the first one.
            placement: (K,), the place among `devices` of each client.
            formulation: ``"auto"``, or how cohorts are to be trained.
        """
        self._devices = list(devices)
        self._placement = placement
        self._stopping = Event()
        self._handles = [
            CohortWorker(
                client.on(
                    device,
                    client.scenario.part(torch.from_numpy(np.flatnonzero(placement == at)), device),
                ),
                formulation,
                self._stopping,
            )
            for at, device in enumerate(devices)
        ]
        for handle in self._handles:  # here, while no thread runs a model
            handle.trainer()
        self._threads = [ThreadPoolExecutor(1, f"{device}") for device in devices]
        try:
            for thread, device in zip(self._threads, devices, strict=True):
                thread.submit(_enter, device).result()  # which starts it
        except BaseException:
            self.close()
            raise

    def map(
        self, jobs: Sequence[Job], shared: Received, costs: Sequence[float] | None
    ) -> list[Done | Raised]:
        """Return what each job came to, on the first device.

        Raises:
            RuntimeError: The pool is closed.
        """
        if self._stopping.is_set():
            raise RuntimeError("the pool is closed")
        try:
            copies: dict[int, Received] = {}
            answers: list[Future[Done | Raised]] = []
            for job in jobs:
                at = int(self._placement[job.columns["client_ids"][0]])
                if at not in copies:
                    parameters, buffers = (_moved(each, self._devices[at]) for each in shared)
                    copies[at] = parameters, buffers
                answers.append(self._threads[at].submit(self._do, at, job, copies[at]))
            return [answer.result() for answer in answers]
        except BaseException:  # Ctrl-C: nobody is going to read what is still being done
            self.close()
            raise

    def close(self) -> None:
        """End the threads, as soon as each has done the clients that it is training together."""
        self._stopping.set()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def _do(self, at: int, job: Job, received: Received) -> Done | Raised:
        home = self._devices[at]
        job = replace(job, states=[each and _at_home(each, home) for each in job.states])

        def train(job: Job, received: Received, keeper: Any) -> Done:
            done = self._handles[at](job, received, keeper)
            done.models = _moved(done.models, self._devices[0])
            done.buffers = _moved(done.buffers, self._devices[0])
            return done

        return attempt(train, job, received, self)


def _enter(device: torch.device) -> None:
    """Have the present thread use `device` where nothing says which."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _at_home(state: State, device: torch.device) -> State:
    """Return a client's state on its device; a checkpoint brings all back to the first one."""
    if all(each.device in (_CPU, device) for each in state.tensors.values()):
        return state
    moved = {
        name: each if each.device == _CPU else each.to(device)
        for name, each in state.tensors.items()
    }
    return State(moved, state.values)


def _moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors on `device`; the very same where they are there."""
    return {name: each.to(device, non_blocking=True) for name, each in tensors.items()}
