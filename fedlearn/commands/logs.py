"""Logging of a run: into its directory, and nowhere else; the terminal belongs to the tracker."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write log records of INFO and above, and Python's warnings, to `path`.

    Flower's logger prints to the terminal by a handler of its own and passes records on as well;
    inside, it only passes them on. Everything is put back on the way out.
    """
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    level, handlers, propagate = root.level, list(flower.handlers), flower.propagate
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter(_FORMAT))
    file.setLevel(logging.INFO)
    root.addHandler(file)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    flower.handlers, flower.propagate = [], True
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        flower.handlers, flower.propagate = handlers, propagate
        root.setLevel(level)
        root.removeHandler(file)
        file.close()
