"""What the tests of the callback share."""

import logging

import pytest

from tests.lightning import modules


@pytest.fixture(autouse=True)
def _know_what_is_attached():
    """An earlier test may have left a controller to the garbage collector; this test did not make it."""
    modules.remember_attached()


@pytest.fixture
def told(caplog):
    """Return what the callbacks have told the user through Lightning's logger so far."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name):
        logger.addHandler(caplog.handler)
        yield lambda: [record.getMessage() for record in caplog.records if record.pathname.endswith(_OURS)]
        logger.removeHandler(caplog.handler)


_OURS = tuple(f"adapt/lightning/{name}.py" for name in ("adaptive", "learned", "reports"))
