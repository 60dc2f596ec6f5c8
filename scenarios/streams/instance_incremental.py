"""Streams whose classes are there all along, wholly or in part: new samples, blurred boundaries."""

from dataclasses import dataclass, replace
from typing import ClassVar

from fedlearn.types import Kind
from scenarios.dataset import Dataset
from scenarios.streams.class_incremental import ClassIncremental
from scenarios.streams.layout import Layout, check_num_experiences, of_domains


@dataclass(frozen=True)
class InstanceIncremental:
    """Every experience brings new samples of all classes, each sample once.

    A client's samples of each class are dealt out evenly, in random order: "new instances" of
    Lomonaco & Maltoni (2017), and with many experiences of one round and one epoch each the data-
    incremental stream without boundaries of De Lange & Tuytelaars (2021). All experiences are
    tested on the whole test set, so that row i of a[i, j] is one number.

    Attributes:
        num_experiences: T, at least 1.
    """

    num_experiences: int = 5

    kind: ClassVar[Kind] = "domain"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: all classes, each sample in one experience."""
        return of_domains(self, dataset, (None,) * self.num_experiences, dealt=True)


@dataclass(frozen=True)
class Chunked(ClassIncremental):
    """A class-incremental stream in small chunks, one after another: the online setting.

    The samples of each group of classes are dealt out evenly over `chunks` experiences, each sample
    once; all chunks of a group are tested alike. With one round of one epoch an experience every
    sample is seen once, as by Avalanche's ``split_online_stream`` whose boundaries are known.

    Attributes:
        num_experiences: T, groups of classes times `chunks`.
        chunks: Experiences that share a group of classes, at least 1.
    """

    num_experiences: int = 25
    chunks: int = 5

    def __post_init__(self) -> None:
        if self.chunks < 1 or self.num_experiences % self.chunks:
            raise ValueError(
                f"scenario.chunks={self.chunks}: must divide scenario.num_experiences="
                f"{self.num_experiences}"
            )
        super().__post_init__()

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: groups of classes, one after another, in chunks."""
        whole = super().lay_out(dataset, num_clients, seed)
        return replace(
            whole,
            classes=tuple(classes for classes in whole.classes for _ in range(self.chunks)),
            weights=whole.weights.repeat_interleave(self.chunks, dim=0),
            dealt=True,
        )

    @property
    def _num_groups(self) -> int:
        return self.num_experiences // self.chunks


@dataclass(frozen=True)
class Blurry(ClassIncremental):
    """As class-incremental, but a share of every class's samples comes in other experiences.

    Blurred boundaries, "blurry-M" of Bang et al. ("Rainbow Memory", CVPR 2021): of each class,
    1 - blur of a client's samples come in the experience that the class belongs to, and the rest
    evenly in the others. Each experience is tested on its own classes.

    Attributes:
        blur: In [0, 1): 0 is class-incremental.
    """

    blur: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.blur < 1:
            raise ValueError(f"scenario.blur={self.blur}: must be in [0, 1)")
        object.__setattr__(self, "blur", float(self.blur))  # 0 and 0.0 are one protocol

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: disjoint classes, a share of whose samples goes elsewhere."""
        sharp = super().lay_out(dataset, num_clients, seed)
        comes = sharp.weights.sum(0)  # 1 of each class, 0 of those that are left out
        elsewhere = (comes - sharp.weights) * self.blur / max(self.num_experiences - 1, 1)
        return replace(sharp, weights=sharp.weights * (1 - self.blur) + elsewhere, dealt=True)
