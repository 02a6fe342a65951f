import numpy as np
import torch

from adapt import attach, quantize
from adapt.numerics import Precision
from adapt.switching.fixed import FOREVER, Fixed
from adapt.switching.policy import Observation

PRECISION = Precision(6, 4)


def test_every_layer_is_in_the_one_format_for_ever():
    policy = Fixed(PRECISION)
    state = policy.start([torch.zeros(2), torch.ones(3)])
    assert state.formats == (PRECISION, PRECISION)
    assert policy.patience(state) == FOREVER
    observation = Observation(
        loss=None,
        norms=np.ones(2),
        norms_of_sums=np.zeros(2),
        seen=np.array([True, False]),
        sound=np.array([True, True]),
        weights=[torch.zeros(2), torch.ones(3)],
    )
    assert policy.advance(state, observation) is state


def test_it_needs_neither_sums_nor_gradients_nor_the_loss():
    policy = Fixed(PRECISION)
    assert not any([policy.sums_gradients, policy.keeps_gradients, policy.uses_loss])
    assert not any([policy.normalize_gradients, policy.quantize_gradients])


def test_there_is_no_window_to_tell_about():
    policy = Fixed(PRECISION)
    assert policy.record(policy.start([torch.zeros(2)] * 3)) == {}


def test_a_run_that_began_in_another_format_goes_over_to_it_in_the_next_step():
    policy, state = Fixed(PRECISION), Fixed(Precision(8, 6)).start([torch.zeros(2)] * 2)
    assert policy.patience(state) == 0
    moved = policy.advance(state, None)
    assert moved.formats == (PRECISION, PRECISION)
    assert policy.patience(moved) == FOREVER


def test_another_format_takes_over_a_run():
    model = torch.nn.Linear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = attach(optimizer, model, Fixed(Precision(8, 6)))
    for policy in (controller.policy, Fixed(Precision(4, 2))):
        controller.policy = policy
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        assert controller.precisions == {"weight": policy.precision}
    assert controller.trace.word_length.tolist() == [[8], [4]]
    assert torch.equal(model.weight, quantize(model.weight.detach(), Precision(4, 2)))
