"""The character LSTM: sizes by formula, arithmetic by hand, learning, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fedlearn.cli import main
from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, prepare
from fedlearn.models.char_lstm import CharLSTM
from fedlearn.seeding import borrowed_global_rng

SMALL = {"embedding_size": 3, "hidden_size": 4, "num_layers": 1}


def draw(count: int, length: int, num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, num_tokens, (count, length), generator=generator)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_leafs_model_has_leafs_size_but_for_pytorchs_second_bias() -> None:
    model = CharLSTM(input_shape=(80,), num_classes=80)
    assert model(draw(2, 80, 80)).shape == (2, 80)
    layers = 4 * 256 * (8 + 256 + 1) + 4 * 256 * (256 + 256 + 1)
    assert count(model) - 2 * 4 * 256 == 80 * 8 + layers + 257 * 80


def test_one_layer_by_hand() -> None:
    with borrowed_global_rng(0):
        model = CharLSTM(input_shape=(5,), num_classes=6, **SMALL).double()
    x = draw(2, 5, 6)
    lstm = model.features.lstm
    h = c = torch.zeros(2, 4, dtype=torch.float64)
    for place in range(5):
        e = model.features.embedding.weight[x[:, place]]
        gates = e @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T
        i, f, g, o = (gates + lstm.bias_hh_l0).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    expected = h @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.classifier(model.features(x)), expected)


def test_the_loss_reaches_every_parameter_and_training_learns_a_rule() -> None:
    with borrowed_global_rng(0):
        model = CharLSTM(input_shape=(4,), num_classes=5, embedding_size=4, hidden_size=16)
    x = draw(200, 4, 5)
    y = x[:, -2]  # needs the state, not just the last token
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
        optimizer.step()
    assert (model(x).argmax(1) == y).double().mean() > 0.95


def test_weights_can_be_given_from_outside_and_depend_on_the_seed_alone() -> None:
    def built(seed: int) -> CharLSTM:
        with borrowed_global_rng(seed):
            return CharLSTM(input_shape=(5,), num_classes=6, **SMALL)

    one, other, x = built(1), built(2), draw(3, 5, 6)
    assert torch.equal(built(1)(x), one(x))
    assert not torch.equal(other(x), one(x))
    assert torch.equal(functional_call(one, dict(other.named_parameters()), (x,)), other(x))


def test_tokens_may_be_other_than_classes() -> None:
    model = CharLSTM(input_shape=(5,), num_classes=2, num_tokens=30, **SMALL)
    assert model(draw(3, 5, 30)).shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"input_shape": (1, 8, 8)}, "model=char_lstm: needs sequences of tokens .* not 1x8x8"),
        ({"num_classes": 0}, "^num_classes=0: must be at least 1"),
        ({"num_tokens": 0}, "^model.num_tokens=0: must be at least 1"),
        ({"embedding_size": 0}, "^model.embedding_size=0: must be at least 1"),
        ({"hidden_size": 0}, "^model.hidden_size=0: must be at least 1"),
        ({"num_layers": 0}, "^model.num_layers=0: must be at least 1"),
    ],
)
def test_bad_arguments_get_one_line(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CharLSTM(**{"input_shape": (5,), "num_classes": 3, **arguments})


@pytest.fixture
def verse(tmp_path: Path) -> list[str]:
    """The overrides of a run on a little text that repeats itself."""
    for author in ("one", "two", "three"):
        (tmp_path / f"{author}.txt").write_text(f"{author} two three four, " * 20)
    return [
        "dataset=text",
        f"dataset.path={tmp_path}",
        "dataset.length=6",
        "dataset.stride=2",
        "scenario=domain_incremental",
        "scenario.num_experiences=1",
        "partition=iid",
        "num_clients=3",
        "model=char_lstm",
        "model.hidden_size=16",
        "continual=naive",
        "tracker=none",
    ]


def test_both_engines_train_it_and_agree(verse: list[str], runs: Path) -> None:
    accuracies = []
    for engine in ("avalanche", "functional"):
        out = runs / engine
        length = [
            "rounds_per_experience=2",
            "local.epochs=4",
            "optimizer=adam",
            "optimizer.lr=0.01",
        ]
        assert main(["run", *verse, *length, f"engine={engine}", f"out={out}"]) == 0
        (summary,) = out.glob("**/summary.json")
        accuracies.append(json.loads(summary.read_text())["cl"]["average_accuracy"])
    assert accuracies[0] > 0.6
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.03)


def test_the_composition_root_shows_a_model_the_type_of_input_that_it_gets(
    verse: list[str],
) -> None:
    model = build(prepare(compose(verse))).build_model()
    assert isinstance(model, CharLSTM)
    with pytest.raises(ConfigError, match=r"^model=char_lstm: takes no input of shape \[1, 6\]"):
        build(prepare(compose([*verse, "model.num_tokens=1"])))
    images = ["model=mlp" if each == "model=char_lstm" else each for each in verse]
    images.remove("model.hidden_size=16")
    with pytest.raises(ConfigError, match=r"^model=mlp: takes no input of shape \[1, 6\]: .*type"):
        build(prepare(compose(images)))
    with pytest.raises(ConfigError, match="needs sequences of tokens"):
        build(prepare(compose(["model=char_lstm", "continual=naive", "tracker=none"])))
