"""The reader of CIFAR-10 against files of the official layout, loose and in an archive, whole and broken."""

import gzip
import hashlib
import http.server
import importlib
import io
import tarfile
import threading

import numpy as np
import pytest
import torch

from bpfree.data import DATASETS
from bpfree.errors import UserError

cifar10 = importlib.import_module("bpfree.data.cifar10")  # the name alone is the function in it
N = 20  # records in a file, where the official ones have 10,000


@pytest.fixture(autouse=True)
def offline_and_small(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS", N)
    use_mirror(monkeypatch, "http://127.0.0.1:1/", b"")


def use_mirror(monkeypatch, url, content):
    hashes = {cifar10.CIFAR10.archive: f"md5:{hashlib.md5(content).hexdigest()}"}
    monkeypatch.setattr(cifar10, "CIFAR10", cifar10.CIFAR10._replace(mirrors=(url,), hashes=hashes))


def files(labels=None):
    """Six files of random records, by name."""
    rng = np.random.default_rng(0)
    found = {}
    for name in (*cifar10.TRAIN, cifar10.TEST):
        y = rng.integers(0, 10, (N, 1)) if labels is None else np.full((N, 1), labels)
        found[name] = np.concatenate([y, rng.integers(0, 256, (N, 3072))], axis=1).astype(np.uint8).tobytes()
    return found


def write(folder, contents):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def packed(contents, folder="cifar-10-batches-bin"):
    """A .tar.gz with those files and one that nobody asked for."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"../evil.bin": b"evil", **{f"{folder}/{k}": v for k, v in contents.items()}}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def expect(dataset, contents):
    assert (dataset.classes, len(dataset.train.y), len(dataset.test.y)) == (10, 5 * N, N)
    record = contents["data_batch_2.bin"][3 * 3073 : 4 * 3073]
    image, label = dataset.train.x[N + 3], dataset.train.y[N + 3]
    assert int(label) == record[0]
    assert image[0, 0, :3].tolist() == list(record[1:4]), "a red row comes first"
    assert int(image[2, 31, 31]) == record[3072]
    assert int(image[1, 2, 5]) == record[1 + 1024 + 2 * 32 + 5]
    assert torch.equal(dataset.test.y, torch.tensor([contents["test_batch.bin"][i * 3073] for i in range(N)]))


@pytest.mark.parametrize("folder", ["cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_it_is_found_where_people_keep_it(folder, tmp_path):
    write(tmp_path / folder, files())
    expect(DATASETS["cifar10"](tmp_path), files())


@pytest.mark.parametrize("place", ["", "cifar10", "cifar-10-batches-bin"])
def test_an_archive_is_unpacked_once_and_nothing_but_the_known_files(place, tmp_path):
    write(tmp_path / "data" / place, {"cifar-10-binary.tar.gz": packed(files())})
    for _ in range(2):
        expect(DATASETS["cifar10"](tmp_path / "data"), files())
        (tmp_path / "data" / place / "cifar-10-binary.tar.gz").unlink(missing_ok=True)
    assert not list(tmp_path.rglob("evil*"))
    assert {p.name for p in (tmp_path / "data" / "cifar10").iterdir()} == set(files())


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in cifar10.CIFAR10.members:
            info = tarfile.TarInfo(member)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"lacks cifar-10-batches-bin/data_batch_1.bin, "):
        DATASETS["cifar10"](tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar-10-binary.tar"])
def test_archives_that_people_packed_themselves(name, tmp_path):
    data = packed(files(), folder="./cifar-10-batches-bin")
    (tmp_path / name).write_bytes(data if name.endswith("gz") else gzip.decompress(data))
    expect(DATASETS["cifar10"](tmp_path), files())


def test_files_that_lie_there_are_kept(tmp_path):
    own = files(labels=3)
    write(tmp_path / "cifar-10-batches-bin", {"data_batch_1.bin": own["data_batch_1.bin"]})
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed(files()))
    dataset = DATASETS["cifar10"](tmp_path)
    assert dataset.train.y[:N].tolist() == [3] * N
    expect(dataset, files())


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


def test_it_is_downloaded_and_unpacked(server, monkeypatch, tmp_path):
    server.body = packed(files())
    use_mirror(monkeypatch, f"http://127.0.0.1:{server.server_port}/", server.body)
    expect(DATASETS["cifar10"](tmp_path), files())
    assert {p.name for p in (tmp_path / "cifar10").iterdir()} == set(files()), "the archive itself is not kept"


def test_another_archive_than_the_known_one_is_refused(server, monkeypatch, tmp_path):
    server.body = packed(files())
    use_mirror(monkeypatch, f"http://127.0.0.1:{server.server_port}/", b"another")
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is not in .*cifar10 and .*sent another file"):
        DATASETS["cifar10"](tmp_path)
    assert list((tmp_path / "cifar10").iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(files())[:-2000], "corrupt or truncated archive"),
        (packed(files())[:-6] + b"\xff" * 6, "corrupt or truncated archive"),
        (b"\x1f\x8b nonsense", "corrupt or truncated archive"),
        (b"plain nonsense", "corrupt or truncated archive"),
        (packed({"data_batch_1.bin": b""}), "lacks cifar-10-batches-bin/data_batch_2.bin, "),
        (packed(files(), folder="elsewhere"), "lacks cifar-10-batches-bin/data_batch_1.bin, "),
    ],
    ids=range(6),
)
def test_a_broken_archive_is_named_and_leaves_nothing(data, message, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=rf"cifar-10-binary.tar.gz: {message}") as caught:
        DATASETS["cifar10"](tmp_path)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cifar10").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"found 0 bytes, allowed: {N * 3073}"),
        (bytes((N - 1) * 3073), f"found {(N - 1) * 3073} bytes"),
        (bytes(N * 3073 + 1), f"found {N * 3073 + 1} bytes"),
        (bytes((N - 1) * 3073) + b"\x0a" + bytes(3072), "found the label 10, allowed: 0 to 9"),
    ],
    ids=["empty", "a record short", "too large", "label"],
)
@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_broken_files_are_named(name, content, message, tmp_path):
    write(tmp_path / "cifar10", {**files(), name: content})
    with pytest.raises(UserError, match=rf"{name}: .*{message}") as caught:
        DATASETS["cifar10"](tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "cifar10").write_text("in the way")
    with pytest.raises(UserError, match=r"data set 'cifar10': .*cifar10 cannot be written"):
        DATASETS["cifar10"](tmp_path)
