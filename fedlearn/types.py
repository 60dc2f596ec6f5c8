"""The contracts between the engine and its plug-ins: samples, experiences, scenarios, turns.

`strategies/` and `scenarios/` import this module, `fedlearn.seeding`, `fedlearn.heads`,
`fedlearn.losses` and `fedlearn.augmentation`, and nothing else of the engine (aggregations also
`fedlearn.records`). It depends on torch only.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fedlearn.seeding import seed

Transform = Callable[[Tensor], Tensor]
"""Maps inputs (batch, *input_shape) to inputs of the same shape: an experience's domain."""

Scalar = int | float | bool | str | bytes
Plain = Scalar | list[int] | list[float] | list[bool] | list[str] | list[bytes]
"""A value that a state may hold beside its tensors."""

Kind = Literal["class", "task", "domain"]
"""What an experience brings: new classes, new classes with a known task label, or a new domain."""

LossName = Literal["cross_entropy", "bce", "mse"]
"""Loss of a sample; see `fedlearn.losses`."""

Precision = Literal["float32", "bfloat16"]
"""Of the forward pass in training; weights, losses and gradients are float32."""


@dataclass(frozen=True)
class Samples:
    """A dataset as two tensors that live once, on one device.

    Attributes:
        x: (n, *input_shape): float32; or uint8, read as ``(x / 255 - mean) / std``, for images
            that take four times less room so; or int64, the tokens of a sequence.
        y: Labels (n,) int64, each in [0, num_classes); or the targets of a regression,
            (n, num_outputs) float32, of mean 0 and variance 1 over the training samples.
        mean: Of uint8 images, one number or one a channel, on the scale of 0 to 1.
        std: Likewise, greater than 0.
        places: Of a part of a dataset (`part`): (N,) int32, where in `x` and `y` each row of the
            whole lies, -1 for nowhere; n is then what the part holds. None for the whole.
    """

    x: Tensor
    y: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    places: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} inputs but {len(self.y)} labels")
        plain = self.mean == (0.0,) and self.std == (1.0,)
        if not plain and self.x.dtype != torch.uint8:
            raise ValueError(f"mean and std are for uint8 images, inputs are {self.x.dtype}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def regression(self) -> bool:
        """Whether `y` holds real targets, not labels."""
        return self.y.is_floating_point()

    def to(self, device: torch.device | str) -> "Samples":
        """Return the same samples on `device` (this object where it is there already)."""
        x, y = self.x.to(device), self.y.to(device)
        places = None if self.places is None else self.places.to(device)
        return self if x is self.x and y is self.y else replace(self, x=x, y=y, places=places)

    def part(self, rows: Tensor, device: torch.device | str) -> "Samples":
        """Return a copy on `device` of some rows, which keep their numbers; no others can be read.

        Args:
            rows: (n,) int64, each once.
            device: Where the copy lives, in the source's own type.
        """
        places = torch.full((len(self),), -1, dtype=torch.int32)
        places[rows] = torch.arange(len(rows), dtype=torch.int32)
        here = rows.to(self.x.device)
        x, y = self.x.index_select(0, here).to(device), self.y.index_select(0, here).to(device)
        return replace(self, x=x, y=y, places=places.to(device))

    def targets(self, rows: Tensor) -> Tensor:
        """Return the labels or targets of `rows`, (len(rows), ...)."""
        return self.y.index_select(0, self._places_of(rows))

    def inputs(self, rows: Tensor) -> Tensor:
        """Return the inputs of `rows` (n,), (n, *input_shape), ready for a model."""
        x = self.x.index_select(0, self._places_of(rows))  # several times as fast as x[rows]
        if x.dtype != torch.uint8:
            return x
        x = x.to(torch.float32).div_(255)
        if self.mean != (0.0,):
            x.sub_(torch.tensor(self.mean, device=x.device).view(-1, 1, 1))
        if self.std != (1.0,):
            x.div_(torch.tensor(self.std, device=x.device).view(-1, 1, 1))
        return x

    def _places_of(self, rows: Tensor) -> Tensor:
        """Return where `rows` lie in `x` and `y`."""
        rows = rows.to(self.x.device)
        return rows if self.places is None else self.places.index_select(0, rows)


@dataclass(frozen=True)
class Experience:
    """One step of one stream: rows of a shared `Samples`, never a copy of them.

    Attributes:
        index: Position in the stream, 0-based.
        samples: The store that `rows` points into.
        rows: (n,) int64. May be empty: the client then has nothing to learn here.
        classes: The classes that this experience is about, whoever learns it.
        task_label: Index of the head to use; 0 unless the scenario is task-incremental.
        transform: The domain of this experience, or None for the inputs as they are.
    """

    index: int
    samples: Samples
    rows: Tensor
    classes: tuple[int, ...]
    task_label: int = 0
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs (n, *input_shape) and labels or targets of `rows`, in their domain.

        Args:
            rows: Rows of the store; those of the experience by default.
        """
        rows = self.rows if rows is None else rows
        x, y = self.samples.inputs(rows), self.samples.targets(rows)
        return (x if self.transform is None else self.transform(x)), y


@dataclass(frozen=True)
class Shares:
    """Which rows belong to which (client, experience): slices of one flat tensor.

    Experiences of a client that hold the same rows share a slice.

    Attributes:
        rows: (n,) int64.
        begins: (K, T) int32, because there may be many: where in `rows` each pair's slice begins.
        ends: (K, T) int32: where it ends.
    """

    rows: Tensor
    begins: Tensor
    ends: Tensor

    @classmethod
    def of(cls, nested: Sequence[Sequence[Tensor]]) -> "Shares":
        """Build from rows nested as ``nested[client][experience]``."""
        flat = [rows for stream in nested for rows in stream]
        sizes = torch.tensor([len(rows) for rows in flat], dtype=torch.int64)
        ends = sizes.cumsum(0).view(len(nested), -1) if flat else sizes.view(len(nested), 0)
        rows = torch.cat(flat) if flat else torch.empty(0, dtype=torch.int64)
        begins = ends - sizes.view(ends.shape)
        return cls(rows.to(torch.int64), begins.int(), ends.int())

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return self.begins.shape[0]

    @property
    def num_experiences(self) -> int:
        """T."""
        return self.begins.shape[1]

    def __getitem__(self, pair: tuple[int, int]) -> Tensor:
        """Return the rows of (client, experience), a view."""
        return self.rows[int(self.begins[pair]) : int(self.ends[pair])]

    def sizes(self) -> Tensor:
        """Return (K, T) int64: how many rows each pair holds."""
        return (self.ends - self.begins).long()

    def rows_of(self, client_ids: Tensor) -> Tensor:
        """Return the rows that any of these clients holds in any experience, once, ascending.

        Args:
            client_ids: (k,) int64.
        """
        base = len(self.rows) + 1  # a slice as one number, because many come more than once
        slices = torch.unique(self.begins[client_ids].long() * base + self.ends[client_ids])
        begins, sizes = slices // base, slices % base - slices // base
        offsets = (begins - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
        rows: Tensor = torch.unique(self.rows[torch.arange(len(offsets)) + offsets])
        return rows

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the pairs, numbered client * T + experience, (m,) int64, and a row of each, (m,).

        Every pair comes once with each row that it holds.
        """
        sizes = self.sizes().flatten()
        pairs = torch.arange(len(sizes)).repeat_interleave(sizes)
        within = torch.arange(len(pairs)) - (sizes.cumsum(0) - sizes)[pairs]
        return pairs, self.rows[self.begins.flatten()[pairs] + within]


@dataclass(frozen=True)
class Topic:
    """What an experience is about, whoever learns it: classes, a domain, a test set.

    Attributes:
        classes: The classes.
        test_rows: (n,) int64, rows of the scenario's test store.
        transform: The domain, or None for the inputs as they are.
    """

    classes: tuple[int, ...]
    test_rows: Tensor
    transform: Transform | None = None


@dataclass(frozen=True)
class Scenario:
    """A protocol, built once: who learns what, in which order, and on what it is tested.

    Attributes:
        name: The field's name, e.g. ``"split_digits"``.
        kind: What an experience brings.
        train: The training store.
        test: The test store.
        shares: Training rows of each (client, experience).
        held_out: Rows of `train` set aside for each (client, experience), disjoint from `shares`.
        topics: What there is to learn, M of them.
        orders: (K, T) int64: the topic of each client's experiences. Where all clients learn the
            same in the same order, M is T and every row is 0, 1, ..., T-1.
        num_classes: C, the size of the (single, full-size) head: of a regression, its outputs.
        views: How each client sees every input, K of them, None for as it is; None for all so.
        elsewhere: Whether training samples are on machines of the clients' own, and not known here.
        recipe: What the protocol was built from, as plain JSON values: dataset and its digest,
            stream, partition, clock, skew, seed, class order.
    """

    name: str
    kind: Kind
    train: Samples
    test: Samples
    shares: Shares
    held_out: Shares
    topics: tuple[Topic, ...]
    orders: Tensor
    num_classes: int
    views: tuple[Transform | None, ...] | None = None
    elsewhere: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return self.shares.num_clients

    @property
    def num_experiences(self) -> int:
        """T, the length of every stream."""
        return self.orders.shape[1]

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """The classes of each topic, M tuples."""
        return tuple(topic.classes for topic in self.topics)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.train.x.shape[1:])

    @property
    def score(self) -> str:
        """What accuracies are called: ``"accuracy"``, or ``"R²"`` of a regression."""
        return "R²" if self.train.regression else "accuracy"

    def experience(self, client_id: int, index: int) -> Experience:
        """Return experience `index` of `client_id`'s training stream."""
        return self._experience(client_id, index, self.shares)

    def stream(self, client_id: int) -> list[Experience]:
        """Return the training stream of `client_id`."""
        return [self.experience(client_id, index) for index in range(self.num_experiences)]

    def held_out_experience(self, client_id: int, index: int) -> Experience:
        """Return what `client_id` set aside of its experience `index`, to test itself on."""
        return self._experience(client_id, index, self.held_out)

    def test_stream(self) -> list[Experience]:
        """Return the global test sets, by topic."""
        return [
            self._about(index, topic, self.test, topic.test_rows, topic.transform, index)
            for index, topic in enumerate(self.topics)
        ]

    def _experience(self, client_id: int, index: int, shares: Shares) -> Experience:
        at = int(self.orders[client_id, index])
        topic, view = self.topics[at], self.views[client_id] if self.views else None
        transform = topic.transform
        if view is not None:
            transform = view if transform is None else Chain(view, transform)
        return self._about(index, topic, self.train, shares[client_id, index], transform, at)

    def _about(
        self,
        index: int,
        topic: Topic,
        samples: Samples,
        rows: Tensor,
        transform: Transform | None,
        at: int,
    ) -> Experience:
        task_label = at if self.kind == "task" else 0
        return Experience(index, samples, rows, topic.classes, task_label, transform)

    def to(self, device: torch.device | str) -> "Scenario":
        """Return the same protocol with its samples on `device` (indices stay where they are)."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def part(self, client_ids: Tensor, device: torch.device | str) -> "Scenario":
        """Return what some clients need in order to train: their training samples on `device`.

        Rows keep their numbers, so that a client draws and keeps the same ones wherever it is.
        Nothing in it is held out.

        Args:
            client_ids: (k,) int64; the streams of others cannot be read.
            device: Where the training store is copied to; the test store stays where it is.
        """
        train = self.train.part(self.shares.rows_of(client_ids), device)
        nothing = replace(self.held_out, ends=self.held_out.begins)
        return replace(self, train=train, held_out=nothing)

    def manifest(self) -> dict[str, Any]:
        """Return everything that defines the protocol, as JSON values, with its ``hash``.

        Two scenarios with the same hash put the same data in the same hands at the same time.
        """
        body: dict[str, Any] = {
            **self.recipe,
            "name": self.name,
            "kind": self.kind,
            "num_clients": self.num_clients,
            "num_experiences": self.num_experiences,
            "num_classes": self.num_classes,
            **({"regression": True} if self.train.regression else {}),
            "input_shape": list(self.input_shape),
            "classes": [list(classes) for classes in self.classes],
            "orders": digest(self.orders),
            "sizes": self.shares.sizes().tolist(),
            "held_out_sizes": self.held_out.sizes().tolist(),
            "test_sizes": [len(topic.test_rows) for topic in self.topics],
            "labels": digest(self.train.y, self.test.y),
            "rows": digest(
                *(
                    each
                    for part in (self.shares, self.held_out)
                    for each in (part.rows, part.begins)
                ),
                *(topic.test_rows for topic in self.topics),
            ),
        }
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return {**body, "hash": hashlib.sha256(canonical.encode()).hexdigest()}


@dataclass(frozen=True)
class Chain:
    """Two transforms, one after the other."""

    first: Transform
    then: Transform

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` (batch, *input_shape), changed twice."""
        return self.then(self.first(x))


