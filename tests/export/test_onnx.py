"""ONNX files: equal to torch in ONNX Runtime, and nothing in them but words."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from adapt.export import runner, session, to_onnx, verify
from adapt.numerics import Precision
from adapt.numerics.format import Format
from tests.export.synthetic import Chars, ConvNet, captured, mlp

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

PICTURES = torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(2000, 12, generator=torch.Generator().manual_seed(1))
TEXT = torch.randint(0, 11, (40, 7), generator=torch.Generator().manual_seed(1))


def differing(exported, inputs, path: Path, *, optimized: bool) -> int:
    """How many outputs of ONNX Runtime differ from torch's."""
    return verify(exported, inputs, runner(path, optimized=optimized)).differing


def some(first: list[int], others: list[int]) -> list[object]:
    """Widths, of which the others take long in sum."""
    return [*first, *(pytest.param(bits, marks=pytest.mark.long) for bits in others)]


@pytest.mark.parametrize("form", ["qdq", "weights", "integer"])
@pytest.mark.parametrize("bits", some([5], [2, 3, 4, 6, 7, 8, *range(9, 17)]))
def test_a_convolutional_network_gives_the_same_bits(tmp_path, bits, form):
    if form == "integer" and bits > 8:
        pytest.skip("integer products take words of 8 bits")
    exported = captured(ConvNet(), weights=bits, activations=8 if bits <= 8 else 6)
    to_onnx(exported, tmp_path / "a.onnx", PICTURES[:2], form=form)
    assert differing(exported, PICTURES, tmp_path / "a.onnx", optimized=False) == 0
    assert differing(exported, PICTURES, tmp_path / "a.onnx", optimized=True) == 0


@pytest.mark.parametrize("options", [{"outputs": False}, {"biases": False}, {"channels": True}, {"signed": False}])
@pytest.mark.parametrize("activations", some([8], [2, 3, 4, 5, 6, 7, *range(9, 17)]))
def test_a_dense_network_gives_the_same_bits(tmp_path, activations, options):
    exported = captured(mlp(), weights=4, activations=activations, **options)
    to_onnx(exported, tmp_path / "a.onnx", ROWS[:2])
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=False) == 0
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=True) == 0


@pytest.mark.parametrize(("first", "second"), [(4, 5), (4, 3), (4, 4), pytest.param(11, 10, marks=pytest.mark.long)])
@pytest.mark.parametrize("between", [nn.ReLU(), nn.Identity()])
def test_two_roundings_that_follow_each_other_both_happen(tmp_path, between, first, second):
    exported = captured(nn.Sequential(nn.Linear(12, 16), between, nn.Linear(16, 5)), weights=4)
    word = 8 if first < 8 else 16
    exported.formats["0.output"] = Format.of(Precision(word, first))
    exported.formats["2.input"] = Format.of(Precision(word, second))
    to_onnx(exported, tmp_path / "a.onnx", ROWS[:2])
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=False) == 0
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=True) == 0


