"""How much clients train in a round: from the task clock to their turns."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedlearn.faults import Faults
from fedlearn.lr_schedules import Constant, LrSchedule
from fedlearn.schedule import Schedule
from fedlearn.turns import Floats, Integers, Turns
from fedlearn.types import Plain, Scenario


@dataclass(frozen=True)
class LocalWork:
    """How much a client trains in one turn.

    Attributes:
        run_seed: The run's seed.
        epochs: Local epochs a turn, at least 1.
        batch_size: Samples a step, at least 1.
        steps: Optimiser steps a turn, at least 1, in place of whole epochs; None for `epochs`.
        lr_schedule: What the learning rate is multiplied by, round by round.
        faults: Who has time for a part of a turn only.
    """

    run_seed: int
    epochs: int
    batch_size: int
    steps: int | None = None
    lr_schedule: LrSchedule = Constant()  # noqa: RUF009 - frozen
    faults: Faults = Faults()  # noqa: RUF009 - frozen

    def turns(
        self,
        scenario: Scenario,
        schedule: Schedule,
        client_ids: Integers,
        experiences: Integers,
        last: Integers,
        server_round: int,
        config: Mapping[str, Plain],
    ) -> Turns:
        """Return the turns of clients that have something to learn in a round.

        Args:
            scenario: What they learn.
            schedule: The task clock.
            client_ids: (n,), ascending.
            experiences: (n,), the experience that each is in.
            last: (n,), the experience that each last trained on; `fedlearn.turns.NEVER` for none.
            server_round: 1-based.
            config: Scalars that the aggregation sent.
        """
        begins = schedule.begins[client_ids, experiences]
        over = server_round - begins
        rounds = schedule.ends[client_ids, experiences] - begins + 1
        return Turns(
            scenario=scenario,
            run_seed=self.run_seed,
            server_round=server_round,
            epochs=self.epochs,
            batch_size=self.batch_size,
            steps=self.steps,
            config=config,
            client_ids=client_ids,
            experiences=experiences,
            last=last,
            first_epochs=self._first_epochs(scenario, schedule, client_ids, server_round),
            lr_factors=self._lr_factors(schedule, over, rounds, server_round),
            progress=over / rounds,
            works=self._works(client_ids, server_round),
        )

    def _first_epochs(
        self, scenario: Scenario, schedule: Schedule, client_ids: Integers, server_round: int
    ) -> Integers:
        """Return how many local epochs come before a round's, as if every turn had been taken."""
        rounds = schedule.rounds_before(client_ids, server_round)
        if self.steps is None:
            return np.asarray(rounds.sum(1) * self.epochs)
        shares = scenario.shares
        sizes = shares.ends.numpy()[client_ids] - shares.begins.numpy()[client_ids]
        batches = np.maximum(-(-sizes.astype(np.int64) // self.batch_size), 1)
        epochs = np.where(sizes > 0, -(-self.steps // batches), 0)
        return np.asarray((rounds * epochs).sum(1))

    def _lr_factors(
        self, schedule: Schedule, over: Integers, rounds: Integers, server_round: int
    ) -> Floats:
        if self.lr_schedule.over == "run":
            factor = self.lr_schedule.factor(server_round - 1, schedule.num_rounds)
            return np.full(len(over), factor)
        places, which = np.unique(np.stack([over, rounds]), axis=1, return_inverse=True)
        factors = [self.lr_schedule.factor(*place) for place in places.T.tolist()]
        return np.array(factors)[which.reshape(-1)]

    def _works(self, client_ids: Integers, server_round: int) -> Floats:
        if not self.faults.straggle:
            return np.ones(len(client_ids))
        work = self.faults.work
        return np.array([work(self.run_seed, each, server_round) for each in client_ids.tolist()])
