"""Archives of class folders: EuroSAT as a zip, Caltech-256 as a tar, and whatever else may be in one."""

import hashlib
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from bpfree.data import DATASETS
from bpfree.data.files import class_folders
from bpfree.data.files.class_folders import read_images, read_published
from bpfree.data.sets import photographs
from bpfree.errors import UserError
from tests.data.test_archives import EVIL, tarred, zipped

EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"]
EUROSAT += ["Pasture", "PermanentCrop", "Residential", "River", "SeaLake"]


def picture(value, size=(64, 64), kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 255 - value, 7)).save(buffer, kind)
    return buffer.getvalue()


def eurosat(each=5):
    """In the layout of EuroSAT.zip: 2750/<class>/<class>_<number>.jpg."""
    return {
        f"2750/{name}/{name}_{i}.jpg": picture(20 * number + 4 * i)
        for number, name in enumerate(EUROSAT)
        for i in range(1, each + 1)
    }


def caltech(each=2):
    """In the layout of 256_ObjectCategories.tar, with the two things in it that are no images."""
    names = [f"{i:03d}.thing{i}" for i in range(1, 257)] + ["257.clutter"]
    files = {
        f"256_ObjectCategories/{name}/{name[:3]}_{i:04d}.jpg": picture(number % 250, size=(30 + 3 * i, 24))
        for number, name in enumerate(names)
        for i in range(1, each + 1)
    }
    return {**files, "256_ObjectCategories/198.thing198/RENAME2": b"#!/bin/sh\n"}


def put(monkeypatch, folder, name, content):
    """The archive where its reader looks, and its hash as the known one."""
    source = {"eurosat": photographs.EUROSAT, "caltech256": photographs.CALTECH256}[name]
    (file,) = source.hashes
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / file).write_bytes(content)
    known = {file: f"md5:{hashlib.md5(content).hexdigest()}"}
    monkeypatch.setattr(photographs, name.upper(), source._replace(hashes=known, mirrors=()))
    return folder / name / file


@pytest.mark.parametrize("pack", [tarred, zipped])
def test_images_come_by_class_and_name_whatever_the_order(pack, tmp_path):
    files = eurosat(3)
    path = tmp_path / "archive"
    path.write_bytes(pack(dict(reversed(files.items()))))
    found = read_images(path, "2750", size=(64, 64))
    assert (list(found.classes), found.x.shape, found.x.dtype) == (EUROSAT, (30, 3, 64, 64), torch.uint8)
    assert found.y.tolist() == sorted(list(range(10)) * 3)
    for i, content in enumerate(files.values()):
        expected = torch.from_numpy(np.asarray(Image.open(io.BytesIO(content))).copy()).permute(2, 0, 1)
        assert torch.equal(found.x[i], expected)
    assert read_images(path, "2750", size=(8, 6), channels=1).x.shape == (30, 1, 8, 6)


def test_eurosat_and_its_split(monkeypatch, tmp_path):
    put(monkeypatch, tmp_path, "eurosat", zipped(eurosat()))
    dataset = DATASETS["eurosat"](tmp_path)
    assert (dataset.name, dataset.classes, list(dataset.class_names)) == ("eurosat", 10, EUROSAT)
    assert dataset.train.x.shape == (40, 3, 64, 64)
    assert dataset.test.x.shape == (10, 3, 64, 64)
    red = torch.cat([dataset.train.x, dataset.test.x])[:, 0, 0, 0].tolist()
    assert len(set(red)) == 50, "nothing is in both"
    labels = torch.cat([dataset.train.y, dataset.test.y]).tolist()
    assert [round((value - 12) / 20) for value in red] == labels
    assert torch.equal(DATASETS["eurosat"](tmp_path).test.x, dataset.test.x)


def test_caltech256_its_sizes_and_its_clutter(monkeypatch, tmp_path):
    put(monkeypatch, tmp_path, "caltech256", tarred(caltech()))
    dataset = DATASETS["caltech256"](tmp_path, size=16)
    assert (dataset.classes, len(dataset.train.y), len(dataset.test.y)) == (256, 410, 102)
    assert dataset.train.x.shape[1:] == (3, 16, 16)
    assert dataset.class_names[196:199] == ("thing197", "thing198", "thing199")
    for split in (dataset.train, dataset.test):
        assert (split.x[:, 0, 8, 8].float() - split.y % 250).abs().max() <= 3
    with_clutter = DATASETS["caltech256"](tmp_path, size=16, clutter=True)
    assert (with_clutter.classes, len(with_clutter.train.y) + len(with_clutter.test.y)) == (257, 514)
    for size in (7, 513):
        with pytest.raises(UserError, match=rf"data.size: found {size}, allowed: 8 to 512"):
            DATASETS["caltech256"](tmp_path, size=size)


