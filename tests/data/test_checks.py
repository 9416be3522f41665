"""What is known of each data set, and `bpfree data`: list, get, check."""

import gzip
import hashlib
import os
import sys
import threading
from pathlib import Path

import pytest

from bpfree.data import DATASETS, FACTS, data_directory
from bpfree.data.sets.checks import check, is_readable
from tests.data.server import Handler, Server
from tests.data.test_idx import write_mnist
from tests.test_cli import refused, shell

MNIST = sys.modules["bpfree.data.sets.mnist"]


def known(folder):
    """Hashes of the files that lie there."""
    return {path.name: f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}" for path in sorted(folder.iterdir())}


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """MNIST of 40 images, as if it were the published one."""
    folder = tmp_path / "mnist"
    write_mnist(folder)
    contents = {path.name[:-3]: gzip.decompress(path.read_bytes()) for path in folder.iterdir()}
    contents = {name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in contents.items()}
    source = MNIST.MNIST._replace(hashes=known(folder), contents=contents, mirrors=())
    monkeypatch.setattr(MNIST, "MNIST", source)
    monkeypatch.setitem(
        FACTS,
        "mnist",
        FACTS["mnist"]._replace(train=40, test=40, published=FACTS["mnist"].published._replace(sources=(source,))),
    )
    return folder


def test_every_fact_is_of_a_data_set_and_its_sources_are_whole():
    assert set(FACTS) == set(DATASETS) - {"folder", "arrays", "table", "webdataset", "parquet", "text"}, (
        "all but data of one's own"
    )
    for name, facts in FACTS.items():
        assert bool(facts.published.megabytes) == bool(facts.published.sources), name
        for source in facts.published.sources + facts.published.further:
            assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in source.mirrors)
            lengths = {"md5": 32, "sha1": 40, "sha256": 64}
            for kind, _, value in (h.partition(":") for h in {**source.hashes, **source.contents}.values()):
                assert len(value) == lengths[kind]
            assert source.archive is None or (source.archive in source.hashes and source.members)
            assert source.folders[0] == name, "where it is downloaded to"


@pytest.mark.parametrize("name", [name for name in FACTS if not FACTS[name].published.sources])
def test_what_needs_no_download_is_as_the_table_says(name, tmp_path):
    assert check(name, tmp_path).problems == []
    assert is_readable(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["none", "unzipped", "zipped anew"])
def test_files_as_published_are_whole(change, mnist, tmp_path):
    for path in list(mnist.iterdir()):
        content = gzip.decompress(path.read_bytes())
        if change == "unzipped":
            path.unlink()
            path.with_suffix("").write_bytes(content)
        elif change == "zipped anew":
            path.write_bytes(gzip.compress(content, 1))
    findings = check("mnist", tmp_path)
    assert findings.problems == []
    assert len(findings.published) == 4
    done = shell("data", "check", "mnist", "--data-dir", tmp_path)
    assert done.exit_code == 0
    assert done.stdout == "mnist: complete, 40 training and 40 test samples, 4 files with the published md5 sums\n"


def damage(path, how):
    whole = path.read_bytes()
    content = bytearray(gzip.decompress(whole))
    if how == "truncated":
        path.write_bytes(whole[:-10])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a byte":
        content[-1] ^= 1
        path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize("how", ["truncated", "empty", "a byte"])
def test_damage_is_told_and_the_exit_code_is_1(how, mnist, tmp_path):
    path = mnist / "train-images-idx3-ubyte.gz"
    damage(path, how)
    done = shell("data", "check", "mnist", "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert (
        lines[0] == f"mnist: damaged: {path}: its hash is not that of the published file. Delete it and fetch it again"
    )
    assert len(lines) == (1 if how == "a byte" else 2)
    assert shell("data", "check", "--data-dir", tmp_path).exit_code == 1, "without a name, all that are here"


def test_other_counts_are_told(mnist, monkeypatch, tmp_path):
    monkeypatch.setitem(FACTS, "mnist", FACTS["mnist"]._replace(train=60_000, classes=11))
    assert check("mnist", tmp_path).problems == [
        "data set 'mnist': found 40 training samples, allowed: 60000. Fetch it again",
        "data set 'mnist': found 10 classes, allowed: 11. Fetch it again",
    ]


def test_nothing_is_downloaded_by_a_check(mnist, tmp_path):
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    done = shell("data", "check", "mnist", "--data-dir", tmp_path)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"mnist: missing or incomplete in {tmp_path}. `bpfree data get mnist`")
    assert "t10k-labels-idx1-ubyte.gz is not in" in check("mnist", tmp_path).problems[0]


def test_a_check_of_all_names_what_is_here(mnist, tmp_path):
    done = shell("data", "check", "--data-dir", tmp_path)
    assert done.exit_code == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["digits", "diabetes", "lorenz", "mnist"]


def test_list(mnist, tmp_path):
    lines = {line.split()[0]: line for line in shell("data", "list", "--data-dir", tmp_path).stdout.splitlines()[1:]}
    assert set(FACTS) <= set(lines)
    assert lines["mnist"].split()[-1] == "yes"
    assert " ".join(lines["lorenz"].split()[1:]) == "512 256 numbers 100x3 0 none needed doi.org yes"
    assert " ".join(lines["stl10"].split()[1:]) == "5,000 8,000 10 3x96x96 2,640 none stated cs.stanford.edu no"


def test_get(mnist, tmp_path, monkeypatch):
    class Files(Handler):
        def files(self, start):
            self.answer((mnist / self.path.split("/")[-1]).read_bytes())

    with Server(("127.0.0.1", 0), Files) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        mirrors = (f"http://127.0.0.1:{server.server_port}/files/",)
        monkeypatch.setattr(MNIST, "MNIST", MNIST.MNIST._replace(mirrors=mirrors))
        done = shell("data", "get", "mnist", "--data-dir", tmp_path / "new")
        server.shutdown()
    assert done.output == f"mnist: 40 training and 40 test samples [1, 28, 28] in {tmp_path / 'new'}\n"
    assert known(tmp_path / "new" / "mnist") == known(mnist)


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bpfree.data.files.transfer.WAITS", ())
    monkeypatch.setattr(MNIST, "MNIST", MNIST.MNIST._replace(mirrors=("http://127.0.0.1:1/",)))
    assert "unknown data set 'mnits'. Did you mean 'mnist'?" in refused("data", "get", "mnits")
    assert "unknown data set 'mnits'. Did you mean 'mnist'?" in refused("data", "check", "mnits")
    assert "could not be downloaded" in refused("data", "get", "mnist", "--data-dir", tmp_path)
    assert "unknown key 'data.extr'. Did you mean 'data.extra'?" in refused("data", "get", "svhn", "extr=true")
    assert "data.extra: found 'maybe', allowed: true or false" in refused("data", "get", "svhn", "extra=maybe")
    assert "data.size: found 4, allowed: 8 to 512" in refused("data", "get", "caltech256", "size=4")
    assert "allowed: section.key=value" in refused("data", "get", "svhn", "extra")


@pytest.mark.parametrize("name", [name for name in FACTS if FACTS[name].published.sources])
def test_the_real_ones_where_they_are(name):
    """Every data set that BPFREE_DATA has is the published one, or says what differs."""
    if "BPFREE_DATA" not in os.environ or not is_readable(name, data_directory()):
        pytest.skip("BPFREE_DATA names no directory that has it")
    assert check(name, Path(data_directory())).problems == []
