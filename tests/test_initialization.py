import math

import pytest
import torch
from scipy.stats import truncnorm
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import adapt


def parts(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_weights_follow_the_truncated_normal(scale):
    """The Dvoretzky-Kiefer-Wolfowitz bound: a correct sampler exceeds it with a probability below 1e-9, at any n."""
    torch.manual_seed(0)
    fan_in, error_probability = 400, 1e-9
    weights = adapt.tnvs_(nn.Linear(fan_in, 1000), scale).weight.detach().double().flatten().sort().values
    expected = torch.from_numpy(truncnorm(-math.sqrt(3), math.sqrt(3), scale=math.sqrt(scale / fan_in)).cdf(weights))
    n = len(weights)
    distance = (torch.arange(n) / n - expected).abs().max() + 1 / n
    assert distance <= math.sqrt(math.log(2 / error_probability) / (2 * n))


def test_tails_reach_the_bounds_without_piling_up_there():
    """Of a million weights 168 are expected within 0.1 % of either bound. Fewer than 40 or more than 400, which would
    be a tail cut short or clamped, have a probability below 1e-30."""
    torch.manual_seed(0)
    bound = math.sqrt(3 * 0.5 / 1000)
    weights = adapt.tnvs_(nn.Linear(1000, 1000)).weight.detach()
    assert weights.abs().max() <= bound * (1 + 1e-7)
    for near in (weights > 0.999 * bound, weights < -0.999 * bound):
        assert 40 < near.sum() < 400


@pytest.mark.parametrize(
    ("layer", "name", "fan_in"),
    [
        (nn.Linear(300, 200), "weight", 300),
        (nn.Bilinear(20, 30, 40), "weight", 600),
        (nn.Conv1d(20, 300, 5), "weight", 100),
        (nn.Conv2d(64, 128, 3), "weight", 576),
        (nn.Conv2d(64, 512, 3, groups=64), "weight", 9),
        (nn.Conv3d(8, 64, 3), "weight", 216),
        (nn.ConvTranspose1d(64, 64, 6), "weight", 384),
        (nn.ConvTranspose2d(64, 32, 4, stride=2), "weight", 64 * 4),
        (nn.ConvTranspose2d(64, 32, 4, stride=(1, 2), groups=4), "weight", 16 * 8),
        (nn.ConvTranspose2d(64, 128, 2, stride=3), "weight", 64),
        (nn.ConvTranspose3d(16, 16, 3), "weight", 16 * 27),
        (nn.Embedding(500, 64), "weight", 64),
        (nn.EmbeddingBag(500, 64), "weight", 64),
        (nn.LSTM(50, 60), "weight_ih_l0", 50),
        (nn.LSTM(50, 60), "weight_hh_l0", 60),
        (nn.GRUCell(50, 60), "weight_hh", 60),
        (nn.MultiheadAttention(64, 4), "in_proj_weight", 64),
        (nn.MultiheadAttention(64, 4, kdim=40), "k_proj_weight", 40),
        (nn.MultiheadAttention(64, 4), "out_proj.weight", 64),
    ],
)
def test_fan_in_of_every_kind_of_layer(layer, name, fan_in):
    """The standard deviation of n weights is off by 5 of its standard errors, about 1/√(2n), once in a million."""
    torch.manual_seed(0)
    weight = adapt.tnvs_(layer, 0.8).get_parameter(name)
    deviation = 0.8146 * math.sqrt(0.8 / fan_in)
    assert weight.abs().max() <= math.sqrt(3 * 0.8 / fan_in) * (1 + 1e-6)
    assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * weight.numel()))


def test_a_transposed_convolution_keeps_the_variance():
    """Twice s is where one layer passes variance 1 on, truncation aside: fan-in is what an output really sums."""
    torch.manual_seed(0)
    scale = 1 / 0.8146**2
    for stride in (1, 2, 4):
        layer = adapt.tnvs_(nn.ConvTranspose2d(64, 64, 4, stride=stride, bias=False), scale)
        output = layer(torch.randn(8, 64, 16, 16))[..., 8:-8, 8:-8]
        assert output.var().item() == pytest.approx(1, rel=0.1)


def test_everything_else_stays():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 8))

    model = nn.Sequential(
        nn.Linear(8, 8),
        nn.LayerNorm((3, 8)),
        nn.BatchNorm1d(8),
        nn.MultiheadAttention(8, 2, add_bias_kv=True),
        nn.LSTM(8, 8),
        Learned(),
        nn.Linear(8, 8).requires_grad_(False),
        nn.PReLU(8),
    )
    before = parts(model)
    assert adapt.tnvs_(model) is model
    changed = {name for name, value in parts(model).items() if not torch.equal(value, before[name])}
    assert changed == {
        "0.weight",
        "3.in_proj_weight",
        "3.out_proj.weight",
        "4.weight_ih_l0",
        "4.weight_hh_l0",
    }
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("6."))


def test_the_padding_row_stays_zero():
    for layer in (nn.Embedding(10, 4, padding_idx=3), nn.EmbeddingBag(10, 4, padding_idx=-1)):
        adapt.tnvs_(layer)
        zero = (layer.weight == 0).all(dim=1)
        assert zero.sum() == 1
        assert zero[layer.padding_idx]


