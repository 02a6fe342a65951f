import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapt.perfmodel import (
    A100,
    T4,
    HardwareProfile,
    LayerCost,
    inference_speedup,
    layer_latency,
    machines,
    network_layers,
    profiled_inference_speedup,
    profiled_training_speedup,
    training_speedup,
)

EVERY_WIDTH = HardwareProfile("any width", {bits: 1000 / bits for bits in range(1, 33)})


def test_a_layer_runs_at_the_next_supported_width_up():
    bits = [[1, 2, 4, 5], [8, 9, 16, 17]]
    assert A100.width(bits).tolist() == [[1, 4, 4, 8], [8, 16, 16, 32]]
    assert A100.rate(bits).tolist() == [[4992, 1248, 1248, 624], [624, 312, 312, 19.5]]
    assert T4.rate(6.2) == 130


@given(st.lists(st.integers(1, 32), min_size=1, max_size=6), st.data())
def test_a_machine_with_every_width_gives_the_ideal_figures(word_length, data):
    counts = data.draw(st.lists(st.integers(1, 10**6), min_size=len(word_length), max_size=len(word_length)))
    ideal = inference_speedup(counts, word_length, 1.0)
    assert profiled_inference_speedup(counts, word_length, EVERY_WIDTH) == pytest.approx(ideal)
    ideal = training_speedup(counts, word_length, 1.0, batch_size=1)
    assert profiled_training_speedup(counts, word_length, EVERY_WIDTH) == pytest.approx(ideal)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=6), st.sampled_from([A100, T4]))
def test_it_is_never_slower_than_float32(word_length, profile):
    counts = [100] * len(word_length)
    assert profiled_inference_speedup(counts, word_length, profile) >= 1
    assert 1 <= profiled_training_speedup(counts, word_length, profile) <= 1.5


def test_the_papers_rates():
    """AQT table 1: half the bits, twice the speed."""
    assert profiled_inference_speedup([10], [8], A100, other_bits=16) == 2
    assert profiled_inference_speedup([10], [4], A100, other_bits=16) == 4
    assert profiled_inference_speedup([10], [[32], [3]], A100, other_bits=8) == 2


