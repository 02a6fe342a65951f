import copy
import random
from collections import defaultdict, deque
from functools import partial
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import adapt
from adapt.perfmodel import operations
from recipes.common.models import MODELS
from tests.perfmodel.devices import Only, operations_on_meta, require


class Forward(nn.Module):
    """A module of parts whose forward is a function of them and the inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def matrix(*shape):
    return nn.Parameter(torch.rand(*shape))


# Layers, against counts made by hand


def test_linear_counts_every_position():
    assert operations_on_meta(nn.Linear(3, 4), torch.rand(2, 3)) == {"weight": 12}
    assert operations_on_meta(nn.Linear(3, 4, bias=False), torch.rand(2, 5, 3)) == {"weight": 5 * 12}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_counts_are_per_sample(batch):
    assert operations_on_meta(nn.Conv2d(3, 8, 3, padding=1), torch.rand(batch, 3, 6, 6)) == {"weight": 36 * 8 * 27}


@pytest.mark.parametrize(
    ("layer", "shape", "count"),
    [
        (nn.Conv1d(4, 6, 5), (4, 20), 16 * 6 * 4 * 5),
        (nn.Conv2d(3, 16, 3, stride=2), (3, 9, 9), 4 * 4 * 16 * 3 * 9),
        (nn.Conv2d(8, 12, 3, groups=4, padding=1), (8, 5, 5), 25 * 12 * 2 * 9),
        (nn.Conv2d(8, 8, 3, groups=8, dilation=2), (8, 7, 7), 9 * 8 * 9),
        (nn.Conv3d(2, 4, 3), (2, 4, 4, 4), 8 * 4 * 2 * 27),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (4, 5), 5 * 4 * 3 * 3),
        (nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1), (8, 5, 5), 25 * 8 * 3 * 16),
        (nn.Bilinear(3, 3, 5), None, 5 * 3 * 3),
    ],
)
def test_convolutions_and_bilinear_layers(layer, shape, count):
    inputs = [torch.rand(2, 3)] * 2 if shape is None else [torch.rand(2, *shape)]
    assert operations_on_meta(layer, *inputs) == {"weight": count}


def test_lenet5():
    model = MODELS["lenet5"](10, (1, 28, 28))
    assert operations_on_meta(model, torch.rand(2, 1, 28, 28)) == {
        "0.weight": 28 * 28 * 6 * 25,
        "3.weight": 10 * 10 * 16 * 6 * 25,
        "7.weight": 400 * 120,
        "9.weight": 120 * 84,
        "11.weight": 84 * 10,
    }


def test_residual_block():
    block = Forward(
        lambda self, x: F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))) + self.shortcut(x)),
        conv1=nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        norm=nn.BatchNorm2d(32),
        conv2=nn.Conv2d(32, 32, 3, padding=1, bias=False),
        shortcut=nn.Conv2d(16, 32, 1, stride=2),
    )
    assert operations_on_meta(block, torch.rand(1, 16, 8, 8)) == {
        "conv1.weight": 16 * 32 * 16 * 9,
        "conv2.weight": 16 * 32 * 32 * 9,
        "shortcut.weight": 16 * 32 * 16,
    }


def test_resnet20_has_its_known_41_million():
    counts = operations_on_meta(MODELS["resnet20"](10, (3, 32, 32)), torch.rand(2, 3, 32, 32))
    assert len(counts) == 20
    assert sum(counts.values()) == 40_551_040


@pytest.mark.parametrize("device", ["meta", "real"])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_on_every_device(kind, gates, device):
    layer = kind(3, 5, num_layers=2, bidirectional=True, batch_first=True)
    per_token = {"ih_l0": 3 * 5, "hh_l0": 5 * 5, "ih_l1": 10 * 5, "hh_l1": 5 * 5}
    expected = {f"weight_{name}{way}": 7 * gates * n for name, n in per_token.items() for way in ("", "_reverse")}
    assert operations(Only(device, layer), torch.rand(2, 7, 3)) == expected
    packed = nn.utils.rnn.pack_sequence([torch.rand(9, 3), torch.rand(5, 3)])
    assert operations(Only(device, layer), packed) == expected


def test_lstm_with_a_projection_and_a_cell():
    projected = nn.LSTM(3, 5, proj_size=2)
    counts = operations_on_meta(projected, torch.rand(7, 2, 3), batch_size=2)
    assert counts == {"weight_ih_l0": 7 * 20 * 3, "weight_hh_l0": 7 * 20 * 2, "weight_hr_l0": 7 * 2 * 5}
    assert operations_on_meta(nn.LSTMCell(3, 5), torch.rand(2, 3)) == {"weight_ih": 20 * 3, "weight_hh": 20 * 5}


def test_what_follows_a_recurrent_layer_is_counted():
    model = Forward(lambda self, x: self.out(self.rnn(x)[0]), rnn=nn.GRU(3, 5, batch_first=True), out=nn.Linear(5, 2))
    assert operations_on_meta(model, torch.rand(2, 7, 3))["out.weight"] == 7 * 10


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_counts_projections_and_no_scores(need_weights):
    model = Forward(
        lambda self, q, k: self.attention(q, k, k, need_weights=need_weights),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    counts = operations_on_meta(model, torch.rand(2, 3, 8), torch.rand(2, 5, 8))
    assert counts == {"attention.in_proj_weight": (3 + 5 + 5) * 64, "attention.out_proj.weight": 3 * 64}
    separate = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)
    assert operations_on_meta(separate, torch.rand(2, 3, 8), torch.rand(2, 5, 4), torch.rand(2, 5, 6)) == {
        "q_proj_weight": 3 * 64,
        "k_proj_weight": 5 * 32,
        "v_proj_weight": 5 * 48,
        "out_proj.weight": 3 * 64,
    }


@pytest.mark.parametrize("device", ["meta", "real"])
def test_transformer_layers_despite_their_fused_kernel(device):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert operations(Only(device, layer), torch.rand(2, 5, 8)) == {
        "self_attn.in_proj_weight": 5 * 3 * 64,
        "self_attn.out_proj.weight": 5 * 64,
        "linear1.weight": 5 * 128,
        "linear2.weight": 5 * 128,
    }
    assert torch.backends.mha.get_fastpath_enabled()


# How weights are used


def test_a_tied_weight_counts_once_per_use():
    model = Forward(lambda self, ids: self.out(self.embed(ids)), embed=nn.Embedding(11, 4), out=nn.Linear(4, 11))
    model.out.weight = model.embed.weight
    assert operations_on_meta(model, torch.randint(11, (2, 5))) == {"embed.weight": 5 * 44}


def test_a_module_called_twice_counts_twice():
    model = Forward(lambda self, x: self.layer(F.relu(self.layer(x))), layer=nn.Linear(4, 4))
    assert operations_on_meta(model, torch.rand(3, 4)) == {"layer.weight": 32}


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x @ self.w,
        lambda self, x: F.linear(x, self.w.t()),
        lambda self, x: torch.einsum("bti,io->bto", x, self.w),
        lambda self, x: torch.einsum("io,bti->bot", self.w, x),
        lambda self, x: torch.matmul(self.w.t(), x.transpose(1, 2)),
        lambda self, x: torch.bmm(x, self.w.expand(x.shape[0], -1, -1)),
        lambda self, x: torch.baddbmm(torch.zeros(()), x, self.w.expand(x.shape[0], -1, -1)),
        lambda self, x: torch.cat([x @ self.w[:, :1], x @ self.w[:, 1:]], -1),
        lambda self, x: torch.stack([torch.addbmm(torch.zeros(5, 4), t[None], self.w[None]) for t in x]),
        lambda self, x: torch.stack([torch.dot(row, column) for row in x.flatten(0, 1) for column in self.w.t()]),
        lambda self, x: x @ torch.cat([self.w[:, 2:], self.w[:, :2]], 1),
        lambda self, x: x @ torch.cat([self.w, torch.zeros(3, 0)], 1),
        lambda self, x: x @ (self.w * self.mask),
        lambda self, x: x @ F.normalize(self.w - self.w.mean(0)),
        lambda self, x: x @ self.w.to(torch.float64).to(torch.float32),
        lambda self, x: F.conv1d(x.transpose(1, 2), self.w.t().unsqueeze(-1)),
        lambda self, x: torch.stack([torch.stack([self.w.t() @ token for token in sample]) for sample in x]),
    ],
)
def test_weights_are_followed_through_functions(function):
    model = Forward(function, w=matrix(3, 4))
    model.register_buffer("mask", torch.ones(3, 4))
    assert operations_on_meta(model, torch.rand(2, 5, 3)) == {"w": 5 * 12}


def vmapped(self, x):
    parameters, buffers = torch.func.stack_module_state(list(self.layers))
    run = partial(torch.func.functional_call, self.layers[0])
    return torch.vmap(lambda p, b: run((p, b), (x,)))(parameters, buffers)


@pytest.mark.parametrize(
    ("forward", "widths"),
    [
        (lambda self, x: F.linear(x, torch.cat([layer.weight for layer in self.layers])), [16, 8]),
        (lambda self, x: F.linear(x, torch.cat([torch.cat([self.layers[i].weight for i in (0, 1)])])), [5, 7]),
        (lambda self, x: x @ torch.stack([layer.weight.t() for layer in self.layers]), [10, 10, 10]),
        (
            lambda self, x: [x @ w.t() for w in torch.cat([layer.weight for layer in self.layers]).split([16, 8])],
            [16, 8],
        ),
        (vmapped, [10, 10, 10]),
    ],
)
def test_weights_that_are_joined_share_the_count(forward, widths):
    model = Forward(forward, layers=nn.ModuleList(nn.Linear(3, width, bias=False) for width in widths))
    expected = {f"layers.{i}.weight": 3 * width for i, width in enumerate(widths)}
    assert operations_on_meta(model, torch.rand(2, 3)) == expected


def test_a_weight_that_is_joined_with_itself_counts_twice():
    model = Forward(lambda self, x: x @ torch.cat([self.w, self.w, self.v], 1), w=matrix(3, 4), v=matrix(3, 5))
    assert operations_on_meta(model, torch.rand(2, 3)) == {"w": 24, "v": 15}


def test_weights_without_elements_may_be_joined():
    model = Forward(lambda self, x: x @ torch.cat([self.w, self.w], 1), w=matrix(3, 0))
    assert operations_on_meta(model, torch.rand(2, 3)) == {"w": 0}


def test_weights_that_only_shift_scale_or_look_up_cost_nothing():
    model = Forward(
        lambda self, ids: self.layer((self.embed(ids) + self.position) * self.scale),
        embed=nn.Embedding(11, 4),
        position=matrix(5, 4),
        scale=matrix(1, 4),
        layer=nn.Linear(4, 2),
    )
    counts = operations_on_meta(model, torch.randint(11, (2, 5)))
    assert counts == {"embed.weight": 0, "position": 0, "scale": 0, "layer.weight": 5 * 8}
    assert list(counts) == [name for name, p in model.named_parameters() if p.ndim >= 2]


def test_products_of_activations_belong_to_no_weight():
    model = Forward(lambda self, x: torch.softmax(self.q(x) @ (x + self.shift).transpose(1, 2), -1) @ x)
    model.q, model.shift = nn.Linear(4, 4), matrix(5, 4)
    assert operations_on_meta(model, torch.rand(2, 5, 4)) == {"shift": 0, "q.weight": 5 * 16}


def in_batches(self, x, experts):
    return (self.w[experts] @ x.unsqueeze(-1)).squeeze(-1)


def by_selection(self, x, experts):
    return torch.bmm(x.unsqueeze(1), self.w.index_select(0, experts).transpose(1, 2)).squeeze(1)


def in_groups(self, x, experts):
    order = experts.argsort()
    ends = torch.histc(experts.float(), bins=3, min=0, max=2).cumsum(0, dtype=torch.int32)
    return torch.nn.functional.grouped_mm(x[order], self.w.transpose(1, 2), offs=ends)


@pytest.mark.parametrize(
    "forward",
    [
        in_batches,
        by_selection,
        pytest.param(
            in_groups, marks=pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch 2.10 is the first")
        ),
    ],
)
def test_experts_count_for_the_tokens_that_they_get(forward):
    model = Forward(
        lambda self, x: forward(self, x.flatten(0, 1), self.router(x).flatten(0, 1).argmax(-1)),
        w=matrix(3, 8, 4),
        router=nn.Linear(4, 3),
    )
    assert operations(model, torch.rand(2, 5, 4)) == {"w": 5 * 8 * 4, "router.weight": 5 * 12}


def test_rows_that_are_looked_up_are_activations():
    model = Forward(lambda self, ids: self.table[ids] @ self.table[ids].transpose(1, 2), table=matrix(11, 4))
    assert operations_on_meta(model, torch.randint(11, (2, 5))) == {"table": 0}


def test_scores_of_learned_queries_are_not_counted():
    model = Forward(
        lambda self, x: self.attention(self.queries.expand(x.shape[0], -1, -1), x, x)[0],
        queries=matrix(1, 6, 8),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    assert operations_on_meta(model, torch.rand(2, 3, 8)) == {
        "queries": 0,
        "attention.in_proj_weight": (6 + 3 + 3) * 64,
        "attention.out_proj.weight": 6 * 64,
    }


def test_unused_weights_appear_with_zero():
    model = Forward(lambda self, x: self.used(x), used=nn.Linear(3, 4), unused=nn.Linear(3, 4))
    assert operations_on_meta(model, torch.rand(2, 3)) == {"used.weight": 12, "unused.weight": 0}


def test_parametrised_pruned_and_normalised_weights():
    class LowRank(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = matrix(2, 27), matrix(8, 2)

        def forward(self, weight):
            return weight + (self.up @ self.down).view_as(weight)

    x = torch.rand(2, 3, 5, 5)
    count = 9 * 8 * 27
    layer = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    assert operations_on_meta(layer, x)["parametrizations.weight.original1"] == count
    layer = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
    norm = 8 * 27  # once for the batch of two
    assert operations_on_meta(layer, x)["parametrizations.weight.original"] == count + norm / 2
    layer = prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", 0.5)
    assert operations_on_meta(layer, x)["weight_orig"] == count
    layer = nn.Conv2d(3, 8, 3)
    parametrize.register_parametrization(layer, "weight", LowRank())
    assert operations_on_meta(layer, x)["parametrizations.weight.original"] == count


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_older_weight_norm():
    counts = operations_on_meta(nn.utils.weight_norm(nn.Linear(3, 4)), torch.rand(2, 3))
    assert counts == {"weight_g": 0, "weight_v": 12}


def test_modules_reached_by_lists_and_bound_methods():
    model = Forward(lambda self, x: self.last(self.steps[0](x)), first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    model.steps, model.last = [model.first], model.second.forward
    assert operations_on_meta(model, torch.rand(2, 3)) == {"first.weight": 12, "second.weight": 8}


class CallsOriginal:
    """Replaces a module's forward as `adapt.execution` does, and copies as the plain forward."""

    def __init__(self, module):
        self.module, self.plain = module, False

    def __call__(self, x):
        if self.plain:
            return type(self.module).forward(self.module, x)
        return torch.zeros(len(x), self.module.out_features)

    def __getstate__(self):
        return {"module": self.module, "plain": True}


