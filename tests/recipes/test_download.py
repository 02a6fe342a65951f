import gzip
import hashlib
import io
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recipes.common.download import MOST_MEMBERS, DataError, Remote, extract, fetch

CONTENT = bytes(range(256)) * 500


@pytest.fixture(scope="module")
def address():
    """A server that gives the good file, a truncated one, another one, one of double length, and 404 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = {
                "good": CONTENT,
                "cut": CONTENT[:-7],
                "other": CONTENT[::-1],
                "long": CONTENT * 2,
                "broken": CONTENT,
            }
            folder = self.path.split("/")[1]
            if folder not in body:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body[folder])))
            self.end_headers()
            self.wfile.write(body[folder][: 1000 if folder == "broken" else None])
            return None

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def remote(*addresses, content=CONTENT):
    return Remote("file.bin", hashlib.md5(content).hexdigest(), len(CONTENT), addresses)


def test_good_file_arrives_whole_and_alone(address, tmp_path):
    path = fetch(remote(address + "good/"), tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.bin"]


def test_file_that_is_there_is_kept_without_a_network(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch(remote("http://127.0.0.1:9/"), tmp_path).read_bytes() == CONTENT


def test_wrong_file_that_is_there_is_refused_and_kept(address, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"file\.bin has the MD5 checksum .* delete it"):
        fetch(remote(address + "good/"), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("cut", "127993 bytes with the MD5 checksum"),
        ("broken", "1000 bytes with the MD5 checksum|IncompleteRead"),
        ("other", "128000 bytes with the MD5 checksum"),
        ("long", "longer than 128000 bytes"),
        ("nowhere", "404"),
    ],
)
def test_bad_answer_leaves_nothing_behind(address, tmp_path, folder, reason):
    with pytest.raises(DataError, match=reason) as caught:
        fetch(remote(address + folder + "/"), tmp_path)
    assert str(tmp_path / "file.bin") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_second_address_is_tried_after_the_first(address, tmp_path):
    assert fetch(remote(address + "nowhere/", address + "cut/", address + "good/"), tmp_path).exists()


def test_without_a_network_the_message_says_what_to_put_where(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DataError) as caught:
        fetch(remote(f"http://127.0.0.1:{port}/"), tmp_path)
    message = str(caught.value)
    assert "refused" in message
    assert remote().md5 in message
    assert str(tmp_path / "file.bin") in message


def archive(path, *members):
    """A gzipped tar archive of (name, content) pairs and ready TarInfo objects."""
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


SIZES = {"set/a.bin": 6, "set/b.bin": 4}
GOOD = [("set/a.bin", b"abcdef"), ("set/b.bin", b"ABCD")]


def test_extract_takes_the_known_files_alone(tmp_path):
    path = archive(tmp_path / "x.tar.gz", special("set", tarfile.DIRTYPE), *GOOD, ("set/readme", b"hi"))
    extract(path, SIZES, tmp_path)
    assert (tmp_path / "set/a.bin").read_bytes() == b"abcdef"
    assert {p.name for p in tmp_path.iterdir()} == {"x.tar.gz", "set"}
    assert {p.name for p in (tmp_path / "set").iterdir()} == {"a.bin", "b.bin"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([*GOOD, ("../evil", b"x")], "would leave the folder"),
        ([*GOOD, ("set/../../evil", b"x")], "would leave the folder"),
        ([*GOOD, ("/tmp/evil", b"x")], "would leave the folder"),
        ([*GOOD, special("set/c.bin", tarfile.SYMTYPE, "/etc/passwd")], "is a link"),
        ([special("set/a.bin", tarfile.LNKTYPE, "/etc/passwd"), GOOD[1]], "is a link"),
        ([*GOOD, special("set/pipe", tarfile.FIFOTYPE)], "is a link or a device"),
        ([special("set/a.bin", tarfile.DIRTYPE), GOOD[1]], "instead of 6"),
        ([GOOD[0], ("set/b.bin", b"ABC")], "3 bytes instead of 4"),
        ([GOOD[0]], r"lacks set/b\.bin"),
        ([*GOOD, ("set/bomb", bytes(1000))], "too large"),
        ([(f"set/{i}", b"") for i in range(MOST_MEMBERS + 1)], "one too many"),
    ],
)
def test_foreign_archive_is_refused_by_name_and_nothing_is_unpacked(tmp_path, members, reason):
    path = archive(tmp_path / "x.tar.gz", *members)
    with pytest.raises(DataError, match=reason) as caught:
        extract(path, SIZES, tmp_path)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]


@pytest.mark.parametrize("damage", ["cut", "text", "gzip of text", "empty"])
def test_damaged_archive_is_refused_by_name(tmp_path, damage):
    path = archive(tmp_path / "x.tar.gz", ("set/a.bin", b"abcdef"), ("set/b.bin", b"ABCD"))
    path.write_bytes(
        {
            "cut": path.read_bytes()[:60],
            "text": b"<html>not here</html>",
            "gzip of text": gzip.compress(b"hello" * 300),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError, match=r"x\.tar\.gz"):
        extract(path, SIZES, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]