def test_images_are_decoded_once(monkeypatch, tmp_path):
    path = put(monkeypatch, tmp_path, "eurosat", zipped(eurosat()))
    first = DATASETS["eurosat"](tmp_path)
    (beside,) = set(path.parent.iterdir()) - {path}
    with monkeypatch.context() as patched:
        patched.setattr(class_folders, "decode", None)
        again = DATASETS["eurosat"](tmp_path)
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.train.y, again.train.y)
    whole = beside.read_bytes()
    for damage in (b"", whole[:50], whole[:-1000], b"x" * 100):
        beside.write_bytes(damage)
        assert torch.equal(DATASETS["eurosat"](tmp_path).test.x, first.test.x)
        assert beside.stat().st_size == len(whole)
    path = put(monkeypatch, tmp_path, "eurosat", zipped(eurosat(4)))
    assert len(DATASETS["eurosat"](tmp_path).train.y) == 32, "another archive is decoded anew"


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    path = put(monkeypatch, tmp_path, "eurosat", zipped(eurosat()))
    path.parent.chmod(0o500)
    assert len(DATASETS["eurosat"](tmp_path).train.y) == 40
    path.parent.chmod(0o700)


def test_without_room_nothing_is_kept(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = put(monkeypatch, tmp_path, "eurosat", zipped(eurosat()))
    monkeypatch.setattr(class_folders, "save_file", full)
    assert len(DATASETS["eurosat"](tmp_path).train.y) == 40
    assert list(path.parent.iterdir()) == [path]


def test_another_archive_than_the_published_one(tmp_path):
    path = tmp_path / "EuroSAT.zip"
    path.write_bytes(zipped(eurosat(1)))
    with pytest.raises(UserError, match=r"EuroSAT.zip: found the md5 .*, allowed: 0123, as published"):
        read_published(path, "md5:0123", "2750", size=(64, 64))
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_lack(monkeypatch, tmp_path):
    files = {name: content for name, content in eurosat().items() if "River" not in name}
    put(monkeypatch, tmp_path, "eurosat", zipped(files))
    with pytest.raises(UserError, match="eurosat: found 9 folders of images, allowed: 10"):
        DATASETS["eurosat"](tmp_path)
    files = {name.replace("257.clutter", "257.zebra"): content for name, content in caltech(1).items()}
    put(monkeypatch, tmp_path, "caltech256", tarred(files))
    with pytest.raises(UserError, match=r"found '257.zebra' as its last class, allowed: 257.clutter"):
        DATASETS["caltech256"](tmp_path)


@pytest.mark.parametrize("name", [*EVIL, "../2750/a/x.jpg", "2750/../../a/x.jpg", "/2750/a/x.jpg"])
@pytest.mark.parametrize("pack", [tarred, zipped])
def test_members_elsewhere_are_neither_read_nor_written(pack, name, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "archive"
    good = {"2750/a/1.png": picture(1, kind="PNG"), "2750/b/2.PNG": picture(2, kind="PNG")}
    others = {
        name: b"evil",
        "2750/a/.hidden.png": b"no image",
        "2750/a/deep/3.png": b"no image",
        "2750/4.png": b"no image",
        "other/a/5.png": b"no image",
        "__MACOSX/2750/a/1.png": b"no image",
        "2750/a/Thumbs.db": b"no image",
    }
    path.write_bytes(pack({**others, **good}))
    found = read_images(path, "2750", size=(4, 4))
    assert (found.classes, found.x[:, 0, 0, 0].tolist()) == (("a", "b"), [1, 2])
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "archive"]


def claim():
    from tests.data.test_images import claiming

    return claiming(10_000, 10_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image that can be read"),
        (b"hello", "not an image that can be read"),
        (picture(3)[:400], "not an image that can be read"),
        (claim(), "found 10000 x 10000 pixels, allowed: at most"),
    ],
    ids=["empty", "text", "cut", "100 megapixels"],
)
@pytest.mark.parametrize("pack", [tarred, zipped])
def test_a_file_that_is_no_image_is_named(pack, content, message, tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(pack({"2750/a/1.png": picture(1), "2750/b/bad.jpg": content}))
    with pytest.raises(UserError, match=rf"archive: 2750/b/bad.jpg: .*{message}") as caught:
        read_images(path, "2750", size=(4, 4))
    assert "\n" not in str(caught.value)


def test_an_image_of_too_many_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(class_folders, "_LARGEST_IMAGE", 1000)
    path = tmp_path / "archive"
    path.write_bytes(zipped({"2750/a/1.bmp": picture(1, kind="BMP")}))
    with pytest.raises(UserError, match=r"2750/a/1.bmp: found more than 1,000 bytes"):
        read_images(path, "2750", size=(4, 4))


@pytest.mark.parametrize("pack", [tarred, zipped])
def test_links_are_not_followed(pack, tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(9, kind="PNG"))
    link = {"2750/a/1.png": "../../secret.png"}
    path = tmp_path / "archive"
    path.write_bytes(tarred({}, **link) if pack is tarred else zipped({}, links=link))
    with pytest.raises(UserError, match=r"archive: found no images in it, allowed: 2750/<class>/<image>"):
        read_images(path, "2750", size=(4, 4))


@pytest.mark.parametrize("pack", [tarred, zipped, lambda files: tarred(files, kind="w:gz")])
def test_a_truncated_archive(pack, tmp_path):
    path, whole = tmp_path / "archive", pack(eurosat())
    for cut in (len(whole) // 2, len(whole) - 20_000, len(whole) - 11_000):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"archive: found the md5 .*etch it again"):
            read_published(path, f"md5:{hashlib.md5(whole).hexdigest()}", "2750", size=(4, 4))
