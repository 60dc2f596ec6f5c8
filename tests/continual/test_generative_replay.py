"""Generative replay: the generator, what it makes up, and how it is labelled."""

from dataclasses import replace

import pytest
import torch
from avalanche.models.generator import MlpVAE
from avalanche.training.plugins import GenerativeReplayPlugin
from lone_client import DIGITS, SGD, TASK_TRAINING, TRAINING, gap, live, mlp, persist, split, twin
from torch import Tensor
from torch.nn import functional as F

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import LocalTraining, State
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.generative_replay import generative_replay
from strategies.continual.avalanche.networks.vae import VAE
from strategies.continual.avalanche.snapshot import capture, restore


def small(
    training: LocalTraining = TRAINING, steps: int = 5, **settings: object
) -> AvalancheContinual:
    return generative_replay(
        training=training, generator_hidden_size=16, generator_steps=steps, **settings
    )


def fitted(x: Tensor, steps: int, shape: tuple[int, ...] = (64,)) -> VAE:
    """Return a generator trained on all of `x` at once."""
    with borrowed_global_rng(0):
        vae = VAE(shape, 100, 8)
        vae.widen(x)
        optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            vae.loss(x).backward()
            optimizer.step()
    return vae


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8), (3, 5, 4)])
def test_what_is_generated_has_the_inputs_shape_and_range(shape: tuple[int, ...]) -> None:
    with borrowed_global_rng(0):
        x = torch.randn(20, *shape) - 3
        vae = VAE(shape, 10, 4)
        vae.widen(x)
        made = vae.generate(50)
    assert made.shape == (50, *shape)
    assert float(x.min()) <= float(made.min())
    assert float(made.max()) <= max(float(x.max()), 0.0)
    assert not made.requires_grad


def test_the_generators_loss_is_the_negative_bound() -> None:
    vae, x = VAE((64,), 10, 4), DIGITS.x[:6]
    with borrowed_global_rng(3):
        loss = float(vae.loss(x).detach())
    with borrowed_global_rng(3), torch.no_grad():
        noise = torch.randn(6, 4)
        mean, log_variance = vae.encoder(x)[:, :4], vae.encoder(x)[:, 4:]
        deviation = (log_variance / 2).exp()
        decoded = vae.decoder(mean + deviation * noise)
        code = torch.distributions.Normal(mean, deviation)
        prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
        divergence = torch.distributions.kl_divergence(code, prior).sum(1).mean()
        variance = ((decoded - x) ** 2).mean()  # the one that makes x likeliest
        decoder = torch.distributions.Normal(decoded, variance.sqrt())
        likelihood = decoder.log_prob(x).sum(1).mean()
    constant = 64 / 2 * (1 + torch.log(torch.tensor(2 * torch.pi)))
    assert loss + float(constant) == pytest.approx(float(divergence - likelihood), rel=1e-4)


def test_a_classifier_of_what_is_made_up_knows_the_digits() -> None:
    x, y = DIGITS.x[:300], DIGITS.y[:300]
    with borrowed_global_rng(0):
        teacher, student = mlp(hidden=60), mlp(hidden=60)
        made = fitted(x, 300).generate(1000)
        for model, inputs, labels in ((teacher, x, y), (student, made, None)):
            labels = teacher(inputs).argmax(1) if labels is None else labels
            optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
            for _ in range(80):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
    hits = (student(DIGITS.x[300:]).argmax(1) == DIGITS.y[300:]).float().mean()
    assert hits > 0.75


def test_upstreams_generator_suits_neither_other_shapes_nor_a_single_sample() -> None:
    """Why there is a VAE of our own."""
    with borrowed_global_rng(0):
        with pytest.raises(ValueError, match="image"):
            MlpVAE((64,)).generate(2)  # normalises like an image
        with pytest.raises(ValueError, match="more than 1 value"):
            MlpVAE((1, 8, 8))(torch.zeros(1, 1, 8, 8))
        shifted = MlpVAE((1, 8, 8)).eval().generate(20)
        deviation = MlpVAE((1, 8, 8)).sampling(torch.zeros(20000), torch.full((20000,), 2.0)).std()
        with torch.no_grad():
            vae = VAE((64,), 4, 4)
            assert vae.loss(torch.zeros(1, 64)).isfinite()
    assert float(shifted.detach().max()) > 1  # in [0, 1] before MNIST's mean and deviation
    assert float(deviation) == pytest.approx(0.5 * 7.39, rel=0.05)  # e / 2 * e, and not e


@pytest.mark.parametrize(("increasing", "shares"), [(True, (0, 1, 2)), (False, (0, 1, 1))])
def test_each_step_replays_as_many_as_asked(increasing: bool, shares: tuple[int, ...]) -> None:
    for size in (None, 3):
        strategy = small(increasing=increasing, replay_batch_size=size)
        for report, share in zip(live(strategy, mlp(), split()), shares, strict=True):
            assert report.replayed == report.steps * share * (size or 32)


def test_labels_are_the_solvers_and_the_loss_is_the_mean_over_both() -> None:
    stream, model = split(2, size=30), mlp()
    still = replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    strategy = small(still)
    oracle = persist(strategy, model, stream[:1], epochs=1)
    plugin = oracle.plugins[0]
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    with borrowed_global_rng(0):
        oracle._before_training_epoch()
    (x, y, _), *rest = list(oracle.dataloader)
    assert not rest
    now, past = x[:30], x[30:]
    assert sorted(map(tuple, now.tolist())) == sorted(map(tuple, stream[1].gather()[0].tolist()))
    assert len(past) == 32
    assert torch.equal(y[30:], plugin.solver(past).argmax(1))
    assert gap(plugin.solver, model) == 0.0
    report = live(strategy, twin(model), stream)[-1]
    assert report.loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-4)


