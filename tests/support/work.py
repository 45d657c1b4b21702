"""How long a test computes: CPU time, which a busy machine does not stretch."""

import contextlib
import os


def computed():
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@contextlib.contextmanager
def at_most(seconds):
    """What is within takes no more CPU time than that."""
    began = computed()
    yield
    assert computed() - began < seconds
