import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.perfmodel import HardwareProfile, LayerCost, layer_latency
from adapt.profiling.calibration import KINDS, as_toml, calibration_layers, fit_cost, measure_processor
from adapt.profiling.workloads import WIDTHS, Workload, runnable_widths


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_layers_are_reproducible_and_of_their_kind(kind):
    workloads = calibration_layers(kind, 6)
    assert workloads == calibration_layers(kind, 6)
    assert workloads != calibration_layers(kind, 6, seed=1)
    assert {workload.layer().kind for workload in workloads} == {kind}
    assert all(workload.inputs % 16 == workload.outputs % 16 == 0 for workload in workloads)


SOME = calibration_layers("linear", 24)
LAYERS, BATCHES = [workload.layer() for workload in SOME], [workload.batch for workload in SOME]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.0, 0.3, 1.0, 5.0]), min_size=5, max_size=5))
def test_a_fit_finds_the_costs_behind_the_times_despite_outliers(scales):
    true = LayerCost(*(np.array([1e-5, 1e-11, 1e-9, 1e-9, 1e-10]) * scales + [1e-9, 0, 0, 0, 0]).tolist())
    machine = HardwareProfile("m", {8: 1}, costs={"linear": {8: true}})
    seconds = np.array([layer_latency(la, machine, 8, 8, batch_size=b) for la, b in zip(LAYERS, BATCHES, strict=True)])
    seconds[::12] *= 1.5
    found = HardwareProfile("m", {8: 1}, costs={"linear": {8: fit_cost(LAYERS, BATCHES, seconds)}})
    seconds[::12] /= 1.5
    again = [layer_latency(la, found, 8, 8, batch_size=b) for la, b in zip(LAYERS, BATCHES, strict=True)]
    assert np.abs(np.array(again) / seconds - 1).max() < 0.05
    assert min(vars(found.costs["linear"][8]).values()) >= 0


def test_a_profile_survives_its_file(tmp_path):
    costs = {"linear": {8: LayerCost(1e-6, 2e-12, 0, 3e-10, 4e-11), 32: LayerCost(1, 2, 3, 4, 5)}}
    profile = HardwareProfile('a "fast" one \\', {8: 1.5, 32: 0.25}, 12.5, costs, "measured")
    (tmp_path / "m.toml").write_text(as_toml(profile), encoding="utf-8")
    assert HardwareProfile.load(tmp_path / "m.toml") == profile
    assert "overhead = 1e-06" in as_toml(profile)


def test_this_processor_is_measured():
    said = []
    profile = measure_processor(layers=5, rounds=1, progress=said.append)
    assert set(profile.rates) == set(runnable_widths())
    assert profile.bandwidth > 0.1
    assert len(said) == 1
    assert set(profile.costs) == set(KINDS)
    small, large = (Workload("linear", 64, n, n).layer() for n in (64, 2048))
    for bits in profile.rates:
        assert 0 < layer_latency(small, profile, bits, bits) < layer_latency(large, profile, bits, bits) < 10


@pytest.mark.covering(1)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    "workload",
    [
        Workload("convolution", 2, 8, 16, 7, 3, 2),
        Workload("depthwise", 1, 8, 8, 8, 5, 2),
        Workload("pointwise", 1, 8, 16, 8),
        Workload("linear", 3, 8, 16),
    ],
    ids=lambda workload: workload.kind,
)
def test_workloads_run_and_their_outputs_have_the_right_size(workload, bits):
    if bits not in runnable_widths():
        pytest.skip("onnxruntime is not installed")
    result = workload.call(bits)()
    (result,) = result if isinstance(result, list) else (result,)
    expected = workload.module()(torch.zeros(workload.shape))
    assert tuple(result.shape) == tuple(expected.shape)
    assert tuple(workload.module().weight.shape) == workload.weight_shape
    assert workload.layer().outputs * workload.batch == expected.numel()
