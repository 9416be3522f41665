"""The readers of CIFAR-10 and CIFAR-100 against files of the official layouts, loose and packed, whole and broken."""

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading

import numpy as np
import pytest

from bpfree.data import DATASETS
from bpfree.data.sets import cifar
from bpfree.errors import UserError

OFFICIAL = dict(cifar.LAYOUTS)
N = 20  # records in a file, where the official ones have 10,000 or 50,000
EVERY = pytest.mark.parametrize("name", ["cifar10", "cifar100"])
FOLDER = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
ARCHIVE = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


@pytest.fixture(autouse=True)
def offline_and_small(monkeypatch):
    for name, layout in OFFICIAL.items():
        small = layout._replace(files=dict.fromkeys(layout.files, N))
        monkeypatch.setitem(cifar.LAYOUTS, name, small)
        use_mirror(monkeypatch, name, "http://127.0.0.1:1/", b"")


def use_mirror(monkeypatch, name, url, content):
    layout = cifar.LAYOUTS[name]
    hashes = {ARCHIVE[name]: f"md5:{hashlib.md5(content).hexdigest()}"}
    source = layout.source._replace(mirrors=(url,), hashes=hashes)
    monkeypatch.setitem(cifar.LAYOUTS, name, layout._replace(source=source))


def width(name):
    """Bytes of a record."""
    return 3072 + OFFICIAL[name].labels


def files(name, label=None):
    """Its files with random records, by name. The coarse labels of CIFAR-100 would be no classes."""
    rng = np.random.default_rng(0)
    layout, found = OFFICIAL[name], {}
    for file in layout.files:
        y = rng.integers(0, layout.classes, (N, 1)) if label is None else np.full((N, 1), label)
        coarse = rng.integers(layout.classes, 256, (N, layout.labels - 1))
        found[file] = np.concatenate([coarse, y, rng.integers(0, 256, (N, 3072))], axis=1).astype(np.uint8).tobytes()
    return found


def write(folder, contents):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def packed(contents, folder):
    """A .tar.gz with those files and one that nobody asked for."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"../evil.bin": b"evil", **{f"{folder}/{k}": v for k, v in contents.items()}}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def whole(name):
    return packed(files(name), FOLDER[name])


def expect(dataset, name):
    contents, layout = files(name), OFFICIAL[name]
    *train, test = contents.values()
    assert (dataset.name, dataset.classes) == (name, layout.classes)
    assert (len(dataset.train.y), len(dataset.test.y)) == (len(train) * N, N)
    for i, content in enumerate(train):
        record = content[3 * width(name) : 4 * width(name)]
        image, label, pixels = dataset.train.x[i * N + 3], dataset.train.y[i * N + 3], record[layout.labels :]
        assert int(label) == record[layout.labels - 1]
        assert image[0, 0, :3].tolist() == list(pixels[:3]), "a red row comes first"
        assert int(image[2, 31, 31]) == pixels[3071]
        assert int(image[1, 2, 5]) == pixels[1024 + 2 * 32 + 5]
    assert dataset.test.y.tolist() == [test[i * width(name) + layout.labels - 1] for i in range(N)]


def test_sizes_are_the_official_ones():
    """The archives' members have 30,730,000, and 153,700,000 and 30,740,000 bytes."""
    sizes = {name: {width(name) * n for n in layout.files.values()} for name, layout in OFFICIAL.items()}
    assert sizes == {"cifar10": {30_730_000}, "cifar100": {153_700_000, 30_740_000}}
    assert all(sum(layout.files.values()) == 60_000 for layout in OFFICIAL.values())


@EVERY
@pytest.mark.parametrize("folder", ["{0}", "{1}", "{0}/{1}"])
def test_it_is_found_where_people_keep_it(folder, name, tmp_path):
    write(tmp_path / folder.format(name, FOLDER[name]), files(name))
    expect(DATASETS[name](tmp_path), name)


@EVERY
@pytest.mark.parametrize("place", ["", "{0}", "{1}"])
def test_an_archive_is_unpacked_once_and_nothing_but_the_known_files(place, name, tmp_path):
    place = tmp_path / "data" / place.format(name, FOLDER[name])
    write(place, {ARCHIVE[name]: whole(name)})
    for _ in range(2):
        expect(DATASETS[name](tmp_path / "data"), name)
        (place / ARCHIVE[name]).unlink(missing_ok=True)
    assert not list(tmp_path.rglob("evil*"))
    assert {p.name for p in (tmp_path / "data" / name).iterdir()} == set(files(name))


