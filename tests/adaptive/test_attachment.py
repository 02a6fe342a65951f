"""What `attach`, `ASGD` and the policies refuse: a clear sentence, and nothing half attached."""

import copy
import gc
import math
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from tests.training import RESTLESS, assembled, copies, net, train


def hooks(model, optimizer):
    """How many hooks of every kind there are."""
    places = [*([] if model is None else model.modules()), *([optimizer] if hasattr(optimizer, "param_groups") else [])]
    return [
        len(value)
        for place in places
        for name, value in sorted(vars(place).items())
        if "hook" in name and hasattr(value, "__len__")
    ]


def refuses(error, message, optimizer, params, *arguments, model=None, **options):
    """Check that `attach` fails in these words and leaves model and optimizer as they were."""
    model = params if isinstance(params, nn.Module) else model
    weights = {} if model is None else copies(model.named_parameters())
    before = hooks(model, optimizer)
    with pytest.raises(error, match=message):
        adapt.attach(optimizer, params, *arguments, **options)
    assert hooks(model, optimizer) == before
    if model is not None:
        assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1} | options))


def test_the_count_of_hooks_sees_an_attached_controller():
    model = net()
    optimizer = sgd(model)
    before = hooks(model, optimizer)
    controller = adapt.attach(optimizer, model)
    assert hooks(model, optimizer) != before
    controller.detach()
    assert hooks(model, optimizer) == before


class SharpnessAware(torch.optim.SGD):
    """The interface of the optimizers that call themselves SAM."""

    def first_step(self):
        pass

    def second_step(self):
        pass


class ScheduleFree(torch.optim.SGD):
    """The interface of the optimizers that show an average of the weights in evaluation."""

    def train(self):
        pass

    def eval(self):
        pass


class Gathered(nn.Module):
    def __init__(self, parameter):
        super().__init__()
        self.weight = parameter


def with_parameter(values):
    return Gathered(nn.Parameter(values, requires_grad=values.is_floating_point() or values.is_complex()))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda model: "SGD", TypeError, r"optimizer must be a torch\.optim\.Optimizer, got str"),
        (lambda model: torch.optim.SGD, TypeError, r"optimizer must be a torch\.optim\.Optimizer, got type"),
        (
            lambda model: torch.optim.LBFGS(model.parameters()),
            ValueError,
            "optimizer LBFGS evaluates the loss several times in one step.*use one that evaluates once",
        ),
        (
            lambda model: SharpnessAware(model.parameters(), lr=0.1),
            ValueError,
            "optimizer SharpnessAware evaluates the loss several times",
        ),
        (
            lambda model: ScheduleFree(model.parameters(), lr=0.1),
            ValueError,
            r"optimizer ScheduleFree moves the weights between its steps, in train\(\) and eval\(\).*use one",
        ),
        (
            lambda model: sgd(net()),
            ValueError,
            "optimizer holds 4 of 4 parameters that params does not name: pass the module.*made for",
        ),
        (
            lambda model: torch.optim.SGD([*model.parameters(), *nn.Linear(2, 2).parameters()], lr=0.1),
            ValueError,
            "optimizer holds 2 of 6 parameters that params does not name",
        ),
        (
            lambda model: torch.optim.SGD([model[0].bias, model[2].bias], lr=0.1),
            ValueError,
            "params has no layer to quantise: no trainable parameter of the optimizer has two or more dimensions",
        ),
    ],
)
def test_optimizers(make, error, message):
    model = net()
    refuses(error, message, make(model), model)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda model: None, TypeError, "params must be a module, named parameters or parameters, got NoneType"),
        (lambda model: 3, TypeError, "params must be a module, named parameters or parameters, got int"),
        (lambda model: model[0].weight, TypeError, "got a single tensor: wrap it in a list"),
        (
            lambda model: [1, 2],
            TypeError,
            r"must hold parameters, \(name, parameter\) pairs or groups, got int at 0",
        ),
        (
            lambda model: {"weight": "none"},
            TypeError,
            "must hold parameters, .* pairs or groups, got tuple at 0",
        ),
        (lambda model: [{"weights": model.parameters()}], TypeError, "pairs or groups, got dict at 0"),
        (
            lambda model: [("a", model[0].weight), ("a", model[2].weight)],
            ValueError,
            "params names two parameters 'a': give each its own name",
        ),
        (lambda model: [], ValueError, "optimizer holds 4 of 4 parameters that params does not name"),
        (lambda model: model[0], ValueError, "optimizer holds 2 of 4 parameters that params does not name"),
    ],
)
def test_params(params, error, message):
    model = net()
    refuses(error, message, sgd(model), params(model), model=model)