def closing_over(module):
    old = module.forward
    return lambda x: old(x) + 1


def closing_over_itself(module):
    def forward(x, depth=1):
        return forward(x, depth - 1) if depth else type(module).forward(module, x)

    return forward


def with_defaults(module):
    return lambda x, layer=module, *, again=module: type(layer).forward(again, x)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize(
    "stand_in",
    [
        CallsOriginal,
        closing_over,
        closing_over_itself,
        with_defaults,
        lambda module: partial(type(module).forward, module),
        lambda module: partial(lambda x, *, layer: type(layer).forward(layer, x), layer=module),
        lambda module: MethodType(type(module).forward, module),
        lambda module: MethodType(lambda self, x: self(x), CallsOriginal(module)),
        lambda module: torch.compile(module.forward),
        lambda module: torch.no_grad()(module.forward),
    ],
)
@pytest.mark.parametrize("device", ["meta", "real"])
def test_forwards_of_an_instance_run_on_the_copy(stand_in, device):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for module in model:
        module.forward = stand_in(module)
    for counted in (model, copy.deepcopy(model)) if stand_in is CallsOriginal else (model,):
        statistics = copy.deepcopy(model.state_dict())
        assert operations(Only(device, counted), torch.rand(2, 3)) == {"0.weight": 12}
        assert all(torch.equal(tensor, statistics[name]) for name, tensor in model.state_dict().items())


