"""Rows that need a GPU: steps as CUDA graphs, and a small GPT in bfloat16."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.bench import LOOKBACK, Bench
from benchmarks.networks import BATCHES, RESNET, Training, adaptive, plain
from benchmarks.table import Row
from benchmarks.timing import interleave, ratio, repeated
from recipes.common.gpt import CharGPT


def cuda(bench: Bench) -> Iterator[Row]:
    """The rows that need CUDA; none on other devices."""
    if bench.device.type != "cuda":
        return
    batches = RESNET.batches(bench.sizes.batch, bench.device)
    graphed = {"float32": Graphed(plain(RESNET, batches)), "AdaPT": Graphed(adaptive(RESNET, batches))}
    yield _compare(
        "graphs", f"resnet20, batch {bench.sizes.batch}: step with a CUDA graph / the same in float32", graphed, bench
    )

    gpt = GPT()
    text = gpt.batches(32, bench.device)
    trained = {"float32": plain(gpt, text, autocast=True), "AdaPT": adaptive(gpt, text, autocast=True)}
    yield _compare("gpt", "GPT of 6 blocks, bf16 autocast: weights-only step / step without AdaPT", trained, bench)


def _compare(key: str, what: str, variants: Mapping[str, "Training | Graphed"], bench: Bench) -> Row:
    for training in variants.values():
        repeated(training, LOOKBACK)()
    calls = {name: repeated(training, LOOKBACK) for name, training in variants.items()}
    times = interleave(calls, rounds=bench.sizes.windows, clock=bench.clock)
    return Row(key, what, ratio(times, "AdaPT", "float32"), target=1.03)


class Graphed:
    """A training step whose forward and backward pass are one CUDA graph; the optimizer step runs eagerly.

    Quantised weights are written in place, and gradients stay where the graph's memory has them, so the graph remains
    valid when precisions change.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._x, self._classes = (tensor.clone() for tensor in training.next_batch())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            repeated(training, 3)()
        torch.cuda.current_stream().wait_stream(side)
        # If there are no gradients at capture, every replay overwrites them instead of adding to them.
        training.optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = training.loss(self._x, self._classes)
            self._loss.backward()

    def __call__(self) -> None:
        """One optimizer step."""
        x, classes = self._training.next_batch()
        self._x.copy_(x)
        self._classes.copy_(classes)
        self._graph.replay()
        self._training.update(self._loss)


@dataclass(frozen=True)
class GPT:
    """A small decoder-only language model on random text."""

    name: str = "gpt"
    blocks: int = 6
    width: int = 512
    heads: int = 8
    words: int = 8192
    context: int = 512

    def build(self, device: torch.device) -> nn.Module:
        """The initialised network. Always the same weights."""
        torch.manual_seed(0)
        return CharGPT(self.words, context=self.context, layers=self.blocks, width=self.width, heads=self.heads).to(
            device
        )

    def batches(self, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Words [size, context] and the word that follows each, of the same shape."""
        generator = torch.Generator().manual_seed(0)
        texts = torch.randint(self.words, (BATCHES, size, self.context + 1), generator=generator).to(device)
        return [(text[:, :-1].contiguous(), text[:, 1:].contiguous()) for text in texts]
