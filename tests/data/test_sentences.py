"""Texts with a class each: nothing of a short text is lost, 0 fills its end, and a damaged line is told."""

import hashlib
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import bpfree
from bpfree import UserError
from bpfree.data import DATASETS
from bpfree.data.sets import sentences
from bpfree.data.vocabulary import BYTES, Vocabulary
from tests.test_cli import refused, shell

GOOD = ["a fine film", "warm and funny", "très bon !", "fine acting", ""]
BAD = ["a dull film", "cold and slow", "no wit", "dull acting", "a mess 😀"]
TRAIN = [(text, label) for text, label in zip(GOOD + BAD, [1] * 5 + [0] * 5, strict=True)] * 8
DEV = TRAIN[:4] + TRAIN[5:9]


def tsv(pairs):
    return "sentence\tlabel\n" + "".join(f"{text} \t{label}\n" for text, label in pairs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text(tsv(TRAIN), encoding="utf-8")
    (tmp_path / "sst2" / "dev.tsv").write_text(tsv(DEV), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("size", [None, 300])
def test_a_sample_is_its_text_and_zeros(folder, size):
    if size is not None:
        pytest.importorskip("tokenizers")
    dataset = DATASETS["sst2"](folder, context=40, vocabulary=size)
    assert dataset.class_names == ("negative", "positive")
    assert dataset.train.y.tolist() == [label for _, label in TRAIN]
    assert len(dataset.test.y) == len(DEV)
    made = Vocabulary(dataset.labels.vocabulary)
    for sample, (text, _) in zip(dataset.train.x, TRAIN, strict=True):
        length = int((sample > 0).sum())
        assert not sample[length:].any()
        assert made.decode((sample[:length] - 1).tolist()) == text
    assert int(dataset.train.x.max()) <= made.size
    cut = DATASETS["sst2"](folder, context=3, vocabulary=size).train.x
    assert torch.equal(cut, dataset.train.x[:, :3])


@pytest.mark.parametrize(("line", "number"), [("good\t2", 3), ("good", 3), ("good\tbad\t1", 3), ("", 3), ("good\t", 3)])
def test_a_damaged_line_is_told(folder, line, number):
    (folder / "sst2" / "train.tsv").write_text(f"sentence\tlabel\nfine\t1\n{line}\n")
    with pytest.raises(UserError, match=rf"train.tsv: found .* in line {number}, allowed: a text, a tab, and 0 or 1"):
        DATASETS["sst2"](folder)
    with pytest.raises(UserError, match="data.context: found 0"):
        DATASETS["sst2"](folder, context=0)


def test_the_archive_comes_from_a_server(folder, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "SST-2.zip", "w") as archive:
        for file in ("train.tsv", "dev.tsv"):
            archive.write(folder / "sst2" / file, f"SST-2/{file}")
        archive.writestr("SST-2/test.tsv", "index\tsentence\n0\tno label\n")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    digest = hashlib.md5((served / "SST-2.zip").read_bytes()).hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=served)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        mirrors = (f"http://127.0.0.1:{server.server_port}/",)
        hashes = {"SST-2.zip": f"md5:{digest}"}
        monkeypatch.setattr(sentences, "SST2", sentences.SST2._replace(mirrors=mirrors, hashes=hashes))
        dataset = DATASETS["sst2"](tmp_path / "data")
        server.shutdown()
    assert torch.equal(dataset.train.x, DATASETS["sst2"](folder).train.x)
    assert {path.name for path in (tmp_path / "data" / "sst2").iterdir()} == {"train.tsv", "dev.tsv"}


@pytest.mark.parametrize("rule", ["backprop", "mono_forward"])
def test_a_net_learns_the_classes_and_predicts_lines_of_a_file(folder, tmp_path, undrawn, rule):
    net = {"name": "transformer", "width": 16, "depth": 2, "heads": 2, "vocabulary": 257, "padding": 0, "pool": "mean"}
    data = {"name": "sst2", "dir": str(folder), "context": 24, "validation": 0, "batch_size": 8}
    options = {"optimizer": {"name": "adam", "lr": 1e-2}, "epochs": 6}
    run = bpfree.fit(net, data, rule, out=tmp_path / "run", **options)
    assert run.result["test"]["accuracy"] == 1
    (tmp_path / "new.txt").write_text("a fine film\n  a dull film \n", encoding="utf-8")
    lines = shell("predict", run.folder, tmp_path / "new.txt").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["positive", "negative"]
    samples = Vocabulary(BYTES).padded([b"a fine film", b"a dull film"], 24)
    assert run.predict_names(samples) == ["positive", "negative"]
    assert shell("predict", run.folder, tmp_path / "new.txt").exit_code == 0
    (tmp_path / "none.txt").write_bytes(b"")
    assert "none.txt: found no line" in refused("predict", run.folder, tmp_path / "none.txt")


def test_a_run_of_language_is_told_to_generate(tmp_path, undrawn):
    (tmp_path / "poem.txt").write_text("fine and warm\n" * 60)
    data = {"name": "text", "path": str(tmp_path / "poem.txt"), "dir": str(tmp_path), "context": 8}
    net = {"name": "gru", "hidden": [4], "each_step": True, "vocabulary": 256}
    run = bpfree.fit(net, data, "backprop", epochs=1, task="language", out=tmp_path / "run")
    assert "Use `bpfree generate`" in refused("predict", run.folder, tmp_path / "poem.txt")
