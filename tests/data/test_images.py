"""One image file as bytes: every format and mode, and what is no image or far too large."""

import contextlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from bpfree.data.files.images import MOST_PIXELS, decode
from bpfree.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, channels=3, size=None, what="file.png", **options):
    return decode(io.BytesIO(data), channels=channels, size=size, what=what, **options)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(width, height):
    """A PNG of a few hundred bytes whose header claims that size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_colour_images_of_every_lossless_format(kind, tmp_path):
    data = saved(Image.fromarray(COLOUR), kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = torch.from_numpy(COLOUR).permute(2, 0, 1)
    assert torch.equal(read(data), expected)
    (tmp_path / "image").write_bytes(data)
    assert torch.equal(decode(tmp_path / "image", channels=3, size=None, what="x"), expected)


def test_grey_and_colour_become_each_other():
    grey = Image.fromarray(COLOUR[..., 0])
    assert torch.equal(read(saved(grey)), torch.from_numpy(COLOUR[..., 0]).expand(3, 6, 8))
    assert torch.equal(read(saved(grey), channels=1), torch.from_numpy(COLOUR[..., 0])[None])
    assert read(saved(Image.fromarray(COLOUR)), channels=1).shape == (1, 6, 8)


def test_other_modes():
    deep = (COLOUR[..., 0].astype(np.uint16) << 8) + 77
    assert torch.equal(read(saved(Image.fromarray(deep)), channels=1)[0], torch.from_numpy(COLOUR[..., 0]))
    alpha = np.dstack([COLOUR, np.zeros((6, 8), np.uint8)])
    assert torch.equal(read(saved(Image.fromarray(alpha))), torch.full((3, 6, 8), 255, dtype=torch.uint8))
    palette = Image.fromarray(COLOUR).quantize(4)
    assert read(saved(palette, transparency=bytes([0, 255, 255, 255]))).shape == (3, 6, 8)
    assert read(saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")).shape == (3, 6, 8)
    bits = Image.fromarray(COLOUR[..., 0] > 127)
    assert set(read(saved(bits), channels=1).unique().tolist()) == {0, 255}
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    assert torch.equal(
        read(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])), read(saved(frames[0], "GIF"))
    )


def test_a_photograph_is_turned_as_the_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data = saved(Image.fromarray(COLOUR), "PNG", exif=exif)
    assert torch.equal(read(data), torch.from_numpy(np.rot90(COLOUR, -1).copy()).permute(2, 0, 1))


def test_things_keep_their_proportions():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255  # the middle, which is all that is left
    assert bool((read(saved(Image.fromarray(image)), size=(10, 10)) > 200).all())
    assert read(saved(Image.fromarray(image)), size=(5, 30)).shape == (3, 5, 30)
    large = np.zeros((800, 800, 3), np.uint8)
    large[:400] = 200
    small = read(saved(Image.fromarray(large), "JPEG"), size=(8, 8)).float()
    assert abs(small[:, :3].mean() - 200) < 3
    assert small[:, 5:].mean() < 3


HOSTILE = {
    "empty": (b"", "of an unknown format, or empty"),
    "text": (b"hello, this is no image", "of an unknown format, or empty"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "of an unknown format"),
    "half": (saved(Image.fromarray(COLOUR.repeat(20, 0).repeat(20, 1)))[:600], "not an image that can be read"),
    "half a photograph": (saved(Image.fromarray(COLOUR.repeat(20, 0)), "JPEG")[:500], "not an image that can be read"),
    "100 megapixels": (
        claiming(10_000, 10_000),
        f"found 10000 x 10000 pixels, allowed: at most {MOST_PIXELS:,} pixels",
    ),
    "10,000 megapixels": (claiming(100_000, 100_000), "allowed: at most"),
    "more rows than there are": (claiming(3_000, 3_000), "not an image that can be read"),
    "32 bits": (saved(Image.fromarray(np.full((3, 3), 1 << 20, np.int32)), "TIFF"), "found pixels of 32 bits"),
    "floats": (saved(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"), "that are not integers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_read_is_one_line_that_names_the_file(case):
    data, message = HOSTILE[case]
    with pytest.raises(UserError, match=message) as caught:
        read(data, what="folder/bad.png")
    assert str(caught.value).startswith("folder/bad.png: ")
    assert "\n" not in str(caught.value)


def test_a_real_image_of_100_megapixels_is_not_decoded(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(UserError, match=r"large.png: found 10000 x 10000 pixels"):
        decode(path, channels=1, size=(8, 8), what=str(path))


def test_arguments():
    data = saved(Image.fromarray(COLOUR))
    with pytest.raises(UserError, match="channels: found 4, allowed: 1"):
        read(data, channels=4)
    with pytest.raises(UserError, match=r"size: found \[0, 4\]"):
        read(data, size=(0, 4))
    with pytest.raises(UserError, match=r"gone.png: not an image"):
        decode(Path("gone.png"), channels=3, size=None, what="gone.png")


def test_damaged_side_information_is_neither_told_nor_in_the_way(recwarn):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(Image.fromarray(COLOUR), "TIFF", exif=exif)
    entry = struct.pack("<HHI", 0x0112, 3, 1)
    assert whole.count(entry) == 1
    too_many = whole.replace(entry, struct.pack("<HHI", 0x0112, 3, 60))
    assert read(too_many).shape in ((3, 6, 8), (3, 8, 6))
    not_there = whole.replace(entry, struct.pack("<HHI", 0x0112, 3, 1 << 24))
    if int(PIL.__version__.partition(".")[0]) >= 13:  # older ones cannot read such a file at all
        assert torch.equal(read(not_there), torch.from_numpy(COLOUR).permute(2, 0, 1))
    garbage = saved(Image.fromarray(COLOUR), "WEBP", lossless=True, exif=b"Exif\0\0no side information")
    assert torch.equal(read(garbage), torch.from_numpy(COLOUR).permute(2, 0, 1))
    assert list(recwarn) == []


def test_damaged_bytes_anywhere_give_an_image_or_one_clear_error(recwarn):
    """2,400 files, some cut off; warnings would be errors."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "what it shows"
    kinds = {"TIFF": {}, "JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}}
    rng = np.random.default_rng(1)
    for kind, options in kinds.items():
        whole = saved(Image.fromarray(COLOUR), kind, exif=exif, **options)
        for _ in range(600):
            data = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
            for place in rng.integers(0, len(data), rng.integers(1, 5)):
                data[place] = rng.integers(0, 256)
            with contextlib.suppress(UserError):
                read(bytes(data), size=(4, 4))
    assert list(recwarn) == []


def test_filters_of_warnings_are_put_back_after_the_last_thread():
    before = list(warnings.filters)
    data = saved(Image.fromarray(COLOUR))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, [data] * 400))
    assert warnings.filters == before