class Unfinished:
    """The beginnings of a policy."""

    normalize_gradients = quantize_gradients = False

    def advance(self, state, observation):
        return state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": "AdaPT"}, TypeError, r"policy must be a policy such as adapt\.AdaPT\(\), got 'AdaPT'"),
        ({"policy": adapt.AdaPT}, TypeError, r"policy must be a policy such as adapt\.AdaPT\(\), got <class"),
        ({"policy": adapt.Precision(8, 4)}, TypeError, r"got Precision\(.*\): a format that stays is adapt\.Fixed\("),
        (
            {"policy": Unfinished()},
            TypeError,
            r"it lacks sums_gradients, .*, start, .* of adapt\.switching\.policy\.Policy",
        ),
        ({"l1": -1e-5}, ValueError, "l1 must be a finite number ≥ 0, got -1e-05"),
        ({"l1": math.inf}, ValueError, "l1 must be a finite number ≥ 0, got inf"),
        ({"l2": math.nan}, ValueError, "l2 must be a finite number ≥ 0, got nan"),
        ({"l2": "strong"}, TypeError, "l2 must be a number, got 'strong'"),
        ({"l1": None}, TypeError, "l1 must be a number, got None"),
        ({"rounding": "up"}, ValueError, 'rounding must be "stochastic" or "nearest", got \'up\''),
        ({"seed": 1.5}, TypeError, r"seed must be an integer, got 1\.5"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"seed": True}, TypeError, "seed must be an integer, got True"),
        ({"trace_every": True}, ValueError, "trace_every must be a whole number of steps ≥ 1, got True"),
        ({"quantize_biases": "no"}, TypeError, "quantize_biases must be True or False, got 'no'"),
        ({"l1_by_word_length": 2}, TypeError, "l1_by_word_length must be True or False, got 2"),
        ({"quantize_errors": "layer"}, TypeError, "quantize_errors must be True or False, got 'layer'"),
        ({"execution_backward": None}, TypeError, "execution_backward must be True or False, got None"),
        ({"trace_every": 0}, ValueError, "trace_every must be a whole number of steps ≥ 1, got 0"),
        ({"trace_every": 2.5}, ValueError, r"trace_every must be a whole number of steps ≥ 1, got 2\.5"),
        ({"rouding": "nearest"}, TypeError, "there is no option rouding: did you mean rounding?"),
        ({"quantise_biases": True}, TypeError, "there is no option quantise_biases: did you mean quantize_biases?"),
        ({"polcy": None}, TypeError, "there is no option polcy: did you mean policy?"),
        ({"warmth": 3}, TypeError, r"there is no option warmth: help\(adapt\.attach\) names them all"),
        ({"layers": "all"}, TypeError, r"layers must be a function of \(name, parameter\), got 'all'"),
        ({"layers": lambda name, parameter: False}, ValueError, r"\(or `layers` selects none\)"),
    ],
)
def test_options(options, error, message):
    model = net()
    refuses(error, message, sgd(model), model, **options)
    with pytest.raises(error, match=message):
        adapt.ASGD(model, lr=0.1, **options)
    adapt.attach(sgd(model), model)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_type(kind):
    model = net().to(kind)
    message = f"0.weight is {kind}, but the optimizer must update a float32 master: keep the model in float32"
    refuses(TypeError, message, sgd(model), model)


def test_weights_without_values():
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(TypeError, match=r"0\.weight has no shape yet: run one forward pass through the lazy module"):
        adapt.attach(sgd(lazy), lazy)
    meta = net().to("meta")
    with pytest.raises(TypeError, match=r"0\.weight is on the meta device and has no values yet: load or initialise"):
        adapt.attach(sgd(meta), meta)