def test_layers_that_run_in_a_short_type_count_as_they_do_in_float32():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 9, 4))
    inputs = torch.rand(2, 3, 5, 5)
    expected = operations_on_meta(model, inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(8, 6)), execution="bfloat16")
    before = copy.deepcopy(model.state_dict())
    assert operations_on_meta(model, inputs) == operations_on_meta(copy.deepcopy(model), inputs) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


KNOWN = {}


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (lambda x: KNOWN["model"][1](KNOWN["model"][0](x)), "Sequential.0 "),
        (lambda x: KNOWN["model"][1].forward(x @ torch.ones(3, 4)), r"Sequential.1.\w+ "),
        (lambda x: F.linear(x, KNOWN["model"][0].weight), "Sequential.0.weight "),
        (SimpleNamespace(run=lambda x: KNOWN["model"](x)).run, "Sequential "),
    ],
)
@pytest.mark.parametrize("device", ["meta", "real"])
def test_a_forward_that_finds_the_model_itself_is_refused_before_it_runs(monkeypatch, forward, found, device):
    model, inputs, calls = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.rand(2, 3), []
    before = copy.deepcopy(model.state_dict())
    handles = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in model.modules()]
    monkeypatch.setitem(KNOWN, "model", model)
    model.forward = lambda x: forward(require(device, x))
    with pytest.raises(RuntimeError, match=f"but its forward finds {found}in another way"):
        operations(model, inputs)
    assert not calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    del model.forward
    for handle in handles:
        handle.remove()
    assert model(inputs).shape == (2, 4)  # which is refused no longer