def test_16_bit_images_whose_top_bits_are_empty_are_not_read_as_black():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    twelve = saved(Image.fromarray(values))
    with pytest.raises(UserError, match=r"whose largest value is 4095, so that its top bits.*data.bits=12"):
        read(twelve, channels=1)
    assert torch.equal(read(twelve, channels=1, bits=12)[0], torch.from_numpy(values >> 4).to(torch.uint8))
    bytes_in_16 = saved(Image.fromarray(values % 256))
    with pytest.raises(UserError, match=r"data.bits=8"):
        read(bytes_in_16, channels=1)
    assert torch.equal(read(bytes_in_16, channels=1, bits=8)[0], torch.from_numpy(values % 256).to(torch.uint8))
    assert read(bytes_in_16, channels=1, bits=16).max() == 0, "as dark as that, if the user says so"
    with pytest.raises(
        UserError, match=r"found the value 4095 in an image of 16 bits, allowed: up to 255.*data.bits=12"
    ):
        read(twelve, channels=1, bits=8)
    assert read(saved(Image.fromarray(values * 0)), channels=1).max() == 0, "black is black in any range"


def png_of_16_bit_colours(values):
    """[H, W, 3] uint16 as a PNG, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_16_bit_colours():
    values = np.full((4, 5, 3), 65535, np.uint16)
    assert read(png_of_16_bit_colours(values)).min() == 255
    for dark in (values // 16, values // 256):
        with pytest.raises(UserError, match="a colour image of 16 bits.*data.bits=16"):
            read(png_of_16_bit_colours(dark))
        assert read(png_of_16_bit_colours(dark), bits=16).max() <= 15
