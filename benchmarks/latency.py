"""Modelled against measured latency: how well does a calibrated profile predict layers that it has not seen?

    python -m benchmarks.latency --page docs/benchmarks.md

Layers of random sizes are measured as `adapt profile --measure` does, and costs are fitted to them. Layers of
well-known networks, measured in the same rounds, are then predicted: float32 and bfloat16 in torch, 8 bits in ONNX
Runtime where it is installed, in one pinned thread. Last, what the model says about ResNet-18 in 4 bits on a T4 stands
beside what HAWQ-V3 published. It takes a minute and a half on an idle machine. `--page docs/benchmarks.md` puts the
tables in that page.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.perfmodel import HardwareProfile, layer_latency, model_card, network_layers
from adapt.profiling.calibration import KINDS, calibration_layers, fit_profile, time_layers
from adapt.profiling.workloads import Workload
from benchmarks.__main__ import RESULTS
from benchmarks.machine import describe, slug
from tests.perfmodel.published import resnet18

LAYERS = {
    "ResNet-20, first stage": Workload("convolution", 1, 16, 16, 32, 3),
    "ResNet-20, to the second stage": Workload("convolution", 1, 16, 32, 32, 3, 2),
    "ResNet-20, second stage": Workload("convolution", 1, 32, 32, 16, 3),
    "ResNet-20, third stage": Workload("convolution", 1, 64, 64, 8, 3),
    "ResNet-20, first stage, batch 8": Workload("convolution", 8, 16, 16, 32, 3),
    "ResNet-18, first stage": Workload("convolution", 1, 64, 64, 56, 3),
    "ResNet-18, to the second stage": Workload("convolution", 1, 64, 128, 56, 3, 2),
    "ResNet-18, second stage": Workload("convolution", 1, 128, 128, 28, 3),
    "ResNet-18, third stage": Workload("convolution", 1, 256, 256, 14, 3),
    "ResNet-18, fourth stage": Workload("convolution", 1, 512, 512, 7, 3),
    "ResNet-50, first stage, narrowing": Workload("pointwise", 1, 256, 64, 56),
    "ResNet-50, second stage, widening": Workload("pointwise", 1, 128, 512, 28),
    "ResNet-50, shortcut to the third stage": Workload("convolution", 1, 512, 1024, 28, 1, 2),
    "MobileNetV2, 24 to 144": Workload("pointwise", 1, 24, 144, 56),
    "MobileNetV2, 144 to 24": Workload("pointwise", 1, 144, 24, 56),
    "MobileNetV2, 96 to 576": Workload("pointwise", 1, 96, 576, 14),
    "MobileNetV2, 576 to 96": Workload("pointwise", 1, 576, 96, 14),
    "MobileNetV2, 320 to 1280": Workload("pointwise", 1, 320, 1280, 7),
    "MobileNetV2, 32 channels": Workload("depthwise", 1, 32, 32, 112, 3),
    "MobileNetV2, 96 channels": Workload("depthwise", 1, 96, 96, 112, 3, 2),
    "MobileNetV2, 144 channels": Workload("depthwise", 1, 144, 144, 56, 3),
    "MobileNetV2, 192 channels": Workload("depthwise", 1, 192, 192, 28, 3, 2),
    "MobileNetV2, 576 channels": Workload("depthwise", 1, 576, 576, 14, 3),
    "MobileNetV2, 960 channels": Workload("depthwise", 1, 960, 960, 7, 3),
    "EfficientNet-B0, 240 channels": Workload("depthwise", 1, 240, 240, 28, 5),
    "EfficientNet-B0, 672 channels": Workload("depthwise", 1, 672, 672, 14, 5),
    "ResNet-50, classifier": Workload("linear", 1, 2048, 1000),
    "MobileNetV2, classifier, batch 8": Workload("linear", 8, 1280, 1000),
    "MLP, first layer, batch 128": Workload("linear", 128, 784, 512),
    "GPT of width 384, attention, 256 tokens": Workload("linear", 256, 384, 1152),
    "GPT of width 384, widening, 256 tokens": Workload("linear", 256, 384, 1536),
    "GPT of width 384, narrowing, 256 tokens": Workload("linear", 256, 1536, 384),
    "BERT base, attention, 128 tokens": Workload("linear", 128, 768, 768),
    "BERT base, widening, 128 tokens": Workload("linear", 128, 768, 3072),
    "BERT base, narrowing, 128 tokens": Workload("linear", 128, 3072, 768),
}
"""Layers of networks for pictures of 32×32 (ResNet-20) and 224×224 pixels, and for text."""

HAWQ_OPERATIONS, HAWQ_SPEEDUP = 54, 4.44
"""HAWQ-V3's model zoo, ResNet-18 in 4 bits on a T4: bit operations, 1858 G over 34 G, and the measured speedup."""


MARKS = ("<!-- latency: written by benchmarks.latency -->", "<!-- end of latency -->")


@dataclass(frozen=True)
class Prediction:
    """One layer at one width: microseconds that the fit, the bare roofline and the stopwatch say."""

    layer: str
    kind: str
    bits: int
    modelled: float
    roofline: float
    measured: float

    def error(self, by: str = "modelled") -> float:
        """Relative error of a prediction."""
        return getattr(self, by) / self.measured - 1


