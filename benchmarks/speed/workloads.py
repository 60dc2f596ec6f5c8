"""What is timed: models and cohorts of three kinds, and one with a continual strategy."""

from dataclasses import dataclass

NUM_CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """One round after another of FedAvg with plain SGD, one local epoch a turn.

    Attributes:
        name: As on the command line.
        title: One line for people.
        input_shape: Of one sample.
        widths: Channels of each convolution of `speed.models.network`.
        hidden_sizes: Units of each of its hidden layers.
        num_clients: K.
        cohort: Clients of a round.
        samples: Of each client, in each experience.
        batch_size: Divides `samples`.
        lr: Learning rate.
        rounds: Of the whole run, at least 2; the first is start-up and not timed. A multiple of
            `experiences`.
        chunk: Clients that the stacked program trains at a time: about what its core's cache holds.
        experiences: Of the stream; every one but the first permutes the inputs in its own way.
        repeats: How often everyone takes a turn unless the command line says so.
    """

    name: str
    title: str
    input_shape: tuple[int, ...]
    widths: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    num_clients: int
    cohort: int
    samples: int
    batch_size: int
    lr: float
    rounds: int
    chunk: int = 1
    experiences: int = 1
    repeats: int = 3


W1 = Workload(
    name="W1",
    title="CNN on 3x32x32, 1 626 442 parameters; 20 of 100 clients, 50 samples, batches of 10",
    input_shape=(3, 32, 32),
    widths=(32, 64),
    hidden_sizes=(128,),
    num_clients=100,
    cohort=20,
    samples=50,
    batch_size=10,
    lr=0.01,
    rounds=4,
    repeats=2,
)
W2 = Workload(
    name="W2",
    title="MLP 784-200-200-10; 100 of 1000 clients, 60 samples, batches of 10",
    input_shape=(1, 28, 28),
    widths=(),
    hidden_sizes=(200, 200),
    num_clients=1000,
    cohort=100,
    samples=60,
    batch_size=10,
    lr=0.1,
    rounds=12,
    chunk=5,
)
W3 = Workload(
    name="W3",
    title="MLP 64-32-10; 1000 of 1000 clients, 20 samples, batches of 10",
    input_shape=(1, 8, 8),
    widths=(),
    hidden_sizes=(32,),
    num_clients=1000,
    cohort=1000,
    samples=20,
    batch_size=10,
    lr=0.1,
    rounds=8,
    chunk=100,
)
W4 = Workload(
    name="W4",
    title="W2 over five experiences of permuted inputs: continual strategies against naive",
    input_shape=W2.input_shape,
    widths=W2.widths,
    hidden_sizes=W2.hidden_sizes,
    num_clients=W2.num_clients,
    cohort=W2.cohort,
    samples=W2.samples,
    batch_size=W2.batch_size,
    lr=W2.lr,
    rounds=100,  # twenty an experience: about two turns in each for every client
    experiences=5,
    repeats=1,
)
WORKLOADS = {workload.name: workload for workload in (W1, W2, W3, W4)}
