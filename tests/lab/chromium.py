"""A real browser for tests: headless Chromium, driven by the DevTools protocol over two pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_TIMEOUT = 60  # seconds for any answer
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--mute-audio", "--hide-scrollbars", "--no-default-browser-check"),
)
# The protocol wants file descriptors 3 and 4, whatever numbers the pipes have here.
_LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


_KEYS = {
    "Tab": 9,
    "Enter": 13,
    " ": 32,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Delete": 46,
}


class Browser:
    """A Chromium process; use it in a `with`."""

    def __enter__(self):
        assert CHROMIUM is not None
        self._profile = tempfile.mkdtemp(prefix="bpfree-chromium-")
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(read), str(write)]
        self._process = subprocess.Popen(
            [*launch, CHROMIUM, *_FLAGS, *root, f"--user-data-dir={self._profile}"],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._buffer, self._sent, self.events = b"", 0, []
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self._process.wait(timeout=10)
        except (OSError, EOFError, subprocess.TimeoutExpired, TimeoutError):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method, session=None, **params):
        """The result of a command; events that come before it are kept in `events`."""
        self._sent += 1
        number = self._sent
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def wait(self, method, session):
        """The next event of this kind that has not been waited for."""
        at = 0
        while True:
            while at >= len(self.events):
                self.events.append(self._next())
            event = self.events[at]
            if event.get("method") == method and event.get("sessionId") == session and not event.get("seen"):
                event["seen"] = True
                return event["params"]
            at += 1

    def _next(self):
        deadline = time.monotonic() + _TIMEOUT
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            got = os.read(self._read, 1 << 20)
            if not got:
                raise EOFError("Chromium has ended")
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path):
        """A page that shows a file, loaded."""
        return Page(self, Path(path).resolve().as_uri())

    def visit(self, address):
        """A page at an address of HTTP, loaded. It may load further files of the same server."""
        return Page(self, address)


class Page:
    """A tab with one document."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._target = target
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self._call(f"{domain}.enable")
        self.set_width(1280)
        self._call("Page.navigate", url=url)
        browser.wait("Page.loadEventFired", self._session)
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")

    def _call(self, method, **params):
        return self.browser.call(method, self._session, **params)

    def _seen(self, method):
        own = [event for event in self.browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in own if event.get("method") == method]

    @property
    def errors(self):
        """What went wrong: exceptions, errors in the console, and what the browser logged, such as blocked requests."""
        thrown = [params["exceptionDetails"] for params in self._seen("Runtime.exceptionThrown")]
        logged = [params["entry"] for params in self._seen("Log.entryAdded")]
        said = [params for params in self._seen("Runtime.consoleAPICalled") if params["type"] in ("error", "assert")]
        return [*thrown, *(entry for entry in logged if entry["level"] in ("error", "warning")), *said]

    @property
    def requests(self):
        """Addresses that were asked for; what lies within the page is none."""
        urls = [params["request"]["url"] for params in self._seen("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    def evaluate(self, script):
        """The value of a JavaScript expression, once it is there."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def foreign(self):
        """Requests for anything but the page; a page of HTTP may ask its own server."""
        own = self.url.split("/", 3)[:3] if self.url.startswith("http") else None
        asked = [url for url in self.requests if not url.startswith("blob:")]
        return [url for url in asked if (url.split("/", 3)[:3] != own if own else url != self.url)]

    def wait_for(self, script):
        """The value of a JavaScript expression, as soon as it is true."""
        deadline = time.monotonic() + _TIMEOUT
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)
        return value

    def press(self, key, *, shift=False):
        """Press a key, as a reader would: "Enter", "Tab", " ", "ArrowUp"."""
        code = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            text = {"text": {"Enter": "\r"}.get(key, key)} if kind == "keyDown" and key in ("Enter", " ") else {}
            name = "Space" if key == " " else key
            codes = {"windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=name, **codes, **text)

    def drag(self, places, *, touch=False):
        """Move the pressed pointer, or a finger, along places (x, y) of the window in CSS pixels."""
        if touch:
            for kind, points in (
                ("touchStart", places[:1]),
                *(("touchMove", [at]) for at in places[1:]),
                ("touchEnd", []),
            ):
                self._call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])
            return
        for kind, (x, y) in zip(
            ("mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"), (*places, places[-1]), strict=True
        ):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def box(self, selector):
        """Left, top, width and height of the first element of a selector, scrolled into the window."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        return self.evaluate(f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect())")

    def choose_file(self, selector, path):
        """Give a file to a field for files."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(Path(path).resolve())])

    def set_width(self, width, height=900):
        """Of the window, in CSS pixels; below 600 it is a phone."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def set_dark(self, dark):
        """Whether the reader prefers dark pages."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path, most=6000):
        """The whole page as a PNG, down to so many pixels."""
        width, height = self.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, most), "scale": 1}
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
        return Path(path)

    def close(self):
        """Close the tab."""
        self.browser.call("Target.closeTarget", targetId=self._target)


def check_page(page):
    """What must hold of any HTML document of bpfree. Leaves the page wide and light."""
    page.set_width(1280)
    page.set_dark(False)
    _check_structure(page)
    _check_tables(page)
    for dark in (False, True):
        page.set_dark(dark)
        background = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert background < 0.05 if dark else background > 0.8, f"background of luminance {background}, {dark=}"
        _nothing("pale text", page.evaluate(_PALE_TEXT))
    page.set_dark(False)
    for width in (360, 1280):
        page.set_width(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"scrolls sideways at {width} px"
    _nothing("errors", page.errors)
    _nothing("requests", page.foreign)


def check_pictures(page):
    """What must hold of the SVG pictures of a page: texts do not cover each other and stand out from the paper."""
    page.set_width(1280)
    for dark in (False, True):
        page.set_dark(dark)
        paper = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        texts = page.evaluate(_TEXTS)
        pale = [text for text, color in texts if _contrast(_luminance(color), paper) < 4.5]
        _nothing(f"pale text in pictures, {dark=}", pale)
    page.set_dark(False)
    for width in (390, 1280):
        page.set_width(width)
        _nothing(f"texts that cover each other at {width} px", page.evaluate(_COVERED))


def _contrast(a, b):
    low, high = sorted((a, b))
    return (high + 0.05) / (low + 0.05)


def _check_structure(page):
    assert page.evaluate("document.documentElement.lang") == "en", "its language"
    assert page.evaluate("document.compatMode") == "CSS1Compat", "its doctype"
    assert page.evaluate("document.querySelectorAll('h1').length") == 1, "one h1"
    assert page.evaluate("document.title === document.querySelector('h1').textContent"), "its title"
    spoken = "e.alt || e.getAttribute('aria-label') || e.closest('[aria-hidden=true]')"
    silent = f"[...document.querySelectorAll('img, svg')].filter((e) => !({spoken}))"
    _nothing("pictures without words", page.evaluate(f"{silent}.map((e) => e.outerHTML.slice(0, 80))"))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids)), "ids are unique"
    links = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map((e) => e.getAttribute('href').slice(1))"
    )
    _nothing("links to nowhere", set(links) - set(ids))
    pointed = page.evaluate("[...document.querySelectorAll('svg use')].map((e) => e.getAttribute('href').slice(1))")
    _nothing("uses of nothing", set(pointed) - set(ids))


def _nothing(what, found):
    assert not found, f"{what}: {found}"


def _check_tables(page):
    """Each column of each table sorts up, down, and back; numbers as numbers, missing values last."""
    for number in range(page.evaluate("document.querySelectorAll('table').length")):
        table = f"document.querySelectorAll('table')[{number}]"
        sorted_by = f"{table}.querySelector('th[aria-sort] button')"
        while page.evaluate(f"{sorted_by} !== null"):  # as a reader left it
            page.evaluate(f"{sorted_by}.click()")
        before = _columns(page, table, 0)
        for column in range(page.evaluate(f"{table}.tHead.rows[0].cells.length")):
            head = f"{table}.tHead.rows[0].cells[{column}]"
            numeric = page.evaluate(f"{head}.classList.contains('number')")
            for order in ("ascending", "descending"):
                page.evaluate(f"{head}.querySelector('button').click()")
                assert page.evaluate(f"{head}.getAttribute('aria-sort')") == order, f"column {column} of table {number}"
                for keys in _columns(page, table, column):
                    _check_order(keys, numeric, order == "descending")
            page.evaluate(f"{head}.querySelector('button').click()")
            assert page.evaluate(f"{head}.hasAttribute('aria-sort')") is False, "a third click puts the rows back"
            assert _columns(page, table, 0) == before, "a third click puts the rows back"


def _columns(page, table, column):
    """The keys of one column, a list for each group of rows; the heading of a group must be its first row."""
    _nothing("headings that moved", page.evaluate(f"{table}.querySelectorAll('tr + tr.group').length"))
    rows = "[...body.rows].filter((row) => !row.classList.contains('group'))"
    return page.evaluate(f"[...{table}.tBodies].map((body) => {rows}.map((row) => row.cells[{column}].dataset.sort))")


def _check_order(keys, numeric, descending):
    there = [key for key in keys if key]
    assert keys == there + [""] * (len(keys) - len(there)), "missing values are last"
    if numeric:
        numbers = [float(key) for key in there]
        assert numbers == sorted(numbers, reverse=descending), f"numbers in order: {numbers}"


def _luminance(color):
    """Of a colour "rgb(r, g, b)", 0 to 1."""
    channels = [float(part) / 255 for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# Texts whose contrast with what is behind them is below 4.5, the least that the WCAG allow (AA).
_PALE_TEXT = """(() => {
  // A mixed colour is "color(srgb 0.5 0.5 0.5 / 1)", any other "rgb(127, 127, 127)".
  const parts = (color) => {
    const numbers = color.match(/[\\d.]+(?:e-?\\d+)?/g).map(Number);
    return color.startsWith("color(srgb") ? numbers.map((n, at) => (at < 3 ? 255 * n : n)) : numbers;
  };
  const luminance = (color) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parts(color).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((parts(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const pale = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("svg, script, style")) continue;
    if (!element.checkVisibility()) continue;
    const [low, high] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) pale.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return pale;
})()"""

# Texts of pictures with their colours. White text stands on a coloured area, and not on the paper.
_TEXTS = """[...document.querySelectorAll("svg.plot text")].filter((e) => e.checkVisibility() && e.textContent.trim())
  .map((e) => [e.textContent, getComputedStyle(e).fill]).filter(([_, color]) => color !== "rgb(255, 255, 255)")"""
# Pairs of texts in one picture whose boxes overlap by more than a pixel, which is about the room above small letters.
_COVERED = """[...document.querySelectorAll("svg.plot")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("text")].filter((e) => e.checkVisibility() && e.textContent.trim())
    .map((e) => [e.textContent, e.getBoundingClientRect()]);
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const outer = svg.getBoundingClientRect();
  const cut = boxes.filter(([_, box]) => box.left < outer.left - 1 || box.right > outer.right + 1)
    .map(([text]) => `${text} is cut off`);
  return cut.concat(boxes.flatMap(([text, box], n) =>
    boxes.slice(n + 1).filter(([_, other]) => over(box, other)).map(([other]) => `${text} | ${other}`)));
})"""