# The model and everything around it stay as they were


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_names_are_those_of_the_bare_model():
    bare = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    expected = {"0.weight": 12}
    assert operations(torch.compile(bare), torch.rand(2, 3)) == expected
    assert operations(nn.DataParallel(bare), torch.rand(2, 3)) == expected
    partly = nn.Sequential(torch.compile(bare[0]), bare[1])
    assert operations(partly, torch.rand(2, 3)) == expected
    bare.compile()
    assert operations(bare, torch.rand(2, 3)) == expected


def test_a_module_of_that_name_keeps_it():
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(3, 4))
    assert operations(averaged, torch.rand(2, 3)) == {"weight": 12}
    model = Forward(lambda self, x: self.module(x @ self.weight), module=nn.Linear(4, 5), weight=matrix(3, 4))
    assert operations(model, torch.rand(2, 3)) == {"weight": 12, "module.weight": 20}


@pytest.mark.parametrize("device", ["meta", "real"])
def test_nothing_changes(device):

    def never(*args):
        raise AssertionError("a hook of the model fired")

    def forward(self, x):
        self.calls.append(1)
        self.latest.append(x)
        self.shapes[x.shape].append(x)
        self.seen += 1
        self.cache = x
        return self.norm(self.conv(F.dropout(x, 0.5))) + torch.rand(()) * random.choice([0]) * np.random.rand()  # noqa: NPY002

    model = Forward(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    model.calls, model.cache, model.latest, model.shapes = [], None, deque([0], maxlen=1), defaultdict(list)
    model.register_buffer("seen", torch.zeros(()))
    for module in model.modules():
        module.register_forward_hook(never)
        module.register_forward_pre_hook(never)
        module.register_full_backward_hook(never)
    model.train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    attributes = {id(module): dict(vars(module)) for module in model.modules()}
    others = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    stream, x = torch.get_rng_state(), torch.rand(2, 3, 5, 5)
    torch.set_rng_state(stream)
    values = x.clone()

    assert operations(Only(device, model), x)["conv.weight"] == 9 * 4 * 27

    assert torch.equal(torch.get_rng_state(), stream)
    assert others == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(x, values)
    assert model.training
    assert not model.norm.training
    assert (model.calls, list(model.latest), len(model.shapes)) == ([], [0], 0)
    for module in model.modules():
        assert {name: id(v) for name, v in vars(module).items()} == {
            name: id(v) for name, v in attributes[id(module)].items()
        }
        assert len(module._forward_hooks) == len(module._forward_pre_hooks) == len(module._backward_hooks) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.backends.mha.get_fastpath_enabled()


def test_objects_do_not_copy_themselves():
    class Unwilling:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __reduce_ex__(self, protocol):
            raise AssertionError("copied")

    model = nn.Linear(3, 4)
    model.other = Unwilling()
    assert operations_on_meta(model, torch.rand(2, 3)) == {"weight": 12}


def test_a_large_model_needs_no_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 10))
        x = torch.empty(512, 100_000)
    assert operations_on_meta(model, x) == {"0.weight": 10**10, "2.weight": 10**6}


