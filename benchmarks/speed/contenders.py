"""Who is compared: fedlearn, its peers, and programs without any framework."""

from dataclasses import dataclass
from typing import Literal

Group = Literal["fedlearn", "peers", "programs"]

EXECUTORS = ("serial", "process", "vectorized")


@dataclass(frozen=True)
class Contender:
    """One way of doing a workload.

    Attributes:
        name: As on the command line.
        group: What it is.
        module: Run as a program, with the plan and the place for the final weights.
        options: Further arguments.
        peer: Whose environment it runs in; None for ours.
        processes: How many torchrun starts; 1 for none of it.
        base: In workload W4, the name of what its rate is put in relation to.
        like: In workload W4, the name of what its final weights must equal.
    """

    name: str
    group: Group
    module: str
    options: tuple[str, ...] = ()
    peer: str | None = None
    processes: int = 1
    base: str | None = None
    like: str | None = None

    def arguments(self, plan: str, weights: str) -> list[str]:
        """Return what follows the name of the Python interpreter."""
        program = ["-m", self.module, plan, weights, *self.options]
        if self.processes == 1:
            return program
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        return [*launcher, f"--nproc-per-node={self.processes}", *program]


FLOWER = "flower"
BEST = "best-2"

ALONE: tuple[Contender, ...] = (
    *(
        Contender(
            f"fedlearn-{executor}", "fedlearn", "speed.fedlearn_run", ("--executor", executor)
        )
        for executor in EXECUTORS
    ),
    Contender(FLOWER, "peers", "speed.peers.flower"),
    Contender("pfl-1", "peers", "speed.peers.pfl", peer="pfl"),
    Contender("pfl-2", "peers", "speed.peers.pfl", peer="pfl", processes=2),
    Contender("blazefl-1", "peers", "speed.peers.blazefl", ("1",), peer="blazefl"),
    Contender("blazefl-2", "peers", "speed.peers.blazefl", ("2",), peer="blazefl"),
    Contender("fedlab", "peers", "speed.peers.fedlab", peer="fedlab"),
    Contender("fluke", "peers", "speed.peers.fluke", peer="fluke"),
    *(
        Contender(
            f"{program}-{processes}",
            "programs",
            "speed.programs",
            ("--program", program, "--processes", str(processes)),
        )
        for program in ("loop", "best")
        for processes in (1, 2)
    ),
)
"""Of the workloads with one experience."""

STRATEGIES: dict[str, tuple[str, ...]] = {
    "naive": ("continual=naive",),
    "ewc": ("continual=ewc_online", "continual.ewc_lambda=10.0"),
    "replay": ("continual=replay",),
    "ewc+replay": ("continual=ewc_replay", "continual.mode=online", "continual.decay_factor=1.0"),
}


def _continual(strategy: str, engine: str, executor: str) -> Contender:
    name = f"{strategy}/{engine}/{executor}"
    options = ("--engine", engine, "--executor", executor, "--continual", *STRATEGIES[strategy])
    return Contender(
        name,
        "fedlearn",
        "speed.fedlearn_run",
        options,
        base=f"naive/{engine}/{executor}",
        like=f"{strategy}/avalanche/serial",
    )


CONTINUAL: tuple[Contender, ...] = tuple(
    _continual(strategy, engine, executor)
    for engine, executors in (("avalanche", EXECUTORS[:2]), ("functional", EXECUTORS))
    for executor in executors
    for strategy in STRATEGIES
)
"""Of the workload with several."""


def chosen(names: list[str], several_experiences: bool) -> list[Contender]:
    """Return a workload's contenders of these names or groups, all for no name, in our order."""
    everybody = CONTINUAL if several_experiences else ALONE
    return [each for each in everybody if not names or {each.name, each.group} & set(names)]


def known_names() -> list[str]:
    """Return every name and group."""
    groups = list(dict.fromkeys(each.group for each in ALONE))
    return [*groups, *(each.name for each in (*ALONE, *CONTINUAL))]
