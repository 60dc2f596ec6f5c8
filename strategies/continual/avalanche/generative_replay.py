"""Generative replay, as Avalanche has it, with a generator that fits the inputs.

H. Shin et al., "Continual Learning with Deep Generative Replay", NeurIPS 2017: at the end of an
experience a generator learns its inputs, together with what the generator made up before. In the
next one, batches of the present are followed by generated samples, labelled by the model of the
last experience, and the loss is the mean over both. A client has a generator of its own, trained on
its own data only, at once: at the client's first turn of its next experience.

Differences from Avalanche: the generator is a `strategies.continual.avalanche.networks.vae.VAE` of
the inputs' shape, where Avalanche's has its noise at half the variance's square root, puts MNIST's
mean and deviation on whatever it generates, and needs at least two samples a batch. It is
trained anew at the end of each experience, for so many steps (a client with few samples needs no
fewer), where Avalanche's goes on from its old weights. Samples are made once an epoch for all of
its steps, and each step has as many, the last and maybe smaller batch too. In a task-incremental
scenario, where Avalanche fails, a generated sample is labelled by the head of a past task drawn at
random.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import above, at_least


def generative_replay(
    *,
    training: LocalTraining,
    replay_batch_size: int | None = None,
    increasing: bool = True,
    generator_hidden_size: int = 200,
    generator_latent_size: int = 16,
    generator_steps: int = 500,
    generator_batch_size: int = 32,
    generator_lr: float = 1e-3,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return generative replay. A client keeps its generator and one model, local anchor two.

    With d numbers in an input, h hidden units and codes of l, the generator has about h (2d + 3l)
    parameters.

    Args:
        training: What local training is made of.
        replay_batch_size: Generated samples a step, at least 1; None for the batch size.
        increasing: Whether there are as many for *each* experience of the past, in the training of
            both model and generator, so that all experiences weigh the same.
        generator_hidden_size: Hidden units of encoder and decoder, at least 1.
        generator_latent_size: Numbers in a code, at least 1.
        generator_steps: Steps of the generator at the end of an experience, at least 1.
        generator_batch_size: Inputs a step of the generator, at least 1.
        generator_lr: Rate of the generator's Adam, greater than 0.
        anchor: Whose model labels the generated samples.

    Raises:
        ValueError: A setting is out of bounds.
    """
    for key, value in {
        "generator_hidden_size": generator_hidden_size,
        "generator_latent_size": generator_latent_size,
        "generator_steps": generator_steps,
        "generator_batch_size": generator_batch_size,
    }.items():
        at_least(key, value, 1)
    at_least("replay_batch_size", replay_batch_size, 1)
    above("generator_lr", generator_lr, 0)
    return AvalancheContinual(
        training,
        plugins=partial(
            _plugins,
            input_shape=training.input_shape,
            hidden_size=generator_hidden_size,
            latent_size=generator_latent_size,
            steps=generator_steps,
            lr=generator_lr,
            batch_size=generator_batch_size,
            replay_size=replay_batch_size,
            increasing=increasing,
        ),
        keeps=("plugins.0.generator", "plugins.0.solver", "plugins.0.tasks"),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(
    *,
    input_shape: tuple[int, ...],
    hidden_size: int,
    latent_size: int,
    steps: int,
    lr: float,
    batch_size: int,
    replay_size: int | None,
    increasing: bool,
) -> list[Any]:
    from strategies.continual.avalanche.corrections.generative_replay import GenerativeReplay
    from strategies.continual.avalanche.networks.vae import VAE

    generator = VAE(input_shape, hidden_size, latent_size)
    return [GenerativeReplay(generator, steps, lr, batch_size, replay_size, increasing)]
