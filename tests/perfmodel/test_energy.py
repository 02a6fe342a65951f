import numpy as np
import pytest

from adapt.perfmodel import multiply_add_energy


def test_the_table_at_45_nm():
    """Multiply int8 0.2, int32 3.1, fp32 3.7 pJ; add int32 0.1, fp32 0.9 pJ."""
    assert multiply_add_energy(8) == pytest.approx(0.2 + 0.1)
    assert multiply_add_energy(32) == pytest.approx(3.7 + 0.9)
    # Just below 32 bits it is an integer, where the table's multiplier takes 3.1 pJ.
    assert multiply_add_energy(31.999) == pytest.approx(3.1 + 0.1, rel=0.04)


def test_narrower_operands_take_less_and_float32_wins_over_short_ones():
    assert (np.diff(multiply_add_energy(np.arange(1, 33))) > 0).all()
    assert multiply_add_energy(4, 8) == multiply_add_energy(8, 4) == pytest.approx(0.1 + 0.1)
    assert multiply_add_energy(2, 32) == multiply_add_energy(32)


def test_negative_bits_are_refused():
    with pytest.raises(ValueError, match="weight_bits must be finite and at least 0"):
        multiply_add_energy(-1)
