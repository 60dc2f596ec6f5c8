"""Checks of ``_target_`` nodes: keys, types and ranges come from the object itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.config.errors import ConfigError, did_you_mean, nearest, one_line
from fedlearn.config.interval import Interval
from fedlearn.config.targets import check_node, check_range, locate, mismatch


class Sample:
    def __init__(
        self,
        size: int,
        rate: float = 0.1,
        kind: Literal["big", "small"] = "big",
        sizes: Sequence[int] = (1,),
        pair: tuple[float, float] = (0.0, 1.0),
        inner: "Sample | None" = None,
        **_: Any,
    ) -> None: ...


class Strict:
    def __init__(self, size: int, rate: float | torch.Tensor = 0.1) -> None: ...


def sample(name: str = "Strict", **keys: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{name}", **keys}


def check(node: Any, supplied: Sequence[str] = (), extra: Sequence[str] = ()) -> None:
    check_node("group", node, supplied, extra)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (-3, float),
        (0.5, float),
        (True, bool),
        ("a", str),
        ("a/b", Path),
        (None, int | None),
        (3, int | None),
        ([1, 2], Sequence[int]),
        ([], list[int]),
        ([0.9, 0.999], tuple[float, float]),
        ([1, 2, 3], tuple[int, ...]),
        ({"a": 1}, Mapping[str, int]),
        ("big", Literal["big", "small"]),
        (None, Literal["big"] | None),
        (0.1, float | torch.Tensor),
        (3, Annotated[int, "a size"]),
        ("anything", Any),
        ("anything", Callable[[], int]),
        ("anything", torch.Tensor),
        ("anything", "unresolved"),
    ],
)
def test_what_fits_is_accepted(value: object, hint: object) -> None:
    assert mismatch(value, hint) is None


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, int, "a whole number"),
        (1.0, int, "a whole number"),
        ("1", int, "a whole number"),
        (True, float, "a finite number"),
        (math.nan, float, "a finite number"),
        (math.inf, float | None, "a finite number or null"),
        (1, bool, "true or false"),
        (1, str, "text"),
        (1, Path, "a path"),
        (None, int, "a whole number"),
        ("ab", Sequence[str], "a list"),
        (1, list[int], "a list"),
        ([1, "x"], list[int], "a list; x in it must be a whole number"),
        ([1.0], tuple[float, float], "a list of 2"),
        ([[1, "x"]], list[list[int]], "a list; [1, 'x'] in it must be a list; x in it must be"),
        ([1], Mapping[str, int], "a mapping"),
        ("bigg", Literal["big", "small"], "one of big, small; did you mean big?"),
        ("x", float | torch.Tensor, "a finite number"),
        ("x", Annotated[int, "a size"], "a whole number"),
    ],
)
def test_what_does_not_fit_is_said_in_words(value: object, hint: object, expected: str) -> None:
    wrong = mismatch(value, hint)
    assert wrong is not None
    assert wrong.startswith(expected)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_every_finite_number_is_a_float_and_only_whole_ones_are_ints(number: float) -> None:
    assert mismatch(number, float) is None
    assert mismatch(number, int) == "a whole number"
    assert mismatch(int(number), int) is None


def test_keys_are_the_targets_parameters() -> None:
    check(sample(size=1, rate=0.5))
    for node, message in [
        (sample(), "group.size: is missing"),
        (sample(sise=1), "group.sise=1: unknown key; did you mean size? keys: size, rate"),
        (sample(size=1, nonsense=2), "group.nonsense=2: unknown key; keys: size, rate"),
        (sample(size="x"), "group.size=x: must be a whole number"),
    ]:
        with pytest.raises(ConfigError) as caught:
            check(node)
        assert str(caught.value).startswith(message)


def test_supplied_parameters_are_neither_required_nor_allowed() -> None:
    check(sample(), supplied=["size"])
    with pytest.raises(ConfigError, match=r"group.size=1: is filled in by fedlearn"):
        check(sample(size=1), supplied=["size"])


def test_extra_keys_are_not_parameters() -> None:
    check(sample(size=1, bound={"anything": 1}), extra=["bound"])


def test_a_target_that_takes_any_key_gets_any_key() -> None:
    check(sample("Sample", size=1, whatever=[1]))


def test_nested_nodes_are_checked_with_their_own_path() -> None:
    check(sample("Sample", size=1, inner=sample(size=2)))
    with pytest.raises(ConfigError, match=r"group.inner.size=x: must be a whole number"):
        check(sample("Sample", size=1, inner=sample(size="x")))
    check(sample("Sample", size=1, inner=sample(_partial_=True)))


def test_limits_are_intervals_of_other_keys() -> None:
    limits = {"rate": "(0, 1]"}
    check(sample(size=1, rate=1.0, limits=limits))
    with pytest.raises(ConfigError, match=r"group.rate=0: must be in \(0, 1\]"):
        check(sample(size=1, rate=0, limits=limits))


@pytest.mark.parametrize(
    ("dotted", "message"),
    [
        ("nowhere.Model", "there is no module nowhere"),
        ("fedlearn.seedling.seed", "fedlearn has no seedling; did you mean seeding?"),
        ("fedlearn.seeding.sed", "fedlearn.seeding has no sed; did you mean seed?"),
        ("fedlearn.seeding", "is not something that can be called"),
        ("", "cannot be imported"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(dotted: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate("group._target_", dotted)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"group._target_={dotted}: ")


def test_a_missing_library_of_the_target_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_something_for_test.py").write_text("import not_installed_for_test\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="No module named 'not_installed_for_test'"):
        locate("group._target_", "needs_something_for_test.Model")


def test_nested_attributes_are_found() -> None:
    assert locate("group._target_", "pathlib.Path.cwd") == Path.cwd


numbers = st.floats(-100, 100)


@given(numbers, numbers, st.booleans(), st.booleans(), numbers)
def test_an_interval_holds_what_its_notation_says(
    one: float, other: float, holds_least: bool, holds_most: bool, value: float
) -> None:
    least, most = sorted([one, other])
    notation = f"{'(['[holds_least]}{least}, {most}{')]'[holds_most]}"
    interval = Interval.parse(notation)
    assert (value in interval) == (
        (least <= value if holds_least else least < value)
        and (value <= most if holds_most else value < most)
    )
    assert (least in interval) == (holds_least and (holds_most or least < most))
    assert math.nan not in interval


@pytest.mark.parametrize(
    ("notation", "words"),
    [
        ("[1, inf)", "at least 1"),
        ("(0, inf)", "greater than 0"),
        ("(-inf, 3]", "at most 3"),
        ("(-inf, 3)", "less than 3"),
        ("(0, 1]", "in (0, 1]"),
        ("[1, 1]", "exactly 1"),
    ],
)
def test_an_interval_speaks_plainly(notation: str, words: str) -> None:
    assert str(Interval.parse(notation)) == words


@pytest.mark.parametrize("notation", ["", "0, 1", "[0 1]", "[a, b]", "{0, 1}"])
def test_what_is_no_interval_is_refused(notation: str) -> None:
    with pytest.raises(ConfigError):
        check_range("group.rate", 0.5, notation)


def test_the_nearest_name_looks_at_siblings_first() -> None:
    names = ["seed", "local.epochs", "dataset.seed", "optimizer.lr"]
    assert nearest("dataset.sed", names) == "dataset.seed"
    assert nearest("sed", names) == "seed"
    assert nearest("lr", names) == "optimizer.lr"
    assert nearest("locl.epoch", names) == "local.epochs"
    assert nearest("dataset.roots", names) is None
    assert did_you_mean("zzz", names) == ""


@given(st.text())
def test_a_message_is_always_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1
