"""What tests of several rooms share."""

import signal

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import pytest
import torch

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal, also where nohup starts the tests


@pytest.fixture(scope="module")
def one_thread():
    """As the command line sets it: sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
