"""The passes over activations: what each does to an element, and the same bits from every back end."""

import math
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt import Precision, quantize
from adapt.kernels import set_backend
from adapt.kernels.activation import FROZEN, MASKED, NOISE, RECORD, SAMPLE, SiteTables, activation_kernels, mask_size
from adapt.kernels.stream import flat
from adapt.kernels.torch_.weights import uniform
from adapt.rounding import grid, stream_keys
from tests.processes import python
from tests.references import activations as reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = {"triton": "cpu"} if INTERPRETED else {"torch": "cpu", "numba": "cpu"}
if torch.cuda.is_available() and not INTERPRETED:
    DEVICES |= {"triton": "cuda"}

TYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [Precision(8, 4), Precision(3, 0), Precision(16, 2), Precision(16, 30), Precision(25, 3), Precision(32, -3)]
SIZES = [0, 1, 255, 256, 257, 4097, 9001]
if INTERPRETED:
    # A thousand times slower: one size for every way in which blocks and masks end.
    FORMATS, SIZES = FORMATS[::3], [0, 1, 257, 4097]


@pytest.fixture(params=DEVICES)
def kernels(request):
    """The passes of one back end on its device."""
    set_backend(request.param)
    yield activation_kernels(torch.device(DEVICES[request.param]))
    set_backend(None)


@pytest.fixture(params=[name for name in DEVICES if name != "torch"])
def fast(request):
    """The passes of a fast back end, those of torch, and the device of the former."""
    device = torch.device(DEVICES[request.param])
    set_backend(request.param)
    passes = activation_kernels(device)
    set_backend("torch")
    yield passes, activation_kernels(torch.device("cpu")), device
    set_backend(None)


def sites_of(precision, mode=NOISE, *, drawn=0, device="cpu"):
    """Two sites of one format."""
    keys = torch.from_numpy(stream_keys(3, 5, ["layer.input", "layer.error"]).view(np.int64).copy())
    formats = torch.zeros(2, 6)
    formats[:, :4], formats[:, 4], formats[:, 5] = torch.tensor(grid(precision)), mode, mode != FROZEN
    tables = formats, keys, torch.full((2,), drawn, dtype=torch.int64), torch.zeros(2), torch.full((2, SAMPLE), 9.0)
    return SiteTables(*(table.to(device) for table in tables))


def values(numel, dtype=torch.float32, *, special=True, scale=3.0):
    """Values of every magnitude from 0.001 to 10000, infinities and NaN."""
    generator = torch.Generator().manual_seed(numel)
    powers = 10.0 ** torch.randint(-3, 5, (numel,), generator=generator)
    x = (torch.randn(numel, generator=generator) * scale * powers).to(dtype)
    odd = [math.inf, -math.inf, math.nan, 0.0, -0.0, 7.9375, -8.0, 7.94, -8.01]
    if special and numel >= len(odd):
        x[: len(odd)] = torch.tensor(odd)
    return x


def forward(kernels, x, sites, *, training=True, replay=False, masked=True):
    output = torch.empty_like(x)
    mask = torch.empty(mask_size(x.numel()), dtype=torch.uint8, device=x.device) if masked else None
    needed = kernels.forward(x, output, mask, sites, 0, training=training, replay=replay)
    return output, mask, needed


def inside_of(mask, numel):
    """Whether each element is inside, according to a mask."""
    flags = mask[numel:].repeat_interleave(MASKED)[:numel]
    return torch.where(flags != 0, mask[:numel], 1).bool()


def same(a, b):
    a, b = a.cpu(), b.cpu()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(nan=0.0), b.nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("precision", FORMATS, ids=str)
def test_evaluation_rounds_to_nearest_and_records_nothing(kernels, precision, dtype):
    sites = sites_of(precision)
    x = values(700, dtype)
    output, mask, _ = forward(kernels, x, sites, training=False)
    assert same(output, quantize(x, precision))
    assert sites.drawn.tolist() == [0, 0]
    assert sites.peaks.tolist() == [0, 0]
    ones = torch.ones(700)
    assert torch.equal(inside_of(mask, 700).float(), reference.straight_through(x, ones, precision))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_training_draws_the_stream_and_records_the_largest_finite_magnitude(kernels, dtype):
    precision, x = Precision(8, 4), values(5000, dtype)
    sites = sites_of(precision, drawn=77)
    output, _, _ = forward(kernels, x, sites)
    u = uniform(5000, int(sites.keys[0]) % 2**64, 77, dtype=torch.float64, device=torch.device("cpu"))
    steps = x.double() * 16
    expected = (steps.floor() + (u < steps - steps.floor())).clamp(-128, 127) / 16
    assert same(output.double(), expected)
    assert sites.drawn.tolist() == [5077, 77]
    assert sites.peaks.tolist() == [reference.largest_finite(x), 0]


