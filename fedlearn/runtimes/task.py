"""Who sends messages in this process, as Flower's task launcher would say it.

Flower keeps it process-wide, so a process serves one run at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.task_identity import TaskIdentity

from fedlearn.runtimes.serial import RUN_ID

SERVER_NODE = 0
"""The server's node id; client k's is k + 1."""


@contextmanager
def task_identity() -> Iterator[None]:
    """Say that the server of the run sends what is sent inside."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before
