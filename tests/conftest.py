"""What tests of several rooms share."""

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """As the command line sets it: sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