def test_in_place_models_leave_the_inputs_alone():
    model = Forward(lambda self, x: self.layer(x.zero_()) if x.sum() > 0 else x, layer=nn.Linear(3, 4))
    x = torch.ones(2, 3)
    assert operations(model, x) == {"layer.weight": 12}
    assert x.sum() == 6


def test_control_flow_that_needs_values_runs_on_a_real_copy():
    def forward(self, x):
        return self.positive(x) if x.sum() > 0 else self.negative(x)

    model = Forward(forward, positive=nn.Linear(3, 4), negative=nn.Linear(3, 8))
    assert operations(model, torch.ones(2, 3)) == {"positive.weight": 12, "negative.weight": 0}
    assert operations(model, -torch.ones(2, 3)) == {"positive.weight": 0, "negative.weight": 24}


def test_tensors_made_in_forward_follow_the_device():
    model = Forward(
        lambda self, ids: self.out(self.embed(ids) + self.position(torch.arange(ids.shape[1]))),
        embed=nn.Embedding(11, 4),
        position=nn.Embedding(5, 4),
        out=nn.Linear(4, 11),
    )
    assert operations_on_meta(model, torch.randint(11, (2, 5)))["out.weight"] == 5 * 44


# Input


def test_nested_inputs_and_another_batch_dimension():
    model = Forward(lambda self, inputs, scale: self.layer(inputs["x"][0] * scale), layer=nn.Linear(3, 4))
    assert operations_on_meta(model, {"x": [torch.rand(2, 3)]}, 2.0) == {"layer.weight": 12}
    attention = nn.MultiheadAttention(8, 2)
    inputs = torch.rand(3, 2, 8), torch.rand(5, 2, 8), torch.rand(5, 2, 8)
    assert operations_on_meta(attention, *inputs, batch_size=2)["in_proj_weight"] == 13 * 64


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, source=None, mask=None, *, target):
        assert mask is None
        return self.decoder(self.encoder(source).sum(1, keepdim=True) + target)