def test_what_a_killed_unpacking_left_is_removed_after_a_day(tmp_path):
    place = tmp_path / "cifar10"
    write(place, {ARCHIVE["cifar10"]: whole("cifar10")})
    for name in (".unpack-old", ".unpack-new"):
        write(place / name, {"data_batch_1.bin": b"a part of it"})
    for path in (place / ".unpack-old" / "data_batch_1.bin", place / ".unpack-old"):
        os.utime(path, (1, 1))
    expect(DATASETS["cifar10"](tmp_path), "cifar10")
    assert [p.name for p in place.iterdir() if p.is_dir()] == [".unpack-new"]


def test_the_two_lie_beside_each_other(tmp_path):
    for name in OFFICIAL:
        (tmp_path / ARCHIVE[name]).write_bytes(whole(name))
    for name in OFFICIAL:
        expect(DATASETS[name](tmp_path), name)


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in OFFICIAL["cifar10"].source.members:
            info = tarfile.TarInfo(member)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"lacks cifar-10-batches-bin/data_batch_1.bin, "):
        DATASETS["cifar10"](tmp_path)


@EVERY
@pytest.mark.parametrize("zipped", [True, False])
def test_archives_that_people_packed_themselves(zipped, name, tmp_path):
    data = packed(files(name), f"./{FOLDER[name]}")
    file = ARCHIVE[name] if zipped else ARCHIVE[name].removesuffix(".gz")
    (tmp_path / file).write_bytes(data if zipped else gzip.decompress(data))
    expect(DATASETS[name](tmp_path), name)


@EVERY
def test_files_that_lie_there_are_kept(name, tmp_path):
    first, *others = files(name)
    write(tmp_path / FOLDER[name], {first: files(name, label=3)[first]})
    (tmp_path / ARCHIVE[name]).write_bytes(whole(name))
    dataset = DATASETS[name](tmp_path)
    assert dataset.train.y[:N].tolist() == [3] * N
    assert {p.name for p in (tmp_path / name).iterdir()} == set(others)


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.shutdown()


@EVERY
def test_it_is_downloaded_and_unpacked(server, name, monkeypatch, tmp_path):
    server.body = whole(name)
    use_mirror(monkeypatch, name, f"http://127.0.0.1:{server.server_port}/", server.body)
    expect(DATASETS[name](tmp_path), name)
    assert {p.name for p in (tmp_path / name).iterdir()} == set(files(name)), "the archive itself is not kept"


@EVERY
def test_another_archive_than_the_known_one_is_refused(server, name, monkeypatch, tmp_path):
    server.body = whole(name)
    use_mirror(monkeypatch, name, f"http://127.0.0.1:{server.server_port}/", b"another")
    with pytest.raises(UserError, match=rf"{ARCHIVE[name]} is not in .*{name} and .*sent another file"):
        DATASETS[name](tmp_path)
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (whole("cifar10")[:-2000], "corrupt or truncated archive"),
        (whole("cifar10")[:-6] + b"\xff" * 6, "corrupt or truncated archive"),
        (b"\x1f\x8b nonsense", "corrupt or truncated archive"),
        (b"plain nonsense", "corrupt or truncated archive"),
        (packed({"data_batch_1.bin": b""}, FOLDER["cifar10"]), "lacks cifar-10-batches-bin/data_batch_2.bin, "),
        (packed(files("cifar10"), "elsewhere"), "lacks cifar-10-batches-bin/data_batch_1.bin, "),
    ],
    ids=range(6),
)
def test_a_broken_archive_is_named_and_leaves_nothing(data, message, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=rf"cifar-10-binary.tar.gz: {message}") as caught:
        DATASETS["cifar10"](tmp_path)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cifar10").iterdir()) == []


@pytest.mark.parametrize("fault", ["empty", "a record short", "too large", "label"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "data_batch_4.bin"),
        ("cifar10", "test_batch.bin"),
        ("cifar100", "train.bin"),
        ("cifar100", "test.bin"),
    ],
)
def test_broken_files_are_named(name, file, fault, tmp_path):
    labels, classes = OFFICIAL[name].labels, OFFICIAL[name].classes
    size, short = N * width(name), (N - 1) * width(name)
    content, message = {
        "empty": (b"", f"found 0 bytes, allowed: {size}"),
        "a record short": (bytes(short), f"found {short} bytes"),
        "too large": (bytes(size + 1), f"found {size + 1} bytes"),
        "label": (
            bytes(short) + bytes([0, classes][-labels:]) + bytes(3072),
            f"found the label {classes}, allowed: 0 to {classes - 1}",
        ),
    }[fault]
    write(tmp_path / name, {**files(name), file: content})
    with pytest.raises(UserError, match=rf"{file}: .*{message}") as caught:
        DATASETS[name](tmp_path)
    assert "\n" not in str(caught.value)


@EVERY
def test_a_directory_that_cannot_be_written(name, tmp_path):
    (tmp_path / name).write_text("in the way")
    with pytest.raises(UserError, match=rf"data set '{name}': .*{name} cannot be written"):
        DATASETS[name](tmp_path)