def predict(calibrating: int, rounds: int) -> list[Prediction]:
    """Fit costs to layers of random sizes, and predict those of the networks, which are timed in the same rounds."""
    others = [workload for kind in KINDS for workload in calibration_layers(kind, calibrating)]
    times = time_layers([*others, *LAYERS.values()], rounds)
    profile = fit_profile(others, {bits: taken[: len(others)] for bits, taken in times.items()})
    bare, rows = replace(profile, costs={}), []
    for bits, taken in times.items():
        for (name, workload), seconds in zip(LAYERS.items(), taken[len(others) :].tolist(), strict=True):
            modelled, roofline = (
                layer_latency(workload.layer(), by, bits, bits, batch_size=workload.batch) for by in (profile, bare)
            )
            rows.append(Prediction(name, workload.kind, bits, 1e6 * modelled, 1e6 * roofline, 1e6 * seconds))
    return rows


def hawq() -> dict[str, float]:
    """What the model says about ResNet-18 in 4 bits, first and last layer in 8, on a T4, and what was measured."""
    layers = network_layers(resnet18(), torch.zeros(1, 3, 224, 224))
    bits = [8, *[4] * (len(layers) - 2), 8]
    totals = model_card(layers, HardwareProfile.load("t4"), bits, batch_size=8)["totals"]
    return {
        "bit_operations": 32**2 * totals["multiply_adds"] / totals["bit_operations"],
        **{name: totals[f"{name}_speedup"] for name in ("idealised", "profiled", "bounded")},
        "published_bit_operations": HAWQ_OPERATIONS,
        "published_measured_speedup": HAWQ_SPEEDUP,
    }


def summary(rows: list[Prediction], by: str = "modelled") -> dict[str, float]:
    """Median and largest size of the relative errors."""
    errors = np.abs([row.error(by) for row in rows])
    return {"median": float(np.median(errors)), "worst": float(errors.max())}


def as_markdown(rows: list[Prediction]) -> str:
    """Return a table of the errors by kind and width, and one of the layers."""
    widths = list(dict.fromkeys(row.bits for row in rows))
    names = {32: "float32", 16: "bfloat16", 8: "8 bits"}
    heads = [names[bits] for bits in widths]
    lines = [f"| kind | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for kind in (*KINDS, None):
        cells = []
        for bits in widths:
            found = summary([row for row in rows if row.bits == bits and kind in (row.kind, None)])
            cells.append(f"{found['median']:.0%}, worst {found['worst']:.0%}")
        lines.append(f"| {kind or 'all'} | {' | '.join(cells)} |")
    lines += ["", f"| layer | {' | '.join(f'{head}: modelled, measured (µs)' for head in heads)} |"]
    lines.append("|---" * (1 + len(heads)) + "|")
    for name in LAYERS:
        found = [row for row in rows if row.layer == name]
        cells = [f"{row.modelled:,.0f}, {row.measured:,.0f} ({row.error():+.0%})" for row in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def as_section(results: dict[str, Any]) -> str:
    """Return what the documentation says of the results: both tables, and HAWQ-V3."""
    rows = [Prediction(**row) for row in results["layers"]]
    errors, bare, hawq_v3 = (results[name] for name in ("errors", "roofline_errors", "hawq_v3"))
    return f"""Median error of the fitted costs: {errors["median"]:.1%}, worst {errors["worst"]:.0%}. Median error of a
roofline with the highest measured rates: {bare["median"]:.0%}, worst {bare["worst"]:.0%}.

{as_markdown(rows)}

| ResNet-18 in 4 bits, ends in 8, on a T4 | over float32 |
|---|---|
| bit operations, as HAWQ-V3 prints them | {hawq_v3["published_bit_operations"]:g} × fewer |
| bit operations, here | {hawq_v3["bit_operations"]:.1f} × fewer |
| idealised speedup, modelled | {hawq_v3["idealised"]:.1f} × |
| profiled speedup, modelled | {hawq_v3["profiled"]:.1f} × |
| bounded speedup at batch 8, modelled | {hawq_v3["bounded"]:.1f} × |
| speedup as HAWQ-V3 measured it | {hawq_v3["published_measured_speedup"]:g} × |"""


def write_into(page: Path, section: str) -> None:
    """Replace what stands between the marks of this benchmark in a page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n{section}\n{MARKS[1]}{after}", encoding="utf-8")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="how often each layer is timed (default 8)")
    parser.add_argument("--layers", type=int, default=48, help="calibrate with so many of each kind (default 48)")
    parser.add_argument("--out", type=Path, help=f"result file; default: latency-MACHINE.json in {RESULTS}")
    parser.add_argument("--page", type=Path, help="a page of the documentation to put the tables in")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Calibrate, predict, measure, print the tables and write the JSON."""
    options = parse(arguments)
    rows = predict(options.layers, options.rounds)
    everything: dict[str, Any] = {
        "command": "python -m benchmarks.latency",
        "machine": describe(torch.device("cpu"), 1),
        "rounds": options.rounds,
        "calibration_layers": options.layers,
        "errors": summary(rows),
        "roofline_errors": summary(rows, "roofline"),
        "hawq_v3": hawq(),
        "layers": [
            {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(row).items()}
            for row in rows
        ],
    }
    path = options.out or RESULTS / f"latency-{slug(everything['machine'])}.json"
    path.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    section = as_section(everything)
    if options.page is not None:
        write_into(options.page, section)
    print(f"{section}\n\nWritten to {path}")


if __name__ == "__main__":
    main()
