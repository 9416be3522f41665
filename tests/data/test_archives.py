"""Archives of every kind, whole and damaged, and what hostile ones try."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile

import pytest

from bpfree.data.files import archives
from bpfree.data.files.archives import members
from bpfree.errors import UserError

FILES = {"a/one.txt": b"1" * 1000, "./b/two.txt": b"2" * 70_000, "three": b""}
INSIDE = {name.removeprefix("./"): content for name, content in FILES.items()}


def tarred(files=FILES, kind="w", **links):
    """Files, and links by name: what they point at."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.LNKTYPE if target.startswith("hard:") else tarfile.SYMTYPE), target
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files=FILES, links=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/", b"")
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc/passwd")
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read(path, data, **options):
    path.write_bytes(data)
    return {name: content.read() for name, content in members(path, **options)}


KINDS = {"tar": tarred(), "tar.gz": tarred(kind="w:gz"), "zip": zipped()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_told_by_how_it_begins(kind, tmp_path):
    assert read(tmp_path / "archive.of-some-kind", KINDS[kind]) == INSIDE
    assert [name for name, _ in members(tmp_path / "archive.of-some-kind")] == list(INSIDE), "unread ones too"


EVIL = ["../evil", "/evil", "a/../../evil", "C:/evil", "a\\..\\evil", "..", "a/.."]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("pack", [tarred, zipped])
def test_members_that_climb_out_are_passed_over(pack, name, tmp_path):
    (tmp_path / "in").mkdir()
    assert read(tmp_path / "in" / "archive", pack({name: b"evil", **FILES})) == INSIDE
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "archive"]


def test_links_and_devices_are_passed_over(tmp_path):
    assert read(tmp_path / "tar", tarred(link="/etc/passwd", other="hard:/etc/passwd")) == INSIDE
    assert read(tmp_path / "zip", zipped(links=["link", "a/link"])) == INSIDE
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("thing")
            info.type = kind
            tar.addfile(info)
    assert read(tmp_path / "devices", buffer.getvalue()) == {}


def sparse_bomb():
    """A sparse file of 1 TiB in 2 KiB: it would be read as zeros that are nowhere."""
    info = tarfile.TarInfo("sparse")
    info.size = 1 << 40
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"%o" % (1 << 33) + b"\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def long_name_bomb():
    """A name of half a gigabyte, zipped to half a megabyte; tarfile would hold all of it."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 29
    return gzip.compress(info.tobuf() + bytes(1 << 26), 1)


@pytest.mark.parametrize(
    "data",
    [
        tarred({"bomb": bytes(3_000_000)}, kind="w:gz"),
        tarred({f"bomb{i}": bytes(300_000) for i in range(10)}, kind="w:gz"),
        tarred({"x": b""}) + bytes(3_000_000),
        zipped({"bomb": bytes(3_000_000)}),
        zipped({f"bomb{i}": bytes(300_000) for i in range(10)}),
    ],
    ids=["one", "many", "behind the end", "zip", "many in a zip"],
)
def test_a_bomb_is_left_when_it_is_over_the_limit(data, tmp_path):
    with pytest.raises(UserError, match=r"archive: unpacks to far more than any data set here"):
        read(tmp_path / "archive", data, largest=2_000_000)


def test_a_name_of_half_a_gigabyte(tmp_path):
    with pytest.raises(UserError, match=r"archive: unpacks to far more"):
        read(tmp_path / "archive", long_name_bomb())


def test_a_sparse_file(tmp_path):
    with pytest.raises(UserError, match=r"archive: (unpacks to far more|corrupt or truncated)"):
        read(tmp_path / "archive", sparse_bomb())


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    for data in KINDS.values():
        with pytest.raises(UserError, match="has more than 2 members"):
            read(tmp_path / "archive", data)


def encrypted():
    data = bytearray(zipped({"x": b"secret"}))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.rindex(signature) + at
        data[place : place + 2] = struct.pack("<H", 1)
    return bytes(data)


def before_the_beginning():
    """A zip whose directory claims to be larger, so that its member would begin at a negative place."""
    data = bytearray(KINDS["zip"])
    place = data.rindex(b"PK\x05\x06") + 16
    data[place : place + 4] = struct.pack("<I", struct.unpack("<I", data[place : place + 4])[0] + 1000)
    return bytes(data)


def damaged(method):
    """A zip packed by a method of its own, with bytes in the middle of its member changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("x", random.Random(0).randbytes(4000))
    data = bytearray(buffer.getvalue())
    data[1000:1100] = bytes(100)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "corrupt or truncated archive"),
        (b"nonsense" * 100, "corrupt or truncated archive"),
        (b"PK\x03\x04 nonsense", "corrupt or truncated archive"),
        (b"\x1f\x8b nonsense", "corrupt or truncated archive"),
        (KINDS["tar"][:20_000], "corrupt or truncated archive"),
        (KINDS["tar.gz"][:-12], "corrupt or truncated archive"),
        (KINDS["tar.gz"][:-6] + b"\xff" * 6, "corrupt or truncated archive"),
        (KINDS["zip"][:-30], "corrupt or truncated archive"),
        (zipped({"x": b"abcabcabc" * 9}).replace(zipped({"x": b"abcabcabc" * 9})[38:44], b"\xff" * 6), "corrupt"),
        (before_the_beginning(), "corrupt or truncated archive"),
        (damaged(zipfile.ZIP_BZIP2), "corrupt or truncated archive"),
        (damaged(zipfile.ZIP_LZMA), "corrupt or truncated archive"),
        (encrypted(), "x is encrypted"),
    ],
    ids=range(13),
)
def test_damage_is_one_line_that_names_the_archive(data, message, tmp_path):
    with pytest.raises(UserError, match=rf"archive: .*{message}|archive: {message}") as caught:
        read(tmp_path / "archive", data)
    assert "\n" not in str(caught.value)
