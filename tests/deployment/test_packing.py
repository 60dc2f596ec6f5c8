"""Packing: what comes out is what went in, bit for bit, and nothing else does."""

import itertools
import json
import random
import tracemalloc

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedlearn import records
from fedlearn.deployment import packing
from fedlearn.deployment.packing import HEAD, PIECE, packer, unpack, unpacked

FIRST = f"{PIECE}0"
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


def bits(tensor):
    return [each.clone().view(1).view(torch.uint8).tolist() for each in tensor.reshape(-1)]


def shape_of(content):
    """All that a content holds, tensors as bits, in its order."""
    return {
        key: [
            (name, each.dtype, each.shape, bits(each))
            for name, each in records.to_tensors(record).items()
        ]
        if isinstance(record, ArrayRecord)
        else (type(record), dict(record))
        for key, record in content.items()
    }


def some_tensor(draw, generator):
    shape = [draw.randrange(4) for _ in range(draw.randrange(4))]
    dtype = draw.choice(DTYPES)
    tensor = (100 * torch.randn(shape, generator=generator)).to(dtype)
    if tensor.is_floating_point() and tensor.numel() > 1:
        tensor.view(-1)[:2] = torch.tensor([float("nan"), -0.0])
    looks = [
        lambda each: each,
        lambda each: each.mT if each.dim() > 1 else each,
        lambda each: torch.stack([each, each], -1)[..., 0],  # every other number
        lambda each: each.expand(3, *each.shape),
        lambda each: torch.cat([each.reshape(-1)] * 2)[each.numel() :].reshape(each.shape),
    ]
    return draw.choice(looks)(tensor)


def some_content(seed):
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    made = {}
    for number in range(draw.randrange(4)):
        tensors = {
            f"layer.{at}.weight/ä": some_tensor(draw, generator) for at in range(draw.randrange(5))
        }
        made[f"arrays-{number}"] = records.to_arrays(tensors)
    if draw.random() < 0.7:
        made["config"] = ConfigRecord({"b": b"\0\n", "s": "x", "l": [1.5, 2.5], "e": [], "t": True})
    if draw.random() < 0.7:
        made["metrics"] = MetricRecord({"loss": 0.25, "n": 3, "a": [1, 2]})
    return RecordDict(made)