def digest(*tensors: Tensor) -> str:
    """Return the sha256, hexadecimal, of the tensors' types, shapes and bytes."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        sha256.update(str((array.dtype.str, array.shape)).encode())
        sha256.update(array.data)  # not copied: stores are large
    return sha256.hexdigest()


@dataclass
class State:
    """What a client keeps between turns: named tensors and plain values, no pickle.

    A strategy gets the committed state, leaves its tensors as they are, and returns a new one.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Plain] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@dataclass(frozen=True)
class Turn:
    """One client's turn: where it stands and how long it trains.

    Attributes:
        run_seed: The run's seed; every draw of the turn derives from it.
        client_id: Partition index, 0-based.
        server_round: 1-based.
        first_epoch: How many local epochs the clock has counted before this turn, whether the
            client took part or not; a pass that `steps` cuts short counts as one. Draws are keyed
            by ``first_epoch + e`` for local epoch e, so that R rounds of one epoch draw what one
            round of R epochs draws.
        epochs: Local epochs, at least 1.
        batch_size: Samples a step, at least 1.
        previous: The experience that the client last trained on, if it has entered another one
            since: it is to be consolidated now. None otherwise.
        config: Scalars that the aggregation sent, e.g. ``{"proximal-mu": 0.1}``.
        steps: Optimiser steps of the turn, at least 1: passes follow each other, and the last one
            ends where the steps do. None for `epochs` whole passes.
        lr_factor: What the learning rate is multiplied by in this turn, greater than 0.
        progress: Share of the experience's rounds that are over, in [0, 1); None where unknown.
        work: Share of `epochs` or `steps` that there is time for, in (0, 1]; see `num_steps`.
    """

    run_seed: int
    client_id: int
    server_round: int
    first_epoch: int
    epochs: int
    batch_size: int
    previous: Experience | None = None
    config: Mapping[str, Plain] = field(default_factory=dict)
    steps: int | None = None
    lr_factor: float = 1.0
    progress: float | None = None
    work: float = 1.0

    def seed(self, purpose: str, *numbers: int) -> int:
        """Return the seed of (run, purpose, client, ...numbers)."""
        return seed(self.run_seed, purpose, self.client_id, *numbers)

    def num_steps(self, batches: int) -> int:
        """Return how many steps the turn has, at least 1, where an epoch has so many batches."""
        whole = self.epochs * batches if self.steps is None else self.steps
        return math.ceil(self.work * whole)


