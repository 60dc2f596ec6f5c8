import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from fedlearn import records
from fedlearn.runtimes.task import task_identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_tensor_array_encodes_as_flower_does(dtype, shape):
    tensor = (torch.rand(shape) * 5).to(dtype)
    ours, flowers = records.TensorArray(tensor), Array(tensor.numpy())
    assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    assert ours.data == flowers.data
    content = RecordDict({"arrays": ArrayRecord({"x": ours})})
    assert records.wire_bytes(content) == len(flowers.data)


def test_tensors_cross_a_record_by_reference_and_numpy_copies():
    tensor = torch.ones(3)
    record = records.to_arrays({"x": tensor})
    assert records.to_tensors(record)["x"].data_ptr() == tensor.data_ptr()
    record["x"].numpy()[:] = 5
    assert torch.equal(tensor, torch.ones(3))


def test_tensor_array_crosses_a_process_border_as_a_flower_array():
    array = pickle.loads(pickle.dumps(records.TensorArray(torch.arange(4.0))))
    assert type(array) is Array
    assert torch.equal(records.to_tensors(ArrayRecord({"x": array}))["x"], torch.arange(4.0))


def test_flower_can_inflate_what_it_deflates():
    record = records.to_arrays({"x": torch.arange(4.0)})
    array = record["x"]
    children = dict(array.children.items())
    inflated = Array.inflate(array.deflate(), children)
    assert inflated.numpy().tolist() == [0, 1, 2, 3]


def _lying(dtype="float32", shape=(3,), data=None):
    honest = Array(np.zeros(3, np.float32))
    return Array(dtype, shape, "numpy.ndarray", honest.data if data is None else data)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (_lying(shape=(4,)), "declares float32"),
        (_lying(dtype="int64"), "declares int64"),
        (_lying(data=b"not numpy"), "magic"),
        (_lying(data=b""), "'x'"),
        (_lying(data=Array(np.zeros(3, np.float32)).data[:-4]), "holds 8 bytes"),
    ],
)
def test_arrays_that_lie_about_themselves_are_refused(array, complaint):
    with pytest.raises(ValueError, match=complaint):
        records.to_tensors(ArrayRecord({"x": array}))


def test_a_tiny_header_cannot_claim_a_huge_array():
    import io

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 34,)}
    )
    bomb = Array("float64", (1 << 34,), "numpy.ndarray", header.getvalue())
    with pytest.raises(ValueError, match="holds 0 bytes"):
        records.to_tensors(ArrayRecord({"x": bomb}))


def test_a_pickle_in_an_array_is_refused_not_run():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="'x'"):
        records.to_tensors(
            ArrayRecord({"x": Array("object", (1,), "numpy.ndarray", buffer.getvalue())})
        )


def test_load_copies_and_leaves_the_old_storage_to_its_holder():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    trained = records.parameters_of(model)
    kept = {name: tensor.clone() for name, tensor in trained.items()}
    fresh = {name: torch.full_like(tensor, 3) for name, tensor in trained.items()}
    buffers = {name: tensor + 1 for name, tensor in records.buffers_of(model).items()}
    records.load(model, fresh, buffers)
    assert all(torch.equal(trained[name], kept[name]) for name in kept)
    assert all((parameter == 3).all() for parameter in model.parameters())
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert (fresh["0.weight"] == 3).all()
    assert model[1].num_batches_tracked == 1


def test_each_client_gets_a_configuration_of_its_own():
    shared = RecordDict(
        {"arrays": records.to_arrays({"x": torch.ones(2)}), "config": ConfigRecord({"mu": 0.5})}
    )
    with task_identity():
        messages = [Message(shared, node, "train") for node in (1, 2)]
        for number, message in enumerate(messages):
            message.content = records.addressed(message.content, records.to_arrays({}), 7)
            records.acknowledge(message, number)
        first, second = (records.read_instruction(message) for message in messages)
    assert (first.acknowledged, second.acknowledged) == (0, 1)
    assert first.server_round == second.server_round == 7
    assert first.config == second.config == {"mu": 0.5}
    assert first.parameters["x"].data_ptr() == second.parameters["x"].data_ptr()
    assert "acknowledged-round" not in shared["config"]


def test_what_was_read_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        config = ConfigRecord({records.SERVER_ROUND: 3})
        arrays = records.to_arrays({"x": torch.ones(3)})
        content = RecordDict({"arrays": arrays, "buffers": arrays, "config": config})
        assert records.read_content(content).server_round == 3
        assert records.wire_bytes(content) > 0
        gone = weakref.ref(content)
        del content
        assert gone() is None
    finally:
        gc.enable()
