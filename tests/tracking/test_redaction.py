"""Secrets: found by name and by value, and nothing else is touched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.tracking.redaction import REDACTED, redact

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abcdef ", max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcdef", max_size=5), inner),
)


@pytest.mark.parametrize(
    "name", ["api_key", "APIKEY", "wandb_token", "clientSecret", "password", "credentials"]
)
def test_what_stands_under_a_secret_name_goes(name):
    assert redact({"a": [{name: "v"}]}, {}) == {"a": [{name: REDACTED}]}
    assert redact({name: {"nested": "v"}}, {}) == {name: REDACTED}
    assert redact({name: None}, {}) == {name: None}


def test_counts_of_tokens_are_no_secret_but_a_number_can_be_a_password():
    assert redact({"num_tokens": 512, "use_key": True}, {}) == {"num_tokens": 512, "use_key": True}
    assert redact({"password": 1234}, {}) == {"password": REDACTED}


def test_values_of_secret_environment_variables_go_wherever_they_stand():
    environment = {"MY_API_KEY": "hunter2-hunter2", "HOME": "/home/someone", "A_KEY": "short"}
    told = {"note": "uses hunter2-hunter2 here", "home": "/home/someone", "x": "short"}
    assert redact(told, environment) == {**told, "note": f"uses {REDACTED} here"}


def test_of_two_secrets_the_longer_goes_first():
    environment = {"A_TOKEN": "12345678", "B_TOKEN": "123456789abc"}
    assert redact("123456789abc", environment) == REDACTED


def test_assignments_and_urls_in_texts():
    command = ["run.py", "tracker.api_key=abc", "+a.token=xyz", "seed=1", "url=http://u:p@h/x?y=1"]
    assert redact(command, {}) == [
        "run.py",
        f"tracker.api_key={REDACTED}",
        f"+a.token={REDACTED}",
        "seed=1",
        f"url=http://{REDACTED}@h/x?y=1",
    ]
    assert redact("https://h/x?token=abc&page=2", {}) == f"https://h/x?token={REDACTED}&page=2"


@given(plain)
def test_what_is_not_secret_stays_as_it_is(value):
    assert redact(value, {"SOME_KEY": "not-in-there"}) == value
