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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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
        loss.backward()  # type: ignore[no-untyped-call]
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


def compare(
    ours: Backend, others: Mapping[str, Backend], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, Any]]:
    """Return by name how many outputs there were, how many of them differ from ours, both accuracies, and the time."""
    counts: dict[str, Any] = {name: Counter() for name in others}
    for x, y in batches:
        expected = ours((x,))
        for name, other in others.items():
            began = time.process_time()
            found = other((x,))
            (left,), (right,), count = expected.outputs, found.outputs, counts[name]
            count["seconds"] += time.process_time() - began
            count["pictures"] += len(y)
            count["outputs"] += left.numel()
            count["differing"] += int((left != right).sum())
            for path in expected.layers.keys() & found.layers.keys():
                count["layer_outputs"] += expected.layers[path].numel()
                count["layer_differing"] += int((expected.layers[path] != found.layers[path]).sum())
            count["captured_hits"] += int((left.argmax(1) == y).sum())
            count["hits"] += int((right.argmax(1) == y).sum())
    kept = ("pictures", "outputs", "differing", "layer_outputs", "layer_differing")
    return {
        name: {key: count[key] for key in kept}
        | {
            "captured_accuracy": count["captured_hits"] / count["pictures"],
            "accuracy": count["hits"] / count["pictures"],
            "processor_seconds": round(count["seconds"], 1),
        }
        for name, count in counts.items()
    }


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
            lines = {
                name: {"words": bits or "compact", "runtime": name, "wanted": options.pictures, "steps": options.steps}
                for name in options.runtimes
            }
            known = ledger.read(options.out)
            left = [name for name, identity in lines.items() if not ledger.is_finished(known, identity)]
            others = {name: opened[name]() for name in left}
            for name, figures in compare(backend(exported.module(), exported), others, pictures).items():
                size = Path(folder, "packed.safetensors").stat().st_size
                line = lines[name] | figures | {"packed_bytes": size}
                ledger.append(options.out, line)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
