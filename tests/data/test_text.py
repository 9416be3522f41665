"""Texts as tokens: nothing of the text is lost, splits do not overlap, and a file of tokens is that of its text."""

import hashlib
import json
import math
import sys
import threading
import zipfile
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import bpfree
from bpfree import UserError
from bpfree.data import DATASETS, FACTS, Batches, Preprocess
from bpfree.data import texts as module
from bpfree.data.files.rows import Rows
from bpfree.data.sets import text as sets
from bpfree.data.vocabulary import BYTES, FEWEST, Vocabulary, bytes_of_tokens, letter_at

POEM = "".join(f"Über den Wipfeln {i} ist Ruh, warte nur {i * i}\n" for i in range(400)).encode()
pytest.importorskip("tokenizers")


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_bytes(POEM)
    return partial(DATASETS["text"], tmp_path / "data", path=path, context=16)


def splits_of(dataset):
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def tokens_of(split):
    """The tokens of a split in order: those of all windows, and the last label."""
    return torch.cat([split.x[:].flatten(), split.y[:][-1, -1:]])


# Windows


@pytest.mark.parametrize("vocabulary", [None, 300])
def test_windows_are_the_text_and_labels_are_the_next_tokens(poem, vocabulary):
    dataset = poem(vocabulary=vocabulary)
    decoder = Vocabulary(dataset.labels.vocabulary)
    assert dataset.classes == decoder.size == (vocabulary or 256)
    place = 0
    for split in splits_of(dataset).values():
        x, y = split.x[:], split.y[:]
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x.flatten()[1:], y.flatten()[:-1])
        read = decoder.decode(tokens_of(split).tolist()).encode()
        found = POEM.find(read, place)
        assert place <= found <= place + 17 * 8, "at most the rest of a window is left out between two splits"
        place = found + len(read)
    assert len(POEM) - place < 17 * 8


def test_splits_are_by_position_and_do_not_divide_a_letter(poem):
    cuts = {}
    for shares in ((0.9, 0.05, 0.05), (0.5, 0.25, 0.25), (0.8003, 0.1997, 0.0)):
        made = module.encoded(module.divided(POEM, shares), None, poem.args[0], "poem").splits
        cuts[shares] = [len(part) for part in made.values()]
        assert b"".join(part.tobytes() for part in made.values()) == POEM
        for part in made.values():
            part.tobytes().decode("utf-8")
        assert abs(cuts[shares][0] - shares[0] * len(POEM)) < 4
    assert poem(shares=[0.8, 0.2, 0.0]).test is None


def test_a_letter_is_found_from_each_of_its_bytes():
    content = "aü€😀".encode()
    assert [letter_at(content, i) for i in range(len(content) + 1)] == [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]
    assert letter_at(b"\x80" * 20, 10) == 10, "bytes that are not UTF-8 stay where they are"


def test_training_shuffles_by_key_and_every_window_comes(poem):
    dataset = poem()
    assert isinstance(dataset.train.x, Rows)
    assert isinstance(dataset.train.y, Rows)
    preprocess = Preprocess.of(dataset, dataset.train)
    epochs = [list(Batches(dataset.train, preprocess, 8, seed=3).epoch(i)) for i in (0, 0, 1)]
    first, again, other = (torch.cat([batch.x for batch in epoch]) for epoch in epochs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, dataset.train.x[: len(first)])
    known = {tuple(row) for row in dataset.train.x[:].tolist()}
    assert {tuple(row) for row in first.tolist()} <= known
    for batch in epochs[0]:
        assert torch.equal(batch.x[:, 1:], batch.y[:, :-1])


def test_tokens_lie_in_a_memory_map_of_the_smallest_type(poem):
    for vocabulary, dtype in ((None, np.uint8), (300, np.uint16)):
        tokens = poem(vocabulary=vocabulary).train.x.file._tokens
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == dtype
    assert Vocabulary(BYTES).dtype == np.uint8
    large = Vocabulary(json.dumps({"model": {"vocab": {chr(300 + i): i for i in range(70_000)}}}))
    assert large.dtype == np.uint32


# Vocabularies


def test_any_text_comes_back_from_its_tokens():
    made = Vocabulary.train(POEM, 300, "poem")
    for content in (POEM, "日本語 😀\n\n\t ".encode(), b"", bytes(range(128))):
        assert made.decode(made.encode(content).tolist()).encode() == content
        sizes = np.array(bytes_of_tokens(made.text))
        assert sizes[made.encode(content)].sum() == len(content)
    assert len(made.encode(POEM)) < len(POEM) / 2


