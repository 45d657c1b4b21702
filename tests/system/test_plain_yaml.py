"""YAML from files of others: one meaning, an end, and nothing looked up."""

import os

import pytest

from penspin_style.system.plain_yaml import MAX_BYTES, parse_mapping, read_mapping
from tests.support.damage import BOMB
from tests.support.work import at_most


def test_values_are_those_that_omegaconf_writes():
    text = "a: 1.0e-05\nb: 1e-5\nc: '1e-5'\nd: [1, true, null, x]\ne: {f: -2}\ng: 2020-01-01\n"
    assert parse_mapping(text) == {
        **{"a": 1e-5, "b": 1e-5, "c": "1e-5", "d": [1, True, None, "x"]},
        **{"e": {"f": -2}, "g": "2020-01-01"},
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BOMB, r"line 2 has an alias \(\*NAME\)"),
        ("a: &x [*x]", "line 1 has an alias"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "line 2 has the key 'c' for the second time"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: " + "[" * 400 + "]" * 400, "nested too deeply"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!binary aGk=", "holds a bytes"),
        ("a: !!bool perhaps", "perhaps"),
        ("a: " + "9" * 5000, "digits"),
        ("1: a", "the key 1 is not a text"),
        ("? [a]\n: b", "line 1 has a key that is not a text"),
        ("- a", "must be a mapping, it is list"),
        ("", "must be a mapping, it is NoneType"),
        ("a: [", "expected the node content"),
        ("a: '" + "x" * MAX_BYTES + "'", f"larger than {MAX_BYTES} bytes"),
    ],
)
def test_what_has_another_meaning_or_no_end_is_refused_at_once(text, fault):
    with at_most(2.0), pytest.raises(ValueError, match=fault) as caught:
        parse_mapping(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_has_no_end_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"config\.yaml is not readable: .*not a regular file"):
        read_mapping(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"config\.yaml is not readable: .*not a regular file"):
        read_mapping(path)
    path.unlink()
    path.write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match=r"config\.yaml is not readable: .*decode"):
        read_mapping(path)
