"""All back ends give the same bits, whatever the number of threads, and do to each element what the equations say.

Torch is compared with literal twins, numba and (on CUDA or under its interpreter) triton with torch.
"""

import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch

from adapt import Precision
from adapt.kernels import Rounding, Treatment, backend, set_backend
from adapt.kernels.torch_ import weights as torch_
from adapt.rounding import grid, stream_keys
from tests.references import fixed_point, training_passes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = {"triton": "cpu"} if INTERPRETED else {"numba": "cpu"}
if torch.cuda.is_available() and not INTERPRETED:
    DEVICES |= {"triton": "cuda", "torch": "cuda"}

SHAPES = [(0,), (), (7,), (16, 3, 3, 3), (4096,), (4097,), (33, 5), (3, 2731)]
NAMES = [f"layers.{i}.weight" for i in range(len(SHAPES))]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-44, -1e-44, 0.5, -0.5, 1.5, 2.5, 3e38, -3e38, 1e-38]


@pytest.fixture(params=DEVICES)
def fast(request):
    """A back end and the device to try it on."""
    set_backend(request.param)
    yield backend(DEVICES[request.param]), torch.device(DEVICES[request.param])
    set_backend(None)


def make(seed, *, scale=1.0, special=False):
    """One tensor per shape, in different memory orders."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) * scale for shape in SHAPES]
    tensors[3] = tensors[3].to(memory_format=torch.channels_last)
    tensors[6] = tensors[6].t()
    if special:
        for tensor in tensors[3:]:
            tensor.as_strided((len(SPECIAL),), (1,)).copy_(torch.tensor(SPECIAL))
    return tensors


def on(device, tensors):
    return [None if tensor is None else tensor.to(device, copy=True) for tensor in tensors]


def doubles(device, *shape):
    return torch.full(shape, math.nan, dtype=torch.float64, device=device)


def assert_same_bits(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        if right is None:
            assert left is None
            continue
        left = left.cpu()
        assert torch.equal(left.isnan(), right.isnan())
        assert left.stride() == right.stride()
        assert torch.equal(left.nan_to_num(nan=0).view(torch.int32), right.nan_to_num(nan=0).view(torch.int32))


def random_rounding(seed, stochastic):
    rng = np.random.default_rng(seed)
    rows = [grid(Precision(int(rng.integers(2, 33)), int(rng.integers(-126, 127)))) for _ in SHAPES]
    rows[int(rng.integers(len(rows)))] = grid(None)
    offsets = rng.integers(0, 2**34, len(SHAPES))
    return Rounding(np.stack(rows), stream_keys(seed, seed + 1, NAMES), offsets, stochastic)


def assert_are_figures(figures, rounded, sources):
    """Of tensors without NaN and infinities."""
    for row, output, source in zip(figures.tolist(), rounded, sources, strict=True):
        values = source.reshape(-1).tolist()
        assert row[0] == int((output != 0).sum())
        assert row[1] == pytest.approx(math.fsum(map(abs, values)), rel=1e-13)
        assert row[2] == pytest.approx(math.fsum(value * value for value in values), rel=1e-13)


@pytest.mark.covering(1)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_quantize(fast, seed, stochastic):
    kernels, device = fast
    rounding = random_rounding(seed, stochastic)
    # Scales that put most values inside some layer's range.
    sources = make(seed, scale=2.0 ** (seed * 8 - 12), special=True)
    expected, outputs = make(0), on(device, make(0))
    torch_.quantize_(sources, expected, rounding)
    before = on(device, sources)
    kernels.quantize_(before, outputs, rounding)
    assert_same_bits(outputs, expected)
    assert_same_bits(before, sources)
    for targets in (outputs, before):
        figures = doubles(device, len(SHAPES), 3)
        kernels.quantize_(before, targets, rounding, figures)
        assert_same_bits(targets, expected)
        assert figures[:, 0].tolist() == [float((tensor != 0).sum()) for tensor in expected]
        assert figures[:, 1].isfinite().tolist() == [tensor.isfinite().all() for tensor in sources]


@pytest.mark.parametrize("in_place", [False, True])
def test_figures(fast, in_place):
    kernels, device = fast
    rounding = random_rounding(3, stochastic=True)
    for back, where in ((kernels, device), (torch_, torch.device("cpu"))):
        sources, figures = on(where, make(9)), doubles(where, len(SHAPES), 3)
        outputs = sources if in_place else on(where, make(0))
        back.quantize_(sources, outputs, rounding, figures)
        assert_are_figures(figures, outputs, make(9))


@pytest.mark.covering(1)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("fraction_length", [-126, -32, 0, 5, 23, 32, 64, 126])
def test_quantize_at_every_word_length(fast, fraction_length, stochastic):
    kernels, device = fast
    lengths = range(2, 33)
    generator = torch.Generator().manual_seed(fraction_length)
    step = 2.0**-fraction_length
    sources = [
        ((torch.rand(600, generator=generator, dtype=torch.float64) - 0.5) * 2.2 * 2 ** (length - 1) * step).float()
        for length in lengths
    ]
    # Every third value becomes a tie between two neighbours or a value on the grid.
    for source in sources:
        source[::3] = ((source[::3].double() / step * 2).round() / 2 * step).float()
    rounding = Rounding(
        np.stack([grid(Precision(length, fraction_length)) for length in lengths]),
        stream_keys(0, fraction_length, [str(length) for length in lengths]),
        np.zeros(len(sources), np.int64),
        stochastic,
    )
    expected = [torch.empty_like(source) for source in sources]
    outputs = [torch.empty_like(source, device=device) for source in sources]
    torch_.quantize_(sources, expected, rounding)
    kernels.quantize_(on(device, sources), outputs, rounding)
    assert_same_bits(outputs, expected)


@pytest.mark.parametrize("stochastic", [False, True])
def test_torch_stores_the_exact_values_of_the_stream(stochastic):
    """The reference itself, against rational arithmetic."""
    rounding = random_rounding(5, stochastic)
    parameters, masters, figures = make(5, special=True), make(0), doubles("cpu", len(SHAPES), 3)
    before = on("cpu", parameters)
    torch_.store_(parameters, masters, rounding, figures)
    assert_same_bits(masters, before)
    for i, (master, parameter) in enumerate(zip(before, parameters, strict=True)):
        values, results = (t.as_strided((t.numel(),), (1,)).tolist() for t in (master, parameter))
        assert figures[i, 0] == sum(value != 0 for value in results)
        scale, step, low, high = rounding.grids[i].tolist()
        if scale == 0:
            continue
        word_length = int(math.log2(-low)) + 1
        if -low * step >= 2.0**126 or high < 1:
            continue  # cut to what float32 holds: the row no longer shows its word length
        for position, (value, result) in enumerate(zip(values[:40], results[:40], strict=True)):
            place = int(rounding.offsets[i]) + position
            draw = fixed_point.uniform(int(rounding.keys[i]), place) if stochastic else None
            exact = fixed_point.quantize(value, word_length, int(math.log2(scale)), torch.float32, draw)
            assert result in exact or (math.isnan(value) and math.isnan(result))


@pytest.mark.covering(1)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_store(fast, seed, stochastic):
    kernels, device = fast
    rounding = random_rounding(seed, stochastic)
    parameters = make(seed, special=True)
    expected, expected_masters, expected_figures = on("cpu", parameters), make(0), doubles("cpu", len(SHAPES), 3)
    torch_.store_(expected, expected_masters, rounding, expected_figures)
    results, masters, figures = on(device, parameters), on(device, make(0)), doubles(device, len(SHAPES), 3)
    version = results[3]._version
    kernels.store_(results, masters, rounding, figures)
    assert_same_bits(results, expected)
    assert_same_bits(masters, parameters)
    torch.testing.assert_close(figures.cpu(), expected_figures, rtol=1e-13, atol=0, equal_nan=True)
    assert results[3]._version > version, "autograd must see that the parameter changed"


def test_squared_norms(fast):
    kernels, device = fast
    for back, where in ((kernels, device), (torch_, torch.device("cpu"))):
        for scale in (1e-30, 1.0, 1e30):
            tensors = make(3, scale=scale)
            out = doubles(where, len(SHAPES))
            back.squared_norms_(on(where, tensors), out)
            exact = [math.fsum(value * value for value in tensor.reshape(-1).tolist()) for tensor in tensors]
            np.testing.assert_allclose(out.cpu().numpy(), exact, rtol=1e-13)
        tensors = make(3, special=True)
        back.squared_norms_(on(where, tensors), out)
        assert out.cpu().isfinite().tolist() == [True] * 3 + [False] * 5
        back.squared_norms_([None, *on(where, tensors[1:])], out)
        assert out[0].isnan()
        assert out[1].isfinite()


def training_state(seed):
    """Parameters, masters, gradients (two missing, one infinite, one zero, one tiny), sums (two missing), squared."""
    parameters, masters, gradients, sums = (make(seed + i) for i in range(4))
    masters[6][:2] = 0.0
    masters[6][2] = -0.0
    gradients[0] = gradients[4] = None
    gradients[5][17] = math.inf
    gradients[6].zero_()
    gradients[2].fill_(1e-42)
    sums[0] = sums[3] = None
    norms = [math.nan if g is None else g.double().square().sum().item() for g in gradients]
    squared = torch.tensor(norms, dtype=torch.float64)
    return parameters, masters, gradients, sums, squared


def test_torch_accumulates_as_the_equations_say():
    _, _, gradients, sums, expected_squared = training_state(11)
    before = on("cpu", sums)
    squared, squared_sums = doubles("cpu", len(SHAPES)), doubles("cpu", len(SHAPES))
    torch_.accumulate_(sums, gradients, squared, squared_sums)
    torch.testing.assert_close(squared, expected_squared, rtol=1e-13, atol=0, equal_nan=True)
    for i, (total, gradient) in enumerate(zip(before, gradients, strict=True)):
        if total is None:
            assert squared_sums[i] == 0
            continue
        expected = total.reshape(-1).tolist()
        if gradient is not None:
            pairs = zip(expected, gradient.reshape(-1).tolist(), strict=True)
            expected = [float(training_passes.running_sum(s, g, squared[i].item())) for s, g in pairs]
        assert sums[i].reshape(-1).tolist() == expected
        assert squared_sums[i].item() == pytest.approx(math.fsum(s * s for s in expected), rel=1e-13)


@pytest.mark.parametrize("threads", [1, 3])
def test_accumulate(fast, threads):
    kernels, device = fast
    before = torch.get_num_threads()
    results = []
    try:
        torch.set_num_threads(threads)
        for back, where in ((torch_, "cpu"), (kernels, device)):
            _, _, gradients, sums, _ = training_state(23)
            # Long enough for several threads, and infinite at the end of all that they share.
            gradients.append(torch.arange(1_000_000) % 255 / 64 - 2)
            gradients[-1][-1] = math.inf
            sums.append(torch.ones(1_000_000))
            gradients, sums = on(where, gradients), on(where, sums)
            squared, squared_sums = doubles(where, len(sums)), doubles(where, len(sums))
            back.accumulate_(sums, gradients, squared, squared_sums)
            results.append((sums, gradients, squared.cpu(), squared_sums.cpu()))
    finally:
        torch.set_num_threads(before)
    (expected_sums, expected_gradients, *expected), (sums, gradients, *figures) = results
    assert_same_bits(sums, expected_sums)
    assert_same_bits(gradients, expected_gradients)
    torch.testing.assert_close(figures, expected, rtol=1e-13, atol=0, equal_nan=True)


PENALTIES = [(0.0, 0.0), (1e-2, 0.0), (0.0, 1e-3), (1e-2, 1e-3)]


def treatment_of(squared, penalty, normalize):
    return Treatment(squared, *(np.full(len(squared), value) for value in penalty), normalize)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_torch_restores_as_the_equations_say(penalty, normalize):
    parameters, masters, gradients, _, squared = training_state(11)
    before = on("cpu", gradients)
    torch_.restore_(parameters, masters, gradients, treatment_of(squared, penalty, normalize))
    assert_same_bits(parameters, masters)
    for master, old, new, norm in zip(masters, before, gradients, squared.tolist(), strict=True):
        if old is None:
            continue
        expected = [
            training_passes.treated_gradient(g, w, norm, *penalty, normalize=normalize)
            for g, w in zip(old.reshape(-1).tolist(), master.reshape(-1).tolist(), strict=True)
        ]
        assert new.reshape(-1).tolist() == [float(value) for value in expected]
        assert new.isfinite().all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_restore(fast, penalty, normalize):
    kernels, device = fast
    results = []
    for back, where, written in ((torch_, "cpu", True), (kernels, device, True), (kernels, device, False)):
        *tensors, squared = training_state(23)
        parameters, masters, gradients, _ = (on(where, row) for row in tensors)
        treatment = treatment_of(squared.to(where), penalty, normalize)
        back.restore_(parameters if written else None, masters, gradients, treatment)
        results.append([masters, gradients, parameters] if written else [masters, gradients])
    for actual in results[1:]:
        for left, right in zip(actual, results[0], strict=False):
            assert_same_bits(left, right)


DESCENTS = {
    "plain": (-0.1, 1.0, 0.0, 0.0, 1.0, 0.0),
    "decay": (-0.1, 1.0, 1e-2, 0.0, 1.0, 0.0),
    "ascent": (-0.1, -1.0, 0.0, 0.0, 1.0, 0.0),
    "momentum": (-0.1, 1.0, 0.0, 0.9, 1.0, 0.0),
    "dampened": (-0.03, 1.0, 1e-3, 0.7, 0.6, 0.0),
    "nesterov": (-0.1, -1.0, 1e-3, 0.9, 1.0, 1.0),
}


def descent_state(seed, rates):
    """As in training, with buffers where there are momentum and gradient, and one row of rates for each layer."""
    parameters, masters, gradients, _, squared = training_state(seed)
    buffers = [None if gradient is None or not rates[3] else b for gradient, b in zip(gradients, make(7), strict=True)]
    table = np.array([rates] * len(SHAPES), np.float32)
    table[:, 0] *= np.arange(1, len(SHAPES) + 1)
    return parameters, masters, gradients, buffers, squared, table


@pytest.mark.covering(2)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("penalty", [PENALTIES[0], PENALTIES[3]])
@pytest.mark.parametrize("rates", DESCENTS.values(), ids=DESCENTS)
def test_torch_descends_as_the_equations_say(rates, penalty, normalize):
    parameters, masters, gradients, buffers, squared, table = descent_state(11, rates)
    old_masters, old_gradients, old_buffers = (on("cpu", row) for row in (masters, gradients, buffers))
    rounding, figures = random_rounding(2, stochastic=True), doubles("cpu", len(SHAPES), 3)
    treatment = treatment_of(squared, penalty, normalize)
    torch_.descend_(parameters, masters, gradients, buffers, treatment, table, rounding, figures)
    for i, (master, gradient, buffer) in enumerate(zip(old_masters, old_gradients, old_buffers, strict=True)):
        if gradient is None:
            assert_same_bits([masters[i]], [master])
            continue
        flat = [[None] * master.numel() if t is None else t.reshape(-1).tolist() for t in (gradient, buffer, master)]
        steps = [
            training_passes.descended(
                training_passes.treated_gradient(g, m, squared[i].item(), *penalty, normalize=normalize), b, m, table[i]
            )
            for g, b, m in zip(*flat, strict=True)
        ]
        assert masters[i].reshape(-1).tolist() == [float(m) for m, _ in steps]
        if buffer is not None:
            assert buffers[i].reshape(-1).tolist() == [float(b) for _, b in steps]
    assert_same_bits(gradients, old_gradients)
    expected = make(0)
    torch_.quantize_(masters, expected, rounding)
    assert_same_bits(parameters, expected)
    assert_are_figures(figures, parameters, masters)


@pytest.mark.covering(2)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("penalty", [PENALTIES[0], PENALTIES[3]])
@pytest.mark.parametrize("rates", DESCENTS.values(), ids=DESCENTS)
def test_descend(fast, rates, penalty, stochastic):
    kernels, device = fast
    rounding, results = random_rounding(4, stochastic), []
    for back, where in ((torch_, "cpu"), (kernels, device)):
        *tensors, squared, table = descent_state(23, rates)
        tensors, figures = [on(where, row) for row in tensors], doubles(where, len(SHAPES), 3)
        version = tensors[0][3]._version
        treatment = treatment_of(squared.to(where), penalty, normalize=True)
        back.descend_(*tensors, treatment, table, rounding, figures)
        assert tensors[0][3]._version > version, "autograd must see that the parameter changed"
        results.append((tensors, figures.cpu()))
    (expected, expected_figures), (actual, figures) = results
    for left, right in zip(actual, expected, strict=True):
        assert_same_bits(left, right)
    torch.testing.assert_close(figures, expected_figures, rtol=1e-13, atol=0)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_shard_draws_what_the_whole_tensor_draws(fast, stochastic):
    kernels, device = fast
    whole = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(device)
    row, key = grid(Precision(8, 6))[None], stream_keys(0, 0, ["a"])
    expected, pieces = torch.empty_like(whole), torch.empty_like(whole)
    kernels.quantize_([whole], [expected], Rounding(row, key, np.zeros(1, np.int64), stochastic))
    cuts = [0, 3, 4096, 7777, 10_000]
    sources = [whole[a:b] for a, b in pairwise(cuts)]
    outputs = [pieces[a:b] for a, b in pairwise(cuts)]
    pieces_of = Rounding(np.repeat(row, 4, 0), np.repeat(key, 4), np.array(cuts[:-1]), stochastic)
    kernels.quantize_(sources, outputs, pieces_of)
    assert torch.equal(pieces, expected)


def test_no_tensors_at_all(fast):
    kernels, device = fast
    none = Rounding(np.zeros((0, 4), np.float32), np.zeros(0, np.uint64), np.zeros(0, np.int64), stochastic=True)
    norms, figures = doubles(device, 0), doubles(device, 0, 3)
    untreated = Treatment(norms, [], [], normalize=True)
    kernels.quantize_([], [], none)
    kernels.quantize_([], [], none, figures)
    kernels.store_([], [], none, figures)
    kernels.squared_norms_([], norms)
    kernels.add_([], [], norms, norms)
    kernels.accumulate_([], [], norms, norms)
    kernels.restore_([], [], [], untreated)
    kernels.descend_([], [], [], [], untreated, np.zeros((0, 6), np.float32), none, figures)


def test_layouts_that_do_not_fit_are_refused_before_anything_is_written(fast):
    kernels, device = fast
    rounding = Rounding(grid(Precision(8, 4))[None], np.zeros(1, np.uint64), np.zeros(1, np.int64), stochastic=False)
    outputs, norms = [torch.zeros(4, 3, device=device)], doubles(device, 1)
    treatment, rates = Treatment(norms, [0.0], [0.0], normalize=False), np.ones((1, 6), np.float32)
    for source in (torch.ones(3, 4).t(), torch.ones(5), torch.ones(4, 6)[:, ::2]):
        others = [source.to(device)]
        with pytest.raises(ValueError, match=r"\[0\]"):
            kernels.quantize_(others, outputs, rounding)
        with pytest.raises(ValueError, match=r"\[0\]"):
            kernels.accumulate_(outputs, others, norms, norms)
        with pytest.raises(ValueError, match=r"\[0\]"):
            kernels.descend_(outputs, outputs, others, [None], treatment, rates, rounding, doubles(device, 1, 3))
    assert not outputs[0].any()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one thread")
def test_numba_gives_the_same_bits_with_any_number_of_threads():
    set_backend("numba")
    kernels = backend("cpu")
    rng = np.random.default_rng(0)
    sizes = [1_200_003, 5, 300_000, 4096]
    source = [torch.from_numpy(rng.standard_normal(size, np.float32)) for size in sizes]
    gradient = [torch.from_numpy(rng.standard_normal(size, np.float32)) for size in sizes]
    offsets, rates = np.zeros(4, np.int64), np.array([[-0.1, 1, 1e-3, 0.9, 1, 0]] * 4, np.float32)
    rounding = Rounding(np.stack([grid(Precision(8, 5))] * 4), stream_keys(0, 0, list("abcd")), offsets, True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            parameters, masters, sums, buffers = (on("cpu", source) for _ in range(4))
            gradients = on("cpu", gradient)
            squared, squared_sums, figures = doubles("cpu", 4), doubles("cpu", 4), doubles("cpu", 2, 4, 3)
            kernels.accumulate_(sums, gradients, squared, squared_sums)
            treatment = Treatment(squared, [1e-3] * 4, [1e-3] * 4, normalize=True)
            kernels.descend_(parameters, masters, gradients, buffers, treatment, rates, rounding, figures[0])
            kernels.restore_(parameters, masters, gradients, treatment)
            kernels.store_(parameters, masters, rounding, figures[1])
            tensors = [*parameters, *masters, *gradients, *sums, *buffers]
            results.append([*tensors, squared, squared_sums, figures])
    finally:
        torch.set_num_threads(threads)
        set_backend(None)
    for other in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(results[0], other, strict=True))
