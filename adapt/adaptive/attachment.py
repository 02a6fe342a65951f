"""`attach`: training the layers of the user's own optimizer at adaptive precision."""

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
    """Train the layers of an optimizer at adaptive precision from its next step on.

    Hooks go on the optimizer itself, so that schedulers, clipping, scalers and Lightning see the optimizer they
    know. The present weights become the float32 masters and the parameters their quantised copies. The update of
    torch's SGD on the layers is fused with the rounding, unless somebody else's hook comes between the two; their
    gradients then keep their values. Other optimizers find, and leave, normalised and penalised gradients.

    Values that you write into a parameter in place between two steps, as by `parameter.clamp_(-1, 1)` under
    `torch.no_grad()` or by `load_state_dict`, become masters. Do not write through `parameter.data`: torch does not
    count such writes, so that they are noticed late, from samples, or not at all.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step, or what Accelerate, MMEngine, fastai or
            Lightning wraps around it.
        params: the module that the optimizer trains, or its named parameters, parameters or groups. With a module,
            evaluation mode shows the weights rounded to nearest and `load_state_dict` sets the masters; without one,
            see `Controller.evaluation_weights`. With `torch.compile`, pass the module that it returned.
        policy: what decides on the formats; `AdaPT()`, the paper's setting, if None.
        l1: α of the penalty α‖W‖₁ on every layer.
        l2: β of the penalty β/2·‖W‖₂².
        rounding: "stochastic" or "nearest", in training. Evaluation always rounds to nearest.
        seed: seed of the rounding stream, which is independent of every other generator.
        layers: which parameters are layers, called with (name, parameter); weights with at least two dimensions
            if not given. A frozen parameter joins when it is unfrozen.
        layer_bits: word lengths by hand beside those by policy: bits by pattern, `{"conv1": 8, "head.*": (6, 8)}`, one
            number or the fewest and the most. A pattern of `fnmatch` names a parameter or a module that holds it; the
            first one that matches decides. Where the policy wants another length, a longer word gets a finer step, and
            a shorter one is block floating point, whose range follows the weights; `compact` spends its budget within
            the bounds. A resumed run keeps those that it was saved with unless it is given others.
        quantize_biases: quantise biases and norm parameters too, in the word length of the layer before them and a
            fraction length of their own.
        l1_by_word_length: scale each layer's α by WL/32, the differentiable variant of the word-length penalty.
        trace_every: write every k-th step into the trace.
        activations: quantise the inputs and outputs of the linear layers, convolutions and embeddings too, with a
            straight-through gradient: "layer" in the layer's own format, "range" in its word length with the fraction
            length that the observed range asks for, a number in a word of so many bits by range; see
            `adapt.activations.Activations`. Of recurrent layers, attention, and layers with weight norm, spectral norm
            or pruning only the weights are quantised. Needs the module in `params`.
        quantize_errors: quantise the gradients that come back to the outputs of these layers too, in the activations'
            word length with the fraction length that their range asks for.
        execution: really run the products of linear layers and convolutions in "bfloat16" (words of up to 8 bits) or
            "float16" (up to 11), as long as their words fit; see docs/execution.md for what is rounded where.
            Needs the module in `params`.
        execution_backward: run the products for the gradients of these layers in the short type too.

    Returns:
        The controller. It lives as long as the optimizer.

    Raises:
        TypeError, ValueError, NotImplementedError: an argument does not fit, the optimizer evaluates the loss several
            times in a step, its parameters are not those of `params`, a controller is attached already, or there is no
            layer. Nothing is attached then.
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
        return Controller(optimizer, module, parameters, AdaptiveRun(policy, settings, layers))

    return registry.register(optimizer, module, make)


def check_policy(policy: object) -> None:
    """Refuse a policy that cannot decide on formats.

    Raises:
        TypeError: it is no policy.
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
