"""The same network as every runtime runs it: float32, ours in 8 and 4 bits, ONNX Runtime's own quantisation."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adapt
from adapt.export import Exported, capture, load, runner, session, to_onnx, verify
from adapt.export.onnx import program
from recipes.common import models
from recipes.common.gpt import CharGPT
from recipes.common.methods import block

ALPHABET, CONTEXT = 65, 64

Call = Callable[[Tensor], object]


@dataclass(frozen=True)
class Artefact:
    """Something that computes a network.

    Attributes:
        call: runs it on a batch, in one thread.
        size: bytes of its file; None where it has none of its own.
        equal: share of outputs that equal those of the captured network; None where it is another network.
    """

    call: Call
    size: int | None = None
    equal: float | None = None


def networks() -> dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]]:
    """By name, what makes a network, and what makes a batch of inputs for it."""

    def pictures(*shape: int) -> Callable[[int], Tensor]:
        return lambda batch: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))

    def text(batch: int) -> Tensor:
        return torch.randint(0, ALPHABET, (batch, CONTEXT), generator=torch.Generator().manual_seed(batch))

    return {
        "resnet20": (models.resnet, pictures(3, 32, 32)),
        "alexnet": (models.alexnet, pictures(3, 32, 32)),
        "mlp": (models.mlp, pictures(1, 28, 28)),
        "gpt": (lambda: CharGPT(ALPHABET, context=CONTEXT, layers=4, width=128, heads=4), text),
    }


def captured(make: Callable[[], nn.Module], batches: Callable[[int], Tensor], bits: int) -> Exported:
    """A network with weights and biases of so many bits and activations of 8, after a few steps of training."""
    torch.manual_seed(0)
    model = make()
    policy = block(bits)
    optimizer = adapt.ASGD(model, lr=0.01, policy=policy, activations=8, quantize_biases=True)
    for step in range(3):
        output = model(batches(32 + step)).flatten(0, -2)
        loss = F.cross_entropy(output, torch.arange(len(output)) % output.shape[-1])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return capture(optimizer)


def artefacts(name: str, folder: Path) -> Iterator[tuple[str, Artefact]]:
    """The variants of one network, which are timed against each other."""
    make, batches = networks()[name]
    long, short = captured(make, batches, 8), captured(make, batches, 4)
    assert long.structure is not None
    plain, examples = long.structure.eval(), batches(4)
    yield "float32 eager", Artefact(torch.no_grad()(plain))
    float32 = folder / "float32.onnx"
    float32.write_bytes(program(plain, (examples,)).SerializeToString())
    yield "float32 ORT", _file(float32)
    for exported, bits in ((long, 8), (short, 4)):
        packed = folder / f"packed{bits}.safetensors"
        exported.save(packed)
        network = load(packed, exported.structure).module()
        equal = verify(exported, batches(256), packed).share
        yield f"packed, {bits} bits", Artefact(torch.no_grad()(network), packed.stat().st_size, equal)
    yield "int8 ONNX", _ours(long, folder / "int8.onnx", batches)
    yield "int4 ONNX", _ours(short, folder / "int4.onnx", batches)
    yield "int8 ONNX, integer form", _ours(long, folder / "integer.onnx", batches, form="integer")
    if any(isinstance(part, nn.BatchNorm2d) for part in plain.modules()):
        folded = partial(_ours, long, batches=batches, batch_norm="folded")
        yield "int8 ONNX, folded", folded(path=folder / "folded.onnx")
        yield "int8 ONNX, folded, integer form", folded(path=folder / "folded-integer.onnx", form="integer")
    yield "ORT static", _static(float32, folder / "static.onnx", batches)
    for kind in ("int8", "folded"):
        if (folder / f"{kind}.onnx").exists() and (opened := _openvino(folder / f"{kind}.onnx")):
            yield f"{kind} in OpenVINO", Artefact(opened)


def _ours(exported: Exported, path: Path, batches: Callable[[int], Tensor], **options: Any) -> Artefact:
    with contextlib.redirect_stdout(io.StringIO()):  # folding prints its deviation, which is in the table
        to_onnx(exported, path, batches(64), **options)
    return _file(path, verify(exported, batches(256), runner(path)).share)


def _file(path: Path, equal: float | None = None) -> Artefact:
    opened = session(path)
    name = opened.get_inputs()[0].name
    return Artefact(lambda x: opened.run(None, {name: x.numpy()}), path.stat().st_size, equal)


def _static(source: Path, path: Path, batches: Callable[[int], Tensor]) -> Artefact:
    """ONNX Runtime's own static quantisation: QDQ, by channel, 8 bits, calibrated on 64 examples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter([{"input" if batches(1).is_floating_point() else "text": batches(64).numpy()}])

        def get_next(self) -> Any:
            return next(self.rest, None)

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return _file(path)


def _openvino(path: Path) -> Call | None:
    """A file in OpenVINO without its own rounding to bfloat16; None where it is not installed or cannot load it."""
    try:
        import openvino
    except ModuleNotFoundError:
        return None
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "EXECUTION_MODE_HINT": "ACCURACY"}
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", options)
    except RuntimeError as error:
        reason = next(line for line in reversed(str(error).strip().splitlines()) if line.strip())
        print(f"OpenVINO cannot load {path.name}: {reason}", flush=True)
        return None
    return lambda x: compiled([np.ascontiguousarray(x.numpy())])
