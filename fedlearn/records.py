"""What travels between server and clients: the only home of Flower's string keys.

An *instruction* (server to client) carries the global parameters under the aggregation's own key,
the model's buffers under `BUFFERS` and a `ConfigRecord` of scalars. A *reply* carries the same two
array records and one `MetricRecord`. Buffers travel beside the parameters, so that no aggregation
averages a counter or "optimises" a running mean.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from fedlearn.types import Plain

ARRAYS = "arrays"
BUFFERS = "buffers"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
TRAIN_LOSS = "train_loss"
STEPS = "steps"
REPLAYED = "replayed"
STATE_BYTES = "state-bytes"
IDLE = "idle"
DIVERGED = "diverged"
REASON = "reason"
SERVER_ROUND = "server-round"
ACKNOWLEDGED = "acknowledged-round"
PARTITION_ID = "partition-id"
ACCURACY = "accuracy"
CORRECT = "correct"

CLIENT_RAISED = 2
"""Flower's error code for a ClientApp that raised."""

Tensors = dict[str, Tensor]

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


class TensorArray(Array):
    """A Flower `Array` that holds a tensor and encodes it only when someone asks for its bytes.

    In one process nobody does, so a message costs no copy. The tensor must not be written to while
    the array is in use; `numpy` returns a copy, because stock strategies write into what they get.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["_tensor"] = tensor.detach()
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)
        self.stype = "numpy.ndarray"

    @property
    def tensor(self) -> Tensor:
        """The tensor itself, not a copy."""
        return cast(Tensor, self.__dict__["_tensor"])

    @property
    def data(self) -> bytes:
        """The bytes that Flower sends: NumPy's own file format."""
        buffer = BytesIO()
        np.save(buffer, self.tensor.cpu().numpy(), allow_pickle=False)
        return buffer.getvalue()

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_tensor"] = torch.from_numpy(np.load(BytesIO(value), allow_pickle=False))

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return a copy of the tensor as a NumPy array."""
        return np.array(self.tensor.cpu().numpy())

    def deflate(self) -> bytes:
        """Return the bytes of a plain Flower array: the type's name is part of them."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process borders as a plain Flower array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a record of the named tensors, by reference."""
    record = ArrayRecord()
    for name, tensor in tensors.items():  # its constructor would encode each of them
        record[name] = TensorArray(tensor)
    return record


def to_tensors(arrays: ArrayRecord) -> Tensors:
    """Return the named tensors of a record: by reference where it was made here, else decoded.

    Raises:
        ValueError: An array's bytes do not hold what its dtype and shape declare.
    """
    return {name: _to_tensor(name, array) for name, array in arrays.items()}


def _to_tensor(name: str, array: Array) -> Tensor:
    if isinstance(array, TensorArray):
        return array.tensor
    try:
        with BytesIO(array.data) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            shape, _, dtype = (
                read(stream) if version == (1, 0) else np.lib.format.read_array_header_2_0(stream)
            )
            # Compared before anything is allocated: a tiny header can claim 128 GiB.
            payload = len(array.data) - stream.tell()
            if math.prod(shape) * dtype.itemsize != payload or dtype.hasobject:
                raise ValueError(f"holds {payload} bytes for shape {shape} of {dtype}")
        if (str(dtype), tuple(shape)) != (array.dtype, tuple(array.shape)):
            raise ValueError(
                f"declares {array.dtype}{list(array.shape)}, holds {dtype}{list(shape)}"
            )
        return torch.from_numpy(np.load(BytesIO(array.data), allow_pickle=False))
    except (ValueError, TypeError, EOFError, struct.error) as error:
        raise ValueError(f"array {name!r}: {error}") from error


@lru_cache(maxsize=4096)
def _npy_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the length of an array of `dtype` and `shape` in NumPy's file format."""
    header = BytesIO()
    kind = np.dtype(dtype)
    np.lib.format.write_array_header_1_0(
        header,
        {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape},
    )
    return len(header.getvalue()) + kind.itemsize * math.prod(shape)


