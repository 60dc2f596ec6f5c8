"""Injected faults: replies that are lost on the way, and clients that have too little time.

Every draw is a pure function of (seed, client, round), whoever else is there.

A lost reply is one that the server leaves unread: it comes through the grid of whatever runtime and
is put aside before anything else is done with it. The client cannot tell. It has trained, staged
its new state, and learns with the next instruction that the server never used it; so a client rolls
back here by the very path by which it does where a real network fails. Were it the client that
answered with an error, each runtime would have to see to it, and the client would know.

A straggler trains for a share of its steps and replies as usual, as the experiments of FedProx have
it (T. Li et al. 2020, "Federated Optimization in Heterogeneous Networks", section 5.2), where a
straggler's epochs are drawn uniformly; here it is the share of its steps, so that turns of one
epoch have stragglers too.
"""

from dataclasses import dataclass

from fedlearn.seeding import numpy_generator


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and how often; by default nothing.

    Attributes:
        drop_out: Probability that a client's reply is lost, in [0, 1].
        straggle: Probability that a client has time for a part of its turn only, in [0, 1].
        straggle_work: The least share of its steps that a straggler takes, in (0, 1].
    """

    drop_out: float = 0.0
    straggle: float = 0.0
    straggle_work: float = 1.0

    def lost(self, run_seed: int, client_id: int, server_round: int) -> bool:
        """Whether the server never gets the client's reply of a round."""
        if not self.drop_out:
            return False
        generator = numpy_generator(run_seed, "drop-out", client_id, server_round)
        return generator.random() < self.drop_out

    def work(self, run_seed: int, client_id: int, server_round: int) -> float:
        """Return the share of its turn that the client has time for in a round, in (0, 1].

        1, or for a straggler a uniform draw from straggle_work to 1.
        """
        if not self.straggle:
            return 1.0
        occurs, share = numpy_generator(run_seed, "straggle", client_id, server_round).random(2)
        return 1 - (1 - self.straggle_work) * float(share) if occurs < self.straggle else 1.0
