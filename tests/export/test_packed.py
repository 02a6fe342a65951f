"""The packed file: the same bits, few bytes, and nothing taken on trust."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.export import Exported, capture, encoding, load, packed
from adapt.numerics import Precision
from adapt.numerics.format import Format
from tests.export import earlier
from tests.export.networks import Residual, Tied, Transposed, adaptive, model_of, with_lsq, with_widths

pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

RUNS = {
    "compact": lambda: adaptive(Residual, adapt.AdaPT.compact(), activations=8, quantize_biases=True),
    "long words": lambda: adaptive(Residual, adapt.Fixed(Precision(28, 20)), activations=24),
    "tied": lambda: adaptive(Tied, activations=8),
    "transposed": lambda: adaptive(Transposed, activations=7),
    "LSQ": lambda: with_lsq(Residual),
    "LSQ, powers of two": lambda: with_lsq(Residual, power_of_two=True),
    "LSQ, one bit": lambda: with_lsq(Residual, weight_bits=1, activation_bits=1),
    "widths": lambda: with_widths(Transposed, bits=2.5, floor=1),
}


@pytest.fixture(params=RUNS, ids=str)
def run(request):
    return RUNS[request.param]()


def test_what_is_loaded_has_the_same_bits(run, tmp_path):
    exported = capture(run.controller)
    exported.save(tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors")
    assert loaded.formats == exported.formats
    assert loaded.aliases == exported.aliases
    assert loaded.words.keys() == exported.words.keys()
    assert loaded.tensors.keys() == exported.tensors.keys()
    for name, words in exported.words.items():
        assert torch.equal(loaded.words[name], words)
        assert loaded.words[name].dtype == words.dtype
    for name, tensor in exported.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype
    with pytest.raises(ValueError, match="module="):
        loaded.module()


def test_with_a_module_it_computes_the_same(run, tmp_path):
    capture(run.controller).save(tmp_path / "net.safetensors")
    architecture = model_of(type(run.model))
    module = load(tmp_path / "net.safetensors", architecture).module()
    with torch.no_grad():
        assert torch.equal(module(run.inputs), run.evaluate())
    assert architecture.training, "the module that is given stays as it is"


def stored(exported, path):
    exported.save(path)
    return packed.stored_bytes(path)


def network_of(**weights):
    """A captured network of nothing but words, with their formats."""
    return Exported(
        {n: torch.as_tensor(w) for n, (w, _) in weights.items()}, {n: f for n, (_, f) in weights.items()}, {}
    )


def gaussian(deviation, shape, bits):
    """Words of a Gaussian, as int8, and their entropy in bits."""
    half = 2 ** (bits - 1)
    words = np.random.default_rng(0).normal(0, deviation, shape).round().clip(-half, half - 1).astype(np.int8)
    _, counts = np.unique(words, return_counts=True)
    shares = counts / words.size
    return words, float(-(shares * np.log2(shares)).sum())


@pytest.mark.parametrize(("deviation", "bits"), [(3.0, 5), (4.0, 5), (20.0, 5), (6.0, 6), (11.0, 7)])
def test_words_take_the_smaller_of_their_bits_and_their_entropy(tmp_path, deviation, bits):
    words, entropy = gaussian(deviation, (256, 1152), bits)
    form = Format.of(Precision(bits, 0))
    ((_, size),) = stored(network_of(w=(words, form)), tmp_path / "f").values()
    assert size * 8 <= 1.02 * min(entropy, bits) * words.size + 8 * 64
    overhead = (tmp_path / "f").stat().st_size - size
    assert overhead < 1000


def test_the_encoding_is_chosen_for_each_layer(tmp_path):
    form = Format.of(Precision(5, 0))
    uniform = np.random.default_rng(0).integers(-16, 16, (64, 64)).astype(np.int8)
    sparse = np.where(np.random.default_rng(1).random((64, 64)) < 0.9, 0, uniform)
    chosen = stored(network_of(uniform=(uniform, form), sparse=(sparse, form)), tmp_path / "f")
    assert chosen["uniform"] == ("bits", 64 * 64 * 5 // 8)
    assert chosen["sparse"][0] == "zstd"
    assert chosen["sparse"][1] < 64 * 64 * 1.5 / 8


def test_a_layer_of_zeros_unpacks_to_no_more_than_256_times_its_bytes(tmp_path):
    form = Format.of(Precision(2, 0))
    ((encoding, size),) = stored(network_of(w=(np.zeros((1000, 1000), np.int8), form)), tmp_path / "f").values()
    assert (encoding, size) == ("bits", 250_000)
    assert not load(tmp_path / "f").words["w"].any()


def test_many_channels_take_few_bytes(tmp_path):
    exported = capture(with_widths(Residual).controller)
    exported.save(tmp_path / "f")
    size = (tmp_path / "f").stat().st_size
    entries = len(exported.words) + len(exported.tensors)
    floats = sum(tensor.nbytes for tensor in exported.tensors.values())
    channels = sum(form.word_length.size for form in exported.formats.values() if form.axis is not None)
    words = sum(size for _, size in packed.stored_bytes(tmp_path / "f").values())
    assert size < words + floats + 150 * entries + 10 * channels + 1500


def test_small_tensors_lie_together_and_large_ones_under_their_own_names(tmp_path):
    from safetensors import safe_open

    def names(tensors):
        form, words = Format.of(Precision(5, 0)), torch.zeros(40, 40, dtype=torch.int8)
        Exported({"w": words}, {"w": form}, tensors).save(tmp_path / "f")
        loaded = load(tmp_path / "f")
        assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())
        with safe_open(tmp_path / "f", framework="pt") as file:
            return set(file.keys())

    assert names({"small": torch.randn(1024), "large": torch.randn(1025)}) == {"w", "large", ":small"}
    # More than 8 MiB of them could unpack from a small file, and are stored one by one.
    many = {f"small{i}": torch.zeros(1024) for i in range(2100)}
    assert names(many) == {"w", *many, ":small"}


# What is refused


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net"
    capture(with_widths(Transposed).controller).save(path)
    return path.read_bytes()


def refused(tmp_path, content, match):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable packed file.*" + match):
        load(path)


def test_truncated_files_are_refused(content, tmp_path):
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        refused(tmp_path, content[:length], "")


def test_altered_files_are_refused(content, tmp_path):
    for place in np.random.default_rng(0).integers(8, len(content), 50):
        altered = bytearray(content)
        altered[place] ^= 1
        refused(tmp_path, bytes(altered), "")
    altered = bytearray(content)
    altered[-1] ^= 1
    refused(tmp_path, bytes(altered), "checksum")


def test_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save

    tensors = {"weight": torch.ones(3)}
    refused(tmp_path, save(tensors), "not one that adapt packed")
    refused(tmp_path, save(tensors, {"adapt": "[" * 100_000}), "")
    refused(tmp_path, save(tensors, {"adapt": "{}"}), "header")
    later = json.dumps({"format": "adapt.packed", "version": packed.VERSION + 1})
    refused(tmp_path, save(tensors, {"adapt": later}), "version 3, but this package reads up to 2")
    refused(tmp_path, b"PK\x03\x04 a checkpoint", "")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def forged(tmp_path, change):
    """A file with a right checksum over wrong contents."""
    form = Format.of(Precision(5, 0))
    path = tmp_path / "forged"
    network_of(w=(np.zeros((40, 40), np.int8), form), v=(np.ones((3, 3), np.int8), form)).save(path)
    header, tensors = packed.separated(path)
    change(header, tensors)
    return packed.joined(header, tensors)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda header, _: header["words"]["v"].update(shape=[2**40, 2**40]), ""),
        (lambda header, _: header["words"]["w"].update(shape=[2**40, 2**40]), "too few"),
        (lambda header, _: header["words"]["v"].update(shape=[-1, 9]), "shape"),
        (lambda header, _: header["words"]["v"].update(shape=[3]), "bytes"),
        (lambda header, _: header["words"]["v"].update(encoding="pickle"), "encoded"),
        (lambda header, _: header["words"].update(u={"encoding": "bits", "shape": []}), "missing"),
        (lambda header, _: header["formats"].pop("v"), "no format"),
        (lambda header, _: header["formats"].update(v=[5, 1000]), "fraction_length"),
        (lambda header, _: header["formats"].update(v=[True, 0]), "sense"),
        (lambda header, _: header["formats"].update(v={"channels": 2**30, "axis": 0}), "too few"),
        (lambda header, _: header["formats"].update(v={"channels": -1}), "channels"),
        (lambda header, _: header["formats"].update(v=None), "packed"),
        (lambda header, _: header["aliases"].update(a="nothing"), "aliases"),
        (lambda header, _: header["origin"].update(a=[]), "text"),
        (lambda header, _: header.pop("words"), "words"),
        (lambda _, tensors: tensors.update(v=torch.zeros(6)), "missing"),
        (lambda _, tensors: tensors.update(w=torch.zeros(60, dtype=torch.uint8)), "damaged|unpack"),
    ],
)
def test_hostile_files_are_refused(tmp_path, change, match):
    refused(tmp_path, forged(tmp_path, change), match)


def test_small_tensors_unpack_to_no_more_than_16_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "compressed", lambda _: encoding.compressed(bytes(2**24 + 1)))
    refused(tmp_path, packed.joined({}, {}), "too few")


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    capture(adaptive(Residual, activations=8).controller).save(tmp_path / "f")
    with pytest.raises(ValueError, match=r"lacks .*down"):
        load(tmp_path / "f", model_of(Transposed))
    wider = model_of(Residual)
    wider.conv1 = nn.Conv2d(3, 8, 5, padding=2, bias=False)
    with pytest.raises(ValueError, match=r"conv1.weight is torch.float32 \[8, 3, 5, 5\] in the module"):
        load(tmp_path / "f", wider)
    with pytest.raises(TypeError, match="module must be"):
        load(tmp_path / "f", Residual)


def test_an_interrupted_save_leaves_the_file_before(tmp_path, monkeypatch):
    exported = capture(adaptive(Residual).controller)
    exported.save(tmp_path / "f")
    before = (tmp_path / "f").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        exported.save(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


# Versions


@pytest.mark.parametrize("version", range(1, packed.VERSION + 1))
def test_files_of_every_version_are_read(version):
    loaded, expected = load(Path(__file__).parent / "files" / f"version_{version}.safetensors"), earlier.network()
    assert loaded.formats == expected.formats
    assert loaded.aliases == expected.aliases
    assert loaded.origin == expected.origin
    for ours, theirs in ((loaded.words, expected.words), (loaded.tensors, expected.tensors)):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
            assert ours[name].dtype == tensor.dtype, name
