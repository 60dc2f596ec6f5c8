"""The catalogue of continual strategies names every choice, and what it says can be checked."""

import re
from pathlib import Path

import pytest

from fedlearn.config.choices import conf_dir, describe, find_choices
from fedlearn.config.composition import compose

NONE = "\N{EN DASH}"
REPOSITORY = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (REPOSITORY / "docs" / "continual.md").read_text().splitlines()
    if line.startswith("| `")
]


def test_every_choice_has_one_row() -> None:
    names = [row[0].strip("`") for row in ROWS]
    assert sorted(names) == [choice.name for choice in find_choices()["continual"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_a_row_says_what_the_choice_is(row: list[str]) -> None:
    name, paper, kinds, _, _, functional, _, verified = row
    node = compose([f"continual={name.strip('`')}"]).tree["continual"]
    described = describe(conf_dir() / "continual" / f"{name.strip('`')}.yaml")
    assert paper == NONE or f"({paper})" in described
    fits = node.get("kinds", ["class", "task", "domain"])
    assert kinds.split(", ") == fits + ["regression"] * node.get("regression", False)
    assert (functional == NONE) == ("functional" not in node)
    for path in re.findall(r"`([\w/]+\.py)`", verified):
        assert (REPOSITORY / "tests" / path).is_file()
    assert re.search(r"`[\w/]+\.py`", verified)
