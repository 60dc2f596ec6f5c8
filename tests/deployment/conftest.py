"""What messages of a deployment's tests come from."""

import pytest

from fedlearn.runtimes.task import task_identity


@pytest.fixture(autouse=True)
def _as_the_server():
    """Messages say which run they are of."""
    with task_identity():
        yield
