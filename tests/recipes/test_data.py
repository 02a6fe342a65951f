import dataclasses
import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes.common import data
from recipes.common.data import DATA_SETS, Cifar, Pictures, load, read_cifar, read_idx
from recipes.common.download import DataError, Remote
from tests.recipes.test_download import archive

NOWHERE = Remote("set.tar.gz", "0" * 32, 1 << 20, ("http://127.0.0.1:9/",))
TINY = Cifar(NOWHERE, "set", {"one.bin": 3, "two.bin": 2}, {"test.bin": 2}, (20, 100))


def records(number, bounds, seed=0):
    """(bytes of `number` records, labels [number, bounds], pixels [number, 3072])."""
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.integers(0, bound, number) for bound in bounds], axis=1).astype(np.uint8)
    pixels = generator.integers(0, 256, (number, 3072)).astype(np.uint8)
    return np.concatenate([labels, pixels], axis=1).tobytes(), labels, pixels


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_cifar_file_is_read_as_it_was_written(tmp_path):
    content, labels, pixels = records(5, (20, 100))
    (tmp_path / "x.bin").write_bytes(content)
    images, fine = read_cifar(tmp_path / "x.bin", 5, (20, 100))
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, 32, 32)
    assert np.array_equal(images.numpy().reshape(5, 3072), pixels)
    assert np.array_equal(fine.numpy(), labels[:, 1])
    # Channel first, then rows: the second channel begins after 1,024 bytes, the second row after 32.
    assert images[4, 1, 2, 3] == pixels[4, 1024 + 2 * 32 + 3]


@pytest.mark.parametrize("content", [b"", records(4, (10,))[0], records(5, (10,))[0][:-1], records(5, (10,))[0] + b"x"])
def test_cifar_file_of_another_size_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.bin has \d+ bytes instead of 5 records"):
        read_cifar(tmp_path / "x.bin", 5, (10,))


@pytest.mark.parametrize(("bounds", "column", "label"), [((10,), 0, 10), ((20, 100), 0, 20), ((20, 100), 1, 100)])
def test_cifar_label_out_of_bound_is_refused_by_name(tmp_path, bounds, column, label):
    content = bytearray(records(5, bounds)[0])
    content[2 * (len(bounds) + 3072) + column] = label
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.bin holds the label {label}, but there are only {bounds[column]}"):
        read_cifar(tmp_path / "x.bin", 5, bounds)


def test_cifar_set_joins_its_files_in_order(tmp_path):
    (tmp_path / "set").mkdir()
    parts = {
        "one.bin": records(3, (20, 100), 1),
        "two.bin": records(2, (20, 100), 2),
        "test.bin": records(2, (20, 100), 3),
    }
    for name, (content, _, _) in parts.items():
        (tmp_path / "set" / name).write_bytes(content)
    train, test = TINY.load(tmp_path, download=False)
    assert train.labels.tolist() == [*parts["one.bin"][1][:, 1], *parts["two.bin"][1][:, 1]]
    assert np.array_equal(test.images.numpy().reshape(2, 3072), parts["test.bin"][2])
    assert (len(train), len(test), train.classes, train.shape) == (5, 2, 100, (3, 32, 32))


def test_cifar_archive_that_lies_there_is_unpacked(tmp_path):
    members = [
        (f"set/{name}", records(n, (20, 100))[0]) for name, n in [("one.bin", 3), ("two.bin", 2), ("test.bin", 2)]
    ]
    path = archive(tmp_path / "set.tar.gz", *members)
    described = dataclasses.replace(
        TINY, remote=dataclasses.replace(NOWHERE, md5=hashlib.md5(path.read_bytes()).hexdigest())
    )
    train, test = described.load(tmp_path, download=False)
    assert (len(train), len(test)) == (5, 2)
    (tmp_path / "set" / "one.bin").unlink()
    with pytest.raises(DataError, match=r"set\.tar\.gz has the MD5 checksum"):
        TINY.load(tmp_path, download=False)


def test_missing_cifar_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path, download=False)
    for part in (str(tmp_path), "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"):
        assert part in str(caught.value)


def test_missing_mnist_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError) as caught:
        load("fashion-mnist", tmp_path, download=False)
    for part in (str(tmp_path / "fashion-mnist"), "train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"):
        assert part in str(caught.value)


def test_no_network_leaves_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"could not download set\.tar\.gz .* put the file"):
        TINY.load(tmp_path)


def test_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="name must be one of cifar10, cifar100, mnist, fashion-mnist, digits"):
        load("imagenet", ".")


