"""The command line called in this process, and what every refusal must look like."""

import shlex

from penspin_style import __main__ as cli


def call(line):
    """Run a command line in this process; return its exit code."""
    try:
        return cli.main(shlex.split(line))
    except SystemExit as stop:
        return stop.code


def check_refusal(code, out, err, expected_code, expected):
    assert code == expected_code
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert err.startswith("penspin: ") and expected in err
    assert "Traceback" not in err and len(err) < 600
