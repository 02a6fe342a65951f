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
from adapt.kernels import backend, set_backend, torch_
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


def random_tables(seed):
    rng = np.random.default_rng(seed)
    rows = [grid(Precision(int(rng.integers(2, 33)), int(rng.integers(-126, 127)))) for _ in SHAPES]
    rows[int(rng.integers(len(rows)))] = grid(None)
    return np.stack(rows), stream_keys(seed, seed + 1, NAMES), rng.integers(0, 2**34, len(SHAPES))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_quantize(fast, seed, stochastic):
    kernels, device = fast
    tables = random_tables(seed)
    # Scales that put most values inside some layer's range.
    sources = make(seed, scale=2.0 ** (seed * 8 - 12), special=True)
    expected, outputs = make(0), on(device, make(0))
    torch_.quantize_(sources, expected, *tables, stochastic=stochastic)
    before = on(device, sources)
    kernels.quantize_(before, outputs, *tables, stochastic=stochastic)
    assert_same_bits(outputs, expected)
    assert_same_bits(before, sources)
    for targets in (outputs, before):
        counts = doubles(device, len(SHAPES))
        kernels.quantize_(before, targets, *tables, counts, stochastic=stochastic)
        assert_same_bits(targets, expected)
        assert counts.tolist() == [float((tensor != 0).sum()) for tensor in expected]


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
    tables = (
        np.stack([grid(Precision(length, fraction_length)) for length in lengths]),
        stream_keys(0, fraction_length, [str(length) for length in lengths]),
        np.zeros(len(sources), np.int64),
    )
    expected = [torch.empty_like(source) for source in sources]
    outputs = [torch.empty_like(source, device=device) for source in sources]
    torch_.quantize_(sources, expected, *tables, stochastic=stochastic)
    kernels.quantize_(on(device, sources), outputs, *tables, stochastic=stochastic)
    assert_same_bits(outputs, expected)


@pytest.mark.parametrize("stochastic", [False, True])
def test_torch_stores_the_exact_values_of_the_stream(stochastic):
    """The reference itself, against rational arithmetic."""
    tables = random_tables(5)
    parameters, masters, counts = make(5, special=True), make(0), doubles("cpu", len(SHAPES))
    before = on("cpu", parameters)
    torch_.store_(parameters, masters, *tables, counts, stochastic=stochastic)
    assert_same_bits(masters, before)
    for i, (master, parameter) in enumerate(zip(before, parameters, strict=True)):
        values, results = (t.as_strided((t.numel(),), (1,)).tolist() for t in (master, parameter))
        assert counts[i] == sum(value != 0 for value in results)
        scale, step, low, high = tables[0][i].tolist()
        if scale == 0:
            continue
        word_length = int(math.log2(-low)) + 1
        if -low * step >= 2.0**126 or high < 1:
            continue  # cut to what float32 holds: the row no longer shows its word length
        for position, (value, result) in enumerate(zip(values[:40], results[:40], strict=True)):
            draw = fixed_point.uniform(int(tables[1][i]), int(tables[2][i]) + position) if stochastic else None
            exact = fixed_point.quantize(value, word_length, int(math.log2(scale)), torch.float32, draw)
            assert result in exact or (math.isnan(value) and math.isnan(result))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_store(fast, seed, stochastic):
    kernels, device = fast
    tables = random_tables(seed)
    parameters = make(seed, special=True)
    expected, expected_masters, expected_counts = on("cpu", parameters), make(0), doubles("cpu", len(SHAPES))
    torch_.store_(expected, expected_masters, *tables, expected_counts, stochastic=stochastic)
    results, masters, counts = on(device, parameters), on(device, make(0)), doubles(device, len(SHAPES))
    version = results[3]._version
    kernels.store_(results, masters, *tables, counts, stochastic=stochastic)
    assert_same_bits(results, expected)
    assert_same_bits(masters, parameters)
    assert torch.equal(counts.cpu(), expected_counts)
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


def training_state(seed):
    """Parameters, masters, gradients (one missing, one infinite, one zero, one tiny), sums (two missing), squared."""
    parameters, masters, gradients, sums = (make(seed + i) for i in range(4))
    masters[4][:2] = torch.tensor([0.0, -0.0])
    gradients[4] = None
    gradients[5][17] = math.inf
    gradients[6].zero_()
    gradients[2].fill_(1e-42)
    sums[3] = sums[4] = None
    squared = torch.tensor([0.0 if g is None else g.double().square().sum().item() for g in gradients])
    squared = squared.double()
    squared[2] = gradients[2].double().square().sum()
    return parameters, masters, gradients, sums, squared


