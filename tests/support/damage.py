"""What can happen to a file, and that nothing is read from a folder to which it did."""

import re

import pytest


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lose(path):
    path.unlink()


DAMAGES = (flip, cut, lose)


def check_refused(load, folder, name, damage):
    """Damage one file of a folder: loading the folder names the file."""
    damage(folder / name)
    with pytest.raises(ValueError, match=re.escape(name)):
        load(folder)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
"""YAML of some lines that stands for 2**40 values."""
