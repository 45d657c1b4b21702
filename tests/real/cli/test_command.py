"""The verbs of robots on the command line, and how the command line finds verbs of others."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

from penspin_style import __main__ as cli
from penspin_style.cli import arguments
from real.cli.command import exit_code
from real.robot import StoppedError


def call(capsys, *argv):
    code = cli.main(argv)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_installed_package_offers_the_verbs_of_robots():
    assert "real.cli.command:add_verbs" in [
        e.value for e in entry_points(group="penspin_style.verbs")
    ]
    said = subprocess.run(
        [sys.executable, "-m", "penspin_style", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "twin" in said.stdout and said.stderr == ""


def test_twins_are_listed_with_what_they_are(capsys):
    code, out, _ = call(capsys, "twin", "--json")
    twins = json.loads(out)["twins"]
    assert code == 0 and {"pen", "pen_shifted", "panda", "panda_shifted"} <= {*twins}
    code, out, _ = call(capsys, "twin")
    assert code == 0 and all(summary in out for summary in twins.values())


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("twin", "pan"), "say which policy"),
        (("twin", "pandas", "x.onnx"), "there is no twin 'pandas'; did you mean panda"),
        (("twin", "pen", "nothing.onnx"), "nothing.onnx is not a file"),
    ],
)
def test_an_invalid_line_is_answered_in_one_line(capsys, argv, complaint):
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "") and complaint in err and err.count("\n") == 1


@pytest.mark.parametrize("word", ["0", "-1", "x"])
def test_counts_are_whole_numbers(capsys, word):
    with pytest.raises(SystemExit) as caught:
        cli.main(["twin", "pen", "x.onnx", "--episodes", word])
    assert caught.value.code == 2 and "whole number" in capsys.readouterr().err


def offer(monkeypatch, value):
    entry = EntryPoint("others", value, "penspin_style.verbs")
    monkeypatch.setattr(arguments, "entry_points", lambda group: [entry])


def add_verbs(verbs):
    """What the entry point of another package would be."""
    sub = verbs.add_parser("nod")
    sub.add_argument("--times", type=int, default=1)
    sub.set_defaults(run=exit_code(nod))


def nod(args):
    if args.times > 9:
        raise StoppedError("the neck is stopped;\n reset() it")
    if args.times < 0:
        raise ValueError("--times must not be negative")
    print("nod " * args.times)
    return 5


@pytest.mark.parametrize(
    ("times", "code", "out", "err"),
    [
        (2, 5, "nod nod", ""),
        (-1, 2, "", "penspin: --times must not be negative"),
        (10, 3, "", "penspin: the neck is stopped; reset() it"),
    ],
)
def test_another_packages_verb_runs_and_its_errors_are_one_line(
    monkeypatch, capsys, times, code, out, err
):
    offer(monkeypatch, f"{__name__}:add_verbs")
    got, said, complaint = call(capsys, "nod", f"--times={times}")
    assert (got, said.strip(), complaint.strip()) == (code, out, err)


@pytest.mark.parametrize("value", ["no_such_package:add_verbs", f"{__name__}:add_no_verbs"])
def test_verbs_that_cannot_be_loaded_are_named_and_left_out(monkeypatch, capsys, value):
    offer(monkeypatch, value)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr()
    assert f"the verbs of {value} are missing" in said.err
    assert "train" in said.out and "twin" not in said.out
