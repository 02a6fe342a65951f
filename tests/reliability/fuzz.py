"""Every reader of a foreign file, fed with one input: the first byte picks the reader, the rest is what it reads.

pip install atheris
python -m tests.reliability.fuzz NEW_CORPUS tests/reliability/corpus -max_total_time=600
"""

import functools
import gzip
import inspect
import io
import json
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import adapt
from adapt import export
from adapt.engine import persistence
from adapt.export import bits, columns, encoding, packed
from recipes.common import data as pictures
from recipes.common import download
from tests.export import earlier

SEPARATOR = b"\xfeMEMBER\xfe"
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pty.spawn")
MEMBERS = {"pictures/train.bin": 40, "pictures/test.bin": 16}

_acts = []


def _watch(event, arguments):
    if event in FORBIDDEN:
        _acts.append((event, arguments))


sys.addaudithook(_watch)


def archive(content):
    """A zip file with correct checksums whose members the input spells out: name, separator, bytes, separator, …"""
    parts = content.split(SEPARATOR)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, part in zip(parts[::2], parts[1::2], strict=False):
            zipped.writestr(zipfile.ZipInfo(name.decode("latin1") or "empty"), part)
    return target.getvalue()


def pickled(content):
    """A checkpoint of torch's form with correct checksums, whose pickle is the input."""
    target = io.BytesIO()
    with zipfile.ZipFile(_valid_checkpoint()) as source, zipfile.ZipFile(target, "w") as zipped:
        for member in source.infolist():
            zipped.writestr(member.filename, content if member.filename.endswith(".pkl") else source.read(member))
    return target.getvalue()


def _valid_checkpoint():
    file = io.BytesIO()
    torch.save(_controller().state_dict(), file)
    file.seek(0)
    return file


_made = {}


def _controller():
    if not _made:
        torch.manual_seed(0)
        net = nn.Linear(2, 2)
        _made["optimizer"] = torch.optim.SGD(net.parameters(), lr=0.1)
        _made["net"] = net
        _made["controller"] = adapt.attach(
            _made["optimizer"], net, adapt.AdaPT(lookback=(2, 3), resolution=(4, 6)), quantize_biases=True
        )
        for _ in range(5):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            _made["controller"].observe(1.0)
            _made["optimizer"].step()
    return _made["controller"]


def _trace(path):
    trace = adapt.Trace.load(path)
    trace.mean_word_length()
    trace.switches()


def _checkpoint(path):
    controller = _controller()
    before = {name: master.clone() for name, master in controller.masters.items()}
    good = controller.state_dict()
    try:
        state = adapt.load(path)
        controller.load_state_dict(state)
    except (ValueError, TypeError):
        for name, master in controller.masters.items():
            assert torch.equal(master, before[name]), "a refused state changed a master"
        raise
    controller.load_state_dict(good)


def _extract(path):
    room = path.parent / "room"
    room.mkdir()
    before = {p for p in path.parent.rglob("*") if room not in p.parents}
    try:
        download.extract(path, MEMBERS, room)
    finally:
        assert {p for p in path.parent.rglob("*") if room not in p.parents} == before, "a member left its folder"
        assert not any(p.is_symlink() for p in room.rglob("*"))


def packed_file(content):
    """A packed file with a right checksum whose header is the input, and which holds words, columns and a bias."""
    from safetensors.torch import save

    try:
        header = json.loads(content)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("words", {}), dict):
        return save(_parts()[1], {packed.KEY: content.decode("latin1")})
    return packed.joined(header, _parts()[1])


def _valid_packed():
    """The bytes of a packed file with every kind of format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "packed")
        earlier.network().save(path)
        return path.read_bytes()


def _packed_header():
    return json.dumps(_parts()[0], ensure_ascii=False, separators=(",", ":")).encode()


@functools.cache
def _parts():
    """The header and the tensors of that file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "packed")
        path.write_bytes(_valid_packed())
        return packed.separated(path)


