"""Warnings point at the line of the user's own code that led to them."""

import warnings

import torch

import adapt
from adapt import user_warnings
from tests.training import loss_of, net


def test_a_warning_points_at_its_nearest_caller_outside():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        user_warnings.warn("something")
    assert [warning.filename for warning in caught] == [__file__]


def test_a_loss_that_was_never_shown_is_told_at_the_step():
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    adapt.attach(optimizer, module, adapt.AdaPT(lookback=(2, 3)))
    loss_of(module, 0).backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    (warning,) = caught
    assert "never saw the loss" in str(warning.message)
    assert warning.filename == __file__
    with open(__file__, encoding="utf-8") as source:
        assert source.readlines()[warning.lineno - 1].strip() == "optimizer.step()"


def test_a_program_of_one_file_is_pointed_at_too():
    code = compile("user_warnings.warn('something')", "program.py", "exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, {"__name__": "__main__", "user_warnings": user_warnings})
    assert [warning.filename for warning in caught] == ["program.py"]


def test_where_everything_is_inside_the_outermost_line_counts():
    code = compile("user_warnings.warn('something')", "inside.py", "exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, {"__name__": "adapt.inside", "user_warnings": user_warnings})
    assert [warning.filename for warning in caught] == [__file__]
