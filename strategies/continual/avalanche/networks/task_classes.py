"""The classes of each task, where a class tells its task."""

from fedlearn.types import LocalTraining


def disjoint_heads(training: LocalTraining, continual: str) -> tuple[tuple[int, ...], ...]:
    """Return the classes of each head, by task label; no class is in two of them.

    A model that gives each task's classes the outputs of another sub-network needs that: it is not
    told a sample's task.

    Raises:
        ValueError: There are no heads, or two share a class.
    """
    if training.heads is None:
        raise ValueError(f"continual={continual}: needs a task-incremental scenario")
    classes = [label for head in training.heads for label in head]
    if len(set(classes)) < len(classes):
        raise ValueError(f"continual={continual}: needs tasks that share no class")
    return training.heads
