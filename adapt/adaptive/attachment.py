"""`attach`: train the layers of the user's own optimizer at adaptive precision."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import nn
from torch.optim import Optimizer

from adapt.adaptive.controller import Controller
from adapt.adaptive.options import Options, Settings, shows_options
from adapt.adaptive.run import AdaptiveRun
from adapt.engine import registry
from adapt.layers import choice
from adapt.layers.layer_bits import check_patterns
from adapt.layers.naming import Parameters, named
from adapt.layers.optimizers import check_optimizer
from adapt.numerics import Precision
from adapt.switching.adapt import AdaPT
from adapt.switching.policy import Policy


@shows_options
def attach(
    optimizer: Optimizer, params: Parameters, policy: Policy[Any] | None = None, **options: Unpack[Options]
) -> Controller:
    """Train the layers of an optimizer at adaptive precision, starting with its next step.

    The optimizer stays the same object and only gets hooks, so schedulers, gradient clipping, scalers and Lightning
    keep working. The current weights become the float32 masters, and the parameters become their quantised copies.
    torch's SGD update of the layers is fused with the rounding unless another hook has to run between the two; the
    fused update leaves gradients unchanged. Other optimizers see normalised and penalised gradients, and these remain
    after the step.

    Values written into a parameter in place between two steps become masters, for example by
    `parameter.clamp_(-1, 1)` under `torch.no_grad()` or by `load_state_dict`. Do not write through `parameter.data`:
    torch does not count such writes, so they are noticed late, from samples, or not at all.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step, or what Accelerate, MMEngine, fastai or
            Lightning wraps around it.
        params: the module that the optimizer trains, or its named parameters, parameters or groups. With a module,
            evaluation mode shows the weights rounded to nearest and `load_state_dict` sets the masters; without one,
            see `Controller.evaluation_weights`. With `torch.compile`, pass the compiled module.
        policy: chooses the formats; `AdaPT()`, the paper's setting, if None.
        l1: α of the penalty α‖W‖₁ on every layer.
        l2: β of the penalty β/2·‖W‖₂².
        rounding: "stochastic" or "nearest", in training. Evaluation always rounds to nearest.
        seed: seed of the rounding stream, which is independent of every other generator.
        layers: a predicate of (name, parameter) that selects the layers; by default, weights with at least two
            dimensions. A frozen parameter joins when it is unfrozen.
        layer_bits: word lengths set by hand, as bits by pattern: `{"conv1": 8, "head.*": (6, 8)}`, either one number or
            (fewest, most). An `fnmatch` pattern names a parameter or a module that holds it; the first match decides.
            If the policy's word is too short, the layer gets more fraction bits; if it is too long, the layer gets
            block floating point, whose range follows the weights. `compact` spends its budget within the bounds. A
            resumed run keeps its saved bounds unless it is given others.
        quantize_biases: quantise biases and norm parameters too, with the word length of the layer before them and
            their own fraction length.
        l1_by_word_length: scale each layer's α by WL/32, the differentiable variant of the word-length penalty.
        trace_every: record every k-th step in the trace.
        activations: also quantise the inputs and outputs of linear layers, convolutions and embeddings, with a
            straight-through gradient: "layer" uses the layer's own format, "range" its word length with a fraction
            length that follows the observed range, where a short word may clip rare large values, and a number that
            many bits with a fraction length by range; see `adapt.activations.Activations`. For recurrent layers,
            attention, and layers with weight norm, spectral norm or pruning, only the weights are quantised. Requires a
            module as `params`.
        quantize_errors: also quantise the gradients with respect to the outputs of these layers, with the activations'
            word length and a fraction length that fits their largest magnitude.
        execution: actually run the products of linear layers and convolutions in "bfloat16" (words of up to 8 bits) or
            "float16" (up to 11), as long as their words fit; docs/execution.md says what is rounded where. Requires a
            module as `params`.
        execution_backward: run the products for the gradients of these layers in the short type too.

    Returns:
        The controller. It lives as long as the optimizer.

    Raises:
        TypeError, ValueError, NotImplementedError: an argument is invalid, the optimizer evaluates the loss several
            times per step, its parameters are not those of `params`, a controller is already attached, or there is no
            layer. Nothing is attached in these cases.
    """
    optimizer = check_optimizer(optimizer)
    policy = AdaPT() if policy is None else policy
    check_policy(policy)
    settings = Settings.of(**options)
    if (settings.l1 or settings.l2) and any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            "l1 and l2 are penalties of a loss that is minimised, but the optimizer has maximize=True: "
            "minimise the negative instead"
        )
    module = params if isinstance(params, nn.Module) else None
    if settings.activations is not None and module is None:
        raise ValueError("activations are quantised by hooks on the layers: pass the module itself as params")
    if settings.execution is not None and module is None:
        raise ValueError("execution changes how the layers compute: pass the module itself as params")
    parameters = named(params)
    registry.check_free(optimizer, parameters)
    layers = choice.choose(optimizer, parameters, settings.layers)
    choice.check_modules(module, layers)
    check_patterns(settings.layer_bits or {}, choice.candidates(parameters, settings.layers))

    def make() -> Controller:
        return Controller(optimizer, module, parameters, AdaptiveRun(policy, settings, layers, module))

    return registry.register(optimizer, module, make)


def check_policy(policy: object) -> None:
    """Check that an object has the members of `Policy`.

    Raises:
        TypeError: it does not.
    """
    missing = [name for name in vars(Policy) if not name.startswith("_") and not hasattr(policy, name)]
    if isinstance(policy, type) or missing:
        hint = ""
        if isinstance(policy, Precision):
            hint = f": a format that stays is adapt.Fixed({policy!r})"
        elif isinstance(policy, Mapping):
            hint = ": formats that stay, by the layers' names, are adapt.Fixed(formats)"
        elif hasattr(policy, "advance") and missing:
            hint = f": it lacks {', '.join(missing)} of adapt.switching.policy.Policy"
        raise TypeError(f"policy must be a policy such as adapt.AdaPT(), got {policy!r:.200}{hint}")
