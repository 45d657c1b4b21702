"""What is printed: texts that others wrote, and JSON.

A name in a file, an error that quotes it and the name of the file itself may hold sequences that
move the cursor, recolour the screen or type for the user; a terminal sees none of them.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(value, indent=1, allow_nan=False), flush=True)


def printable(text: str) -> str:
    r"""Return a text with what is no character to print written out, as \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: object) -> str:
    """Return a text, or an error's, printable and on one line."""
    return printable(" ".join(str(text).split()))


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Return a line for each row; columns `left` begin at the same place, the others end there."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
