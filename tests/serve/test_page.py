"""The page of `bpfree serve` in a real browser: by mouse, finger and keyboard, on a phone, in the dark."""

import math

import numpy as np
import pytest
from PIL import Image

from bpfree.serve.app import application
from bpfree.serve.limits import Limits
from tests.lab.chromium import CHROMIUM, Browser, check_page
from tests.serve.serving import serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
SAYS = "[...document.querySelectorAll('.card:not([hidden])')].map((card) => card.querySelector('.says b')?.textContent)"
CARD = "document.querySelector('[aria-labelledby=\"run-{}\"]')"


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(served):
    with serving(application(served, Limits())) as address:
        yield address


@pytest.fixture
def page(browser, address):
    page = browser.visit(address)
    page.wait_for("document.body.dataset.ready === 'true'")
    yield page
    assert page.errors == []
    assert page.foreign == []
    page.close()


def ring(page):
    """Places of the window along a drawn 0, which is as wide as it is on paper."""
    left, top, width, height = page.box(".board")
    turns = [2 * math.pi * n / 24 for n in range(25)]
    return [(left + width * (0.5 + 0.2 * math.sin(t)), top + height * (0.5 + 0.33 * math.cos(t))) for t in turns]


def tab(page, title):
    page.evaluate(f"[...document.querySelectorAll('[role=tab]')].find((tab) => tab.textContent === '{title}').click()")


def test_a_page_that_follows_the_rules(page):
    check_page(page)
    tab(page, "Test sample")
    page.wait_for("document.querySelectorAll('.card .path button').length > 8")
    check_page(page)


def test_a_drawn_zero_is_a_zero_for_every_net(page):
    page.drag(ring(page))
    page.wait_for(f"{SAYS}.slice(0, 3).every((label) => label === '0')")
    shares = page.evaluate("[...document.querySelectorAll('.card .bars.upright')][0].innerText")
    assert "0" in shares
    words = page.evaluate(f"{CARD.format('diabetes')}.querySelector('.says').textContent")
    assert words == "This run does not take drawings."
    seen = f"{CARD.format('backprop')}.querySelector('.sees')"
    assert page.evaluate(f"[{seen}.width, {seen}.height, {seen}.hidden]") == [8, 8, False]
    spoken = page.wait_for("document.querySelector('#live').textContent")
    assert "backprop: 0, " in spoken


