"""What a strategy remembers survives being written as tensors and plain values, bit for bit."""

import json
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.utils import ParamData
from hypothesis import given
from hypothesis import strategies as st
from lone_client import mlp, split, through_json
from torch import Tensor

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import State
from strategies.continual.avalanche.dataset import dataset_of, identity, pairs_of
from strategies.continual.avalanche.snapshot import capture, restore

STREAM = split(2)

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.floats(-1e3, 1e3, width=32), max_size=4).map(torch.tensor),
)
trees = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3),
        st.sets(st.integers(0, 99), max_size=4),
    ),
    max_leaves=8,
)


def holder(**attributes) -> SimpleNamespace:
    """Return what `capture` and `restore` need of a strategy, with `attributes`."""
    return SimpleNamespace(
        model=mlp(), device=torch.device("cpu"), stream=STREAM.__getitem__, **attributes
    )


def there_and_back(value, live=None):
    """Return `value` after being captured, sent through JSON and restored over `live`."""
    state = State()
    capture(holder(kept=value), ("kept",), state)
    other = holder(kept=live)
    restore(other, through_json(state))
    return other.kept


def same(one, other) -> bool:
    """Whether two trees are equal, types and bits included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(trees)
def test_trees_come_back_bit_for_bit(tree) -> None:
    assert same(there_and_back(tree), tree)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_keep_their_type_and_shape(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (2, 0, 3), (3, 2)):
        tensor = torch.arange(6)[: torch.Size(shape).numel()].reshape(shape).to(dtype)
        assert same(there_and_back(tensor), tensor)


def test_parameter_data_comes_back() -> None:
    data = ParamData("importance of w", init_tensor=torch.rand(3, 2))
    back = there_and_back({"w": data})["w"]
    assert isinstance(back, ParamData)
    assert back.name == data.name
    assert back.shape == data.shape
    assert torch.equal(back.data, data.data)


def test_a_defaultdict_keeps_its_factory() -> None:
    kept = defaultdict(set, {1: {3, 4}})
    back = there_and_back(kept, live=defaultdict(set, {9: {9}}))
    assert back == kept
    assert back[2] == set()


def test_a_module_comes_back_frozen_in_evaluation_mode() -> None:
    teacher = mlp(norm=True)
    with torch.no_grad():
        for tensor in teacher.parameters():
            tensor.add_(1)
    state = State()
    capture(holder(kept=teacher), ("kept",), state)
    other = holder(kept=None)
    other.model = mlp(norm=True)
    restore(other, state)
    assert not other.kept.training
    assert not any(parameter.requires_grad for parameter in other.kept.parameters())
    assert all(
        torch.equal(one, two)
        for one, two in zip(
            teacher.state_dict().values(), other.kept.state_dict().values(), strict=True
        )
    )
    assert other.kept is not other.model


def test_a_reservoir_comes_back_as_rows() -> None:
    data = dataset_of(STREAM.__getitem__, pairs_of(STREAM[1]))
    reservoir = ReservoirSamplingBuffer(9)
    with borrowed_global_rng(0):
        reservoir.update_from_dataset(data)
    back = there_and_back({5: reservoir})[5]
    assert back.max_size == 9
    assert torch.equal(back._buffer_weights, reservoir._buffer_weights)
    assert torch.equal(identity(back.buffer), identity(reservoir.buffer))
    for ours, theirs in zip(back.buffer, reservoir.buffer, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


def test_an_empty_buffer_comes_back_empty() -> None:
    data = dataset_of(STREAM.__getitem__, pairs_of(STREAM[0]))
    back = there_and_back([data.subset([]), ReservoirSamplingBuffer(3)])
    assert len(back[0]) == len(back[1].buffer) == 0
    assert len(data.concat(back[0])) == len(data)


def test_state_owns_what_the_model_or_a_larger_tensor_would_change() -> None:
    strategy = holder()
    large = torch.zeros(1000)
    strategy.kept = [strategy.model[0].weight, strategy.model[0].bias.detach()[1:3], large[:2]]
    state = State()
    capture(strategy, ("kept",), state)
    assert all(not tensor.requires_grad for tensor in state.tensors.values())
    assert state.num_bytes == sum(t.untyped_storage().nbytes() for t in state.tensors.values())
    before = {key: tensor.clone() for key, tensor in state.tensors.items()}
    with torch.no_grad():
        strategy.model[0].weight.zero_()
        strategy.model[0].bias.fill_(7)
        large.fill_(7)
    assert all(torch.equal(before[key], tensor) for key, tensor in state.tensors.items())


def test_restoring_does_not_refer_to_the_state() -> None:
    state = State()
    capture(holder(kept=[torch.zeros(2)]), ("kept",), state)
    other = holder(kept=None)
    restore(other, state)
    other.kept[0].add_(1)
    assert torch.equal(state.tensors["kept/0"], torch.zeros(2))


def test_the_structure_is_one_json_string() -> None:
    state = State()
    capture(holder(kept={"a": [torch.zeros(2), 1.5]}), ("kept",), state)
    assert list(state.values) == ["tree"]
    assert json.loads(state.values["tree"]) == {
        "kept": {"dict": [["a", {"list": [{"tensor": "kept/a/0"}, 1.5]}]]}
    }


@pytest.mark.parametrize("value", [object(), 1j, {(1, 2): 3}, {(1, 2)}, [print]])
def test_anything_else_is_refused_by_name(value) -> None:
    with pytest.raises(TypeError, match="kept"):
        capture(holder(kept=value), ("kept",), State())
