"""Arenas hold what is put into them, and objects cross processes with their tensors left there."""

import gc
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import nn

from fedlearn.records import TensorArray, to_arrays, to_tensors
from fedlearn.runtimes.arenas import Arena, Extent, Shelf, make_arenas
from fedlearn.runtimes.shared import INLINE_BYTES, Parcel, dumps, loads

SIZE = 1 << 26
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


@pytest.fixture
def arena():
    return Arena(0, SIZE)


def spaces(folder: Path):
    return Arena(0, SIZE), Shelf(0, folder)


def various(dtype: torch.dtype) -> list[torch.Tensor]:
    """Tensors of a type in every layout that matters."""
    generator = torch.Generator().manual_seed(0)
    whole = (100 * torch.randn(6, 5, 4, generator=generator)).to(dtype)
    return [whole, whole[2], whole.transpose(0, 2), whole[::2, 1:, ::3], whole[0, 0, 0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_put_in_is_what_is_seen(dtype: torch.dtype, tmp_path: Path) -> None:
    for space in spaces(tmp_path):
        tensors = various(dtype)
        refs = [space.put(tensor) for tensor in tensors]
        for tensor, ref in zip(tensors, refs, strict=True):
            seen = space.view(pickle.loads(pickle.dumps(ref)))
            assert seen.dtype == dtype
            assert seen.shape == tensor.shape
            assert torch.equal(seen, tensor)
        seen = there_and_back(space, [*tensors, tensors[0][:0]])
        for tensor, each in zip([*tensors, tensors[0][:0]], seen, strict=True):
            assert each.dtype == dtype
            assert each.shape == tensor.shape
            assert torch.equal(each, tensor)


def test_a_view_is_not_a_copy_and_begins_where_its_extent_does(arena: Arena) -> None:
    ref = arena.put(torch.zeros(3, 4))
    first, second = arena.view(ref), arena.view(ref)
    first[1, 2] = 5
    assert second[1, 2] == 5
    assert first.data_ptr() == arena.address + ref.extent.offset
    assert first.untyped_storage().data_ptr() == first.data_ptr()
    assert ref.extent.offset % 64 == 0
    assert first.data_ptr() in arena
    assert torch.zeros(1).data_ptr() not in arena


def test_processes_see_what_the_owner_writes_later(arena: Arena) -> None:
    ref = arena.put(torch.zeros(1000))
    asked, answered = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:  # only calls that are safe in a forked copy of the tests' process
        os.read(asked[0], 1)
        seen = arena.view(ref)
        os.write(answered[1], b"y" if bool((seen == 7).all()) else b"n")
        os._exit(0)
    arena.view(ref).fill_(7)
    os.write(asked[1], b"x")
    assert os.read(answered[0], 1) == b"y"
    os.waitpid(pid, 0)
    for fd in (*asked, *answered):
        os.close(fd)


def test_freed_extents_serve_the_next_request_of_their_size(tmp_path: Path) -> None:
    for space in spaces(tmp_path):
        refs = [space.put(torch.full((100,), float(i))) for i in range(5)]
        top = space.top
        space.free(*refs[1].extent[1:])
        space.free(*refs[3].extent[1:])
        again = [space.put(torch.full((100,), 10.0 + i)) for i in range(2)]
        assert {ref.extent for ref in again} == {refs[1].extent, refs[3].extent}
        assert space.top == top
        for i in (0, 2, 4):
            assert (space.view(refs[i]) == i).all()
        assert space.put(torch.zeros(100)).extent.offset == top
        space.reset()
        assert space.put(torch.zeros(1)).extent.offset == 0


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 65, 1000, 1025, 4097, 10**6, 2**20, 2**20 + 1])
def test_sizes_are_rounded_up_by_an_eighth_at_most(arena: Arena, num_bytes: int) -> None:
    size = arena.allocate(num_bytes).size
    assert num_bytes <= size <= max(num_bytes * 1.125, num_bytes + 64)
    assert size % 64 == 0
    assert arena.allocate(size).size == size


def test_an_arena_that_is_full_says_so() -> None:
    arena = Arena(0, 1 << 16)
    with pytest.raises(MemoryError, match="do not fit into an arena of 65536 bytes"):
        arena.put(torch.zeros(1 << 15))


def resident(arena: Arena) -> int:
    """Bytes of memory that the arena takes."""
    return os.fstat(arena.fd).st_blocks * 512


def test_an_adopter_keeps_what_is_live_and_gives_back_the_rest(arena: Arena) -> None:
    refs = [arena.put(torch.full((1 << 18,), float(i))) for i in range(6)]
    assert resident(arena) >= 6 << 20
    arena.adopt([refs[4].extent[1:], refs[1].extent[1:]])
    assert (2 << 20) <= resident(arena) <= (2 << 20) + 4 * 4096
    assert (arena.view(refs[1]) == 1).all()
    assert (arena.view(refs[4]) == 4).all()
    assert arena.put(torch.zeros(10)).extent.offset >= sum(refs[4].extent[1:])
    arena.free(*refs[1].extent[1:])  # made by another owner, reused by this one
    assert arena.put(torch.zeros(1 << 18)).extent == refs[1].extent