def test_a_finger_draws_on_a_phone(page):
    page.set_width(360)
    page.drag(ring(page), touch=True)
    page.wait_for(f"{SAYS}.slice(0, 3).every((label) => label === '0')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.evaluate("[...document.querySelectorAll('.buttons button')].find((b) => b.textContent === 'Clear').click()")
    page.wait_for(f"{SAYS}.every((label) => label === undefined)")
    page.evaluate("[...document.querySelectorAll('.buttons button')].find((b) => b.textContent === 'Undo').click()")
    page.wait_for(f"{SAYS}.slice(0, 3).every((label) => label === '0')")


def test_keys_draw(page):
    page.evaluate("document.querySelector('.board').focus()")
    for key, times in (("ArrowUp", 8), ("ArrowLeft", 1)):
        for _ in range(times):
            page.press(key)
    page.press(" ")
    for _ in range(16):
        page.press("ArrowDown", shift=True)
    assert page.evaluate("document.querySelector('.drawing [role=status]').textContent") == "row 23, column 14, ink"
    page.wait_for(f"{SAYS}.slice(0, 3).every((label) => label === '1')")
    for _ in range(17):
        page.press("Delete")
        page.press("ArrowUp")
    page.wait_for(f"{SAYS}.every((label) => label === undefined)")


def test_everything_is_reached_by_the_tab_key(page):
    page.evaluate("document.querySelector('[role=tab][aria-selected=true]').focus()")
    seen = []
    for _ in range(30):
        page.press("Tab")
        seen.append(page.evaluate("document.activeElement.className || document.activeElement.type"))
    assert {"board", "chip"} <= set(seen)
    page.evaluate("document.querySelector('[role=tab][aria-selected=true]').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "Row"
    assert page.evaluate("document.querySelectorAll('[role=tabpanel]:not([hidden])').length") == 1


def test_every_control_has_a_name_and_is_large_enough_for_a_finger(page):
    page.set_width(360)
    for title in ("Draw", "Row", "Numbers", "Image", "Test sample"):
        tab(page, title)
        controls = "[...document.querySelectorAll('button, input, select, textarea, canvas[tabindex]')]"
        shown = f"{controls}.filter((e) => e.checkVisibility() && !e.matches('.path button, .unseen'))"
        nameless = (
            f"{shown}.filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)"
        )
        assert page.evaluate(nameless) == []
        small = f"{shown}.filter((e) => !e.matches('[type=checkbox]') && e.getBoundingClientRect().height < 24)"
        assert page.evaluate(f"{small}.map((e) => e.outerHTML)") == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_walk_of_noprop_step_by_step(page):
    tab(page, "Test sample")
    slider = f"{CARD.format('noprop_dt')}.querySelector('input[type=range]')"
    page.wait_for(f"{slider}.max === '3'")
    said = f"{CARD.format('noprop_dt')}.querySelector('.now').textContent"
    assert page.evaluate(said).startswith("from noise, block 3: ")
    page.evaluate(f"{slider}.focus()")
    for _ in range(3):
        page.press("ArrowLeft")
    assert page.evaluate(said).startswith("start: ")
    assert page.evaluate(f"{slider}.getAttribute('aria-valuetext')") == page.evaluate(said)
    assert page.evaluate(f"{CARD.format('noprop_dt')}.querySelectorAll('.z i').length") == 10
    noise = page.evaluate(f"{CARD.format('noprop_dt')}.querySelector('.z').getAttribute('aria-label')")
    page.evaluate(f"{CARD.format('noprop_dt')}.querySelector('.check input').click()")
    page.wait_for(f"{CARD.format('noprop_dt')}.querySelector('.z').getAttribute('aria-label') !== {noise!r}")
    layers = f"[...{CARD.format('mono_forward')}.querySelectorAll('.path button')].map((b) => b.title)"
    assert page.evaluate(layers) == ["act1", "act2", "answer"]
    assert page.evaluate(f"{CARD.format('mono_forward')}.querySelector('.right, .wrong') !== null")


def test_a_row_of_a_table_and_numbers(page):
    tab(page, "Row")
    table = f"{CARD.format('table')}.querySelector('.says b')?.textContent"
    first = page.wait_for(table)
    assert first in ("warm", "cold")
    choose = "(e) => { e.value = e.value === 'red' ? 'blue' : 'red'; e.dispatchEvent(new Event('change')); }"
    page.evaluate(f"({choose})(document.querySelector('.fields select'))")
    page.wait_for(f"{table} && {table} !== {first!r}")
    tab(page, "Numbers")
    page.wait_for(f"Number({CARD.format('diabetes')}.querySelector('.says b')?.textContent) > 0")


def test_an_image_is_chosen(page, digits_data, tmp_path):
    x, y = digits_data.test.x, digits_data.test.y
    image = x[int((y == 0).nonzero()[0]), 0].repeat_interleave(20, 0).repeat_interleave(20, 1)
    Image.fromarray((255 - 15 * np.pad(image.numpy(), 60)).astype(np.uint8)).save(tmp_path / "zero.png")
    tab(page, "Image")
    page.choose_file("#file", tmp_path / "zero.png")
    page.wait_for(f"{SAYS}.slice(0, 3).every((label) => label === '0')")
    (tmp_path / "bad.png").write_text("no image")
    page.choose_file("#file", tmp_path / "bad.png")
    words = page.wait_for(f"{CARD.format('backprop')}.querySelector('.says').textContent.match(/not an image/)")
    assert words
    page.browser.events.clear()  # the browser logs the answer 422, which is right here


def test_runs_are_hidden_and_shown(page):
    chip = "[...document.querySelectorAll('.chip')].find((chip) => chip.textContent.startsWith('mono_forward'))"
    page.evaluate(f"{chip}.click()")
    assert page.evaluate(f"{CARD.format('mono_forward')}.hidden") is True
    assert page.evaluate(f"{chip}.getAttribute('aria-pressed')") == "false"
    page.drag(ring(page))
    page.wait_for(f"{SAYS}.slice(0, 2).every((label) => label === '0')")
    page.evaluate(f"{chip}.click()")
    page.wait_for(f"{CARD.format('mono_forward')}.querySelector('.says b')?.textContent === '0'")
    page.wait_for(f"{chip}.querySelector('.chip-answer').textContent === '0'")


def test_names_of_strangers_are_text(browser, served):
    """The name of a run may be anything that a folder may be called; classes too."""
    evil = '<img src=x onerror="document.title=1">'
    run = served[0]
    facts = run.facts.model_copy(update={"classes": [evil, *run.facts.classes[1:]], "net": evil})
    copy = object.__new__(type(run))
    copy.__dict__.update({**vars(run), "facts": facts, "id": "a"})
    with serving(application([copy], Limits())) as address:
        page = browser.visit(address)
        page.wait_for("document.body.dataset.ready === 'true'")
        assert page.evaluate("document.querySelectorAll('main img:not(.preview)').length") == 0
        assert page.evaluate("document.title") == "Ask trained nets"
        assert evil in page.evaluate("document.body.innerText")
        page.close()