def test_inputs_by_keyword():
    example = {"source": torch.rand(2, 7, 3), "target": torch.rand(2, 6, 4)}
    expected = {"encoder.weight": 7 * 12, "decoder.weight": 6 * 20}
    assert operations_on_meta(EncoderDecoder(), **example) == expected
    assert operations(EncoderDecoder(), example["source"], target=example["target"]) == expected
    assert operations(EncoderDecoder(), **example, batch_size=1) == {name: 2 * n for name, n in expected.items()}
    assert adapt.perfmodel.activation_sizes(EncoderDecoder(), **example) == {"encoder": 28, "decoder": 30}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: operations(nn.Linear(3, 4)), ValueError, "example_inputs is empty"),
        (lambda: operations(nn.Linear(3, 4), 5), ValueError, "no tensor with a batch dimension"),
        (
            lambda: operations(nn.Bilinear(3, 3, 4), torch.rand(2, 3), torch.rand(5, 3)),
            ValueError,
            r"disagree on the batch, first dimensions are \[2, 5\]: say batch_size=",
        ),
        (lambda: operations(nn.Linear(3, 4), torch.rand(0, 3)), ValueError, "at least 1 sample, got 0"),
        (lambda: operations(nn.Linear(3, 4), torch.rand(2, 3), batch_size=0), ValueError, "at least 1 sample, got 0"),
        (lambda: operations(nn.Linear(3, 4), torch.rand(2, 5)), RuntimeError, "could not be run through Linear"),
        (lambda: operations(nn.LazyLinear(4), torch.rand(2, 5)), ValueError, "weight has no shape yet"),
        (lambda: operations(torch.relu, torch.rand(2, 5)), TypeError, "model must be a torch.nn.Module"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    with pytest.raises(TypeError, match="scripted"):
        operations(torch.jit.script(nn.Linear(3, 4)), torch.rand(2, 3))