def _packed(path):
    export.load(path)
    json.dumps(packed.stored_bytes(path))


READERS = [
    ("trace", lambda content: content, _trace),
    ("trace members", archive, _trace),
    ("checkpoint", lambda content: content, _checkpoint),
    ("checkpoint pickle", pickled, _checkpoint),
    ("bytes", lambda content: content, lambda path: persistence.from_bytes(path.read_bytes())),
    ("tar", lambda content: gzip.compress(content, 1), _extract),
    ("tar raw", lambda content: content, _extract),
    ("idx", lambda content: gzip.compress(content, 1), lambda path: pictures.read_idx(path, (3, 2, 2))),
    ("idx raw", lambda content: content, lambda path: pictures.read_idx(path, (3, 2, 2))),
    ("cifar", lambda content: content, lambda path: pictures.read_cifar(path, 1, (10,))),
    ("packed", lambda content: content, _packed),
    ("packed header", packed_file, _packed),
]


def examine(content):
    """Feed one input to its reader; answer whether it was accepted.

    Raises:
        AssertionError: the reader ran something, wrote where it must not, or changed what it refused to load.
        Exception: anything but the documented errors.
    """
    if not content:
        return False
    _, wrap, read = READERS[content[0] % len(READERS)]
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder, "file")
        path.write_bytes(wrap(content[1:]))
        _acts.clear()
        try:
            read(path)
            accepted = True
        except (ValueError, TypeError, download.DataError):
            accepted = False
        assert not _acts, f"a file made its reader do {_acts}"
    return accepted


def seeds():
    """A valid input of every reader, by its name."""
    trace = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace")
        _controller().trace.save(path)
        trace.write(path.read_bytes())
    with zipfile.ZipFile(trace) as zipped:
        members = SEPARATOR.join(p for n in zipped.namelist() for p in (n.encode(), zipped.read(n)))
    state = _valid_checkpoint().getvalue()
    with zipfile.ZipFile(io.BytesIO(state)) as zipped:
        pickle = next(zipped.read(name) for name in zipped.namelist() if name.endswith(".pkl"))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as target:
        for name, size in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size = size
            target.addfile(member, io.BytesIO(bytes(size)))
    idx = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 2, 2)) + bytes(12)
    contents = {
        "trace": trace.getvalue(),
        "trace members": members,
        "checkpoint": state,
        "checkpoint pickle": pickle,
        "bytes": persistence.to_bytes(_controller().trace.state_dict()),
        "tar": tar.getvalue(),
        "tar raw": gzip.compress(tar.getvalue(), mtime=0),
        "idx": idx,
        "idx raw": gzip.compress(idx, mtime=0),
        "cifar": bytes(3073),
        "packed": _valid_packed(),
        "packed header": _packed_header(),
    }
    return {name: bytes([i]) + contents[name] for i, (name, _, _) in enumerate(READERS)}


def main():
    """Let atheris mutate the seeds and whatever it finds on the way."""
    import atheris

    torch.set_num_threads(1)
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for name, content in seeds().items():
        assert examine(content), f"the seed of {name} is refused"
        (corpus / f"seed-{name.replace(' ', '-')}").write_bytes(content)
    for module in (
        adapt.trace.archive,
        adapt.trace.columns,
        adapt.trace,
        packed,
        columns,
        encoding,
        bits,
        persistence,
        zipfile,
        tarfile,
        gzip,
        download,
        pictures,
        np.lib._format_impl,
    ):
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(value))
    atheris.Setup([*sys.argv, "-max_len=20000", "-timeout=30", "-rss_limit_mb=3000"], examine_for_atheris)
    atheris.Fuzz()


def examine_for_atheris(content):
    """libFuzzer takes no other answer than none."""
    examine(content)


if __name__ == "__main__":
    os.environ.setdefault("ADAPT_BACKEND", "torch")
    main()