def test_a_stream_continues_and_a_replay_repeats_it(kernels):
    x = values(3000, special=False)
    whole, parts = sites_of(Precision(8, 4)), sites_of(Precision(8, 4))
    expected, _, _ = forward(kernels, x, whole)
    first, _, _ = forward(kernels, x[:1000], parts)
    second, _, _ = forward(kernels, x[1000:], parts)
    again, _, _ = forward(kernels, x[1000:], parts, replay=True)
    assert torch.equal(torch.cat([first, second]), expected)
    assert torch.equal(again, second)
    assert parts.drawn.tolist() == [3000, 0]


def test_modes(kernels):
    x = values(1000, special=False)
    nearest = quantize(x, Precision(8, 4))
    for mode, drawn, met in ((FROZEN, 0, False), (RECORD, 1000, True)):
        sites = sites_of(Precision(8, 4), mode)
        assert torch.equal(forward(kernels, x, sites)[0], nearest)
        assert sites.drawn[0] == drawn
        assert bool(sites.peaks[0] > 0) == met


def test_without_a_grid_values_stay_and_all_are_inside(kernels):
    x, sites = values(600), sites_of(None)
    output, mask, _ = forward(kernels, x, sites)
    assert same(output, x)
    assert inside_of(mask, 600).all()
    assert sites.peaks[0] == reference.largest_finite(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", [Precision(8, 4), None])
def test_in_place(kernels, precision, training):
    x = values(5000)
    beside, within = sites_of(precision), sites_of(precision)
    expected, other = torch.empty_like(x), torch.empty(mask_size(5000), dtype=torch.uint8)
    mask = torch.empty_like(other)
    kernels.forward(x, expected, mask, beside, 0, training=training, replay=False)
    kernels.forward(x, x, other, within, 0, training=training, replay=False)
    assert same(x, expected)
    assert torch.equal(inside_of(mask, 5000), inside_of(other, 5000))
    assert torch.equal(beside.peaks, within.peaks)
    assert torch.equal(beside.samples, within.samples)


@pytest.mark.parametrize("precision", [Precision(8, 4), None])
def test_errors_in_place(kernels, precision):
    g, sites = values(5000, scale=1e-3), sites_of(Precision(8, 4))
    _, mask, _ = forward(kernels, values(5000), sites)
    expected, beside, within = torch.empty_like(g), sites_of(precision), sites_of(precision)
    kernels.backward(g, expected, mask, beside, 1)
    kernels.backward(g, g, mask, within, 1)
    assert same(g, expected)
    assert torch.equal(beside.peaks, within.peaks)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("count", [1, 30, 5000])
def test_masking_without_rounding_acts_in_place(kernels, dtype, count):
    """Most of an error stays untouched where few values were outside."""
    x, g, sites = values(5000, dtype, special=False).clamp(-8, 7.9375), values(5000, dtype), sites_of(Precision(8, 4))
    x[torch.randperm(5000)[:count]] = 9.0
    _, mask, _ = forward(kernels, x, sites)
    expected = torch.where(x < 9, g, 0)
    kernels.backward(g, g, mask, sites, -1)
    assert same(g, expected)
    assert sites.peaks[1] == 0


def test_a_mask_is_needed_only_where_something_saturates(kernels):
    x = values(5000, special=False).clamp(-8, 7.9375)
    if forward(kernels, x, sites_of(Precision(8, 4)))[2]:
        pytest.skip("this back end does not wait to know")
    x[4321] = 7.94
    _, mask, needed = forward(kernels, x, sites_of(Precision(8, 4)))
    assert needed
    assert inside_of(mask, 5000).logical_not().nonzero().tolist() == [[4321]]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_errors_are_rounded_and_masked(kernels, dtype):
    x, g = values(5000, dtype), values(5000, dtype, special=False, scale=1e-3)
    sites = sites_of(Precision(8, 4))
    _, mask, _ = forward(kernels, x, sites)
    kept = reference.straight_through(x, g, Precision(8, 4))
    error = torch.empty_like(g)
    kernels.backward(g, error, mask, sites, -1)
    assert torch.equal(error, kept)
    kernels.backward(g, error, mask, sites, 1)
    u = uniform(5000, int(sites.keys[1]) % 2**64, 0, dtype=torch.float64, device=torch.device("cpu"))
    steps = g.double() * 16
    rounded = (steps.floor() + (u < steps - steps.floor())).clamp(-128, 127) / 16
    assert torch.equal(error.double(), torch.where(inside_of(mask, 5000), rounded, 0))
    assert sites.drawn[1] == 5000
    assert sites.peaks[1] == reference.largest_finite(g)


@pytest.mark.parametrize("precision", [*FORMATS, None], ids=str)
@pytest.mark.parametrize("numel", SIZES)
def test_back_ends_agree(fast, precision, numel):
    passes, slow, device = fast
    for dtype in TYPES:
        results = []
        for kernels, place in ((slow, torch.device("cpu")), (passes, device)):
            sites = sites_of(precision, drawn=2**32 - 100, device=place)
            x, g = values(numel, dtype).to(place), values(numel + 1, dtype)[1:].clone().to(place)
            output, mask, _ = forward(kernels, x, sites)
            error = torch.empty_like(g)
            kernels.backward(g, error, mask, sites, 1)
            nearest, _, _ = forward(kernels, x, sites, training=False, masked=False)
            results.append((output, inside_of(mask, numel), error, nearest, sites.drawn, sites.peaks, sites.samples))
        for mine, theirs in zip(*results, strict=True):
            assert same(mine.double(), theirs.double())


@pytest.mark.skipif(INTERPRETED, reason="about threads of the CPU")
def test_the_number_of_threads_changes_nothing():
    set_backend("numba")
    kernels, results, threads = activation_kernels(torch.device("cpu")), [], torch.get_num_threads()
    x = values(1 << 20)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            sites = sites_of(Precision(8, 4))
            output, mask, _ = forward(kernels, x, sites)
            error = torch.empty_like(x)
            kernels.backward(x, error, mask, sites, 1)
            results.append((output, inside_of(mask, 1 << 20), error, sites.peaks, sites.samples))
    finally:
        torch.set_num_threads(threads)
        set_backend(None)
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))


