"""What the tests of the callback share."""

import logging

import pytest

from tests.lightning import modules


@pytest.fixture(autouse=True)
def _know_what_is_attached():
    """An earlier test may have left a controller to the garbage collector; this test did not make it."""
    modules.remember_attached()


@pytest.fixture
def told():
    """Return what the callbacks have told the user through Lightning's logger so far."""
    logger, handler = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Kept()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [record.getMessage() for record in handler.records if "/adapt/lightning/" in record.pathname]
    logger.removeHandler(handler)
    logger.setLevel(level)


class Kept(logging.Handler):
    """Keeps all records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)