def test_pieces_are_joined_without_a_seam(monkeypatch):
    from bpfree.data import vocabulary

    made = Vocabulary.train(POEM, 300, "poem")
    whole = made.encode(POEM)
    monkeypatch.setattr(vocabulary, "_PIECE", 100)
    assert np.array_equal(made.encode(POEM), whole), "lines and spaces are where BPE cuts too"
    for content in ("日" * 200, "a b" * 200):
        assert made.decode(made.encode(content.encode()).tolist()) == content


def test_the_vocabulary_learns_from_the_training_part_alone(poem, tmp_path):
    other = POEM[: round(0.9 * len(POEM))] + b"zq" * (len(POEM) // 20)
    (tmp_path / "other.txt").write_bytes(other)
    train = 0.9 * len(POEM) / len(other)
    options = {"vocabulary": 300, "shares": [train, 0.05, 0.95 - train]}
    changed = DATASETS["text"](tmp_path / "data", path=tmp_path / "other.txt", context=16, **options)
    assert changed.labels.vocabulary == poem(vocabulary=300).labels.vocabulary


# Files


def test_the_file_of_tokens_is_that_of_the_text_and_the_options(poem, tmp_path):
    kept = tmp_path / "data" / "tokens"

    def files():
        return {path.name for path in kept.glob("*.safetensors")}

    poem(vocabulary=300)
    first = files()
    assert len(first) == 1
    poem(vocabulary=300, context=8)
    assert files() == first, "the length of windows does not change the tokens"
    poem()
    poem(vocabulary=301)
    assert len(files()) == 3
    (tmp_path / "poem.txt").write_bytes(POEM.replace(b"Ruh", b"ruh"))
    poem(vocabulary=300)
    assert len(files()) == 4


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b"", lambda b: b[:8] + b"x" + b[9:]])
def test_a_damaged_file_of_tokens_is_made_again(poem, tmp_path, damage):
    before = tokens_of(poem(vocabulary=300).train)
    (file,) = (tmp_path / "data" / "tokens").glob("*.safetensors")
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(damage(content))
    assert torch.equal(tokens_of(poem(vocabulary=300).train), before)
    assert file.read_bytes() == content


def test_without_a_place_for_it_tokens_stay_in_memory(poem, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    dataset = poem(cache=tmp_path / "file" / "below")
    assert torch.equal(tokens_of(dataset.train), tokens_of(poem().train))
    assert not isinstance(dataset.train.x.file._tokens, np.memmap)


def test_a_folder_is_its_files_in_order(tmp_path):
    for name, content in {"b.txt": b"bb", "a/z.txt": b"zz", ".c.txt": b"cc", "d.md": b"dd"}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content * 10)
    read = partial(DATASETS["text"], tmp_path, path=tmp_path / "in", context=1, shares=[1.0, 0.0, 0.0])
    assert bytes(tokens_of(read().train).tolist()) == b"zz" * 10 + b"\n\n" + b"bb" * 10
    assert bytes(tokens_of(read(pattern="*.md").train).tolist()) == b"dd" * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "data.context: found 0"),
        ({"context": 10_000}, "its part for validation has .* tokens, allowed with data.context=10000: at least 10001"),
        ({"vocabulary": 256}, f"data.vocabulary: found 256, allowed: {FEWEST} to"),
        ({"shares": [0.5, 0.5]}, r"data.shares: found \[0.5, 0.5\], allowed: three numbers"),
        ({"shares": [0.5, 0.4, 0.2]}, "with the sum 1"),
        ({"shares": [1.5, -0.5, 0.0]}, "from 0 on"),
        ({"shares": [0.0, 0.5, 0.5]}, "found no text for training"),
    ],
)
def test_bad_options_are_one_clear_line(poem, options, message):
    with pytest.raises(UserError, match=message) as caught:
        poem(**options)
    assert "\n" not in str(caught.value)


