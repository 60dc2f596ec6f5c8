"""Any benchmark of Avalanche's for classification, read once into tensors.

.. code-block:: yaml

    # Split-CIFAR-10 as Avalanche deals it out
    _target_: scenarios.datasets.avalanche_benchmark.avalanche_benchmark
    seed: 0
    benchmark:
      _target_: avalanche.benchmarks.SplitCIFAR10
      _partial_: true  # so that it is made here, where its draws follow the seed above
      n_experiences: 5

or on the command line
``dataset.benchmark={_target_:avalanche.benchmarks.SplitMNIST,_partial_:true,n_experiences:5}``.

Many of these benchmarks download what they need without being asked.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.seeding import borrowed_global_rng
from fedlearn.seeding import seed as derived_seed
from scenarios.dataset import Dataset
from scenarios.datasets.arrays import from_arrays


def avalanche_benchmark(benchmark: Callable[[], Any] | None = None, seed: int = 0) -> Dataset:
    """Return all samples of a benchmark's training and test stream, experience by experience.

    Every sample is read once, with the transforms that the benchmark has for evaluation: what
    `train_transform` would draw anew for every epoch is for ``local.augment``. Streams beside these
    two are left out.

    Args:
        benchmark: Makes an object with ``train_stream`` and ``test_stream``, as all functions of
            ``avalanche.benchmarks`` do. Its samples are images of Pillow's, tensors or arrays, of
            one shape, with a label each.
        seed: Of what the benchmark draws, such as the order of the classes; the run's seed does not
            change it unless told to.

    Returns:
        Inputs as `from_arrays` keeps them (bytes as bytes). The tag ``"experience"`` is the place
        of a sample's experience in its stream, from 0; where the benchmark has one test set for all
        experiences, that is 0 for all test samples. C is the largest label + 1: labels are those
        that the benchmark gives. The digest is that of inputs, labels and tag.

    Raises:
        ValueError: The benchmark cannot be made, or a sample is none that can be used.
    """
    if benchmark is None:
        raise ValueError(
            "dataset.benchmark=null: name what makes it, e.g. dataset.benchmark="
            "{_target_:avalanche.benchmarks.SplitMNIST,_partial_:true,n_experiences:5}"
        )
    if not callable(benchmark):
        raise ValueError(
            f"dataset.benchmark: a {type(benchmark).__name__} that is made already does not follow "
            "dataset.seed; write `_partial_: true` beside its _target_"
        )
    with borrowed_global_rng(derived_seed(seed, "avalanche-benchmark")):
        try:
            made = benchmark()
        except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"dataset.benchmark: cannot be made: {reason}") from error
        x_train, y_train, train_tag = _read(made, "train_stream")
        x_test, y_test, test_tag = _read(made, "test_stream")
    tags = {"experience": (train_tag, test_tag)}
    return from_arrays("avalanche_benchmark", x_train, y_train, x_test, y_test, tags)


def _read(benchmark: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, labels and the experience of all samples of a stream."""
    stream = getattr(benchmark, name, None)
    if stream is None:
        kind = type(benchmark).__name__
        raise ValueError(f"dataset.benchmark: {kind} is no benchmark of Avalanche's: has no {name}")
    parts = [experience.dataset.eval() for experience in stream]
    lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    if not int(lengths.sum()):
        raise ValueError(f"dataset.benchmark: its {name} is empty")
    first = _array(next(part for part in parts if len(part))[0][0])
    inputs = torch.empty(int(lengths.sum()), *first.shape, dtype=_kept(first.dtype))
    labels = torch.empty(len(inputs), dtype=torch.int64)
    target, row = inputs.numpy(), 0
    for index, part in enumerate(parts):
        for position in range(len(part)):
            sample, label, *_ = part[position]
            where = f"dataset.benchmark: sample {position} of experience {index} of {name}"
            array = _array(sample)
            if array.shape != first.shape or array.dtype != first.dtype:
                raise ValueError(
                    f"{where}: is {array.dtype} of shape {array.shape}, the first {first.dtype} of "
                    f"shape {first.shape}"
                )
            target[row] = array
            try:
                labels[row] = operator.index(label)
            except TypeError as error:
                raise ValueError(f"{where}: has the label {label}, must be an integer") from error
            row += 1
    return inputs, labels, torch.arange(len(parts)).repeat_interleave(lengths)


def _array(sample: Any) -> NDArray[Any]:
    """Return a tensor, an array, or an image of Pillow's (channels first) as an array."""
    if isinstance(sample, Tensor):
        return sample.detach().cpu().numpy()
    array = np.asarray(sample)
    if hasattr(sample, "getbands"):  # an image
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array


def _kept(dtype: np.dtype[Any]) -> torch.dtype:
    if dtype == np.uint8:
        return torch.uint8
    return torch.int64 if dtype.kind in "iu" else torch.float32
