"""What command lines share: which numbers they read, and how they refuse."""

import argparse

import pytest

from penspin_style.system.arguments import Parser, above_zero, natural, port, positive

NUMBERS = {
    (positive, "1"): 1,
    (positive, "2147483647"): 2**31 - 1,
    (natural, "0"): 0,
    (natural, "9223372036854775807"): 2**63 - 1,
    (port, "0"): 0,
    (port, "65535"): 65535,
    (above_zero(0.01), "1e-12"): 1e-12,
    (above_zero(3600.0), "3600"): 3600.0,
}
REFUSED = {
    (positive, "0"): "'0' is not a whole number of at least 1",
    (positive, "2147483648"): "below 2**31",
    (positive, "-1"): "'-1' is",
    (positive, "1.5"): "'1.5' is",
    (positive, "\u00b2"): "whole number",
    (positive, "9" * 5000): "whole number",  # more digits than Python reads
    (natural, "-1"): "'-1' is not a whole number of 0 to 2**63 - 1",
    (natural, "9223372036854775808"): "2**63 - 1",
    (natural, ""): "'' is not",
    (port, "65536"): "'65536' is not a whole number of 0 to 65535",
    (above_zero(0.01), "0"): "'0' is not a number above 0 and up to 0.01",
    (above_zero(0.01), "nan"): "'nan' is not",
    (above_zero(1.0, "share"), "1.1"): "'1.1' is not a share above 0 and up to 1",
    (above_zero(3600.0), "soon"): "'soon' is not a number above 0 and up to 3600",
}


@pytest.mark.parametrize(("read", "text"), NUMBERS)
def test_a_number_in_its_range_is_read(read, text):
    assert read(text) == NUMBERS[read, text]


@pytest.mark.parametrize(("read", "text"), REFUSED)
def test_what_is_no_such_number_is_refused_with_the_range(read, text):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        read(text)
    assert REFUSED[read, text] in str(refused.value)


def parser():
    own = Parser("tool.sh")
    own.option("val-ratio", "share to validate on", type=float, default=0.1)
    verbs = own.add_subparsers(dest="verb")
    verbs.add_parser("go").add_argument("--times", type=positive)
    return own


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["go", "--times", "0"],
            "tool.sh: argument --times: '0' is not a whole number of at least 1, below 2**31; "
            "see tool.sh go --help",
        ),
        (["--fly"], "tool.sh: unrecognized arguments: --fly; see tool.sh --help"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_command_and_where_to_look(argv, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(argv)
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"{line}\n")


def test_an_option_is_spelled_with_dashes_or_underscores_and_says_its_default():
    for argv in (["--val-ratio=0.2"], ["--val_ratio", "0.2"]):
        assert parser().parse_args(argv).val_ratio == 0.2
    assert "share to validate on, default 0.1" in parser().format_help()
