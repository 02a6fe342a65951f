"""No file makes its reader run code, write elsewhere or take memory that the file does not hold.

`fuzz.py` looks for inputs that do; those that found something are kept in `corpus`.
"""

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability import fuzz

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
SEEDS = fuzz.seeds()


@pytest.mark.parametrize("reader", SEEDS)
def test_valid_files_are_read(reader):
    assert fuzz.examine(SEEDS[reader])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_files_that_once_found_something_are_refused_or_read_in_peace(path):
    fuzz.examine(path.read_bytes())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=2 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_are_refused_or_read_in_peace(data):
    """Valid files with bytes changed, cut out, repeated or put in."""
    content = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(1, len(content)))
        stop = min(start + data.draw(st.sampled_from([0, 1, 2, 8, 512])), len(content))
        kind = data.draw(st.sampled_from(["change", "cut", "repeat", "put"]))
        if kind == "change":
            content[start:stop] = bytes(
                byte ^ data.draw(st.integers(1, 255)) for byte in content[start : min(stop, start + 8)]
            )
        elif kind == "cut":
            del content[start:stop]
        elif kind == "repeat":
            content[start:start] = content[start:stop]
        else:
            content[start:start] = data.draw(st.binary(max_size=16))
    fuzz.examine(bytes(content))


@pytest.mark.parametrize("reader", ["trace members", "idx", "tar", "packed header"])
def test_memory_follows_what_a_file_holds_not_what_it_declares(reader):
    content = SEEDS[reader]
    if reader == "trace members":
        content = content.replace(b"'shape': (5,)", b"'shape': (9999999999,)")
    elif reader == "packed header":
        content = content.replace(b'"shape":[32,32]', b'"shape":[99999,99999]')
    elif reader == "idx":
        content = content[:5] + b"\x7f\xff\xff\xff" + content[9:]
    else:
        content = content.replace(b"00000000050\0", b"77777777777\0")
    assert content != SEEDS[reader]
    tracemalloc.start()
    try:
        assert not fuzz.examine(content)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_the_watch_notices_what_is_forbidden(monkeypatch):
    """A check that cannot fail would prove nothing."""
    monkeypatch.setattr(fuzz, "READERS", [("mischief", bytes, lambda path: os.system("true"))])
    with pytest.raises(AssertionError, match=r"os\.system"):
        fuzz.examine(b"\0")