@dataclass(frozen=True)
class LocalTraining:
    """What local training is made of, the same for every client and every turn.

    Attributes:
        optimizer: Builds the optimiser from the model's parameters. Built anew each turn, so no
            momentum outlives a turn.
        num_classes: C, the size of the head.
        max_grad_norm: Gradients are clipped to this L2 norm over all parameters; None for never.
        heads: Classes of each head, by task label, where the scenario is task-incremental: training
            and testing then see only the head of a sample's task. None for one head.
        mask_loss: Classes of each experience where ``head.mask`` is on: the loss of a sample then
            sees only the classes of the experience that its label belongs to, in training and
            never in testing. None for the whole head.
        num_experiences: T, the length of every stream.
        input_shape: Shape of one input, without the batch.
        loss: Loss of a sample; see `fedlearn.losses`.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        class_balance: beta of the class-balanced loss, in [0, 1); None for equal samples.
        augment: Changes the inputs of each batch (batch, *input_shape), drawing from a generator.
        frozen: Patterns (`fnmatch`) of the names of parameters that are not trained.
        precision: Of the forward pass.
        max_loss: A loss above it, or one that is not a number, ends the turn with `DivergedError`.
        gradient_metrics: Whether to report ``grad-norm`` and ``grad-norm-max``, the mean and the
            largest L2 norm of the gradient over the turn's steps, before clipping.
        regression: Whether samples have real targets and no classes.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    num_classes: int
    max_grad_norm: float | None = None
    heads: tuple[tuple[int, ...], ...] | None = None
    mask_loss: tuple[tuple[int, ...], ...] | None = None
    num_experiences: int = 1
    input_shape: tuple[int, ...] = ()
    loss: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    class_balance: float | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    frozen: tuple[str, ...] = ()
    precision: Precision = "float32"
    max_loss: float = math.inf
    gradient_metrics: bool = False
    regression: bool = False


@dataclass
class Report:
    """What a turn did.

    Attributes:
        state: The state to keep for the client's next turn.
        loss: Mean training loss over the turn's last epoch (with `Turn.steps`, over its last pass,
            which may be a part of one), the strategy's own terms included.
        steps: Optimiser steps.
        replayed: Samples that came from memory, over all steps.
        metrics: Anything else worth tracking, as floats.
    """

    state: State
    loss: float
    steps: int
    replayed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class DivergedError(ArithmeticError):
    """A turn's loss is not a number or beyond `LocalTraining.max_loss`: the turn must not count."""


class ContinualStrategy(Protocol):
    """The client's learner: loss and memory.

    Consolidation (Fisher, importances, teacher, buffer) is lazy and happens once an experience, at
    the client's first turn of its next one: `turn.previous` then holds the experience to
    consolidate. So it is right whatever the participation.

    A strategy may have a method ``equip(model: nn.Module) -> nn.Module`` too. Server and clients
    then use the model that it returns in place of the one that the user chose: with prototypes,
    columns or masks as further parameters and buffers, which travel and are averaged with the rest.
    In evaluation mode it outputs what is predicted, (batch, num_classes), the largest wins.
    """

    def train_turn(
        self,
        model: nn.Module,
        experience: Experience,
        stream: Callable[[int], Experience],
        turn: Turn,
        state: State,
    ) -> Report:
        """Train `model`, which holds the received global weights, in place for one turn.

        Args:
            model: The local model; outputs logits (batch, num_classes).
            experience: What to learn; never empty.
            stream: The client's experience of a given index, for what memory points to.
            turn: Where the client stands.
            state: What the client kept; empty at its first turn. Not modified.

        Raises:
            DivergedError: The loss is lost; nothing of the turn may be used.
        """
        ...