positive = st.floats(2.0**-149, 2.0**126, width=32, allow_subnormal=True) | st.floats(0.25, 4, width=32)


@pytest.mark.parametrize("name", ["torch", "numba"])
@given(before=positive | st.just(0.0), peak=positive | st.just(0.0), word=st.integers(2, 32), shift=st.integers(0, 6))
def test_formats_follow_the_peaks(name, before, peak, word, shift):
    set_backend(name)
    sites, ranges = sites_of(Precision(8, 4)), torch.tensor([before, before], dtype=torch.float32)
    sites.peaks.fill_(peak)
    words = torch.tensor([word, 0], dtype=torch.int32)
    keys = stream_keys(1, 2, ["a", "b"])
    passes = activation_kernels(torch.device("cpu"))
    shifts = torch.tensor([shift, 0], dtype=torch.int32)
    passes.renew(
        sites, keys, ranges, shifts, words, torch.full((2, 4), 5.0), mode=RECORD, ended=True, sampled=word % 2 == 1
    )
    set_backend(None)
    expected = reference.next_range(before, peak)
    assert ranges.tolist() == [expected, expected]
    assert sites.peaks.tolist() == sites.drawn.tolist() == [0, 0]
    assert np.array_equal(sites.keys.numpy().view(np.uint64), keys)
    assert sites.formats[1].tolist() == [5, 5, 5, 5, RECORD, 0]
    assert sites.formats[0, 4:].tolist() == [RECORD, word % 2]
    if expected == 0:
        assert sites.formats[0, :4].tolist() == [5, 5, 5, 5]
    else:
        fraction = max(reference.fitting_fraction_length(expected, word), word - 128)
        assert np.array_equal(sites.formats[0, :4], grid(Precision(word, min(fraction + shift, 126))))