PENALTIES = [(0.0, 0.0), (1e-2, 0.0), (0.0, 1e-3), (1e-2, 1e-3)]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_torch_restores_as_the_equations_say(penalty, normalize):
    parameters, masters, gradients, sums, squared = training_state(11)
    before_gradients, before_sums = on("cpu", gradients), on("cpu", sums)
    statistics = doubles("cpu", len(SHAPES), 3)
    l1, l2 = (np.full(len(SHAPES), value) for value in penalty)
    torch_.restore_(parameters, masters, gradients, sums, squared, l1, l2, statistics, normalize=normalize)
    assert_same_bits(parameters, masters)
    for i, master in enumerate(masters):
        flat = [None if t is None else t.reshape(-1).tolist() for t in (before_gradients[i], before_sums[i])]
        m = master.reshape(-1).tolist()
        if gradients[i] is not None:
            expected = [
                training_passes.treated_gradient(g, w, squared[i].item(), *penalty, normalize=normalize)
                for g, w in zip(flat[0], m, strict=True)
            ]
            assert gradients[i].reshape(-1).tolist() == [float(value) for value in expected]
            assert gradients[i].isfinite().all()
        if sums[i] is None:
            assert statistics[i, 0] == 0
        else:
            expected = flat[1]
            if flat[0] is not None:
                pairs = zip(flat[1], flat[0], strict=True)
                expected = [float(training_passes.running_sum(s, g, squared[i].item())) for s, g in pairs]
            assert sums[i].reshape(-1).tolist() == expected
            assert statistics[i, 0].item() == pytest.approx(math.fsum(s * s for s in expected), rel=1e-13)
        assert statistics[i, 1].item() == pytest.approx(math.fsum(map(abs, m)), rel=1e-13)
        assert statistics[i, 2].item() == pytest.approx(math.fsum(w * w for w in m), rel=1e-13)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_restore(fast, penalty, normalize):
    kernels, device = fast
    l1, l2 = (np.full(len(SHAPES), value) for value in penalty)
    results = []
    for back, where, written in ((torch_, "cpu", True), (kernels, device, True), (kernels, device, False)):
        parameters, masters, gradients, sums, squared = training_state(23)
        parameters, *lists = (on(where, tensors) for tensors in (parameters, masters, gradients, sums))
        statistics, written = doubles(where, len(SHAPES), 3), parameters if written else None
        back.restore_(written, *lists, squared.to(where), l1, l2, statistics, normalize=normalize)
        results.append((lists if written is None else [parameters, *lists], statistics.cpu()))
    expected, expected_statistics = results[0]
    for actual, statistics in results[1:]:
        for left, right in zip(actual, expected[-len(actual) :], strict=True):
            assert_same_bits(left, right)
        torch.testing.assert_close(statistics, expected_statistics, rtol=1e-13, atol=0)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_shard_draws_what_the_whole_tensor_draws(fast, stochastic):
    kernels, device = fast
    whole = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(device)
    row, key = grid(Precision(8, 6))[None], stream_keys(0, 0, ["a"])
    expected, pieces = torch.empty_like(whole), torch.empty_like(whole)
    kernels.quantize_([whole], [expected], row, key, np.zeros(1, np.int64), stochastic=stochastic)
    cuts = [0, 3, 4096, 7777, 10_000]
    sources = [whole[a:b] for a, b in pairwise(cuts)]
    outputs = [pieces[a:b] for a, b in pairwise(cuts)]
    kernels.quantize_(
        sources, outputs, np.repeat(row, 4, 0), np.repeat(key, 4), np.array(cuts[:-1]), stochastic=stochastic
    )
    assert torch.equal(pieces, expected)


def test_no_tensors_at_all(fast):
    kernels, device = fast
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    empty = doubles(device, 0)
    kernels.quantize_([], [], *none, stochastic=True)
    kernels.store_([], [], *none, empty, stochastic=True)
    kernels.squared_norms_([], empty)
    kernels.restore_([], [], [], [], empty, [], [], doubles(device, 0, 3), normalize=True)


def test_layouts_that_do_not_fit_are_refused_before_anything_is_written(fast):
    kernels, device = fast
    tables = grid(Precision(8, 4))[None], np.zeros(1, np.uint64), np.zeros(1, np.int64)
    outputs = [torch.zeros(4, 3, device=device)]
    for source in (torch.ones(3, 4).t(), torch.ones(5), torch.ones(4, 6)[:, ::2]):
        with pytest.raises(ValueError, match=r"\[0\]"):
            kernels.quantize_([source.to(device)], outputs, *tables, stochastic=False)
    assert not outputs[0].any()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one thread")
def test_numba_gives_the_same_bits_with_any_number_of_threads():
    set_backend("numba")
    kernels = backend("cpu")
    rng = np.random.default_rng(0)
    sizes = [1_200_003, 5, 300_000, 4096]
    source = [torch.from_numpy(rng.standard_normal(size, np.float32)) for size in sizes]
    gradient = [torch.from_numpy(rng.standard_normal(size, np.float32)) for size in sizes]
    tables = np.stack([grid(Precision(8, 5))] * 4), stream_keys(0, 0, list("abcd")), np.zeros(4, np.int64)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            parameters, masters = on("cpu", source), on("cpu", source)
            gradients, sums = on("cpu", gradient), on("cpu", source)
            counts, squared, statistics = doubles("cpu", 4), doubles("cpu", 4), doubles("cpu", 4, 3)
            kernels.squared_norms_(gradients, squared)
            kernels.restore_(
                parameters, masters, gradients, sums, squared, [1e-3] * 4, [1e-3] * 4, statistics, normalize=True
            )
            kernels.store_(parameters, masters, *tables, counts, stochastic=True)
            results.append([*parameters, *masters, *gradients, *sums, counts, squared, statistics])
    finally:
        torch.set_num_threads(threads)
        set_backend(None)
    for other in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(results[0], other, strict=True))
