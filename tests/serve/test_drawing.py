"""A drawing takes the form of the data."""

import pytest
import torch
from torch.nn import functional as F

from bpfree.serve.drawing import to_form
from bpfree.serve.samples import ink_of, of_drawing


def ring(side, top, left, size):
    """A drawn 0 with its box at (top, left)."""
    place = torch.arange(side) + 0.5
    middle, radius = (top + size / 2, left + size / 2), size / 2
    distance = torch.hypot(place[:, None] - middle[0], place[None] - middle[1])
    return ((distance < radius) & (distance > 0.6 * radius)).float()


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 24), (5, 9)])
def test_the_form_has_the_size_and_the_range_of_the_data(size):
    form = to_form(ring(40, 3, 20, 14), size)
    assert form.shape == size
    assert 0 <= form.min() < 0.1
    assert 0.9 < form.max() <= 1
    assert to_form(torch.zeros(40, 40), size).tolist() == torch.zeros(size).tolist()


@pytest.mark.parametrize("size", [(8, 8), (28, 28)])
def test_place_and_scale_of_a_drawing_do_not_matter(size):
    forms = [to_form(ring(side, *place), size) for side, *place in ((64, 1, 2, 40), (64, 20, 20, 40), (128, 30, 9, 80))]
    assert torch.equal(forms[0], forms[1])
    assert (forms[0] - forms[2]).abs().mean() < 0.05


def test_the_centre_of_mass_is_the_centre_of_the_image():
    """As in MNIST: a drawing with more ink at its bottom is moved up."""
    drawing = torch.zeros(28, 28)
    drawing[4:24, 13:15], drawing[21:24, 9:19] = 1, 1
    form = to_form(drawing, (28, 28))
    place = torch.arange(28) + 0.5
    assert abs(float((form.sum(1) * place).sum() / form.sum()) - 14) <= 0.5
    assert abs(float((form.sum(0) * place).sum() / form.sum()) - 14) <= 0.5
    rows = form.sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 20


def test_a_small_image_counts_bits_as_the_digits_do():
    form = to_form(ring(32, 0, 0, 32), (8, 8)) * 16
    assert torch.equal(form, form.round())


def test_a_drawn_digit_is_recognised(runs, digits_data):
    """Digits, enlarged and moved as a person may draw them, have the answers of the originals."""
    x, y = digits_data.test.x[:200].float() / 16, digits_data.test.y[:200]
    run = runs["backprop"]
    drawn = F.interpolate(x, size=(24, 24), mode="bilinear")
    drawn = F.pad(drawn, (7, 1, 2, 6))  # on a board of 32 cells
    samples = torch.cat([of_drawing(image[0], run.preprocess) for image in drawn])
    assert samples.dtype == torch.uint8
    assert (run.predict(samples) == y).float().mean() > 0.85


def test_ink_is_what_differs_from_the_paper():
    photo = (255 * (0.8 - 0.7 * ring(300, 40, 60, 150)))[None].to(torch.uint8)
    ink = ink_of(photo)
    assert max(ink.shape) == 256
    assert abs(float(ink.mean()) - float(ring(300, 40, 60, 150).mean())) < 0.01
    assert torch.allclose(ink, ink_of(255 - photo), atol=0.01), "chalk on a blackboard"
    assert not ink_of(torch.full((1, 9, 9), 200, dtype=torch.uint8)).any()


def test_dark_ink_on_light_paper_is_turned_round_where_the_data_are_so(runs):
    known = runs["backprop"].preprocess
    dark = of_drawing(ring(28, 4, 4, 20), known)
    scaling = known.scaling.__class__(**{**vars(known.scaling), "mean": (12.0,)})
    light = of_drawing(ring(28, 4, 4, 20), known.__class__(scaling, known.labels))
    assert torch.equal(light, 16 - dark)
