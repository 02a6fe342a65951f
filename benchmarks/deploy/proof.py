"""ResNet-20 on all test pictures of CIFAR-10 in every form that it can leave in: accuracy, and outputs that differ.

    python -m benchmarks.deploy.proof --start data/resnet20-cifar10.th --data data
    python -m benchmarks.deploy.proof --start data/resnet20-cifar10.th --data data --bits 3 --runtimes integer

The published network gets words of each of the given lengths in every layer, or those of `AdaPT.compact()`, and
activations of 8 bits, by a few steps of training. What is captured is then compared with the attached model, the packed
file, an integer-only reference, ONNX Runtime and qonnx: the logits, and where a runtime shows them the outputs of the
layers. One line per network and runtime is appended to --out; finished ones are not repeated.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt.export import Exported, IntegerNetwork, capture, runner, to_onnx, to_qonnx
from adapt.export.backends import Backend, backend
from benchmarks.__main__ import RESULTS
from recipes.common import data, ledger
from recipes.common.batches import Batches
from recipes.same_bits.methods import NEVER
from recipes.same_bits.start import Start, published

RUNTIMES = ("attached", "packed", "integer", "ORT", "ORT unoptimised", "qonnx")


def tuned(start: Start, batches: Batches, bits: int | None, steps: int) -> adapt.ASGD:
    """Return the optimizer whose controller holds the network after some steps; no bits: those of `compact()`."""
    policy = adapt.AdaPT.compact() if bits is None else adapt.MuPPET(steps_per_epoch=NEVER, word_lengths=(bits,))
    optimizer = adapt.ASGD(start.model, lr=0.01, momentum=0.9, policy=policy, rounding="nearest", activations=8)
    start.model.train()
    for _, (x, y) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(start.model(x), y)
        loss.backward()
        optimizer.controller.observe(loss)
        optimizer.step()
    return optimizer


def runtimes(optimizer: adapt.ASGD, exported: Exported, folder: Path, x: Tensor) -> dict[str, Callable[[], Backend]]:
    """Return by name what opens each form of the network; files are written to the folder."""
    packed, onnx, qonnx = folder / "packed.safetensors", folder / "network.onnx", folder / "qonnx.onnx"
    exported.save(packed)

    def written(path: Path, optimized: bool = True) -> Backend:
        if not path.exists():
            (to_onnx if path == onnx else to_qonnx)(exported, path, x)
        return backend(runner(path, optimized=optimized), exported)

    return {
        "attached": lambda: backend(optimizer, exported),
        "packed": lambda: backend(packed, exported),
        "integer": lambda: backend(IntegerNetwork(exported), exported),
        "ORT": lambda: written(onnx),
        "ORT unoptimised": lambda: written(onnx, optimized=False),
        "qonnx": lambda: written(qonnx),
    }


def compare(ours: Backend, theirs: Backend, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return how many outputs there were, how many of them differ, and both accuracies."""
    figures = {"pictures": 0, "outputs": 0, "differing": 0, "layer_outputs": 0, "layer_differing": 0}
    hits = [0, 0]
    for x, y in batches:
        a, b = ours((x,)), theirs((x,))
        (left,), (right,) = a.outputs, b.outputs
        figures["pictures"] += len(y)
        figures["outputs"] += left.numel()
        figures["differing"] += int((left != right).sum())
        for path in a.layers.keys() & b.layers.keys():
            figures["layer_outputs"] += a.layers[path].numel()
            figures["layer_differing"] += int((a.layers[path] != b.layers[path]).sum())
        hits = [count + int((logits.argmax(1) == y).sum()) for count, logits in zip(hits, (left, right), strict=True)]
    return figures | {"captured_accuracy": hits[0] / figures["pictures"], "accuracy": hits[1] / figures["pictures"]}


def main(arguments: list[str] | None = None) -> None:
    """Make the lines of a command line that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="a published ResNet-20 checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--bits", type=int, nargs="*", default=[], help="word lengths; none: those of compact()")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "proof.jsonl")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    splits = data.load("cifar10", options.data, download=False)
    for bits in options.bits or [None]:
        start = published(options.start)
        scaling = start.mean, start.deviation
        torch.manual_seed(0)
        training = Batches(splits[0], 128, *scaling, shuffle=True, padding=4, flip=True, seed=0)
        optimizer = tuned(start, training, bits, options.steps)
        pictures = [(x, y) for x, y in Batches(splits[1], options.batch, *scaling)][: options.pictures // options.batch]
        exported = capture(optimizer, inputs=pictures[0][0])
        with tempfile.TemporaryDirectory() as folder:
            opened = runtimes(optimizer, exported, Path(folder), pictures[0][0])
            for name in options.runtimes:
                identity = {
                    "words": "compact" if bits is None else bits, "runtime": name, "wanted": options.pictures,
                    "steps": options.steps,
                }  # fmt: skip
                if ledger.is_finished(ledger.read(options.out), identity):
                    continue
                began = time.process_time()
                figures = compare(backend(exported.module(), exported), opened[name](), pictures)
                size = Path(folder, "packed.safetensors").stat().st_size
                line = identity | figures | {"packed_bytes": size, "processor_seconds": time.process_time() - began}
                ledger.append(options.out, line)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
