"""What is captured computes what the attached model computes in evaluation, without any of its training."""

import copy
import pickle

import pytest
import torch
from torch import nn

import adapt
from adapt.export import capture, load
from tests.export.networks import (
    Computed,
    Recurrent,
    Residual,
    Tied,
    Transposed,
    TransposedWeights,
    adaptive,
    model_of,
    with_lsq,
    with_widths,
)

RUNS = {
    "weights": lambda: adaptive(Residual),
    "biases": lambda: adaptive(Residual, quantize_biases=True),
    "policy": lambda: adaptive(Residual, adapt.AdaPT(lookback=(1, 2), resolution=(8, 20)), activations="range"),
    "layer": lambda: adaptive(Residual, activations="layer", quantize_biases=True),
    "8 bits": lambda: adaptive(Residual, activations=8),
    "24 bits": lambda: adaptive(Residual, adapt.Fixed(adapt.Precision(28, 20)), activations=24),
    "errors": lambda: adaptive(Residual, activations=6, quantize_errors=True),
    "float32": lambda: adaptive(Residual, adapt.MuPPET(steps_per_epoch=1), activations=8).train(0),
    "transposed": lambda: adaptive(Transposed, activations=7),
    "tied": lambda: adaptive(Tied),
    "tied, rounded": lambda: adaptive(Tied, activations=8),
    "transposed weights": lambda: adaptive(TransposedWeights, activations=8),
    "LSQ, transposed weights": lambda: with_lsq(TransposedWeights),
    "recurrent": lambda: adaptive(Recurrent, activations=8),
    "LSQ": lambda: with_lsq(Residual),
    "LSQ, one bit": lambda: with_lsq(Residual, weight_bits=1, activation_bits=1),
    "LSQ, transposed": lambda: with_lsq(Transposed),
    "LSQ, tied": lambda: with_lsq(Tied),
    "widths": lambda: with_widths(Residual),
    "widths down to a bit": lambda: with_widths(Transposed, bits=1.5, floor=1),
}


EXPORTED = {"weights", "policy", "transposed", "tied, rounded", "recurrent", "LSQ", "widths"}
"""Runs whose modules torch.export takes in every test: one of each kind."""


@pytest.fixture(scope="module", params=RUNS, ids=str)
def run(request):
    return RUNS[request.param]()


def test_the_captured_network_equals_the_attached_one(run):
    exported = capture(run.controller, inputs=run.inputs)
    with torch.no_grad():
        assert torch.equal(exported.module()(run.inputs), run.evaluate())


def test_words_times_step_are_the_weights_of_evaluation(run):
    exported = capture(run.controller)
    with run.controller.evaluation_weights():
        weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert exported.words.keys() <= weights.keys()
    assert set(run.controller.precisions) >= {n for n in exported.words if weights[n].ndim > 1}
    for name, words in exported.words.items():
        form = exported.formats[name]
        assert words.dtype in (torch.int8, torch.int16, torch.int32)
        assert torch.equal(form.values(words), weights[name]), name
    state = exported.module().state_dict()
    assert state.keys() == run.model.state_dict().keys()
    for name, weight in weights.items():
        assert torch.equal(state[name], weight), name


def test_it_needs_nothing_of_the_training(run):
    exported = capture(run.controller)
    module = exported.module()
    before = module(run.inputs)
    run.train(1)
    assert torch.equal(module(run.inputs), before)
    assert torch.equal(exported.module()(run.inputs), before)
    assert not module.training
    for part in module.modules():
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            assert hook.__module__ == "adapt.export.rounding"
    assert not any(module._state_dict_hooks or module._load_state_dict_post_hooks for module in module.modules())


@pytest.mark.parametrize(
    "run", [pytest.param(name, marks=() if name in EXPORTED else pytest.mark.long) for name in RUNS], indirect=True
)
def test_it_copies_pickles_and_goes_through_torch_export(run):
    exported = capture(run.controller)
    module = exported.module()
    expected = module(run.inputs)
    for copied in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        pickle.loads(pickle.dumps(exported)).module(),
    ):
        assert torch.equal(copied(run.inputs), expected)
    program = torch.export.export(module, (run.inputs,)).module()
    assert torch.equal(program(run.inputs), expected)


def test_torch_compile_tells_networks_of_one_class_apart():
    runs = [adaptive(Residual, activations=activations) for activations in (None, 8, 5)]
    for run in runs:
        module = capture(run.controller).module()
        assert torch.equal(torch.compile(module, backend="eager")(run.inputs), module(run.inputs))


def test_sources(run):
    a, b = capture(run.controller), capture(run.optimizer)
    assert all(torch.equal(a.words[name], words) for name, words in b.words.items())
    assert a.formats == b.formats


