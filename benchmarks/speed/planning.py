"""Makes data and plans: fedlearn's own cohorts, batch orders and initial weights, written down.

fedlearn derives all of them from the run's seed; the plan holds what it will draw, so that every
other contender can do the same work without importing it.
"""

from pathlib import Path

import numpy as np
import torch
from speed.plan import Plan
from speed.workloads import NUM_CLASSES, Workload

from fedlearn.cohorts.sampler import Told, candidates_at
from fedlearn.config.composition import compose
from fedlearn.config.experiment import Experiment, build, prepare
from fedlearn.seeding import generator

CONF = Path(__file__).parent / "conf"
SEED = 0
NEVER = 10**9


def write_data(work: Workload, path: Path) -> None:
    """Write samples as `dataset=arrays` reads them: half noise, half a pattern of their class.

    The pattern matters to the check of the final weights. Clients that learn the same thing move
    the same way; had they only noise to learn, their changes would cancel in the mean, and one ReLU
    that is off by a bit, on one sample of one client, would show in what is left.
    """
    draws = torch.Generator().manual_seed(SEED)
    patterns = torch.randn(NUM_CLASSES, *work.input_shape, generator=draws)
    size = work.num_clients * work.samples
    y = torch.randperm(size, generator=draws) % NUM_CLASSES
    x = torch.randn(size, *work.input_shape, generator=draws)
    for label, pattern in enumerate(patterns):
        x[y == label] = x[y == label].add_(pattern).div_(2)
    torch.save(
        {"x_train": x, "y_train": y, "x_test": patterns, "y_test": torch.arange(NUM_CLASSES)},
        path,
    )


def overrides(
    work: Workload, data: Path, out: Path, engine: str, executor: str, continual: list[str]
) -> list[str]:
    """Return what configures fedlearn for a workload.

    Args:
        work: The workload.
        data: What `write_data` wrote.
        out: Folder for run directories.
        engine: ``avalanche`` or ``functional``.
        executor: ``serial``, or another, which gets two workers.
        continual: Overrides that choose the continual strategy.
    """
    if work.widths:
        model = ["model=speed_network", f"model.widths={_listed(work.widths)}"]
    else:
        model = ["model=mlp"]
    return [
        "dataset=arrays",
        f"dataset.path={data}",
        "scenario=domain_incremental",
        f"scenario.num_experiences={work.experiences}",
        "scenario.held_out=0",
        "partition=iid",
        f"num_clients={work.num_clients}",
        f"fraction_train={work.cohort / work.num_clients}",
        "fraction_evaluate=0",
        f"rounds_per_experience={work.rounds // work.experiences}",
        f"evaluate_every={NEVER}",
        "local.epochs=1",
        f"local.batch_size={work.batch_size}",
        f"optimizer.lr={work.lr}",
        *model,
        f"model.hidden_sizes={_listed(work.hidden_sizes)}",
        *continual,
        f"engine={engine}",
        f"runtime.executor={executor}",
        *([] if executor == "serial" else ["runtime.workers=2"]),
        "tracker=none",
        "checkpoint_every=null",
        "runtime.devices=cpu",
        f"seed={SEED}",
        f"out={out}",
    ]


def make_plan(work: Workload, data: Path) -> Plan:
    """Return the plan of what fedlearn does on a workload of one experience.

    Raises:
        ValueError: The clients do not hold equally many samples.
    """
    made = build(
        prepare(
            compose(
                overrides(work, data, data.parent, "functional", "serial", ["continual=naive"]),
                CONF,
            )
        )
    )
    held = [made.scenario.experience(k, 0).gather() for k in range(work.num_clients)]
    if {len(y) for _, y in held} != {work.samples}:
        raise ValueError(f"{work.name}: clients do not hold {work.samples} samples each")
    cohorts = [_cohort(made, server_round) for server_round in range(1, work.rounds + 1)]
    orders = [
        torch.stack([_order(made, client_id, server_round) for client_id in cohort])
        for server_round, cohort in enumerate(cohorts, start=1)
    ]
    return Plan(
        workload=work,
        x=torch.stack([x for x, _ in held]),
        y=torch.stack([y for _, y in held]),
        cohorts=torch.tensor(cohorts),
        orders=torch.stack(orders),
        weights=[each.detach().clone() for each in made.build_model().parameters()],
    )


def _cohort(made: Experiment, server_round: int) -> list[int]:
    sizes = made.scenario.shares.sizes().numpy()
    share = made.settings.fraction_train
    candidates = candidates_at(server_round, made.schedule, sizes, SEED, share, None)
    assert candidates is not None, "everybody is there"
    return made.cohort.choose(candidates, Told())


def _order(made: Experiment, client_id: int, server_round: int) -> torch.Tensor:
    before = made.schedule.rounds_before(np.array([client_id]), server_round)
    epoch = int(before.sum())  # one a round
    samples = len(made.scenario.experience(client_id, 0))
    return torch.randperm(samples, generator=generator(SEED, "batches", client_id, epoch))


def _listed(sizes: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, sizes)) + "]"
