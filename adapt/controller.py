"""The one stateful room: masters, hooks on the user's own optimizer, and what a run must remember.

One step flows one way: forward and backward at Ŵ → the loss is noted → p ← W, penalties and normalisation on G →
the policy sees (W, G, loss) and answers formats → the optimizer steps → W ← p → p ← Q(W) → one row of the trace.
"""

import contextlib
import gc
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt import checkpoint, layering, penalties
from adapt.activations import MODES, Activations, check_state
from adapt.decisions import Decisions
from adapt.hooks import WeakHook
from adapt.masters import Masters, View
from adapt.precision import Precision
from adapt.sharding import Whole, reshard_, whole
from adapt.switching.adapt import AdaPT
from adapt.switching.policy import Format, Policy, carry, pack, unpack, unpack_formats
from adapt.trace import Trace

_live: "weakref.WeakSet[Controller]" = weakref.WeakSet()


class Controller:
    """Keeps an optimizer's layers on a fixed-point grid and lets a policy move their precision. `attach` makes it.

    Between steps every layer's parameter holds quantised values; the float32 masters are here. Evaluation sees the
    masters rounded to nearest, training sees them rounded as `rounding` says: hooks on the modules swap the two when
    a module's mode changes. What anyone else writes into a layer's parameter between two steps is overwritten by the
    next, except by `load_state_dict`, whose values become the masters.

    The figures of a step (norms, loss) stay on the device until a layer can switch and are then replayed: decisions
    are those of a look at every step, without waiting for the device in each.

    Attributes:
        optimizer: the optimizer.
        step: optimizer steps begun so far.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module | None,
        parameters: Mapping[str, Tensor],
        policy: Policy[Any],
        *,
        l1: float,
        l2: float,
        stochastic: bool,
        seed: int,
        choice: layering.Choice,
        quantize_biases: bool,
        l1_by_word_length: bool,
        trace_every: int,
        activations: str | None,
        quantize_errors: bool,
    ) -> None:
        chosen = layering.choose(optimizer, parameters, choice)
        layering.check_modules(module, chosen)
        _refuse_second(optimizer, parameters)
        self.optimizer, self.step = optimizer, 0
        self._module, self._known, self._choice = module, dict(parameters), choice
        self._l1, self._l2, self._l1_by_word_length = l1, l2, l1_by_word_length
        self._seed, self._stochastic = seed, stochastic
        self._quantize_biases = quantize_biases
        self._activation_mode, self._quantize_errors = activations, quantize_errors
        self._micro_losses: list[Tensor | float] = []
        self._handles: list[Any] = []
        self._pin: View | None = None
        self._own: dict[nn.Module, dict[str, tuple[Masters, int]]] = {}
        self._inside: dict[nn.Module, list[tuple[Masters, int, nn.Module]]] = {}
        self._closure: Callable[[], Any] | None = None
        self._updating, self._restored = False, False
        self._nested = 0

        self._policy = policy
        self._layers = self._masters(chosen, sums=policy.sums_gradients)
        self._followers: Masters | None = None
        self._follower_formats: list[Format] = []
        self._decisions = Decisions(policy, self._layers.device, trace_every=trace_every)
        self._decisions.go_on(policy.start(Whole(self._layers.weights)), Trace(self._layers.names, self._layers.numel))
        self._follow()
        self._activations: Activations | None = None
        self._flow()
        self._use_formats(range(len(chosen)))
        self._store(from_parameters=False)
        self._hook()
        _live.add(self)

    # What a user sees

    @property
    def policy(self) -> Policy[Any]:
        """The policy that decides."""
        return self._policy

    @property
    def precisions(self) -> dict[str, Precision]:
        """The format of every layer, by the weight's name. A layer that a policy runs in float32 has None."""
        return dict(zip(self._layers.names, self._decisions.formats, strict=True))  # type: ignore[arg-type]

    @property
    def activation_precisions(self) -> dict[str, Precision]:
        """The format of every input, output and error that is quantised, by the weight's name and ".input" and so on.

        None where values stay float32. Reading it waits for the device. Empty without `activations`.
        """
        return {} if self._activations is None else self._activations.precisions  # type: ignore[return-value]

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 master weights of the layers, by the weight's name: the tensors themselves, not copies."""
        return dict(zip(self._layers.names, self._layers.weights, strict=True))

    @property
    def trace(self) -> Trace:
        """What happened in every step so far. Reading it waits for the device."""
        self._settle()
        self._decisions.close_row(self._layers.nonzeros.cpu().numpy())
        self._decisions.write()
        return self._decisions.trace

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite: they moved neither weights nor statistics."""
        self._settle()
        return dict(zip(self._layers.names, self._decisions.skipped.tolist(), strict=True))

    def observe(self, loss: Tensor | float) -> None:
        """Show the loss of a micro-batch before `step()`; those of several micro-batches are averaged.

        Raises:
            TypeError: the loss is no number.
            ValueError: the loss is not a single number.
        """
        if not isinstance(loss, Tensor | Real):
            raise TypeError(f"loss must be a tensor or a number, got {type(loss).__name__}")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise ValueError(f"loss must be a single number, got shape {tuple(loss.shape)}: reduce it first")
        self._micro_losses.append(loss.detach().reshape(()) if isinstance(loss, Tensor) else float(loss))

    def forget_losses(self) -> None:
        """Drop the losses shown since the last step: for gradients that are thrown away, as by a scaler's skip."""
        self._micro_losses.clear()

    def penalty(self) -> Tensor:
        """α‖W‖₁ + β/2·‖W‖₂² + P as it stands, a 0-dim tensor. It has no gradient: the step itself applies it."""
        numel = torch.as_tensor(np.maximum(self._layers.numel, 1), device=self._layers.device)
        words = torch.as_tensor(self._decisions.word_lengths, dtype=torch.float64, device=self._layers.device)
        total = (words * self._layers.nonzeros / numel).mean() / penalties.LONGEST_WORD
        for alpha, weight in zip(self._l1_of_layers, self._layers.weights, strict=True):
            total = total + alpha * whole(weight.abs().sum()) + self._l2 / 2 * whole(weight.square().sum())
        return total.to(torch.float32)

    def master_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the parameters hold the float32 masters, afterwards what they held before."""
        return self._pinned("masters")

    def evaluation_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the context the parameters hold the masters rounded to nearest, whatever mode the modules are in.

        Needed only where no module was given to `attach`, or where its hooks do not run: in a module that was compiled
        in place, or after attaching.
        """
        return self._pinned("evaluation")

    @torch.no_grad()
    def quantize_(self) -> None:
        """Round what the parameters hold now to nearest, in place and in the present formats; no master changes.

        For values from elsewhere, such as the mean of masters that weight averaging evaluates.
        """
        for masters in self._banks():
            masters.round_parameters()
        self._renew()

    def detach(self, view: View = "evaluation") -> None:
        """Take the hooks away for good. `trace` and `masters` can be read afterwards as before.

        Args:
            view: what the parameters keep: the masters rounded to nearest, or the "masters" themselves.
        """
        if self not in _live:
            return
        for masters in self._banks():
            masters.hand_over(view)
        self._renew()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._activations is not None:
            self._activations.remove()
        _live.discard(self)

    # Set-up

    def _masters(self, parameters: Mapping[str, Tensor], *, sums: bool, old: Masters | None = None) -> Masters:
        return Masters(parameters, seed=self._seed, stochastic=self._stochastic, sums=sums, old=old)

    def _follow(self) -> None:
        """Find the biases of the present layers, and remember who is in the optimizer."""
        self._members = sum(len(group["params"]) for group in self.optimizer.param_groups)
        self._frozen = [p for p in layering.optimized(self.optimizer) if not p.requires_grad]
        if self._quantize_biases:
            found = layering.followers(self._known, self._layers.names, self.optimizer)
            self._leaders = [leader for _, leader in found.values()]
            tensors = {name: parameter for name, (parameter, _) in found.items()}
            self._followers = self._masters(tensors, sums=False, old=self._followers) if found else None
            self._follower_formats = [None] * len(found)

    def _flow(self) -> None:
        """Round the activations of the present layers from now on."""
        if self._activation_mode is None or self._module is None:
            return
        old = self._activations
        self._activations = Activations(
            self._module,
            {id(p): i for i, p in enumerate(self._layers.parameters)},
            mode=self._activation_mode,
            errors=self._quantize_errors,
            seed=self._seed,
            stochastic=self._stochastic,
            device=self._layers.device,
            old=old,
        )
        if old is not None:
            old.remove()

    def _hook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_state_dict_post_hook(self._save_into),
            self.optimizer.register_load_state_dict_pre_hook(self._load_from),
        ]
        places = {id(p): (masters, i) for masters in self._banks() for i, p in enumerate(masters.parameters)}
        self._own = {
            module: {name: places[id(p)] for name, p in module._parameters.items() if id(p) in places}
            for module in (() if self._module is None else self._module.modules())
        }
        for module, own in self._own.items():
            self._inside[module] = [
                (*place, owner) for owner in module.modules() for place in self._own[owner].values()
            ]
            # Where there is no layer yet, one may be unfrozen or join the optimizer.
            if any(True for _ in module.parameters()):
                self._handles.append(module.register_forward_pre_hook(WeakHook(self._before_forward), prepend=True))
            if own:
                load, save = WeakHook(self._after_load), WeakHook(self._after_save)
                self._handles.append(module.register_load_state_dict_post_hook(load))  # type: ignore[no-untyped-call]
                self._handles.append(module.register_state_dict_post_hook(save))  # type: ignore[no-untyped-call]

    def _adopt(self) -> None:
        """Take in the layers that joined the optimizer, or were unfrozen, since the last look."""
        members = sum(len(group["params"]) for group in self.optimizer.param_groups)
        if members == self._members and not any(p.requires_grad for p in self._frozen):
            return
        self._renew()
        names = {id(p): name for name, p in self._known.items()}
        if self._module is not None:
            names |= {id(p): layering.plain_name(name) for name, p in self._module.named_parameters()}
        for parameter in layering.optimized(self.optimizer):
            name = names.setdefault(id(parameter), f"parameter_{len(names)}")
            # A module may have been replaced by one of its name, but the optimizer keeps the parameters of both.
            while self._known.get(name, parameter) is not parameter:
                name += "'"
            self._known[name] = parameter
        old, trace, skipped = self._layers, self.trace, self._decisions.skipped
        found = layering.choose(self.optimizer, self._known, self._choice)
        chosen = dict(zip(old.names, old.parameters, strict=True)) | found
        added = list(chosen)[len(old.names) :]
        self._layers = self._masters(chosen, sums=self._policy.sums_gradients, old=old)
        if added:
            trace.add_layers(added, self._layers.numel[len(old.names) :])
        fresh = self._policy.start(Whole(self._layers.weights))
        kept = {i: i for i in range(len(old.names))}
        self._decisions.go_on(carry(self._decisions.state, fresh, kept), trace)
        self._decisions.skipped[: len(skipped)] = skipped
        self._follow()
        self._flow()
        self._use_formats(range(len(chosen)))
        self._store(from_parameters=False)
        self._hook()

    # One step

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if self._is_within_step(closure) or self._only_creates_state(kwargs):
            self._nested += 1
            return None
        self._nested = 0
        if closure is None:
            self._before_update()
            return None
        self._updating, self._closure = False, self._watched(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self._closure}
        return (args[0], self._closure, *args[2:]), kwargs

    def _is_within_step(self, closure: Callable[[], Any] | None) -> bool:
        """Whether an optimizer that overrides `step` has called its parent's `step`, which has these hooks too.

        An update that an exception cut short does not count: the forward pass after it took the masters away.
        """
        if closure is not None:
            return closure is self._closure
        return self._updating and self._layers.views[0] == "masters"

    def _only_creates_state(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether this is the step of rate zero by which torch.distributed.checkpoint creates an optimizer's state."""
        idle = "closure" in kwargs and kwargs["closure"] is None
        return idle and all(float(group.get("lr", 1)) == 0 for group in self.optimizer.param_groups)

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, and after it what belongs between backward and update."""

        def watched() -> Any:
            if self._updating:
                self._updating = False
                self._store(from_parameters=False)
                raise RuntimeError(
                    f"{type(self.optimizer).__name__} evaluated its closure twice in one step, but the second "
                    "forward pass would run on float32 masters: use an optimizer that evaluates it once"
                )
            with torch.enable_grad():
                loss = closure()
            if not self._micro_losses and isinstance(loss, Tensor | float | int):
                self.observe(loss)
            self._before_update()
            return loss

        return watched

    @torch.no_grad()
    def _before_update(self) -> None:
        if self._pin is not None:
            raise RuntimeError(
                "optimizer.step() within master_weights() or evaluation_weights(): leave the context before training"
            )
        self._restored = False
        self._adopt()
        self._unscale()
        masters, policy = self._layers, self._policy
        gradients = masters.gradients()
        active = np.array([gradient is not None for gradient in gradients])
        loss_shown = bool(self._micro_losses)
        squared, statistics, nonzeros, loss = self._decisions.row
        nonzeros.copy_(masters.nonzeros)
        self._note_loss(loss)
        masters.square(gradients, squared, quantize=policy.quantize_gradients, step=self.step)
        if policy.keeps_gradients:
            masters.keep(gradients)
        masters.restore(
            gradients,
            squared,
            statistics,
            l1=self._l1_of_layers,
            l2=self._l2,
            normalize=policy.normalize_gradients,
        )
        if self._followers is not None:
            self._followers.restore_only()
        self.step += 1
        self._decisions.add(self.step, active, loss_shown)
        self._updating = True
        if self._decisions.due:
            self._settle()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._nested:
            self._nested -= 1
            return
        self._closure = None
        if not self._updating:
            self._store(from_parameters=False)
            raise RuntimeError(
                f"{type(self.optimizer).__name__} made a step without evaluating its closure: "
                "call backward() yourself and step() without a closure"
            )
        self._updating = False
        if self._activations is not None:
            self._activations.advance()
        self._store()

    def _unscale(self) -> None:
        """Undo GradScaler's scale where it left that to a fused optimizer: norms and penalties need true gradients."""
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:
            gradients = [p.grad for p in layering.optimized(self.optimizer) if p.grad is not None]
            torch._foreach_mul_(gradients, scale.double().reciprocal().to(scale.dtype))
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]

    def _note_loss(self, out: Tensor) -> None:
        """The mean of the micro-batches' losses, over all processes, into `out`."""
        micro, self._micro_losses = self._micro_losses, []
        if micro:
            out.fill_(micro[0] if len(micro) == 1 else 0.0)
            for loss in micro if len(micro) > 1 else ():
                out += (loss.to(out) if isinstance(loss, Tensor) else loss) / len(micro)
            _average_over_ranks(out)
        elif self._policy.uses_loss:
            self._decisions.warn(
                "the controller never saw the loss of this step, so the push-up strategy stays where it is: pass a "
                "closure to step(), or call controller.observe(loss) before it"
            )

    def _store(self, *, from_parameters: bool = True) -> None:
        """W ← p, unless p is no news, then p ← Ŵ in the present formats."""
        for masters in self._banks():
            if not from_parameters:
                masters.show("masters", anew=True)
            masters.store(self.step)
        self._renew()
        if self._activations is not None:
            self._activations.resume(self.step)

    def _settle(self) -> None:
        """Let the policy see the steps that wait, and act on what it decides."""
        before = self._decisions.formats
        ended = self._decisions.settle(Whole(self._layers.weights), self._layers.windows, self._l1_of_layers, self._l2)
        self._layers.clear(ended)
        if ended or before != self._decisions.formats:
            changed = [i for i, f in enumerate(self._decisions.formats) if f != before[i]]
            self._use_formats({*ended, *changed})

    def _use_formats(self, changed: Sequence[int] | set[int] | range) -> None:
        """Round to the present formats from now on; biases that follow a changed layer get a new fraction length."""
        formats, words = self._decisions.formats, self._decisions.word_lengths
        self._layers.use(formats)
        if self._activations is not None:
            self._activations.use(formats)
        self._l1_of_layers = (
            penalties.l1_by_word_length(self._l1, words) if self._l1_by_word_length else np.full(len(words), self._l1)
        )
        if self._followers is not None:
            for i, (leader, weight) in enumerate(zip(self._leaders, self._followers.weights, strict=True)):
                if leader in changed:
                    word_length = None if formats[leader] is None else int(words[leader])
                    self._follower_formats[i] = (
                        None if word_length is None else layering.fitting(whole(weight), word_length)
                    )
            self._followers.use(self._follower_formats)

    # Views and loading

    def _renew(self) -> None:
        """Let no forward pass see what the parameters held before, where FSDP keeps whole copies of them."""
        if self._module is not None and any(masters.sharded for masters in self._banks()):
            reshard_(self._module)

    def _banks(self) -> list[Masters]:
        return [masters for masters in (self._layers, self._followers) if masters is not None]

    @contextlib.contextmanager
    def _pinned(self, view: View) -> Iterator[None]:
        before = [list(masters.views) for masters in self._banks()]
        outer, self._pin = self._pin, view
        try:
            for masters in self._banks():
                masters.show(view)
            self._renew()
            if self._activations is not None:
                self._activations.pin(view)
            yield
        finally:
            self._pin = outer
            if self._activations is not None:
                self._activations.pin(outer)
            for masters, views in zip(self._banks(), before, strict=True):
                for earlier in set(views):
                    masters.show(earlier, [i for i, v in enumerate(views) if v == earlier])
            self._renew()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        """Show each layer in the view that its own module's mode asks for."""
        if self._pin is not None:
            return
        self._adopt()
        stale = False
        for masters, index, owner in self._inside.get(module, ()):
            view: View = "training" if owner.training else "evaluation"
            if masters.views[index] != view:
                masters.show(view, [index])
                stale = True
        if stale:
            self._renew()

    def _after_load(self, module: nn.Module, keys: Any) -> None:
        """New values in a module become masters."""
        for masters, index in self._own.get(module, {}).values():
            masters.accept(index)

    def _after_save(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        """What is saved of a module is what evaluation sees, whatever its mode."""
        if self._pin is not None:
            return
        for name, (masters, index) in self._own.get(module, {}).items():
            saved = state.get(prefix + name)
            # With keep_vars the caller asks for the parameter itself.
            if masters.views[index] != "evaluation" and isinstance(saved, Tensor) and not saved.requires_grad:
                state[prefix + name] = masters.seen(index, "evaluation")

    # Persistence

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, in plain containers, numbers and tensors. `optimizer.state_dict()` holds it.

        Between the micro-batches of a step it holds the gradients so far too, where their losses were observed.
        """
        trace, masters, followers = self.trace, self._layers, self._followers
        optimized = self._optimized()
        return {
            "version": checkpoint.VERSION,
            "step": self.step,
            "seed": self._seed,
            "stochastic": self._stochastic,
            "policy": type(self._policy).__name__,
            "layers": list(masters.names),
            "state": pack(self._decisions.state),
            "masters": checkpoint.copied(masters.names, masters.weights),
            "sums": checkpoint.copied(masters.names, masters.sums),
            "windows": {n: [g.clone() for g in w] for n, w in zip(masters.names, masters.windows, strict=True)},
            "skipped": dict(zip(masters.names, self._decisions.skipped.tolist(), strict=True)),
            "followers": {} if followers is None else checkpoint.copied(followers.names, followers.weights),
            "follower_formats": {}
            if followers is None
            else {
                name: None if f is None else [f.word_length, f.fraction_length]
                for name, f in zip(followers.names, self._follower_formats, strict=True)
            },
            "micro_losses": [float(loss) for loss in self._micro_losses],
            "gradients": checkpoint.copied(optimized, (p.grad for p in optimized.values()))
            if self._micro_losses
            else {},
            "activations": {} if self._activations is None else self._activations.state_dict(),
            "trace": checkpoint.sealed(trace.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from where `state_dict` was taken. Nothing changes unless all of it fits.

        Args:
            state: what `state_dict` answered.
            strict: refuse a state whose layers are not exactly these. Otherwise layers are matched by name: what the
                state lacks starts afresh, what it has too much is left out, and the trace starts anew.

        Raises:
            ValueError: the state is of another kind, version, policy or network.
        """
        masters, names = self._layers, self._layers.names
        weights = dict(zip(names, masters.weights, strict=True))
        checkpoint.check(
            state,
            policy=type(self._policy).__name__,
            weights=weights,
            sums=self._policy.sums_gradients,
            strict=strict,
        )
        old_names = list(state["layers"])
        old = unpack(state["state"], self._policy.start(Whole(masters.weights[:1] * len(old_names))), len(old_names))
        places = {i: old_names.index(name) for i, name in enumerate(names) if name in old_names}
        policy_state = carry(old, self._policy.start(Whole(masters.weights)), places)
        if self._policy.keeps_gradients:
            checkpoint.check_windows(state["windows"], dict(zip(old_names, old.gradients.tolist(), strict=True)))
        same = tuple(old_names) == names
        trace = Trace.from_state_dict(checkpoint.opened(state["trace"])) if same else Trace(names, masters.numel)
        optimized = self._optimized()
        checkpoint.check_tensors(
            "gradients", state["gradients"], {n: p for n, p in optimized.items() if n in state["gradients"]}
        )
        followers = self._followers
        bias_formats = unpack_formats(state["follower_formats"].values())
        follower_formats = dict(zip(state["follower_formats"], bias_formats, strict=True))
        if followers is not None:
            biases = dict(zip(followers.names, followers.weights, strict=True))
            checkpoint.check_tensors(
                "followers", state["followers"], {n: b for n, b in biases.items() if strict or n in follower_formats}
            )
        if self._activations is not None:
            check_state(state["activations"], self._activations.names, strict=strict)

        self.step, self._seed, self._stochastic = state["step"], state["seed"], state["stochastic"]
        self._decisions.go_on(policy_state, trace)
        for i in places:
            masters.load(i, state["masters"], state["sums"], state["windows"])
            self._decisions.skipped[i] = state["skipped"].get(names[i], 0)
        self._use_formats(range(len(names)))
        if followers is not None:
            for i, name in enumerate(followers.names):
                if name in follower_formats:
                    followers.load(i, state["followers"], {}, {})
                    self._follower_formats[i] = follower_formats[name]
            followers.use(self._follower_formats)
        for bank in self._banks():
            bank.seed, bank.stochastic = self._seed, self._stochastic
        if self._activations is not None:
            self._activations.seed, self._activations.stochastic = self._seed, self._stochastic
            self._activations.load_state_dict(state["activations"], strict=strict)
        self._micro_losses = list(state["micro_losses"])
        for name in state["gradients"].keys() & optimized:
            optimized[name].grad = state["gradients"][name].to(optimized[name].device, copy=True)
        self._updating, self._restored = False, True
        self._store(from_parameters=False)

    def _optimized(self) -> dict[str, Tensor]:
        """Every parameter of the optimizer by its name."""
        inside = {id(p) for p in layering.optimized(self.optimizer)}
        return {name: p for name, p in self._known.items() if id(p) in inside}

    def _save_into(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict[checkpoint.KEY] = self.state_dict()
        return state_dict

    def _load_from(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        if checkpoint.KEY not in state_dict:
            if not self._restored:
                warnings.warn(
                    "the optimizer's state was saved without a controller: formats and masters stay as they are",
                    stacklevel=2,
                )
            return state_dict
        checkpoint.check_groups(state_dict, optimizer.param_groups)
        self.load_state_dict(state_dict[checkpoint.KEY])
        return {key: value for key, value in state_dict.items() if key != checkpoint.KEY}


def attach(
    optimizer: Optimizer,
    params: layering.Parameters,
    policy: Policy[Any] | None = None,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    rounding: str = "stochastic",
    seed: int = 0,
    layers: layering.Choice = layering.is_matrix,
    quantize_biases: bool = False,
    l1_by_word_length: bool = False,
    trace_every: int = 1,
    activations: str | None = None,
    quantize_errors: bool = False,
) -> Controller:
    """Train the layers of an optimizer at adaptive precision from its next step on.

    Hooks go on the optimizer itself, so that schedulers, clipping, scalers and Lightning see the optimizer they
    know. The present weights become the float32 masters and the parameters their quantised copies.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step.
        params: the module that the optimizer trains, or its named parameters, or its parameters. With a module,
            evaluation mode shows the weights rounded to nearest and `load_state_dict` sets the masters; without one,
            see `Controller.evaluation_weights`. With `torch.compile`, pass the module that it returned.
        policy: what decides on the formats; `AdaPT()`, the paper's setting, if None.
        l1: α of the penalty α‖W‖₁ on every layer.
        l2: β of the penalty β/2·‖W‖₂².
        rounding: "stochastic" or "nearest", in training. Evaluation always rounds to nearest.
        seed: seed of the rounding stream, which is independent of every other generator.
        layers: which parameters are layers, called with (name, parameter); weights with at least two dimensions
            if not given. A frozen parameter joins when it is unfrozen.
        quantize_biases: quantise biases and norm parameters too, in the word length of the layer before them and a
            fraction length of their own.
        l1_by_word_length: scale each layer's α by WL/32, the differentiable variant of the word-length penalty.
        trace_every: write every k-th step into the trace.
        activations: quantise the inputs and outputs of the linear layers, convolutions and embeddings too, with a
            straight-through gradient: "layer" in the layer's own format, "range" in its word length with the fraction
            length that the observed range asks for; see `adapt.activations.Activations`. Of recurrent layers and
            attention only the weights are quantised. Needs the module in `params`.
        quantize_errors: quantise the gradients that come back to the outputs of these layers too, in the layer's word
            length with the fraction length that their range asks for.

    Returns:
        The controller. It lives as long as the optimizer.

    Raises:
        TypeError, ValueError, NotImplementedError: an argument does not fit, the optimizer evaluates the loss several
            times in a step, its parameters are not those of `params`, a controller is attached already, or there is no
            layer. Nothing is attached then.
    """
    layering.check_optimizer(optimizer)
    policy = AdaPT() if policy is None else policy
    if isinstance(policy, type) or not hasattr(policy, "advance"):
        raise TypeError(f"policy must be a policy such as adapt.AdaPT(), got {policy!r}")
    for name, value in (("l1", l1), ("l2", l2)):
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
    if (l1 or l2) and any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            "l1 and l2 are penalties of a loss that is minimised, but the optimizer has maximize=True: "
            "minimise the negative instead"
        )
    if not callable(layers):
        raise TypeError(f"layers must be a function of (name, parameter), got {layers!r}")
    if rounding not in ("stochastic", "nearest"):
        raise ValueError(f'rounding must be "stochastic" or "nearest", got {rounding!r}')
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not isinstance(trace_every, int) or trace_every < 1:
        raise ValueError(f"trace_every must be a whole number of steps ≥ 1, got {trace_every!r}")
    module = params if isinstance(params, nn.Module) else None
    if activations is not None and activations not in MODES:
        raise ValueError(f'activations must be None, "layer" or "range", got {activations!r}')
    if activations is not None and module is None:
        raise ValueError("activations are quantised by hooks on the layers: pass the module itself as params")
    if quantize_errors and activations is None:
        raise ValueError('quantize_errors=True needs activations="layer" or "range"')
    return Controller(
        optimizer,
        module,
        layering.named(params),
        policy,
        l1=l1,
        l2=l2,
        stochastic=rounding == "stochastic",
        seed=seed,
        choice=layers,
        quantize_biases=quantize_biases,
        l1_by_word_length=l1_by_word_length,
        trace_every=trace_every,
        activations=activations,
        quantize_errors=quantize_errors,
    )


def attached(optimizer: Optimizer) -> Controller | None:
    """The controller that is attached to the optimizer, if there is one."""
    return next((controller for controller in list(_live) if controller.optimizer is optimizer), None)


def _refuse_second(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    if attached(optimizer) is not None:
        raise ValueError("optimizer has a controller already: call the controller's detach() before attaching again")
    mine = {id(parameter) for parameter in layering.optimized(optimizer)}
    taken = [name for name, parameter in parameters.items() if id(parameter) in mine & _kept()]
    if taken:
        # An optimizer and its controller hold each other, so one that was just dropped may still be there.
        gc.collect()
    for name in taken:
        if id(parameters[name]) in _kept():
            raise ValueError(f"params holds {name}, which another optimizer's controller keeps: detach() that first")


def _kept() -> set[int]:
    """The identities of all parameters that some controller keeps masters of."""
    return {id(p) for controller in list(_live) for masters in controller._banks() for p in masters.parameters}


def _average_over_ranks(value: Tensor) -> None:
    """The mean over all processes, in place, so that every rank decides alike."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