def test_weights_with_gaps_in_memory():
    model = with_parameter(torch.randn(4, 6)[:, ::2])
    refuses(ValueError, "weight is a view with gaps or overlaps in memory: make the parameter cont", sgd(model), model)


def test_an_embedding_that_writes_into_its_weight():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 2))
    refuses(ValueError, r"0\.weight belongs to an embedding with max_norm=1\.0.*off their grid", sgd(model), model)
    adapt.attach(sgd(model), model, layers=lambda name, parameter: name == "1.weight")


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_penalties_of_an_objective_that_is_maximised(penalty):
    model = net()
    message = "l1 and l2 are penalties of a loss that is minimised, but the optimizer has maximize=True"
    refuses(ValueError, message, sgd(model, maximize=True), model, **{penalty: 0.1})
    adapt.attach(sgd(model, maximize=True), model)


def test_sparse_gradients_fail_in_the_step_and_leave_the_weights():
    torch.manual_seed(0)
    model = nn.Embedding(7, 4, sparse=True)
    optimizer = sgd(model)
    controller = adapt.attach(optimizer, model)
    weight, master = model.weight.detach().clone(), controller.masters["weight"].clone()
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="weight has a sparse gradient: make its embedding with sparse=False"):
        optimizer.step()
    assert torch.equal(model.weight, weight)
    assert torch.equal(controller.masters["weight"], master)


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.double(),
        lambda model: setattr(model[0].weight, "data", model[0].weight.data.t().contiguous().t()),
    ],
    ids=["another type", "another order in memory"],
)
def test_a_model_that_is_moved_after_attaching(move):
    model, optimizer, controller = assembled()
    train(model, optimizer, 2, controller=controller)
    masters = copies(controller.masters)
    move(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    controller.observe(1.0)
    message = r"0\.weight was moved after its controller was attached.*first, then make the optimizer and attach"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    with pytest.raises(RuntimeError, match=message):
        model.eval()(torch.zeros(1, 6))
    assert all(torch.equal(master, masters[name]) for name, master in controller.masters.items())


def test_parameters_that_get_other_memory_of_the_same_kind_are_followed():
    model, optimizer, controller = assembled()
    twin, twin_optimizer, twin_controller = assembled()
    for step in range(12):
        train(model, optimizer, 1, step, controller)
        train(twin, twin_optimizer, 1, step, twin_controller)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


# Twice


def test_an_optimizer_has_one_controller():
    model, optimizer, _controller = assembled()
    refuses(ValueError, r"optimizer has a controller already: call the controller's detach\(\)", optimizer, model)
    swapped = net()
    optimizer = adapt.ASGD(swapped, lr=0.1)
    with pytest.raises(ValueError, match="optimizer has a controller already"):
        adapt.attach(optimizer, swapped)


@pytest.mark.parametrize("quantize_biases", [False, True])
def test_a_parameter_has_one_controller(quantize_biases):
    model = net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    controller = adapt.attach(first, model, quantize_biases=quantize_biases)
    refuses(ValueError, r"params holds 0\.weight, which another optimizer's controller manages", sgd(model), model)
    if quantize_biases:
        second = torch.optim.SGD([model[0].bias, model[2].weight], lr=0.1)
        refuses(ValueError, r"params holds 0\.bias, which another optimizer's controller manages", second, model)
    controller.detach()
    adapt.attach(sgd(model), model)


def test_a_network_whose_optimizer_was_dropped_is_free_at_once():
    """An optimizer and its controller refer to each other; nobody should have to know."""
    model, optimizer, controller = assembled()
    gc.disable()
    try:
        del optimizer, controller
        adapt.attach(sgd(model), model)
    finally:
        gc.enable()


def test_controllers_go_with_their_optimizers():
    model, optimizer, controller = assembled(quantize_biases=True)
    train(model, optimizer, 5, controller=controller)
    model.eval()(torch.zeros(1, 6))
    watch = [weakref.ref(optimizer), weakref.ref(controller), weakref.ref(controller.masters["0.weight"])]
    weights = copies(model.named_parameters())
    del optimizer, controller
    gc.collect()
    assert [reference() for reference in watch] == [None] * 3
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    model.train()(torch.zeros(1, 6))
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_dropped_network_goes_too():
    model, optimizer, controller = assembled()
    watch = weakref.ref(model)
    del model, optimizer, controller
    gc.collect()
    assert watch() is None


def test_detaching_and_attaching_again():
    model, optimizer, controller = assembled()
    before = copies(controller.masters)
    train(model, optimizer, 6, controller=controller)
    rows = len(controller.trace)
    controller.detach()
    quantised = copies(model.named_parameters())
    for name, precision in controller.precisions.items():
        assert torch.equal(quantised[name], adapt.quantize(controller.masters[name], precision))
    again = adapt.attach(optimizer, model, RESTLESS)
    assert all(torch.equal(again.masters[name], quantised[name]) for name in before)
    train(model, optimizer, 6, controller=again)
    assert len(again.trace) == 6
    assert len(controller.trace) == rows
    assert again.step == 6


# Who is a layer


def test_layers_can_be_chosen():
    model = net()
    controller = adapt.attach(sgd(model), model, layers=lambda name, parameter: name.startswith("2."))
    assert list(controller.precisions) == ["2.weight", "2.bias"]


@pytest.mark.parametrize(
    "params",
    [
        lambda model: model,
        lambda model: dict(model.named_parameters()),
        lambda model: model.named_parameters(),
        lambda model: list(model.named_parameters()),
        lambda model: model.named_parameters(remove_duplicate=False),
    ],
)
def test_every_form_of_params_names_the_layers_alike(params):
    model = net()
    assert list(adapt.attach(sgd(model), params(model)).precisions) == ["0.weight", "2.weight"]


def test_parameters_without_names_are_numbered():
    model = net()
    assert list(adapt.attach(sgd(model), model.parameters()).precisions) == ["parameter_0", "parameter_2"]


def test_a_tied_weight_is_one_layer_by_its_first_name():
    model = net()
    model.again = nn.Linear(6, 8)
    model.again.weight = model[0].weight
    controller = adapt.attach(sgd(model), model.named_parameters(remove_duplicate=False))
    assert list(controller.precisions) == ["0.weight", "2.weight"]


def test_names_are_plain_under_wrappers():
    model = net()
    wrapped = torch.optim.swa_utils.AveragedModel(torch.compile(model, backend="eager"))
    assert all(name.startswith("module._orig_mod.") for name, _ in wrapped.named_parameters())
    controller = adapt.attach(sgd(wrapped), wrapped)
    assert list(controller.precisions) == ["0.weight", "2.weight"]


def test_a_replaced_layer_joins_under_another_name():
    torch.manual_seed(0)
    model, optimizer, controller = assembled()
    train(model, optimizer, 3, controller=controller)
    model[2] = nn.Linear(8, 3)
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, 3, 3, controller)
    assert list(controller.precisions) == ["0.weight", "2.weight", "2.weight'"]
    assert controller.trace.layers == ("0.weight", "2.weight", "2.weight'")
    train(model, optimizer, 3, 6, controller)


