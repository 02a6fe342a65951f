"""Download a file with a known checksum and unpack known files from an archive, each completely or not at all."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

CHUNK = 1 << 20
MOST_MEMBERS = 100
"""Limit on the entries of an archive, above those of every archive here, so that endless archives are refused."""


class DataError(RuntimeError):
    """A data set is missing, damaged or not what its name says."""


@dataclass(frozen=True)
class Remote:
    """One file on the network.

    Args:
        name: of the file, there and on disk.
        md5: its published MD5 checksum, in hexadecimal digits.
        limit: largest number of bytes that are downloaded.
        addresses: URLs of folders with the file, each ending in a slash, tried in this order.
    """

    name: str
    md5: str
    limit: int
    addresses: tuple[str, ...]


def checksum(path: Path) -> str:
    """MD5 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch(remote: Remote, folder: Path, *, timeout: float = 30.0) -> Path:
    """Download `remote` into `folder` and return its path; an existing file with the right checksum is kept.

    Args:
        timeout: seconds without a response after which an address is given up.

    Raises:
        DataError: no address provided the file, or the existing file has another checksum.
    """
    target = folder / remote.name
    if target.exists():
        if (found := checksum(target)) != remote.md5:
            raise DataError(f"{target} has the MD5 checksum {found}, not {remote.md5}: delete it and fetch it again")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for address in remote.addresses:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{remote.name}.")
        os.close(handle)
        try:
            _download(address + remote.name, Path(temporary), remote, timeout)
            os.replace(temporary, target)
        except (OSError, ValueError) as error:  # URLErrors and broken connections are OSErrors
            failures.append(f"{address + remote.name}: {error}")
        else:
            return target
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise DataError(
        f"could not download {remote.name} ({'; '.join(failures)}). Without a network, put the file with the MD5 "
        f"checksum {remote.md5} at {target}"
    )


def _download(url: str, path: Path, remote: Remote, timeout: float) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with urllib.request.urlopen(url, timeout=timeout) as response, path.open("wb") as file:
        length = int(response.headers.get("Content-Length") or 0)
        with tqdm(desc=remote.name, total=length or None, unit="B", unit_scale=True, leave=False) as bar:
            while chunk := response.read(CHUNK):
                received += len(chunk)
                if received > remote.limit:
                    raise ValueError(f"longer than {remote.limit} bytes")
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
    if digest.hexdigest() != remote.md5:
        raise ValueError(f"{received} bytes with the MD5 checksum {digest.hexdigest()}, not {remote.md5}")


def extract(archive: Path, sizes: Mapping[str, int], folder: Path) -> None:
    """Unpack the files `sizes` (member name → bytes) of a gzipped tar archive into `folder`, all of them or none.

    Raises:
        DataError: the archive is damaged or lacks a file, a file has another size, or a member is a link, would
            leave the folder, or is larger than the largest of the files.
    """
    missing = dict(sizes)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{archive.name}.") as room:
        try:
            with tarfile.open(archive, "r|gz") as tar:
                for count, member in enumerate(tar):
                    _check(member, count, archive, max(sizes.values()))
                    if member.name not in missing:
                        continue
                    if not member.isreg() or member.size != missing.pop(member.name):
                        raise DataError(
                            f"{archive}: {member.name} has {member.size} bytes instead of {sizes[member.name]}"
                        )
                    path = Path(room, member.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    source = tar.extractfile(member)
                    assert source is not None  # regular files always have one
                    with path.open("wb") as file:
                        shutil.copyfileobj(source, file, CHUNK)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}") from error
        if missing:
            raise DataError(f"{archive} lacks {', '.join(missing)}")
        for name in sizes:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(room, name), target)


def _check(member: tarfile.TarInfo, count: int, archive: Path, largest: int) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: the member {member.name!r} would leave the folder, so nothing was unpacked")
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{archive}: the member {member.name!r} is a link or a device, so nothing was unpacked")
    if member.size > largest or count >= MOST_MEMBERS:
        raise DataError(f"{archive}: the member {member.name!r} is too large or one too many, so nothing was unpacked")
