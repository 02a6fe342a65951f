"""What only a GPU can show: steps as CUDA graphs, and a small GPT in bfloat16."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench import LOOKBACK, Bench
from benchmarks.networks import BATCHES, RESNET, Training, adaptive, plain
from benchmarks.table import Row
from benchmarks.timing import interleave, ratio, repeated


def beyond(bench: Bench) -> Iterator[Row]:
    """The rows that need CUDA; none elsewhere."""
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
    """A training step whose forward and backward pass are one CUDA graph; what follows runs as always.

    The quantised weights are written in place and gradients have one place in the graph's memory, so the graph
    stays right when precision moves.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._x, self._classes = (tensor.clone() for tensor in training.next_batch())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            repeated(training, 3)()
        torch.cuda.current_stream().wait_stream(side)
        # Without gradients at capture, backward writes them anew in every replay instead of adding to them.
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
        return _Decoder(self).to(device)

    def batches(self, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Words [size, context], and the word that follows each, [size · context]."""
        generator = torch.Generator().manual_seed(0)
        texts = torch.randint(self.words, (BATCHES, size, self.context + 1), generator=generator).to(device)
        return [(text[:, :-1].contiguous(), text[:, 1:].reshape(-1)) for text in texts]


class _Decoder(nn.Module):
    def __init__(self, shape: GPT) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(shape.words, shape.width), nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(_Block(shape.width, shape.heads) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """Words [batch, context] to the logits of the next ones, [batch · context, words]."""
        x = self.word(words) + self.place.weight[: words.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.flatten(0, 1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gates, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, context, width] to the same."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.gates(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.join(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result
