"""Initial ranges, from the distribution of the weights and from the activations in a few batches."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapt.learned.activations import SiteStatistics
from adapt.perfmodel.inputs import samples_of, tensors_in

_COARSE = torch.arange(0, -7.5, -0.5).exp2().tolist()
_FINE = (torch.arange(-3.0, 4.0) / 8).exp2().tolist()


def gaussian_range(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return q₊ = max|μ ± 3σ| per channel: Gaussian calibration (Schaefer et al. 3)."""
    return mean.abs() + 3 * deviation


def best_step(values: Tensor, low: Tensor, high: Tensor, largest: Tensor | None = None) -> Tensor:
    """Return each channel's step of least squared error, argmin_d Σ(d·round(clip(x/d, low, high)) − x)², [channels].

    The search is over half octaves below the largest step, and then over eighths of an octave around the best of them.

    Args:
        values: [channels, n]. Channels without non-zero values get the smallest positive step.
        low, high: the words' smallest and largest multiples of the step, [channels]; `high` is positive.
        largest: the largest steps to try, [channels]; by default, and at most, the one at which nothing is clipped.
    """
    widest = values.abs().amax(1) / torch.where(low < 0, torch.minimum(high, -low), high)
    largest = (widest if largest is None else torch.minimum(largest, widest)).clamp(min=torch.finfo(torch.float32).tiny)
    low, high = low[:, None], high[:, None]

    def best_of(steps: Tensor, factors: Sequence[float]) -> Tensor:
        best, chosen = torch.full_like(steps, torch.inf), steps
        for factor in factors:
            step = torch.minimum(factor * steps, largest)
            rounded = torch.round(values / step[:, None]).clamp(low, high) * step[:, None]
            error = (rounded - values).square().sum(1)
            best, chosen = torch.where(error < best, error, best), torch.where(error < best, step, chosen)
        return chosen

    return best_of(best_of(largest, _COARSE), _FINE)


def best_range(values: Tensor, maximum: Tensor, top: Tensor) -> Tensor:
    """Return the range of least squared error for each channel, up to `maximum`, [channels].

    For one signed bit, whose values are ±q₊, it is mean|x|.

    Args:
        values: [channels, n].
        maximum: the largest ranges to try, [channels].
        top: the largest multiple of the step in each channel's word, [channels]; 0 for one signed bit.
    """
    ends = top.clamp(min=1)
    return torch.where(top > 0, ends * best_step(values, -ends, ends, maximum / ends), values.abs().mean(1))


def run_batches(
    module: nn.Module, batches: Iterable[Any], collect: Callable[[], Sequence[SiteStatistics]], device: torch.device
) -> Sequence[SiteStatistics]:
    """Run calibration batches through a module, and return the statistics that were collected.

    Buffers and random states are restored.

    Args:
        module: the module, in its present mode.
        batches: each a tensor, or a tuple of the positional arguments of the module's forward.
        collect: begins to collect statistics, and returns those of each input, which grow.
        device: where the tensors are moved.

    Raises:
        TypeError, ValueError, RuntimeError: there are no batches, or forward does not accept one.
    """
    if isinstance(batches, Tensor):
        raise TypeError(f"calibration must be batches, got one tensor of shape {tuple(batches.shape)}: pass [batch]")
    if not isinstance(batches, Iterable):
        raise TypeError(f"calibration must be batches, got {batches!r}: give a few, each as forward takes it")
    statistics, empty = collect(), True
    with _state_restored(module), torch.no_grad():
        for batch in batches:
            arguments = batch if isinstance(batch, tuple) else (batch,)
            arguments = tuple(x.to(device) if isinstance(x, Tensor) else x for x in arguments)
            samples, empty = _samples(arguments), False
            for one in statistics:
                one.samples = samples
            try:
                # Running the compiled module would only cause another compilation.
                getattr(module, "_orig_mod", module)(*arguments)
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                raise RuntimeError(
                    f"calibration could not run a batch through {type(module).__name__} "
                    f"({type(error).__name__}: {reason}): a batch is a tensor, or a tuple of forward's positional "
                    "arguments; for a loader of inputs and labels pass [x for x, _ in loader]"
                ) from error
    if empty:
        raise ValueError("calibration has no batch: give a few, each as the module's forward takes it")
    return statistics


def _samples(inputs: tuple[Any, ...]) -> int:
    """Return the number of samples in a calibration batch.

    Raises:
        ValueError: it has none, or its tensors disagree.
    """
    try:
        return samples_of(inputs, None)
    except ValueError:
        shapes = [list(x.shape) for x in tensors_in(inputs)]
        raise ValueError(
            "calibration needs batches with at least one sample, whose tensors all have the samples as their first "
            f"dimension, got shapes {shapes}"
        ) from None


@contextlib.contextmanager
def _state_restored(module: nn.Module) -> Iterator[None]:
    """Restore buffers and random states on exit."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = sorted({p.device.index for p in module.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
