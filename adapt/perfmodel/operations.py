"""ops^l: the number of multiply-adds that each weight takes part in, for one sample."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakTensorKeyDictionary

from adapt.perfmodel.dry_run import dry_run, wrapper_prefix
from adapt.perfmodel.inputs import samples_of, tensors_in
from adapt.torch_internals import TorchDispatchMode

_aten = torch.ops.aten


def operations(
    model: nn.Module, *example_inputs: Any, batch_size: int | None = None, **example_keywords: Any
) -> dict[str, int]:
    """AdaPT 4.1.2, ops^l: multiply-adds of one forward pass per sample, keyed by the weight's parameter name.

    Every parameter of two or more dimensions has an entry, in the order of `model.named_parameters()`; the names are
    those of the bare model, without the prefixes of torch.compile, DistributedDataParallel or averaging. Products
    with padded zeros count. A weight used twice (tied, or in a module called twice) counts twice; weights that are
    joined (torch.cat, torch.stack) share the count in proportion to their elements. Experts of a mixture, stacked in
    one parameter, count for the tokens that are routed to them. Embeddings, weights that only scale or shift, and
    weights that forward does not use cost 0; products of activations with each other (attention scores) and
    element-wise work belong to no weight and are left out. Work on weights alone, such as a low-rank product, is
    divided by the number of samples and rounded.

    The model does not change: a copy of its structure runs once in evaluation mode on the meta device or, if control
    flow needs values, with real values.

    Args:
        model: any module whose shapes are known.
        example_inputs: positional arguments of its forward: tensors, or containers of them.
        example_keywords: keyword arguments of its forward, such as decoder_input_ids of an encoder–decoder model.
        batch_size: samples in the example; by default the first dimension of every input tensor. Give it if the batch
            is another dimension.

    Raises:
        TypeError: `model` is not a module, or is scripted.
        ValueError: there is no example input, input tensors disagree on the batch, or a lazy module has no shape.
        RuntimeError: forward fails on the inputs, or finds layers in a way that a copy cannot follow, such as a global
            variable.
    """
    samples = samples_of((*example_inputs, *example_keywords.values()), batch_size)
    counter = dry_run(model, example_inputs, example_keywords, _MultiplyAdds)
    return {name: round(count / samples) for name, count in counter.counts.items()}


class _Origin(NamedTuple):
    """The weights or inputs from which a tensor was computed."""

    shares: dict[str, float]
    """Each weight's share of the tensor's elements; empty for an activation, which depends on an input."""
    product: bool = False
    """Whether the tensor depends on a matrix product of weights."""


class _MultiplyAdds(TorchDispatchMode):
    """Counts the products of weights with activations by tracking the origin of every tensor.

    A tensor computed from one weight alone (a transpose, a slice, a pruned or normalised weight) counts as that weight;
    one that joins several weights belongs to each by its share. Anything that depends on an input is an activation.
    Other tensors, such as masks, have no origin.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Imported here because it imports triton if that is installed.
        from torch.utils.flop_counter import flop_registry

        self._formulas: dict[Any, Callable[..., int]] = {**flop_registry, **_FORMULAS}
        self._origins = WeakTensorKeyDictionary()
        self._recurrent = 0
        self.counts: dict[str, float] = {}
        prefix = wrapper_prefix(model)
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                name = name.removeprefix(prefix)
                self.counts[name] = 0
                self._origins[parameter] = _Origin({name: 1.0})
        for tensor in tensors_in(inputs):
            self._origins[tensor] = _Origin({})
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.register_forward_pre_hook(self._enter_recurrent, with_kwargs=True)
                module.register_forward_hook(self._leave_recurrent)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._recurrent:
            return func(*args, **kwargs)
        operation = func.overloadpacket
        formula = self._formulas.get(operation) or _FORMULAS_BY_NAME.get(str(operation))
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        sources = args[0] if _selects_matrices(operation, args) else (args, kwargs)
        operands = [(tensor, self._origins[tensor]) for tensor in tensors_in(sources) if tensor in self._origins]
        if formula is not None:
            weight = _multiplied(operation, [origin for _, origin in operands])
            if weight is not None:
                self._count(weight, formula(*args, **kwargs, out_val=result) // 2)
        origin = _combined(operation, operands, product=formula is not None)
        if origin is not None:
            for tensor in tensors_in(result):
                self._origins[tensor] = origin
        return result

    def _count(self, origin: _Origin, multiply_adds: int) -> None:
        for name, share in origin.shares.items():
            self.counts[name] += share * multiply_adds

    def _enter_recurrent(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a whole LSTM, GRU or RNN at once, because its kernels differ by device and have no formulas.

        Every matrix is multiplied once with each token of the sequence.
        """
        self._recurrent += 1
        sequence = args[0] if args else kwargs["input"]
        tokens = sequence.data.shape[:1] if isinstance(sequence, PackedSequence) else sequence.shape[:-1]
        for weight in module.parameters():
            if weight in self._origins:
                self._count(self._origins[weight], weight.numel() * tokens.numel())

    def _leave_recurrent(self, module: nn.Module, args: Any, result: Any) -> None:
        self._recurrent -= 1
        for tensor in tensors_in(result):
            self._origins[tensor] = _Origin({})


def _multiplied(operation: Any, origins: list[_Origin]) -> _Origin | None:
    """Return the weight in a product: its last weight operand, because learned inputs (queries) come before it."""
    if "attention" in str(operation):
        return None
    # Queries computed from learned inputs depend on weights alone too, but attention scores belong to no weight.
    batched = operation in (_aten.bmm, _aten.baddbmm, _aten.addbmm)
    weights = [origin for origin in origins if origin.shares and not (batched and origin.product)]
    return weights[-1] if weights else None


def _selects_matrices(operation: Any, args: tuple[Any, ...]) -> bool:
    """Return whether whole matrices are taken from a stack, as a router takes its experts: they remain weights.

    Rows taken from a single matrix, such as those of an embedding, are activations.
    """
    if operation is _aten.index:
        selected = len(args[1])
    elif operation is _aten.index_select and args[1] == 0:
        selected = 1
    else:
        return False
    return bool(args[0].ndim - selected >= 2)


def _combined(operation: Any, operands: list[tuple[Tensor, _Origin]], *, product: bool) -> _Origin | None:
    """Return a result's origin: an activation if an operand is one, else the largest weight, or all weights joined."""
    if not operands:
        return None
    if any(not origin.shares for _, origin in operands):
        return _Origin({})
    parts = operands if operation in _JOINING else [max(operands, key=lambda operand: operand[0].numel())]
    elements = sum(tensor.numel() for tensor, _ in parts)
    shares: dict[str, float] = defaultdict(float)
    for tensor, origin in parts:
        for name, share in origin.shares.items():
            shares[name] += share * tensor.numel() / max(elements, 1)
    return _Origin(shares, product or any(origin.product for _, origin in operands))


def _matrix_by_vector(*args: Any, out_val: Tensor, **kwargs: Any) -> int:
    return 2 * max(tensor.numel() for tensor in args if isinstance(tensor, Tensor))


def _summed_batches(total: Tensor, first: Tensor, second: Tensor, *, out_val: Tensor, **kwargs: Any) -> int:
    return 2 * first.numel() * second.shape[-1]


def _bilinear(first: Tensor, weight: Tensor, second: Tensor, *args: Any, out_val: Tensor) -> int:
    return 2 * first.shape[0] * weight.numel()


def _grouped(first: Tensor, second: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    if first.ndim == 3 and second.ndim == 2:  # the columns of the second are in groups
        return 2 * first.shape[1] * second.numel()
    return 2 * first.numel() * second.shape[-1]


_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.dot: _matrix_by_vector,
    _aten.mv: _matrix_by_vector,
    _aten.addmv: _matrix_by_vector,
    _aten.addbmm: _summed_batches,
    _aten._trilinear: _bilinear,
}
"""Floating-point operations (two per multiply-add) of the products that torch's registry lacks."""

_FORMULAS_BY_NAME = {"aten._grouped_mm": _grouped, "transformers.grouped_mm_fallback": _grouped}
"""The same for operators that only some versions of torch have, or that other packages define."""

_JOINING = (_aten.cat, _aten.stack, _aten.block_diag)
"""Operations whose result contains the elements of all operands."""