def test_weights_that_are_computed_from_others_stay_so(tmp_path):
    run = adaptive(Computed)
    exported = capture(run.controller, inputs=run.inputs)
    assert "pruned.weight_orig" in exported.words
    assert "conv.parametrizations.weight.original1" in exported.words
    exported.save(tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net", Computed()).module()(run.inputs), run.evaluate())


def test_rounding_modules_have_the_formats_of_the_sites():
    run = adaptive(Residual, activations=8)
    exported = capture(run.controller)
    assert set(exported.sites) == {f"{n}.{end}" for n in ("conv1", "conv2", "head") for end in ("input", "output")}
    module = exported.module()
    assert module.conv1.input_rounding.form == exported.formats["conv1.input"]
    assert "8, " in repr(module.conv1.input_rounding)
    x = torch.randn(1000)
    assert torch.equal(module.head.output_rounding(x), exported.formats["head.output"].quantize(x))


def test_products_in_a_short_type_are_captured_in_float32():
    run = adaptive(Residual, activations=8, execution="bfloat16")
    exported = capture(run.controller, inputs=run.inputs)
    module = exported.module()
    assert all("forward" not in part.__dict__ for part in module.modules())
    assert module(run.inputs).dtype == torch.float32


def test_channels_last_stays():
    torch.manual_seed(0)
    run = adaptive(Residual)
    model = model_of(Residual).to(memory_format=torch.channels_last)
    optimizer = adapt.ASGD(model, lr=0.05, policy=adapt.Fixed(adapt.Precision(6, 6)))
    inputs = run.inputs.to(memory_format=torch.channels_last)
    module = capture(optimizer, inputs=inputs).module()
    assert module.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_module_that_holds_its_optimizer_is_captured():
    model = model_of(Residual)
    model.optimizer = adapt.ASGD(model, lr=0.05, policy=adapt.Fixed(adapt.Precision(6, 6)))
    assert capture(model.optimizer).module().optimizer is None


def test_parameters_alone_need_the_module():
    model = model_of(Residual)
    optimizer = adapt.ASGD(model.named_parameters(), lr=0.05, policy=adapt.Fixed(adapt.Precision(6, 6)))
    with pytest.raises(ValueError, match="module="):
        capture(optimizer)
    exported = capture(optimizer, model)
    with optimizer.controller.evaluation_weights():
        assert torch.equal(exported.module().conv1.weight, model.conv1.weight)


def test_compiled_modules_are_captured_by_their_plain_names():
    model = model_of(Residual)
    compiled = torch.compile(model, backend="eager")
    optimizer = adapt.ASGD(compiled, lr=0.05, policy=adapt.Fixed(adapt.Precision(6, 6)), activations=8)
    exported = capture(optimizer)
    assert set(exported.words) == {"conv1.weight", "conv2.weight", "head.weight"}
    assert type(exported.module()) is Residual


def test_refusals():
    run = adaptive(Residual)
    with pytest.raises(TypeError, match="source must be"):
        capture(run.model)
    with pytest.raises(TypeError, match="source must be"):
        capture(torch.optim.SGD(nn.Linear(2, 2).parameters()))


def test_what_detach_leaves_is_captured():
    run = adaptive(Residual, activations=8, rounding="stochastic")
    before = capture(run.controller)
    run.controller.detach(keep_activations=True)
    after = capture(run.controller)
    assert after.formats == before.formats
    with torch.no_grad():
        assert torch.equal(after.module()(run.inputs), before.module()(run.inputs))
        assert torch.equal(after.module()(run.inputs), run.evaluate())
    with pytest.raises(ValueError, match="leave inputs out"):
        capture(run.controller, inputs=run.inputs)
    with torch.no_grad():
        run.model.conv1.weight[0] += 1e-3
    with pytest.raises(RuntimeError, match=r"conv1\.weight does not lie on the grid.*capture before detach"):
        capture(run.controller)
    run = adaptive(Residual)
    run.controller.detach("masters")
    with pytest.raises(RuntimeError, match=r"does not lie on the grid.*are the masters"):
        capture(run.controller)


def test_a_network_that_computes_otherwise_when_copied_is_refused():
    class Fickle(Residual):
        def __deepcopy__(self, memo):
            copied = Fickle()
            copied.load_state_dict(self.state_dict())
            copied.forward = lambda x: Residual.forward(copied, 2 * x)
            return copied

    run = adaptive(Fickle)
    capture(run.controller)
    with pytest.raises(RuntimeError, match="differs"):
        capture(run.controller, inputs=run.inputs)
