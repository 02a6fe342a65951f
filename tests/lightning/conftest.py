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
    handler = Kept()
    # Both packages share the functions that log; the one that was imported last has them log in its name.
    loggers = [logging.getLogger(f"{name}.utilities.rank_zero") for name in ("lightning.pytorch", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield lambda: [record.getMessage() for record in handler.records if "/adapt/lightning/" in record.pathname]
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


class Kept(logging.Handler):
    """Keeps all records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)
