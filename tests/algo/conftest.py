"""What the tests of students share."""

import pytest

from tests.support import formula


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher that is a formula."""
    return formula.publish(tmp_path_factory.mktemp("teacher") / "policy")
