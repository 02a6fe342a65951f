"""ResNet-20 on the test pictures of CIFAR-10 in every form that it can leave in: accuracy, and logits that differ.

    python -m benchmarks.deploy.proof --start data/resnet20-cifar10.th --data data
    python -m benchmarks.deploy.proof --start data/resnet20-cifar10.th --data data --bits 3 --runtimes integer

The published network gets words of each of the given lengths in every layer, or those of `AdaPT.compact()`, and
activations of 8 bits, by a few steps of training. The attached model's logits are kept in a folder beside the files
that are exported. Each runtime's are compared with them, a thousand pictures at a time. What is finished is not
repeated, so that a run may be interrupted at any time. Sums go to --out, a line per network and runtime, and are
printed as a table.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import adapt
from adapt.export import IntegerNetwork, capture, load, runner, to_onnx, to_qonnx
from benchmarks.__main__ import RESULTS
from recipes.common import data, ledger
from recipes.common.batches import Batches
from recipes.common.methods import block
from recipes.same_bits.start import Start, published

RUNTIMES = ("packed", "ORT", "ORT unoptimised", "integer", "qonnx")
BATCH = 50
"""Pictures in a batch: few enough for the caches. A QONNX file takes this number and no other."""
CHUNK = 1000
"""Pictures that are compared before a line is written."""

Logits = Callable[[Tensor], Tensor]


def tuned(start: Start, batches: Batches, bits: int | None, steps: int) -> adapt.ASGD:
    """Return the optimizer whose controller holds the network after some steps; no bits: those of `compact()`."""
    policy = adapt.AdaPT.compact() if bits is None else block(bits)
    optimizer = adapt.ASGD(start.model, lr=0.01, momentum=0.9, policy=policy, rounding="nearest", activations=8)
    start.model.train()
    for _, (x, y) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(start.model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.controller.observe(loss)
        optimizer.step()
    return optimizer


def write(optimizer: adapt.ASGD, folder: Path, pictures: Sequence[Tensor]) -> None:
    """Export a network in every form, and write the attached model's logits last, which says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = capture(optimizer, inputs=pictures[0])
    exported.save(folder / "packed.safetensors")
    to_onnx(exported, folder / "network.onnx", pictures[0])
    to_qonnx(exported, folder / "qonnx.onnx", pictures[0])
    model = optimizer.controller._module
    assert model is not None
    with optimizer.controller.evaluation_weights(), torch.no_grad():
        model.eval()
        np.save(folder / "attached.npy", np.concatenate([model(x).numpy() for x in pictures]))


def opened(runtime: str, folder: Path, start: Start) -> Logits:
    """Return what computes the logits of a batch from the files in a folder."""
    if runtime in ("packed", "integer"):
        exported = load(folder / "packed.safetensors", start.model)
        if runtime == "packed":
            return exported.module()
        network = IntegerNetwork(exported)
        return lambda x: network(x)[0][0]
    path = folder / ("qonnx.onnx" if runtime == "qonnx" else "network.onnx")
    run = runner(path, optimized=runtime != "ORT unoptimised")
    return lambda x: run(x)[0]


def counted(logits: Logits, pictures: Iterable[Tensor], expected: Any, labels: Any) -> dict[str, Any]:
    """Return how many of a runtime's logits differ from those of the attached model, and how often either is right.

    Args:
        expected: the attached model's logits, [pictures, classes].
        labels: the classes, [pictures].
    """
    began = time.process_time()
    with torch.no_grad():
        found: NDArray[Any] = np.concatenate([logits(x).numpy() for x in pictures])
    return {
        "pictures": len(labels),
        "outputs": found.size,
        "differing": int((found != expected).sum()),
        "hits": int((found.argmax(1) == labels).sum()),
        "attached_hits": int((expected.argmax(1) == labels).sum()),
        "processor_seconds": round(time.process_time() - began, 1),
    }


def summed(chunks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sums over chunks of pictures, one line for every network and runtime."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for chunk in chunks:
        key = (chunk["words"], chunk["runtime"])
        if key not in lines:
            lines[key] = {k: v for k, v in chunk.items() if k != "first"}
        else:
            for name in ("pictures", "outputs", "differing", "hits", "attached_hits", "processor_seconds"):
                lines[key][name] = round(lines[key][name] + chunk[name], 1)
    return list(lines.values())


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return accuracies and logits that differ as a table in Markdown."""
    rows = [f"| words | attached | {' | '.join(RUNTIMES)} |", "|---" * (len(RUNTIMES) + 2) + "|"]
    for words in dict.fromkeys(line["words"] for line in lines):
        own = {line["runtime"]: line for line in lines if line["words"] == words}
        most = max(own.values(), key=lambda line: line["pictures"])
        cells = [
            f"{words}" if words == "compact" else f"{words} bits",
            f"{most['attached_hits'] / most['pictures']:.2%}",
        ]
        for runtime in RUNTIMES:
            line = own.get(runtime)
            cells.append(
                f"{line['hits'] / line['pictures']:.2%}, {line['differing']:,} of {line['outputs']:,}" if line else "–"
            )
        rows.append(f"| {' | '.join(cells)} |")
    outputs, differing = (sum(line[name] for line in lines) for name in ("outputs", "differing"))
    return "\n".join([*rows, "", f"Together {differing:,} of {outputs:,} logits differ."])


def main(arguments: list[str] | None = None) -> None:
    """Compare what a command line asks for and is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="a published ResNet-20 checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--bits", type=int, nargs="*", default=[], help="word lengths; none: those of compact()")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("proof"), help="a folder for the files that are compared")
    parser.add_argument("--out", type=Path, default=RESULTS / "proof.jsonl")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    splits = data.load("cifar10", options.data, download=False)
    for bits in options.bits or [None]:
        words, start = bits or "compact", published(options.start)
        folder, scaling = options.work / f"{words}-{options.steps}", (start.mean, start.deviation)
        batches = list(Batches(splits[1], BATCH, *scaling))
        pictures, labels = [x for x, _ in batches], np.concatenate([y.numpy() for _, y in batches])
        if not (folder / "attached.npy").exists():
            torch.manual_seed(0)
            training = Batches(splits[0], 128, *scaling, shuffle=True, padding=4, flip=True, seed=0)
            write(tuned(start, training, bits, options.steps), folder, pictures)
        attached = np.load(folder / "attached.npy")
        networks: dict[str, Logits] = {}
        for first in range(0, options.pictures, CHUNK):
            for runtime in options.runtimes:
                line = {"words": words, "runtime": runtime, "steps": options.steps, "first": first}
                if ledger.is_finished(ledger.read(options.work / "chunks.jsonl"), line):
                    continue
                if runtime not in networks:
                    networks[runtime] = opened(runtime, folder, published(options.start))
                here, batch = slice(first, first + CHUNK), slice(first // BATCH, (first + CHUNK) // BATCH)
                line |= counted(networks[runtime], pictures[batch], attached[here], labels[here])
                line["packed_bytes"] = (folder / "packed.safetensors").stat().st_size
                line["command"] = f"python -m benchmarks.deploy.proof --bits {bits or ''} --steps {options.steps}"
                ledger.append(options.work / "chunks.jsonl", line)
                print(json.dumps(line), flush=True)
        lines = summed(ledger.read(options.work / "chunks.jsonl"))
        ledger.write_text("".join(json.dumps(line) + "\n" for line in lines), options.out)
    print(table(lines))


if __name__ == "__main__":
    main()