# Hyperparameters


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"initial": (8, 4)}, TypeError, r"initial must be an adapt\.Precision or None, got \(8, 4\)"),
        ({"buffer_bits": -1}, ValueError, "buffer_bits must be a whole number from 0 to 30, got -1"),
        ({"buffer_bits": 31}, ValueError, "buffer_bits must be a whole number from 0 to 30, got 31"),
        ({"buffer_bits": 4.0}, ValueError, r"buffer_bits must be a whole number from 0 to 30, got 4\.0"),
        ({"resolution": (150, 50)}, ValueError, r"resolution must be \(lower, upper\).*got \(150, 50\)"),
        ({"resolution": (0, 50)}, ValueError, r"resolution must be \(lower, upper\)"),
        ({"resolution": 50}, TypeError, r"resolution must be two whole numbers \(lower, upper\), got 50"),
        ({"lookback": (100, 25)}, ValueError, r"lookback must be \(lower, upper\) with 1 ≤ lower ≤ upper"),
        ({"lookback": (2.5, 25)}, TypeError, r"lookback must be two whole numbers \(lower, upper\), got \(2\.5, 25\)"),
        ({"lookback": (1, 2, 3)}, TypeError, r"lookback must be two whole numbers"),
        ({"lookback": None}, TypeError, r"lookback must be two whole numbers"),
        ({"lookback_momentum": 1.01}, ValueError, r"lookback_momentum must be a number between 0 and 1, got 1\.01"),
        ({"lookback_momentum": -0.1}, ValueError, "lookback_momentum must be a number between 0 and 1"),
        ({"lookback_momentum": math.nan}, ValueError, "lookback_momentum must be a number between 0 and 1"),
        ({"lookback_momentum": "low"}, ValueError, "lookback_momentum must be a number between 0 and 1, got 'low'"),
        ({"kl_tolerance": -0.01}, ValueError, r"kl_tolerance must be a finite number of bits ≥ 0, got -0\.01"),
        ({"kl_tolerance": math.inf}, ValueError, "kl_tolerance must be a finite number of bits ≥ 0, got inf"),
        ({"kl_tolerance": None}, ValueError, "kl_tolerance must be a finite number of bits ≥ 0, got None"),
        ({"normalize_gradients": "no"}, TypeError, "normalize_gradients must be True or False, got 'no'"),
        ({"quantize_gradients": 1}, TypeError, "quantize_gradients must be True or False, got 1"),
        ({"push_up": "both"}, ValueError, 'push_up must be "suggestion", "diversity" or "loss", got \'both\''),
    ],
)
def test_hyperparameters_of_adapt(options, error, message):
    with pytest.raises(error, match=message):
        adapt.AdaPT(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": 8}, r"precision must be an adapt\.Precision, or formats .*, got 8"),
        ({"precision": None}, r"precision must be an adapt\.Precision, or formats .*, got None"),
        ({"normalize_gradients": None}, "normalize_gradients must be True or False, got None"),
    ],
)
def test_hyperparameters_of_fixed(options, message):
    with pytest.raises(TypeError, match=message):
        adapt.Fixed(**({"precision": adapt.Precision(8, 4)} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1.0}, "learning rate"), ({"momentum": -0.5}, "momentum"), ({"nesterov": True}, "Nesterov")],
)
def test_arguments_of_sgd_are_checked_by_sgd(options, message):
    model = net()
    weights = copies(model.named_parameters())
    with pytest.raises(ValueError, match=message):
        adapt.ASGD(model, **options)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert sum(hooks(model, None)) == 0