def test_training_counts_every_row_and_the_backward_pass():
    profile = HardwareProfile("two widths", {8: 4.0, 32: 1.0})
    assert profiled_training_speedup([10], [[8], [9]], profile) == pytest.approx(3 / ((2.25 + 3) / 2))
    slow = profiled_training_speedup([10], [[8]], profile, backward_bits=8, backward_factor=1)
    assert slow == pytest.approx((1 + 0.25) / (0.25 + 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HardwareProfile("none", {}), "rates of none must map bits to TOPS"),
        (lambda: HardwareProfile("text", {8: "fast"}), "rates of text must map bits to TOPS, all above 0"),
        (lambda: HardwareProfile("list", [8, 16]), "rates of list must map bits to TOPS, all above 0"),
        (lambda: HardwareProfile("still", {8: 0}), "rates of still must map bits to TOPS, all above 0"),
        (lambda: HardwareProfile("byte", {8: 1}).width(9), "bits on byte must be between 0 and 8, got 9"),
        (lambda: profiled_inference_speedup([1], [8], A100, other_bits=64), "bits on NVIDIA A100 must be between"),
        (lambda: profiled_inference_speedup([1, 2], [8, 8, 8], A100), r"must be \[rows, 2\]"),
        (
            lambda: profiled_training_speedup([1], [8], A100, backward_factor=-5),
            "backward_factor must be finite and at least 0, got -5",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [None, "x", [8, 16]], ids=str)
@pytest.mark.parametrize("name", ["backward_factor", "backward_bits", "other_bits"])
def test_non_numbers_are_refused(name, wrong):
    with pytest.raises(TypeError, match=f"{name} must be a number, got"):
        profiled_training_speedup([1], [8], A100, **{name: wrong})


@pytest.mark.parametrize("speedup", [profiled_inference_speedup, profiled_training_speedup])
def test_other_profiles_are_refused(speedup):
    with pytest.raises(
        TypeError, match=r"profile must be a HardwareProfile, such as adapt\.perfmodel\.A100, got 'A100'"
    ):
        speedup([1], [8], "A100")


def test_profiles_are_fixed():
    with pytest.raises(AttributeError):
        A100.name = "other"
    assert np.isfinite(A100.rate(np.arange(1, 33))).all()


@pytest.mark.parametrize("name", machines())
def test_every_machine_of_the_package_can_be_read_and_says_where_its_figures_come_from(name):
    profile = HardwareProfile.load(name)
    assert profile.name
    assert len(profile.source) > 20
    widths = np.arange(1, profile.float_bits + 1)
    assert np.isfinite(profile.rate(widths)).all()
    if name != "bit-serial":
        assert (np.diff(profile.rate(widths)) <= 0).all()


def test_the_bit_serial_machine_gives_the_ideal_figure():
    ideal, counts, bits = HardwareProfile.load("bit-serial"), [10, 20, 5], [3, 8, 32]
    expected = inference_speedup(counts, bits, 1.0)
    assert profiled_inference_speedup(counts, bits, ideal) == pytest.approx(expected)


def test_widths_that_differ_for_weights_and_activations():
    """PLiNIO's table of multiply-adds a cycle: A8W8 2.1, A4W4 3.5, A2W2 6.5, A8W2 2.5."""
    mpic = HardwareProfile.load("mpic")
    assert mpic.product(2, 8) == (2, 8)
    assert mpic.product(3, 8) == (8, 8)
    assert mpic.product(2, 3) == (4, 4)
    assert (mpic.rate([2, 8, 4, 2], [8, 8, 4, 2]) / mpic.rate(8, 8)).tolist() == pytest.approx(
        [2.5 / 2.1, 1, 3.5 / 2.1, 6.5 / 2.1]
    )
    speedup = profiled_inference_speedup([1], [2], mpic, other_bits=8, activation_bits=8)
    assert speedup == pytest.approx(2.5 / 2.1)


def test_a_machine_from_a_file(tmp_path):
    file = tmp_path / "board.toml"
    file.write_text(
        'name = "board"\nsource = "me"\nbandwidth = 2\n[rates]\n8 = 4\n4x8 = 6.5\n32 = 0.5\n'
        "[costs.linear.8]\noverhead = 1\nmultiply_add = 2\ninputs = 3\noutputs = 4\nweights = 5\n"
    )
    board = HardwareProfile.load(file)
    costs = {"linear": {8: LayerCost(1, 2, 3, 4, 5)}}
    assert board == HardwareProfile("board", {8: 4, (4, 8): 6.5, 32: 0.5}, 2, costs, "me")
    (layer,) = network_layers(nn.Linear(10, 7, bias=False), torch.zeros(3, 10))
    measured = layer_latency(layer, board, 5, 5, batch_size=2)
    assert measured == 1 + 2 * 70 * 2 + (3 * 10 + 4 * 7) * 2 + 5 * 70
    roofline = layer_latency(layer, board, 32, 32, batch_size=2)
    assert roofline == pytest.approx(max(2 * 70 * 2 / 0.5e12, 4 * (70 + 2 * 17) / 2e9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not describe a machine: 'rates'"),
        ("name = 'x'\n[rates]\nten = 1", "does not describe a machine: could not convert string to float: 'ten'"),
        ("name = 'x'\n[rates]\n8 = -1", "rates of x must map bits to TOPS, all above 0"),
        ("name = 'x'\nbandwidth = 0\n[rates]\n8 = 1", "bandwidth of x must be above 0"),
        ("name = 'x'\ncolour = 0\n[rates]\n8 = 1", "unknown key 'colour'"),
        ("name = 'x'\n[rates]\n8 = 1\n[costs.linear.8]\nspeed = 1", "unexpected keyword argument 'speed'"),
        ("name = ", "does not describe a machine: Invalid value"),
    ],
)
def test_files_that_describe_no_machine_are_refused(tmp_path, text, message):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        HardwareProfile.load(file)


def test_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="there is no machine a1000: name a TOML file, or one of a100, "):
        HardwareProfile.load("a1000")
