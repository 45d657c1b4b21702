"""Nothing that others wrote moves the cursor of the terminal that shows it."""

import pytest

from penspin_style.terminal import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\bc\x07", r"a\rb\x08c\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
        ('prüfung 試験 °C it\'s "so" \\', 'prüfung 試験 °C it\'s "so" \\'),
        ("'\x00'", r"'\x00'"),
    ],
)
def test_what_is_no_character_to_print_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_an_error_is_one_line():
    assert one_line(ValueError("two\n  lines \x1b[1m")) == r"two lines \x1b[1m"