def of_kind(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """Return the records of one kind, by key.

    Flower's own properties for this return an object that refers to itself and to `content`, which
    keeps every tensor inside until the garbage collector looks: gigabytes, with states of a million
    numbers.
    """
    return {key: record for key, record in content.items() if isinstance(record, kind)}


def wire_bytes(content: RecordDict) -> int:
    """Return the bytes of every array in `content` as Flower would send them, without encoding any.

    Metrics and configuration, a few hundred bytes a message, are not counted.
    """
    return sum(
        _npy_bytes(array.dtype, tuple(array.shape))
        if isinstance(array, TensorArray)
        else len(array.data)
        for arrays in of_kind(content, ArrayRecord).values()
        for array in arrays.values()
    )


# --- models -------------------------------------------------------------------------------------


def parameters_of(model: nn.Module) -> Tensors:
    """Return the model's parameters by name, by reference."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def buffers_of(model: nn.Module) -> Tensors:
    """Return the model's persistent buffers by name, by reference."""
    names = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


def load(model: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Give `model` its own copy of the named tensors, on its own device.

    The model's old storage is dropped, not overwritten: whoever holds it (a reply) keeps it. So a
    turn costs one copy of the model, not two.
    """
    for name, parameter in model.named_parameters():
        parameter.data = parameters[name].to(parameter.device, copy=True)
        parameter.grad = None
    for name, buffer in buffers_of(model).items():
        buffer.data = buffers[name].to(buffer.device, copy=True)


# --- instructions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """What a client reads from the server's message.

    Attributes:
        server_round: 1-based.
        acknowledged: The last round whose reply of this client the server used; 0 for none yet.
        parameters: Global parameters by name.
        buffers: Global buffers by name.
        config: Every other scalar that the aggregation sent.
    """

    server_round: int
    acknowledged: int
    parameters: Tensors
    buffers: Tensors
    config: dict[str, Plain]


def addressed(content: RecordDict, buffers: ArrayRecord, server_round: int) -> RecordDict:
    """Return an aggregation's content with what the engine sends along; its own stays as it is."""
    return _with_config({**content, BUFFERS: buffers}, SERVER_ROUND, server_round)


def acknowledge(message: Message, acknowledged: int) -> None:
    """Tell a client the last round whose reply of its own was used.

    Messages share one content; each gets a copy of it here (of the dictionaries, not of the
    arrays), or clients would read each other's configuration.
    """
    message.content = _with_config(message.content, ACKNOWLEDGED, acknowledged)


def _with_config(content: Mapping[str, Any], key: str, value: int) -> RecordDict:
    """Return a copy of `content` with one entry more in its configuration."""
    copy = RecordDict(dict(content))
    name, told = next(iter(of_kind(copy, ConfigRecord).items()), (CONFIG, ConfigRecord()))
    config = ConfigRecord(dict(told))
    config[key] = value
    copy[name] = config
    return copy


def read_instruction(message: Message) -> Instruction:
    """Return what the server asks of this client.

    Raises:
        ValueError: An array is malformed.
    """
    return read_content(message.content)


def read_content(content: RecordDict) -> Instruction:
    """Return what an instruction's content asks.

    Raises:
        ValueError: An array is malformed.
    """
    all_arrays = of_kind(content, ArrayRecord)
    buffers = all_arrays.pop(BUFFERS, ArrayRecord())
    arrays = next(iter(all_arrays.values()), ArrayRecord())
    config = dict(next(iter(of_kind(content, ConfigRecord).values()), ConfigRecord()))
    return Instruction(
        server_round=cast(int, config.pop(SERVER_ROUND)),
        acknowledged=cast(int, config.pop(ACKNOWLEDGED, 0)),
        parameters=to_tensors(arrays),
        buffers=to_tensors(buffers),
        config=config,
    )


# --- replies ------------------------------------------------------------------------------------


def train_reply(
    message: Message,
    model: nn.Module,
    num_examples: int,
    loss: float,
    steps: int,
    replayed: int,
    state_bytes: int,
    metrics: Mapping[str, float],
) -> Message:
    """Return a client's answer to a training instruction; the arrays are the model's own."""
    content = RecordDict(
        {
            ARRAYS: to_arrays(parameters_of(model)),
            METRICS: MetricRecord(
                {
                    NUM_EXAMPLES: num_examples,
                    TRAIN_LOSS: loss,
                    STEPS: steps,
                    REPLAYED: replayed,
                    STATE_BYTES: state_bytes,
                    **metrics,
                }
            ),
        }
    )
    buffers = buffers_of(model)
    if buffers:
        content[BUFFERS] = to_arrays(buffers)
    return Message(content, reply_to=message)


def idle_reply(message: Message) -> Message:
    """Return the answer of a client that has nothing to train on in this round."""
    content = RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: 0, IDLE: 1})})
    return Message(content, reply_to=message)


def diverged_reply(message: Message, reason: str) -> Message:
    """Return the answer of a client whose turn must not count, because its loss was lost."""
    content = RecordDict(
        {
            METRICS: MetricRecord({NUM_EXAMPLES: 0, DIVERGED: 1}),
            CONFIG: ConfigRecord({REASON: reason}),
        }
    )
    return Message(content, reply_to=message)


def reason_of(message: Message) -> str:
    """Return why a client's turn diverged, as one short line: clients can write anything."""
    told = next(iter(of_kind(message.content, ConfigRecord).values()), ConfigRecord())
    return " ".join(str(told.get(REASON, "")).split())[:200]


def error_reply(message: Message, reason: str) -> Message:
    """Return the answer that stands for a client that raised."""
    return Message(Error(code=CLIENT_RAISED, reason=reason), reply_to=message)


def metrics_of(message: Message) -> MetricRecord:
    """Return the reply's metrics."""
    return next(iter(of_kind(message.content, MetricRecord).values()), MetricRecord())
