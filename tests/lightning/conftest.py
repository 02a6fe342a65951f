"""What the tests of the callback share."""

import pytest

from tests.lightning import modules


@pytest.fixture(autouse=True)
def _know_what_is_attached():
    """An earlier test may have left a controller to the garbage collector: it is none of this test's."""
    modules.remember_attached()
