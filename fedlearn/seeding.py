"""Seeds: every random choice comes from (run seed, purpose, ...numbers), and nothing else.

The numbers are usually a client and a round or an epoch. Equal keys give equal seeds on every
machine and in every process; nothing is drawn from, or written to, the global generators.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray


def seed(run_seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed in [0, 2**63) that depends on every argument.

    Args:
        run_seed: The run's seed, any integer.
        purpose: What the randomness is for, e.g. ``"cohort"`` or ``"batches"``; it keeps two uses
            with the same numbers independent.
        *numbers: Whatever else tells this use apart: client, round, epoch, experience.
    """
    return _hashed(_keys(run_seed, purpose, len(numbers)) % numbers)


def seeds(
    run_seed: int, purpose: str, clients: NDArray[np.int64], numbers: NDArray[np.int64]
) -> list[int]:
    """Return ``seed(run_seed, purpose, client, number)`` of each pair, (n,) each, faster."""
    keys = _keys(run_seed, purpose, 2)
    return [_hashed(keys % pair) for pair in zip(clients.tolist(), numbers.tolist(), strict=True)]


def _keys(run_seed: int, purpose: str, count: int) -> bytes:
    """Return the keys of a purpose: a pattern with a place for each of `count` numbers."""
    start = f"{int(run_seed)}/{purpose}".replace("%", "%%")
    return (start + "/%d" * count).encode()


def _hashed(key: bytes) -> int:
    return int.from_bytes(sha256(key).digest()[:8], "little") >> 1


def generator(run_seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a fresh CPU ``torch.Generator`` seeded by `seed`."""
    return torch.Generator().manual_seed(seed(run_seed, purpose, *numbers))


def numpy_generator(run_seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a fresh NumPy generator seeded by `seed`."""
    return np.random.default_rng(seed(run_seed, purpose, *numbers))


_borrowing = threading.RLock()


def _cuda_in_use() -> bool:
    # Asked before its generators are touched: touching them would start CUDA.
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def reseed_global(value: int) -> None:
    """Seed the three global generators; only legal inside `borrowed_global_rng`."""
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - third-party code draws from the legacy generator
    torch.default_generator.manual_seed(value)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(value)


@contextmanager
def borrowed_global_rng(value: int) -> Iterator[None]:
    """Run third-party code that draws from the global generators on a seed of its own.

    The state of Python's, NumPy's and torch's global generators is put back on the way out, so the
    caller's program cannot tell that anything was drawn. One thread borrows at a time; others wait.
    """
    with _borrowing:
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        torch_state = torch.default_generator.get_state()
        cuda_states = torch.cuda.get_rng_state_all() if _cuda_in_use() else None
        reseed_global(value)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            torch.default_generator.set_state(torch_state)
            if cuda_states is not None:
                torch.cuda.set_rng_state_all(cuda_states)
