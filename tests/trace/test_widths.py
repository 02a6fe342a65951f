"""The record of word lengths by channel, and its file."""

import numpy as np
import pytest

from adapt.learned import Widths


def record():
    widths = Widths(["a", "b.input"], [2, 1], [10, 30, 5])
    widths.append(1, [4, 6, 8])
    widths.append(5, [4, 6, 8])
    widths.append(9, [3, 6, 7])
    return widths


def test_rows_are_there_where_something_changed():
    widths = record()
    assert widths.step.tolist() == [1, 9]
    assert widths.of("a").tolist() == [[4, 6], [3, 6]]
    assert widths.of("b.input").tolist() == [[8], [7]]
    assert widths.sizes("a").tolist() == [10, 30]
    assert widths.means() == pytest.approx(np.array([[5.5, 8], [5.25, 7]]))


def test_file_and_state_hold_everything(tmp_path):
    widths = record()
    widths.save(tmp_path / "widths.npz")
    for other in (Widths.load(tmp_path / "widths.npz"), Widths.from_state_dict(widths.state_dict())):
        assert other.names == widths.names
        assert np.array_equal(other.step, widths.step)
        assert np.array_equal(other.word_length, widths.word_length)
        assert np.array_equal(other.numel, widths.numel)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="unique names"):
        Widths(["a"], [2], [1])
    with pytest.raises(KeyError, match="no tensor is called 'c'"):
        record().of("c")
    with pytest.raises(ValueError, match="step must increase"):
        record().append(9, [1, 1, 1])
    with pytest.raises(ValueError, match="word_length must be"):
        record().append(10, [1, 1])
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no readable widths"):
        Widths.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"version is 7, .* install adapt .*, which wrote it"):
        Widths.from_state_dict(record().state_dict() | {"version": 7})
    with pytest.raises(ValueError, match="missing or too much: 'numel'"):
        Widths.from_state_dict({name: value for name, value in record().state_dict().items() if name != "numel"})