@pytest.mark.parametrize("seed", range(60))
def test_what_comes_out_is_what_went_in(seed):
    content = some_content(seed)
    before = shape_of(content)
    packed = packer()(content)
    assert shape_of(content) == before  # nothing happens to what is packed
    assert shape_of(unpack(packed)) == before
    assert all(isinstance(record, ConfigRecord) for record in packed.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_alone_empty_and_as_one_number(dtype):
    whole = torch.arange(6).reshape(2, 3).to(dtype)
    tensors = {"whole": whole, "empty": whole[:0], "one": whole[1, 1], "view": whole.mT[1:]}
    content = RecordDict({"arrays": records.to_arrays(tensors)})
    assert shape_of(unpack(packer()(content))) == shape_of(content)


def test_what_was_unpacked_can_be_written_to_and_shares_nothing_with_the_message():
    content = RecordDict({"arrays": records.to_arrays({"a": torch.zeros(3), "b": torch.ones(3)})})
    packed = packer()(content)
    before = packed[FIRST]["bytes"]
    first, second = (records.to_tensors(unpack(packed)["arrays"]) for _ in range(2))
    first["a"].fill_(7)
    assert first["b"].tolist() == [1, 1, 1]
    assert second["a"].tolist() == [0, 0, 0]
    assert packed[FIRST]["bytes"] == before
    for tensor in first.values():
        assert tensor.data_ptr() % tensor.element_size() == 0


def test_a_content_that_is_not_packed_stays_as_it_is():
    content = some_content(1)
    assert unpack(content) is content


def test_plain_flower_arrays_are_packed_too():
    content = RecordDict({"arrays": ArrayRecord({"w": torch.arange(4.0)})})
    assert records.to_tensors(unpack(packer()(content))["arrays"])["w"].tolist() == [0, 1, 2, 3]


# --- encoded once -------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch):
    """How many tensors were turned into bytes."""
    seen, plain = [], packing._bytes_of

    def counted(tensor):
        seen.append(tensor.shape)
        return plain(tensor)

    monkeypatch.setattr(packing, "_bytes_of", counted)
    return seen


def test_records_that_contents_share_are_encoded_once(encoded):
    shared = records.to_arrays({"a": torch.ones(3), "b": torch.zeros(2, 2)})
    pack = packer()
    contents = [RecordDict({"arrays": shared, "config": ConfigRecord({"k": k})}) for k in range(5)]
    packed = [pack(content) for content in contents]
    assert len(encoded) == 2
    assert len({id(each[FIRST]) for each in packed}) == 1
    for content, each in zip(contents, packed, strict=True):
        assert shape_of(unpack(each)) == shape_of(content)


def test_a_record_under_another_name_is_not_taken_for_the_same():
    shared = records.to_arrays({"a": torch.ones(3)})
    other = records.to_arrays({"a": torch.zeros(3)})
    pack = packer()
    for one, two in itertools.permutations(["arrays", "buffers", "control"], 2):
        content = RecordDict({one: shared, two: other})
        assert shape_of(unpack(pack(content))) == shape_of(content)


def test_records_that_are_gone_are_not_taken_for_those_that_come():
    pack = packer()
    for number in range(50):  # each takes the place of the one before in memory
        content = RecordDict({"arrays": records.to_arrays({"a": torch.tensor([number])})})
        packed = pack(content)
        del content
        assert records.to_tensors(unpack(packed)["arrays"])["a"].tolist() == [number]


# --- what cannot be read ------------------------------------------------------------------------


def forged(layout, data=b"", told=b""):
    text = layout if isinstance(layout, str) else json.dumps(layout)
    head = ConfigRecord({"layout": text, "records": told})
    return RecordDict({HEAD: head, FIRST: ConfigRecord({"bytes": data})})


def one(dtype, shape):
    return [["arrays", [["w", dtype, shape]]]]


HUGE = 2**62
MALFORMED = {
    "no JSON": "{",
    "a number": "3",
    "null": "null",
    "a string": '"arrays"',
    "an object": '{"arrays": []}',
    "too deep": "[" * 100_000,
    "digits": f"[{'9' * 10_000}]",
    "NaN": '[["arrays", [["w", "float32", [NaN]]]]]',
    "record without arrays": [["arrays"]],
    "record of three": [["arrays", [], []]],
    "arrays a number": [["arrays", 3]],
    "array of two": [["arrays", [["w", "float32"]]]],
    "array of four": [["arrays", [["w", "float32", [1], 0]]]],
    "key a number": [[3, [["w", "uint8", [4]]]]],
    "key a list": [[["arrays"], [["w", "uint8", [4]]]]],
    "key null": [[None, [["w", "uint8", [4]]]]],
    "name a number": [["arrays", [[3, "uint8", [4]]]]],
    "name a list": [["arrays", [[["w"], "uint8", [4]]]]],
    "no dtype": one("float33", [1]),
    "a function": one("set_default_dtype", [1]),
    "a module": one("nn", [1]),
    "quantized": one("quint8", [4]),
    "quantized, packed": one("quint4x2", [4]),
    "dtype a number": one(3, [1]),
    "dtype a list": one(["float32"], [1]),
    "dtype null": one(None, [1]),
    "negative": one("uint8", [-4]),
    "twice negative": one("uint8", [-2, -2]),
    "a fraction": one("uint8", [4.0]),
    "half": one("uint8", [0.5, 8]),
    "a truth": one("uint8", [True, 4]),
    "a text": one("uint8", ["4"]),
    "a list": one("uint8", [[4]]),
    "shape a number": one("uint8", 4),
    "shape a text": one("uint8", "4"),
    "shape null": one("uint8", None),
    "huge": one("float64", [HUGE]),
    "huge product": one("float64", [HUGE, HUGE, HUGE]),
    "beyond 64 bits": one("float64", [2**70]),
    "huge and empty": one("uint8", [0, 2**70]),
    "huge, empty and wide": one("float64", [HUGE, HUGE, 0]),
    "too few": one("float32", [3]),
    "too many": one("float32", [0]),
    "nothing": [],
    "second too long": [["arrays", [["w", "uint8", [2]], ["v", "uint8", [3]]]]],
}


@pytest.mark.parametrize("layout", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_layout_is_a_value_error_and_costs_no_memory(layout):
    content = forged(layout, bytes(4))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a packed message that cannot be read: ") as caught:
            unpack(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert peak < 10_000_000


def test_a_content_without_its_parts_is_a_value_error():
    packed = packer()(some_content(3))
    head, piece = packed[HEAD], packed[FIRST]
    arrays = ArrayRecord({"bytes": Array("uint8", (1,), "raw", b"x")})
    for parts in (
        {HEAD: head},
        {HEAD: head, f"{PIECE}1": piece},
        {HEAD: head, "config": piece},
        {HEAD: head, FIRST: piece, f"{PIECE}2": piece},
        {HEAD: arrays, FIRST: piece},
        {HEAD: MetricRecord({"layout": 1}), FIRST: piece},
        {HEAD: head, FIRST: arrays},
        {HEAD: head, FIRST: MetricRecord({"bytes": 1})},
        {HEAD: head, FIRST: ConfigRecord({})},
        {HEAD: head, FIRST: ConfigRecord({"bytes": "text"})},
        {HEAD: head, FIRST: ConfigRecord({"bytes": [b"x"]})},
        *({HEAD: ConfigRecord({**head, "layout": bad}), FIRST: piece} for bad in (3, ["[]"])),
        *({HEAD: ConfigRecord({**head, "records": bad}), FIRST: piece} for bad in (3, "x", [b""])),
        {HEAD: ConfigRecord({"layout": head["layout"]}), FIRST: piece},
        {HEAD: ConfigRecord({"records": head["records"]}), FIRST: piece},
    ):
        with pytest.raises(ValueError, match="a packed message that cannot be read: "):
            unpack(RecordDict(parts))


def test_truncated_and_extended_bytes_are_value_errors():
    tensors = {"a": torch.arange(5.0), "b": torch.arange(3), "c": torch.tensor(True)}
    packed = packer()(RecordDict({"arrays": records.to_arrays(tensors)}))
    data, layout = packed[FIRST]["bytes"], packed[HEAD]["layout"]
    for length in range(len(data)):
        with pytest.raises(ValueError, match="bytes are too"):
            unpack(forged(layout, data[:length]))
    with pytest.raises(ValueError, match="bytes are too many"):
        unpack(forged(layout, data + b"\0"))


def test_large_arrays_are_cut_into_pieces(monkeypatch):
    monkeypatch.setattr(packing, "PIECE_BYTES", 100)
    content = RecordDict({"arrays": records.to_arrays({"a": torch.arange(100.0)})})
    packed = packer()(content)
    assert [len(packed[f"{PIECE}{n}"]["bytes"]) for n in range(5)] == [100, 100, 100, 100, 48]
    assert len(packed) == 6
    assert shape_of(unpack(packed)) == shape_of(content)
    del packed[f"{PIECE}0"]
    with pytest.raises(ValueError, match="a packed message that cannot be read: "):
        unpack(packed)


def test_no_damage_to_other_records_raises_anything_but_a_value_error():
    content = RecordDict(
        {
            "config": ConfigRecord({"b": b"x", "s": "x", "l": [1.5, 2.5], "t": True}),
            "metrics": MetricRecord({"loss": 0.25, "a": [1, 2]}),
        }
    )
    told = packer()(content)[HEAD]["records"]
    draw = random.Random(0)
    refused = 0
    for _ in range(3000):
        at = draw.randrange(len(told))
        damaged = told[:at] + draw.randbytes(draw.randrange(3)) + told[at + draw.randrange(4) :]
        try:
            unpack(forged([], b"", damaged))
        except ValueError:
            refused += 1
    assert refused > 1000


def test_no_damage_to_a_layout_raises_anything_but_a_value_error():
    tensors = {"a": torch.arange(5.0), "b": torch.arange(3), "e": torch.zeros(0, 2)}
    packed = packer()(RecordDict({"arrays": records.to_arrays(tensors)}))
    data, layout = packed[FIRST]["bytes"], packed[HEAD]["layout"]
    draw = random.Random(0)
    refused = 0
    for _ in range(3000):
        at, end = sorted(draw.choices(range(len(layout) + 1), k=2))
        new = draw.choice(["", "-", "9" * 30, "null", "[", "]", '"', ",", layout[at : at + 9]])
        try:
            unpack(forged(layout[:at] + new + layout[min(end, at + 6) :], data))
        except ValueError:
            refused += 1
    assert refused > 2500


# --- on Flower's wire ---------------------------------------------------------------------------


def inflated(message):
    """The message as Flower moves it: objects by the hash of their bytes, put together again."""
    objects = get_all_nested_objects(message)
    contents = {key: each.deflate() for key, each in objects.items()}
    return inflate_object_from_contents(message.object_id, contents)


@pytest.mark.parametrize("seed", range(10))
def test_a_packed_message_survives_flowers_wire_bit_for_bit(seed):
    content = some_content(seed)
    message = Message(content, dst_node_id=5, message_type="train")
    message.content = packer()(content)
    arrived = unpacked(inflated(message))
    assert shape_of(arrived.content) == shape_of(content)
    reply = Message(packer()(arrived.content), reply_to=arrived)
    assert shape_of(unpacked(inflated(reply)).content) == shape_of(content)


def test_the_number_of_flowers_objects_does_not_grow_with_the_model():
    counts = []
    for number in (1, 100):
        tensors = {f"w{at}": torch.zeros(3) for at in range(number)}
        message = Message(RecordDict(), dst_node_id=5, message_type="train")
        message.content = packer()(RecordDict({"arrays": records.to_arrays(tensors)}))
        counts.append(len(get_all_nested_objects(message)))
    assert counts[0] == counts[1]


def test_an_error_reply_has_nothing_to_unpack():
    asked = Message(RecordDict(), dst_node_id=5, message_type="train")
    reply = records.error_reply(asked, "no")
    assert unpacked(reply) is reply