def test_asgd_takes_its_policy_by_name():
    with pytest.raises(TypeError, match=r"lr must be a number or a tensor, got AdaPT.*: give the policy as policy="):
        adapt.ASGD(net(), adapt.AdaPT())


def test_numpy_numbers_are_numbers():
    model = net()
    adapt.attach(sgd(model), model, l1=np.float32(0.1), l2=np.float64(0.1))


def test_parameters_that_take_the_place_of_others_join():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    precision = adapt.Precision(4, 2)
    controller = adapt.attach(optimizer, model, adapt.Fixed(precision))
    model[2] = nn.Linear(8, 3)
    optimizer.param_groups.pop()
    optimizer.add_param_group({"params": list(model[2].parameters())})
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    assert any(layer is model[2].weight for layer in controller.layers.values())
    assert torch.equal(model[2].weight, adapt.quantize(model[2].weight.detach(), precision))


def test_what_fails_half_way_leaves_the_weights_and_the_modules_as_they_were():
    model = nn.Sequential(nn.EmbeddingBag(4, 3), nn.Flatten())
    weights, optimizer = model[0].weight.detach().clone(), sgd(model)
    before = hooks(model, optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match="execution='bfloat16' was asked for, but"):
            adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(4, 2)), activations=8, execution="bfloat16")
    assert torch.equal(model[0].weight, weights)
    assert hooks(model, optimizer) == before


@pytest.mark.parametrize("options", [{"activations": 8}, {"execution": "bfloat16"}])
def test_defaults_of_torch_are_no_matter(options):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, optimizer = torch.randn(4, 6), sgd(model)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(8, 6)), **options)
            model(x).square().mean().backward()
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_controller_is_not_copied(copied):
    model = nn.Linear(6, 8)
    controller = adapt.attach(sgd(model), model, adapt.Fixed(adapt.Precision(8, 6)))
    with pytest.raises(TypeError, match="a Controller belongs to its optimizer and modules and cannot be copied"):
        copied(controller)
    copied(model)