def test_draws_come_from_the_global_stream_once_per_weight():
    def drawn(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
        model[1].weight = model[0].weight
        torch.manual_seed(seed)
        adapt.tnvs_(model)
        return model[0].weight.detach(), torch.rand(())

    first, second, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(1)
    layer = nn.Embedding(20, 8, _weight=torch.zeros(20, 8))
    adapt.tnvs_(layer)
    assert torch.equal(layer.weight, first[0])
    assert torch.equal(torch.rand(()), first[1])


def test_computed_weights_are_set_through_their_parametrization():
    torch.manual_seed(0)
    layer = adapt.tnvs_(parametrizations.weight_norm(nn.Linear(100, 400)))
    bound = math.sqrt(3 * 0.5 / 100)
    assert 0.99 * bound < layer.weight.abs().max() <= bound * (1 + 1e-5)
    assert torch.allclose(layer.parametrizations.weight.original0, layer.weight.norm(dim=1, keepdim=True))
    pruned = adapt.tnvs_(prune.l1_unstructured(nn.Linear(100, 400), "weight", 0.5))
    assert pruned.weight_orig.abs().max() > 0.99 * bound


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
def test_older_weight_norm_gives_the_promised_weights(dim):
    torch.manual_seed(0)
    layer = nn.utils.weight_norm(nn.Linear(100, 400), dim=dim)
    twin = nn.Linear(100, 400)
    torch.manual_seed(1)
    adapt.tnvs_(layer)
    torch.manual_seed(1)
    adapt.tnvs_(twin)
    assert torch.allclose(layer.weight, twin.weight, atol=1e-6)
    layer(torch.rand(1, 100))
    assert torch.allclose(layer.weight, twin.weight, atol=1e-6)
    assert (layer.weight_g > 0).all()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_older_weight_norm_follows_the_layer_and_is_left_frozen():
    moved = nn.utils.weight_norm(nn.LSTM(8, 8), "weight_hh_l0").double()
    adapt.tnvs_(moved)
    assert moved.weight_hh_l0.dtype == torch.float64
    assert moved(torch.rand(2, 3, 8, dtype=torch.float64))[0].isfinite().all()
    frozen = nn.utils.weight_norm(nn.Linear(3, 3)).requires_grad_(False)
    before = parts(frozen)
    adapt.tnvs_(nn.Sequential(nn.Linear(3, 3), frozen))
    assert all(torch.equal(value, before[name]) for name, value in parts(frozen).items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_older_weight_norm_of_pruned_parts_is_refused():
    layer = prune.l1_unstructured(nn.utils.weight_norm(nn.Linear(3, 3)), "weight_v", 0.5)
    with pytest.raises(ValueError, match="weight of Linear has a weight norm whose own parameters are computed"):
        adapt.tnvs_(layer)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    ("register", "reason"),
    [
        (lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()), "Doubled does not implement"),
        (
            lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley", use_trivialization=False),
            "not possible to assign",
        ),
    ],
)
def test_nothing_is_drawn_when_a_parametrization_cannot_be_inverted(register, reason):
    model = nn.Sequential(nn.Linear(3, 3), register(nn.Linear(3, 3)))
    before, stream = parts(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"weight of ParametrizedLinear has a parametrization .*{reason}"):
        adapt.tnvs_(model)
    assert all(torch.equal(value, before[name]) for name, value in parts(model).items())
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_drawn_as_well(dtype):
    torch.manual_seed(0)
    weight = adapt.tnvs_(nn.Linear(100, 400, dtype=dtype)).weight
    assert weight.dtype == dtype
    assert weight.double().std().item() == pytest.approx(0.8146 * math.sqrt(0.5 / 100), rel=0.03)
    assert weight.unique().numel() > 200


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: adapt.tnvs_(nn.Linear(2, 2), 0), ValueError, "scale must be positive and finite, got 0"),
        (lambda: adapt.tnvs_(nn.Linear(2, 2), -1.0), ValueError, "scale must be positive and finite, got -1.0"),
        (lambda: adapt.tnvs_(nn.Linear(2, 2), math.nan), ValueError, "scale must be positive and finite, got nan"),
        (lambda: adapt.tnvs_(nn.Linear(2, 2), math.inf), ValueError, "scale must be positive and finite, got inf"),
        (lambda: adapt.tnvs_(nn.Linear(2, 2), "0.5"), TypeError, "scale must be a number, got '0.5'"),
        (lambda: adapt.tnvs_(nn.ReLU()), ValueError, "ReLU has no trainable weight of two or more dimensions"),
        (lambda: adapt.tnvs_(nn.LayerNorm((2, 2))), ValueError, "LayerNorm has no trainable weight"),
        (lambda: adapt.tnvs_([nn.Linear(2, 2)]), TypeError, "module must be a torch.nn.Module, got list"),
        (lambda: adapt.tnvs_(nn.LazyLinear(2)), ValueError, "weight of LazyLinear has no shape yet"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nothing_is_drawn_when_one_weight_has_no_shape():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="no shape yet"):
        adapt.tnvs_(model)
    assert torch.equal(model[0].weight, before)