def test_bad_files_are_one_clear_line(poem, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.txt").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "nothing.txt").write_bytes(b"")
    read = partial(DATASETS["text"], tmp_path, context=4)
    for options, message in (
        ({"path": tmp_path / "gone"}, "gone: cannot be read"),
        ({"path": tmp_path / "empty"}, r"found no files \*.txt in"),
        ({"path": tmp_path / "nothing.txt"}, "found no text for training"),
        ({"path": tmp_path / "bytes.txt", "vocabulary": 300}, "found bytes that are not UTF-8"),
    ):
        with pytest.raises(UserError, match=message):
            read(**options)
    assert read(path=tmp_path / "bytes.txt").classes == 256


# Texts by name


def test_published_texts_come_from_a_server(tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    (served / "input.txt").write_bytes(POEM)
    with zipfile.ZipFile(served / "text8.zip", "w") as archive:
        archive.writestr("text8", POEM)
    with zipfile.ZipFile(served / "wikitext-103-raw-v1.zip", "w") as archive:
        for split, text in (("train", POEM), ("valid", POEM[:2000]), ("test", POEM[:1000])):
            archive.writestr(f"wikitext-103-raw/wiki.{split}.raw", text)
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=served)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        mirror = (f"http://127.0.0.1:{server.server_port}/",)
        for name in ("TINYSHAKESPEARE", "TEXT8", "WIKITEXT103"):
            source = getattr(sets, name)
            here = [file for file in source.hashes if (served / file).is_file()]
            hashes = {file: f"sha256:{hashlib.sha256((served / file).read_bytes()).hexdigest()}" for file in here}
            monkeypatch.setattr(sets, name, source._replace(mirrors=mirror, hashes=hashes))
        for name in ("tinyshakespeare", "text8", "wikitext103"):
            dataset = DATASETS[name](tmp_path / "data", context=16)
            assert POEM.startswith(bytes(tokens_of(dataset.train).tolist()))
        server.shutdown()
    assert [len(split.y) for split in splits_of(dataset).values()] == [(n - 1) // 16 for n in (len(POEM), 2000, 1000)]
    assert (tmp_path / "data" / "text8" / "text8").read_bytes() == POEM
    assert not (tmp_path / "data" / "text8" / "text8.zip").exists()


def test_shakespeare_is_found_under_the_name_that_people_give_it(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_bytes(POEM)
    assert POEM.startswith(bytes(tokens_of(DATASETS["tinyshakespeare"](tmp_path, context=16).train).tolist()))


def test_the_facts_are_those_of_the_sizes():
    for name, size in (("tinyshakespeare", 1_115_394), ("text8", 100_000_000), ("enwik8", 100_000_000)):
        train, test = (round(share * size) - 1 for share in (0.9, 0.05))
        assert FACTS[name].train == train // 128
        assert abs(FACTS[name].test - test // 128) <= 1
    for found, size in ((FACTS["wikitext103"].train, 540_568_191), (FACTS["wikitext103"].test, 1_290_590)):
        assert found == (size - 1) // 128


# Training


def test_a_net_learns_more_than_how_often_letters_occur(poem):
    dataset = poem()
    counts = Counter(tokens_of(dataset.train).tolist())
    total = sum(counts.values())
    unigram = -sum(n / total * math.log(n / total) for n in counts.values())
    data = {"name": "text", "dir": str(poem.args[0]), "path": str(poem.keywords["path"]), "context": 16}
    net = {"name": "gru", "hidden": [16], "each_step": True, "vocabulary": 256}
    run = bpfree.fit(net, data, "mono_forward", epochs=2, task="language", batch_size=8,
                     optimizer={"name": "adam", "lr": 2e-2})  # fmt: skip
    found = run.metrics[-1]["validation"]
    assert found["loss"] < 0.8 * unigram
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2), rel=1e-4)


def test_bits_per_byte_count_the_bytes_of_tokens(poem, tmp_path):
    data = {"name": "text", "dir": str(tmp_path / "data"), "path": str(tmp_path / "poem.txt"), "context": 16,
            "vocabulary": 300}  # fmt: skip
    net = {"name": "gru", "hidden": [8], "each_step": True, "vocabulary": 300}
    run = bpfree.fit(net, data, "backprop", epochs=1, task="language", out=tmp_path / "run")
    split = poem(vocabulary=300).test
    sizes = torch.tensor(bytes_of_tokens(run.preprocess.vocabulary))
    per_token = sizes[split.y[:]].double().mean()
    test = run.result["test"]
    assert per_token > 1.5
    assert test["bits_per_byte"] == pytest.approx(test["bits_per_token"] / float(per_token), rel=1e-5)
    loaded = bpfree.load(tmp_path / "run")
    assert loaded.preprocess.vocabulary == run.preprocess.vocabulary
    assert loaded.evaluate(split) == pytest.approx(test, rel=1e-5)


def test_a_damaged_vocabulary_of_a_run_is_refused():
    with pytest.raises(ValueError, match="not a tokenizer"):
        bytes_of_tokens('{"model": 3}')
    with pytest.raises(ValueError, match="not numbered"):
        bytes_of_tokens('{"model": {"vocab": {"a": 5}}}')
    for text in ("byte", '{"model": {"vocab": {"日": 0}}}'):
        with pytest.raises(UserError, match="damaged"):
            Vocabulary(text).decode([0])
    with pytest.raises(UserError, match="damaged"):
        Vocabulary('{"model": {"vocab": {"a": 0}}}').encode(b"a")


def test_bytes_need_no_package(poem, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert poem().classes == 256
    assert Vocabulary(BYTES).decode(Vocabulary(BYTES).encode(POEM).tolist()).encode() == POEM
    with pytest.raises(UserError, match=r"data.vocabulary: needs the package tokenizers.*'bpfree\[text\]'"):
        poem(vocabulary=300)