def test_weights_that_stay_in_float32_between_roundings_are_not_rounded(tmp_path):
    """ONNX Runtime's WeightBiasQuantization would round them to 8 bits."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3, bias=False))
    exported = captured(network, weights=5)
    for name in ("1.weight", "1.bias", "2.weight"):
        del exported.words[name], exported.formats[name]
        nn.init.normal_(exported.structure.get_parameter(name), std=0.2)
        exported.tensors[name] = exported.structure.get_parameter(name).detach().clone()
    for name in ("1.input", "1.output", "2.input"):
        del exported.formats[name]
    to_onnx(exported, tmp_path / "a.onnx", PICTURES[:2])
    # Sums of float32 products depend on their order, so that roundings may differ. With rounded weights a fifth did.
    assert differing(exported, PICTURES, tmp_path / "a.onnx", optimized=False) < 5
    assert differing(exported, PICTURES, tmp_path / "a.onnx", optimized=True) < 5


def test_a_batch_norm_between_two_roundings_is_computed_in_single_precision_without_another_word(tmp_path):
    """All 256 words go through 400 channels, whose factors lie far apart."""
    channels = 400
    network = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 3, 1))
    exported = captured(network, weights=8, activations=8)
    exported.formats["0.output"] = exported.formats["0.input"] = Format.of(Precision(8, 4))
    exported.words["0.weight"].fill_(64)
    exported.formats["0.weight"] = Format.of(Precision(8, 6))
    exported.words["0.bias"].zero_()
    with torch.no_grad():
        for name in ("0.weight", "0.bias"):
            exported.structure.get_parameter(name).copy_(exported.values(name))
        network[1].weight.copy_(torch.logspace(-2, 1, channels))
    to_onnx(exported, tmp_path / "a.onnx", torch.zeros(2, 1, 1, 1))
    model = onnx.load(tmp_path / "a.onnx")
    (norm,) = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types[norm.input[1]] == onnx.TensorProto.FLOAT
    every_word = (torch.arange(-128, 128) / 16).view(256, 1, 1, 1)
    for optimized in (False, True):
        assert differing(exported, every_word, tmp_path / "a.onnx", optimized=optimized) == 0


@pytest.mark.parametrize("batch_norm", ["exact", "folded"])
@pytest.mark.parametrize("finer", [1, 2, 3])
def test_a_bias_on_a_finer_grid_stays_in_integers(tmp_path, capsys, finer, batch_norm):
    exported = captured(ConvNet(), weights=4, activations=8)
    for name in ("conv1", "head"):
        steps = exported.formats[f"{name}.input"].fraction_length + exported.formats[f"{name}.weight"].fraction_length
        exported.formats[f"{name}.bias"] = Format.of(Precision(4, int(steps) + finer))
        exported.words[f"{name}.bias"].fill_(1)
        with torch.no_grad():
            exported.structure.get_parameter(f"{name}.bias").copy_(exported.values(f"{name}.bias"))
    to_onnx(exported, tmp_path / "a.onnx", PICTURES, batch_norm=batch_norm)
    kinds = [
        tensor.data_type for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer if len(tensor.dims) in (2, 4)
    ]
    if batch_norm == "exact":
        assert kinds.count(onnx.TensorProto.INT4) == 4  # the finer words too are in 4 bits on disk
        assert differing(exported, PICTURES, tmp_path / "a.onnx", optimized=False) == 0
        assert differing(exported, PICTURES, tmp_path / "a.onnx", optimized=True) == 0


def test_folded_batch_norm_keeps_words_and_says_how_far_it_is(tmp_path, capsys):
    exported = captured(ConvNet(), weights=8, activations=8)
    with torch.no_grad():
        exported.words["conv1.weight"].clamp_(min=-127)
        exported.structure.conv1.weight.copy_(exported.values("conv1.weight"))
        exported.structure.norm1.weight[::2] *= -1
    path = tmp_path / "a.onnx"
    to_onnx(exported, path, PICTURES, batch_norm="folded")
    assert "of outputs differ from the captured network's, by up to" in capsys.readouterr().out
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    with torch.no_grad():
        expected = exported.module()(PICTURES)
    for optimized in (False, True):
        (found,) = runner(path, optimized=optimized)(PICTURES)
        assert (found - expected).abs().mean() < 0.05 * expected.std()


def test_a_word_without_its_negative_keeps_its_batch_norm(tmp_path):
    exported = captured(ConvNet(), weights=8, activations=8)
    exported.words["conv1.weight"][0, 0, 0, 0] = -128
    with torch.no_grad():
        exported.structure.norm1.weight[0] = -1.0
        exported.structure.conv1.weight.copy_(exported.values("conv1.weight"))
    to_onnx(exported, tmp_path / "a.onnx", PICTURES, batch_norm="folded")
    norms = [node for node in onnx.load(tmp_path / "a.onnx").graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == 1


def test_words_are_stored_in_the_bits_they_need(tmp_path):
    kinds = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8, 16: onnx.TensorProto.INT16}
    for bits, kind in kinds.items():
        to_onnx(captured(mlp(), weights=bits), tmp_path / "a.onnx", ROWS[:2])
        stored = [t for t in onnx.load(tmp_path / "a.onnx").graph.initializer if len(t.dims) == 2]
        assert [t.data_type for t in stored] == [kind, kind]
    assert b"torch" not in (tmp_path / "a.onnx").read_bytes().replace(b"pytorch", b"")


def test_a_transformer_runs_with_any_batch(tmp_path):
    exported = captured(Chars(), weights=5, activations=8)
    for form in ("qdq", "weights"):
        to_onnx(exported, tmp_path / "a.onnx", TEXT[:1], form=form)
        # Softmax, GELU and layer norm differ in their last bits, so a rounding may fall one step aside.
        assert verify(exported, TEXT, tmp_path / "a.onnx").share > 0.99


@pytest.mark.parametrize(("form", "words"), [(Format.of(Precision(20, 10)), "20 bits"), (None, "one signed bit")])
def test_activations_that_do_not_fit_are_refused_by_name(tmp_path, form, words):
    exported = captured(mlp(), weights=4)
    if form is None:
        form = Format(*map(np.array, (1, 0.5, True, -1, 1)))
    exported.formats["2.input"] = form
    with pytest.raises(ValueError, match=rf"2\.input has {words}.*form='weights'"):
        to_onnx(exported, tmp_path / "a.onnx", ROWS[:2])
    to_onnx(exported, tmp_path / "a.onnx", ROWS[:2], form="weights")
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=True) == 0


def test_an_unknown_form_and_a_missing_folder_are_refused(tmp_path):
    exported = captured(mlp(), weights=4)
    with pytest.raises(ValueError, match='form must be "qdq", "weights" or "integer"'):
        to_onnx(exported, tmp_path / "a.onnx", ROWS[:2], form="int4")
    with pytest.raises(FileNotFoundError):
        to_onnx(exported, tmp_path / "none" / "a.onnx", ROWS[:2])


# Form "integer"


@pytest.mark.parametrize("options", [{}, {"outputs": False}, {"biases": False, "channels": True}, {"signed": False}])
def test_all_products_are_integer_products(tmp_path, options):
    exported = captured(mlp(), weights=4, **options)
    to_onnx(exported, tmp_path / "a.onnx", ROWS[:2], form="integer")
    kinds = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 2
    assert not {"Gemm", "MatMul"} & set(kinds)
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=False) == 0
    assert differing(exported, ROWS, tmp_path / "a.onnx", optimized=True) == 0


def test_folded_convolutions_have_no_operator_in_floating_point(tmp_path, capsys):
    exported = captured(ConvNet(), weights=4, activations=8)
    to_onnx(exported, tmp_path / "a.onnx", PICTURES, form="integer", batch_norm="folded")
    kinds = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert not {"Conv", "BatchNormalization", "Gemm"} & set(kinds)
    to_onnx(exported, tmp_path / "b.onnx", PICTURES, batch_norm="folded")
    for optimized in (False, True):
        found, expected = (runner(tmp_path / name, optimized=optimized)(PICTURES)[0] for name in ("a.onnx", "b.onnx"))
        assert torch.equal(found, expected)


def test_layers_without_an_integer_product_are_refused_by_name(tmp_path):
    def refused(network, message, inputs=ROWS[:2], **options):
        with pytest.raises(ValueError, match=message + r".*, or export with form='qdq'"):
            to_onnx(captured(network, **options), tmp_path / "a.onnx", inputs, form="integer")

    refused(mlp(), "0 has inputs that are not rounded: train it with activations=8", weights=4, activations=None)
    refused(mlp(), "0 has words of 12 bits as inputs", weights=4, activations=12)
    refused(mlp(), r"0 has weights of ⟨9, 9⟩", weights=9)
    refused(nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "0 is a transposed convolution", PICTURES[:2], weights=4)
    assert not (tmp_path / "a.onnx").exists()


def test_words_of_4_bits_do_not_become_products_that_round_activations(tmp_path):
    exported = captured(Chars(), weights=4, activations=None)
    to_onnx(exported, tmp_path / "a.onnx", TEXT[:2], form="weights")
    with torch.no_grad():
        expected = exported.module()(TEXT)
    (found,) = runner(tmp_path / "a.onnx")(TEXT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_rounds_activations_in_its_products_is_refused(tmp_path):
    helper, constant = onnx.helper, onnx.numpy_helper.from_array
    options = {"K": 32, "N": 1, "bits": 4, "block_size": 32, "domain": "com.microsoft"}
    node = helper.make_node("MatMulNBits", ["x", "words", "steps"], ["y"], **options)
    graph = helper.make_graph(
        [node],
        "products",
        [helper.make_tensor_value_info("x", 1, [1, 32])],
        [helper.make_tensor_value_info("y", 1, [1, 1])],
        [constant(np.zeros((1, 1, 16), np.uint8), "words"), constant(np.ones(1, np.float32), "steps")],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(RuntimeError, match="MatMulNBits"):
        session(tmp_path / "a.onnx")


@pytest.mark.long
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="there is no emulator of other processors")
def test_processors_without_vnni_give_the_same_bits_with_the_option_of_our_sessions(tmp_path):
    exported = captured(nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)), weights=8, activations=8)
    # Sums so large that pairs of products exceed 16 bits, and outputs that hold them.
    exported.formats["0.output"] = Format.of(Precision(8, -2))
    exported.formats["2.output"] = Format.of(Precision(8, -1))
    inputs = 6 * torch.randn(500, 256, generator=torch.Generator().manual_seed(1))
    to_onnx(exported, tmp_path / "a.onnx", inputs[:2])
    with torch.no_grad():
        np.savez(tmp_path / "a.npz", inputs=inputs.numpy(), outputs=exported.module()(inputs).numpy())
    script = Path(__file__).with_name("avx2.py")
    differing = []
    for precise in ("0", "1"):
        command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, script, tmp_path / "a.onnx", tmp_path / "a.npz"]
        run = subprocess.run([*command, precise], capture_output=True, text=True, check=True)
        differing.append(int(run.stdout.split()[-1]))
    assert differing[0] > 0, "this emulator does not saturate, so it shows nothing"
    assert differing[1] == 0