def test_someone_is_told_once_nobody_looks_any_more(arena: Arena) -> None:
    unused: list[Extent] = []
    ref = arena.put(torch.arange(100.0))
    seen = arena.view(ref, unused.append)
    part = seen[10:20].numpy()
    del seen
    gc.collect()
    assert not unused
    assert part[0] == 10
    del part
    gc.collect()
    assert unused == [ref.extent]


def test_most_of_an_arena_is_never_touched() -> None:
    arenas = make_arenas(3)
    assert min(arena.size for arena in arenas) > 1 << 30
    assert max(map(resident, arenas)) <= 4096


def test_a_private_arena_keeps_what_is_written_to_it() -> None:
    shared = Arena(0, SIZE)
    ref = shared.put(torch.zeros(100))
    private = Arena(0, 1 << 16, os.dup(shared.fd), private=True)
    private.view(ref).fill_(1)
    assert (private.view(ref) == 1).all()
    assert (shared.view(ref) == 0).all()


@dataclass
class Thing:
    name: str
    weights: dict[str, torch.Tensor]


def there_and_back(space: Arena | Shelf, obj):
    return loads(dumps(obj, space.put), space.view)


def test_tensors_anywhere_in_an_object_come_back_as_views(arena: Arena) -> None:
    big, small = torch.randn(100, generator=torch.Generator()), torch.arange(3)
    thing = Thing("x", {"big": big, "small": small})
    seen = there_and_back(arena, [thing, {"again": big, "none": None}])
    assert seen[0].name == "x"
    assert torch.equal(seen[0].weights["big"], big)
    assert torch.equal(seen[0].weights["small"], small)
    assert seen[0].weights["big"].data_ptr() in arena
    assert seen[0].weights["small"].data_ptr() not in arena
    assert seen[1]["again"] is seen[0].weights["big"]


def test_what_is_the_same_is_placed_once(arena: Arena) -> None:
    whole = torch.randn(4, 1000, generator=torch.Generator())
    for twice in ([whole, whole], [whole[1], whole[1]], [to_arrays({"a": whole})] * 2):
        placed = []
        dumps([twice, twice], lambda tensor, placed=placed: placed.append(1) or arena.put(tensor))
        assert len(placed) == 1
    assert len({arena.put(each).extent for each in whole}) == 4


def test_a_blob_holds_no_tensor_of_any_size(arena: Arena) -> None:
    blobs = [len(dumps(to_arrays({"a": torch.zeros(n)}), arena.put)) for n in (10**3, 10**6)]
    assert abs(blobs[0] - blobs[1]) < 20
    assert blobs[0] < 600


def test_flowers_records_come_back_equal_and_uncopied(arena: Arena) -> None:
    content = RecordDict(
        {
            "arrays": to_arrays({"w": torch.randn(30, 40), "n": torch.tensor(3)}),
            "metrics": MetricRecord({"loss": 0.5, "each": [1, 2]}),
            "config": ConfigRecord({"name": "x", "on": True}),
        }
    )
    seen = there_and_back(arena, content)
    assert list(seen) == list(content)
    assert seen["metrics"] == content["metrics"]
    assert seen["config"] == content["config"]
    assert isinstance(seen["arrays"]["w"], TensorArray)
    tensors = to_tensors(seen["arrays"])
    assert torch.equal(tensors["w"], to_tensors(content["arrays"])["w"])
    assert tensors["w"].data_ptr() in arena
    assert tensors["n"] == 3
    assert tensors["n"].dtype == torch.int64
    stock = ArrayRecord({"w": torch.ones(3)})  # Flower's own, made of bytes
    assert there_and_back(arena, stock)["w"].data == stock["w"].data


def test_parameters_stay_parameters(arena: Arena) -> None:
    model = nn.Linear(30, 20)
    seen = there_and_back(arena, model)
    assert isinstance(seen.weight, nn.Parameter)
    assert seen.weight.requires_grad
    assert torch.equal(seen.weight, model.weight)
    leaf = torch.zeros(INLINE_BYTES).requires_grad_()
    assert there_and_back(arena, leaf).requires_grad


def test_parcels_inside_are_told_of_on_both_sides(arena: Arena) -> None:
    parcel = Parcel(7, b"blob", (Extent(1, 0, 64),))
    packed: list[Parcel] = []
    unpacked: list[Parcel] = []
    blob = dumps([parcel, {"same": parcel}], arena.put, packed.append)
    seen = loads(blob, arena.view, unpacked.append)
    assert packed == unpacked == [parcel]
    assert seen[0] is seen[1]["same"]
    assert loads(blob, arena.view)[0] == parcel


def test_a_blob_is_read_with_loads_only(arena: Arena) -> None:
    blob = dumps(torch.zeros(1000), arena.put)
    with pytest.raises(pickle.UnpicklingError, match="read it with its loads"):
        pickle.loads(blob)
