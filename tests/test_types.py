import json

import pytest
import torch
from federation import make_scenario
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.types import Experience, Samples, Shares, State


@given(
    st.integers(1, 5).flatmap(
        lambda length: st.lists(
            st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=length, max_size=length),
            min_size=1,
            max_size=5,
        )
    )
)
def test_shares_give_back_what_they_were_built_from(nested):
    tensors = [[torch.tensor(rows, dtype=torch.int64) for rows in stream] for stream in nested]
    shares = Shares.of(tensors)
    assert shares.num_clients == len(nested)
    assert shares.sizes().tolist() == [[len(rows) for rows in stream] for stream in nested]
    for client_id, stream in enumerate(nested):
        for index, rows in enumerate(stream):
            assert shares[client_id, index].tolist() == rows


def test_an_experience_is_a_view_of_the_shares_never_a_copy():
    scenario = make_scenario()
    for client_id in range(scenario.num_clients):
        for experience in scenario.stream(client_id):
            assert experience.samples is scenario.train
            storage = experience.rows.untyped_storage().data_ptr()
            assert storage == scenario.shares.rows.untyped_storage().data_ptr()


def test_gather_transforms_inputs_and_leaves_labels():
    samples = Samples(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2]))
    flipped = Experience(0, samples, torch.tensor([2, 0]), (0, 1, 2), transform=lambda x: x.flip(1))
    x, y = flipped.gather()
    assert x.tolist() == [[5, 4], [1, 0]]
    assert y.tolist() == [2, 0]
    assert flipped.gather(torch.tensor([1]))[0].tolist() == [[3, 2]]


def test_samples_refuse_inputs_without_labels():
    with pytest.raises(ValueError, match="3 inputs but 2 labels"):
        Samples(torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64))


def test_samples_stay_the_same_object_on_their_own_device():
    samples = Samples(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    assert samples.to("cpu") is samples


def test_manifest_is_json_and_its_hash_names_the_protocol():
    one, same, other = make_scenario(), make_scenario(), make_scenario(per_pair=11)
    json.dumps(one.manifest(), allow_nan=False)
    assert one.manifest()["hash"] == same.manifest()["hash"] != other.manifest()["hash"]
    assert one.manifest()["sizes"] == [[12, 12]] * 4


def test_state_counts_its_bytes():
    state = State({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64)}, {"n": 1})
    assert state.num_bytes == 3 * 4 + 2 * 8


def test_bytes_are_read_as_normalised_images_and_other_inputs_as_they_are():
    x = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    mean, std = (0.1, 1.0, 0.3), (0.5, 1.0, 2.0)
    rows = torch.tensor([1, 0])
    read = Samples(x, torch.zeros(2).long(), mean, std).inputs(rows)
    for channel in range(3):
        expected = (x[rows, channel].double() / 255 - mean[channel]) / std[channel]
        assert torch.allclose(read[:, channel].double(), expected, atol=1e-6)
    assert read.dtype == torch.float32
    assert torch.equal(Samples(x, torch.zeros(2).long()).inputs(rows), x[rows] / 255)
    darker = Samples(x, torch.zeros(2).long(), (1.0,)).inputs(rows)
    assert torch.allclose(darker, x[rows] / 255 - 1)
    tokens = torch.randint(80, (2, 5))
    assert torch.equal(Samples(tokens, torch.zeros(2).long()).inputs(rows), tokens[rows])
    with pytest.raises(ValueError, match="mean and std are for uint8 images"):
        Samples(tokens, torch.zeros(2).long(), (0.5,))
