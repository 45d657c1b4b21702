"""Rules of success, and answers of an operator."""

import math

import pytest

from real.control.success import SUCCESS, Label, SuccessRule, ask, check_watched
from real.robot import RobotError


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("success", SUCCESS),
        ("turns>=0.5", SuccessRule("turns", 0.5)),
        (" time_to_fall >= 1e1 ", SuccessRule("time_to_fall", 10.0)),
        ("reach<=-2", SuccessRule("reach", -2.0, at_least=False)),
    ],
)
def test_a_rule_is_a_measure_and_a_threshold(text, rule):
    assert SuccessRule.parse(text) == rule
    assert SuccessRule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "turns>0.5", "turns>=", "turns>=many", "turns>=nan", "turns>=inf", "2>=1", "a b"]
)
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ValueError, match="no rule of success; write MEASURE"):
        SuccessRule.parse(text)


def test_a_rule_holds_from_its_threshold_on():
    least, most = SuccessRule("turns", 0.5), SuccessRule("turns", 0.5, at_least=False)
    assert [least.holds({"turns": x}) for x in (0.49, 0.5, 0.51, math.nan)] == [0, 1, 1, 0]
    assert [most.holds({"turns": x}) for x in (0.49, 0.5, 0.51, math.nan)] == [1, 1, 0, 0]
    assert SUCCESS.holds({"success": True}) and not SUCCESS.holds({"success": False})


def test_a_measure_that_the_robot_lacks_is_named_with_those_it_has():
    with pytest.raises(RobotError, match="does not measure 'turn', it measures terminated, turns"):
        SuccessRule("turn", 1.0).holds({"turns": 1.0, "terminated": False})
    with pytest.raises(RobotError, match="measures nothing: label by hand with --ask"):
        SUCCESS.holds({})


def test_the_question_is_repeated_until_it_is_answered(capsys):
    lines = iter(["what?\n", "\n", "Yes\n"])
    assert ask("did it spin?", lambda: next(lines)) is Label.SUCCESS
    assert capsys.readouterr().err.count("did it spin? [y]es, [n]o, [d]iscard") == 3
    assert ask("?", lambda: "n\n") is Label.FAILURE
    assert ask("?", lambda: "d\n") is Label.DISCARD


def test_nobody_to_ask_is_an_error():
    with pytest.raises(RobotError, match="nobody answers"):
        ask("?", lambda: "")
    check_watched(is_asking=False)
    with pytest.raises(RobotError, match="needs a terminal"):  # pytest's input is none
        check_watched(is_asking=True)