def test_every_address_is_encrypted_or_checked_and_every_checksum_is_one():
    remotes = [r for d in DATA_SETS.values() for r in ([d.remote] if isinstance(d, Cifar) else d.remotes)]
    assert len(remotes) == 10
    for remote in remotes:
        assert len(bytes.fromhex(remote.md5)) == 16
        assert remote.addresses[0].startswith("https://")
        assert all(address.endswith("/") for address in remote.addresses)


def write_mnist(folder, numbers=(6, 4), side=28):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = []
    for number in numbers:
        arrays += [generator.integers(0, 256, (number, side, side)), generator.integers(0, 10, number)]
    for remote, array in zip(DATA_SETS["mnist"].remotes, arrays, strict=True):
        (folder / remote.name).write_bytes(gzip.compress(idx(array)))
    return arrays


def test_mnist_is_read_as_it_was_written(tmp_path):
    arrays = write_mnist(tmp_path / "mnist")
    train, test = dataclasses.replace(DATA_SETS["mnist"], numbers=(6, 4)).load(tmp_path, download=False)
    assert train.images.shape == (6, 1, 28, 28)
    assert np.array_equal(train.images[:, 0].numpy(), arrays[0])
    assert test.labels.tolist() == arrays[3].tolist()


def test_mnist_label_out_of_bound_is_refused_by_name(tmp_path):
    write_mnist(tmp_path / "mnist")
    name = "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "mnist" / name).write_bytes(gzip.compress(idx(np.array([1, 2, 3, 10]))))
    with pytest.raises(DataError, match=f"{name} holds the label 10"):
        dataclasses.replace(DATA_SETS["mnist"], numbers=(6, 4)).load(tmp_path, download=False)


def damaged():
    good = idx(np.arange(12).reshape(3, 2, 2))
    packed = gzip.compress(good)
    return {
        "truncated gzip": packed[:-9],
        "wrong checksum in the gzip": packed[:-8] + bytes(4) + packed[-4:],
        "plain file": good,
        "empty": b"",
        "empty gzip": gzip.compress(b""),
        "content too short": gzip.compress(good[:-1]),
        "content too long": gzip.compress(good + b"x"),
        "labels": gzip.compress(idx(np.arange(12))),
        "float type": gzip.compress(good[:2] + b"\x0d" + good[3:]),
        "another shape": gzip.compress(idx(np.arange(12).reshape(3, 4, 1))),
        "huge": gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 1 << 31)),
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_idx_file_is_refused_by_name(tmp_path, kind):
    (tmp_path / "x.gz").write_bytes(damaged()[kind])
    with pytest.raises(DataError, match=r"x\.gz"):
        read_idx(tmp_path / "x.gz", (3, 2, 2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_idx_reader_answers_or_refuses_whatever_is_flipped(tmp_path, data):
    content = bytearray(gzip.compress(idx(np.arange(12).reshape(3, 2, 2)), mtime=0))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    (tmp_path / "x.gz").write_bytes(content[:cut])
    try:
        tensor, message = read_idx(tmp_path / "x.gz", (3, 2, 2)), ""
    except DataError as error:
        tensor, message = None, str(error)
    if tensor is None:
        assert "x.gz" in message
    else:
        assert torch.equal(tensor, torch.arange(12, dtype=torch.uint8).view(3, 2, 2))


def test_digits_are_split_once_and_for_all():
    train, test = load("digits", "anywhere")
    assert (len(train), len(test), train.shape, train.classes) == (1437, 360, (1, 8, 8), 10)
    assert train.images.max() == 16
    together = torch.cat([train.images, test.images]).flatten(1)
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, load_digits().data.astype(int).tolist()))


def test_statistics_agree_with_numpy():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5)).astype(np.uint8))
    mean, deviation = Pictures(images, torch.zeros(50, dtype=torch.long), 10).statistics()
    assert np.allclose(mean, images.numpy().mean((0, 2, 3)))
    assert np.allclose(deviation, images.numpy().std((0, 2, 3)), rtol=1e-5)


def test_statistics_of_an_empty_channel_are_refused():
    with pytest.raises(ValueError, match="same value in every pixel"):
        Pictures(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), 10).statistics()


@pytest.mark.parametrize("number", [0, -1, 1438])
def test_subset_that_cannot_be_is_refused(number):
    with pytest.raises(ValueError, match=f"number must lie between 1 and the 1437 pictures, got {number}"):
        data.digits()[0].first(number)
