import numpy as np
import pytest
import torch

from adapt.adaptive.step_figures import StepFigures

CPU = torch.device("cpu")


def fill(pending, step):
    slot = pending.slot
    slot.squared.copy_(torch.tensor([1.0, 2.0]) + step)
    slot.squared_sums.copy_(torch.tensor([10.0, 11.0]) + step)
    slot.masters.copy_(torch.tensor([[100.0, 20.0, 30.0], [200.0, 21.0, 31.0]]) + step)
    slot.loss.fill_(0.5 + step)
    pending.add()


@pytest.mark.parametrize("steps", [1, 3])
def test_what_goes_in_comes_out(steps):
    pending = StepFigures(2, 3, CPU)
    for step in range(steps):
        assert len(pending) == step
        fill(pending, step)
    assert pending.full is (steps == 3)
    figures = pending.take()
    added = np.arange(steps)[:, None]
    np.testing.assert_array_equal(figures.squared, added + np.array([1.0, 2.0]))
    np.testing.assert_array_equal(figures.squared_sums, added + np.array([10.0, 11.0]))
    np.testing.assert_array_equal(figures.l1_norms, added + np.array([20.0, 21.0]))
    np.testing.assert_array_equal(figures.squared_weights, added + np.array([30.0, 31.0]))
    np.testing.assert_array_equal(figures.nonzeros, added + np.array([100.0, 200.0]))
    np.testing.assert_array_equal(figures.losses, added[:, 0] + 0.5)
    assert all(array.dtype == np.float64 for array in figures)


def test_taking_empties_it():
    pending = StepFigures(2, 3, CPU)
    for _ in range(2):
        for step in range(3):
            fill(pending, step)
        assert len(pending.take().losses) == 3
    assert len(pending) == 0
    assert not pending.full


def test_what_was_taken_does_not_change():
    pending = StepFigures(2, 3, CPU)
    slot = pending.slot
    fill(pending, 0)
    figures = pending.take()
    assert slot.squared.tolist() == [1.0, 2.0], "a step goes on with its own slot after the policy has seen it"
    fill(pending, 7)
    assert figures.squared.tolist() == [[1.0, 2.0]]


def test_rows_share_no_memory():
    pending = StepFigures(2, 2, CPU)
    first = pending.slot
    fill(pending, 0)
    assert pending.slot.masters.is_contiguous()
    fill(pending, 5)
    assert first.squared.tolist() == [1.0, 2.0]


def test_a_row_that_was_not_added_is_written_anew():
    pending = StepFigures(2, 1, CPU)
    pending.slot.squared.fill_(9.0)
    assert len(pending) == 0
    fill(pending, 0)
    assert pending.take().squared.tolist() == [[1.0, 2.0]]