def test_every_epoch_has_samples_of_its_own() -> None:
    strategy, stream = small(), split(2)
    oracle = persist(strategy, mlp(), stream[:1], epochs=1)
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    seen = []
    with borrowed_global_rng(0):
        for _ in range(3):
            oracle._before_training_epoch()
            seen.append(torch.cat([batch[0][-32:] for batch in oracle.dataloader]))
    assert not torch.equal(seen[0], seen[1])
    assert len({tuple(sample.tolist()) for sample in torch.cat(seen)}) == 3 * len(seen[0])


def test_the_generator_learns_the_present_and_what_it_made_up_before() -> None:
    strategy = generative_replay(training=TRAINING, generator_steps=300)
    oracle = persist(strategy, mlp(), split(2), epochs=1)
    with borrowed_global_rng(0):
        judge = mlp(hidden=60)
        optimizer = torch.optim.Adam(judge.parameters(), lr=5e-3)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(judge(DIGITS.x), DIGITS.y).backward()
            optimizer.step()
        shares = torch.bincount(judge(oracle.plugins[0].generator.generate(500)).argmax(1)) / 500
    assert float(shares[:2].sum()) > 0.1
    assert float(shares[2:4].sum()) > 0.1


def test_a_made_up_sample_goes_to_the_head_of_a_past_task() -> None:
    strategy, stream = small(TASK_TRAINING), split(3, task=True)
    oracle = persist(strategy, mlp(), stream[:2], epochs=2)
    assert oracle.plugins[0].tasks == [0, 1]
    oracle.experience = strategy._seen(stream[2], stream.__getitem__)
    with borrowed_global_rng(0):
        oracle._before_training_epoch()
    batches = [torch.cat(parts) for parts in zip(*oracle.dataloader, strict=True)]
    _, y, t = batches
    for label, task in zip(y.tolist(), t.tolist(), strict=True):
        assert label in TASK_TRAINING.heads[task]
    assert set(t.tolist()) == {0, 1, 2}


def test_upstream_cannot_label_in_a_task_incremental_scenario() -> None:
    plugin = GenerativeReplayPlugin(generator_strategy=type("Any", (), {"model": VAE((64,), 4, 4)}))
    strategy = AvalancheContinual(
        TASK_TRAINING, plugins=lambda: [plugin], consolidates="model", anchor="local"
    )
    with pytest.raises((TypeError, AttributeError)):
        persist(strategy, mlp(), split(2, task=True), epochs=1)


def test_the_untrained_generator_does_not_depend_on_the_turn() -> None:
    """It is drawn at the first consolidation, so a client that took another first turn has it."""
    generators = []
    for rounds in (1, 2):
        strategy = small(replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
        state = live(strategy, mlp(), split(2), rounds=rounds)[-1].state
        generators.append({k: v for k, v in state.tensors.items() if "generator" in k})
    assert all(torch.equal(generators[0][key], generators[1][key]) for key in generators[0])


def test_a_live_module_keeps_its_own_architecture() -> None:
    """The generator is no copy of the model; the solver, which is None in a new turn, is."""
    holder = type("Holder", (), {})()
    holder.model, holder.device = mlp(), torch.device("cpu")
    holder.stream, holder.kept = (lambda _: None), VAE((64,), 5, 3)
    state = State()
    capture(holder, ("kept",), state)
    other = type("Holder", (), {})()
    other.model, other.device, other.stream = mlp(), torch.device("cpu"), holder.stream
    fresh = other.kept = VAE((64,), 5, 3)
    restore(other, state)
    assert isinstance(other.kept, VAE)
    assert other.kept is not fresh
    assert gap(other.kept, holder.kept) == 0.0
    assert all(parameter.requires_grad for parameter in other.kept.parameters())


def test_a_client_keeps_its_generator_and_its_solver() -> None:
    theta = sum(parameter.numel() for parameter in mlp().parameters())
    generator = sum(tensor.numel() for tensor in VAE((64,), 16, 16).state_dict().values())
    for anchor, models in (("local", 2), ("global", 1)):
        state = live(small(anchor=anchor), mlp(), split(), rounds=2)[-1].state
        assert state.num_bytes == 4 * (models * theta + generator)


def test_it_remembers_what_plain_training_forgets() -> None:
    stream, model, naive = split(3, size=80), mlp(hidden=60), mlp(hidden=60)
    strategy = generative_replay(training=TRAINING, generator_steps=300)
    live(strategy, model, stream, rounds=5, batch_size=8)
    live(AvalancheContinual(LocalTraining(SGD, 10)), naive, stream, rounds=5, batch_size=8)
    x, y = stream[0].gather()
    assert float((model(x).argmax(1) == y).float().mean()) > 0.7
    assert float((naive(x).argmax(1) == y).float().mean()) < 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"generator_steps": 0}, "continual.generator_steps=0: must be at least 1"),
        ({"generator_lr": 0.0}, "continual.generator_lr=0.0: must be greater than 0"),
        ({"replay_batch_size": 0}, "continual.replay_batch_size=0: must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(setting, message) -> None:
    with pytest.raises(ValueError, match=message):
        generative_replay(training=TRAINING, **setting)