def test_within_a_step_peaks_and_streams_wait(kernels):
    sites, ranges, shifts = sites_of(Precision(8, 4), drawn=7), torch.ones(2), torch.zeros(2, dtype=torch.int32)
    sites.peaks.fill_(9.0)
    words, keys = torch.tensor([8, 8], dtype=torch.int32), stream_keys(1, 2, ["a", "b"])
    kernels.renew(sites, keys, ranges, shifts, words, torch.zeros(2, 4), mode=NOISE, ended=False, sampled=False)
    assert ranges.tolist() == [1, 1]
    assert sites.peaks.tolist() == [9, 9]
    assert sites.drawn.tolist() == [7, 7]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("numel", [5, SAMPLE, SAMPLE + 1, 4 * SAMPLE])
def test_a_training_pass_leaves_evenly_spaced_values(kernels, numel, dtype):
    sites, x = sites_of(Precision(3, 0)), values(numel, dtype)
    expected = [reference.sample(x.float(), SAMPLE), [9.0] * SAMPLE]
    forward(kernels, x, sites)
    assert sites.samples.tolist() == expected
    forward(kernels, x + 1, sites, replay=True)
    forward(kernels, x + 1, sites, training=False)
    forward(kernels, x[:0], sites)
    assert sites.samples.tolist() == expected


def test_a_site_that_wants_no_sample_leaves_none(kernels):
    sites = sites_of(Precision(3, 0))
    sites.formats[:, 5] = 0
    forward(kernels, values(700), sites)
    assert (sites.samples == 9).all()


def test_a_frozen_site_leaves_no_sample(kernels):
    sites, words = sites_of(Precision(3, 0)), torch.tensor([8, 0], dtype=torch.int32)
    for mode, wanted in ((FROZEN, [0, 0]), (NOISE, [1, 0])):
        tables = torch.ones(2), torch.zeros(2, dtype=torch.int32), words, torch.zeros(2, 4)
        kernels.renew(sites, stream_keys(1, 2, ["a", "b"]), *tables, mode=mode, ended=False, sampled=True)
        assert sites.formats[:, 5].tolist() == wanted


def test_draws_follow_memory_order(kernels):
    x = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    straight, _, _ = forward(kernels, flat(x).clone(), sites_of(Precision(8, 4)))
    output, _, _ = forward(kernels, x, sites_of(Precision(8, 4)))
    assert torch.equal(flat(output), straight)


@pytest.mark.skipif(INTERPRETED, reason="this is what the other process runs")
def test_the_interpreter_gives_the_bits_of_torch():
    """In a new process, because Triton reads the variable when it is imported."""
    pytest.importorskip("triton", minversion="3.6")
    command = ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", "triton", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = python(*command, environment=environment)
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 30


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("half", [0, 16, 19])
@pytest.mark.parametrize("name", ["forward_pass", "backward_pass"])
def test_the_compiled_code_rounds_where_the_others_do_and_moves_sixteen_bytes_at_a_time(name, half):
    triton = pytest.importorskip("triton", minversion="3.6")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adapt.kernels.triton_ import activation_device as activation_triton_device

    function = getattr(activation_triton_device, name)
    forwards = {"TRAINING": True, "REPLAY": False, "SAMPLE": SAMPLE}
    flags = forwards if name == "forward_pass" else {"ROUND": True}
    constants = {"HALF": half, "HAS_MASK": True, **flags, "MASKED": 256, "BLOCK": 2048}
    element = {0: "*fp32", 16: "*fp16", 19: "*bf16"}[half]
    types = [element, element, "*u8", "*fp32", "*i64", "*i64", "*fp32", "i32", "*fp32", "i32"]
    source = ASTSource(
        fn=function,
        signature={**dict(zip(function.arg_names, types, strict=False)), **dict.fromkeys(constants, "constexpr")},
        constexprs={(function.arg_names.index(key),): value for key, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(2)},
    )
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}).asm["ptx"]
    assert not re.search(r"fma\.rn\.f32|\.ftz", code), "one rounding instead of two, or subnormal numbers lost"
    assert re.search(r"ld\.global[.\w]*v4", code)
    assert re.search(r"st\.global[.\w]*v4", code)
