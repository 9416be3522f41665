"""The progress on the screen: at terminals of several widths, in a notebook, in a log file, and after Ctrl-C."""

import codecs
import io
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbclient import NotebookClient

import bpfree
from bpfree.lab.jobs.jobs import Job
from bpfree.lab.jobs.runs_bar import RunsBar
from bpfree.runs.config import parse
from bpfree.screen.live import LiveBar, Screen

WIDTHS = (45, 60, 80, 100)
FITS = """
import fcntl, struct, sys, termios
import bpfree

for width in {widths}:
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    bpfree.fit("mlp", "digits", "mono_forward", epochs=11, batch_size=256)
    sys.stderr.write("next")
    sys.stderr.flush()
"""


class Terminal:
    """A process whose standard error is a real pseudo-terminal."""

    def __init__(self, *command, cwd):
        pty = pytest.importorskip("pty")
        self.parent, child = pty.openpty()
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=child,
            env=environment | {"TERM": "xterm"},
            cwd=cwd,
        )
        os.close(child)

    def read(self, until=None):
        """Read until a regular expression matches, or to the end."""
        while until is None or not re.search(until, self.seen):
            try:
                self.seen += self.decoder.decode(os.read(self.parent, 65536))
            except OSError:  # the process has closed the terminal
                os.close(self.parent)
                break
        return self.seen


def states(text):
    """The lines that were on the screen one after another."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_the_bar_fits_every_terminal(tmp_path):
    terminal = Terminal("-c", FITS.format(widths=WIDTHS), cwd=tmp_path)
    *parts, _ = terminal.read().split("next")
    assert terminal.process.wait() == 0, terminal.seen
    for width, part in zip(WIDTHS, parts, strict=True):
        assert "\x1b[1A" not in part, "the cursor never moves up: the bar is one line"
        first, *bars = states(part)
        assert first.rstrip().startswith("training mlp by mono_forward on digits")
        if width >= 60:  # a narrower terminal breaks the line between two words
            assert first == "training mlp by mono_forward on digits: 11 epochs on cpu"
            assert {len(bar) for bar in bars} == {width}
            last = re.fullmatch(r"epoch 11/11 ━{8,} loss 0\.\d{4}  (.*) ETA 0:00:00", bars[-1])
            assert re.fullmatch(r"val\. \d+\.\d %" if width == 60 else r"validation accuracy \d+\.\d %.*", last[1])
        assert all(len(bar) <= width for bar in bars)


def test_loading_then_a_bar_then_ctrl_c(tmp_path):
    started = time.monotonic()
    terminal = Terminal("-m", "bpfree", "train", "digits/dfa", "train.epochs=2000", "--out", "run", cwd=tmp_path)
    terminal.read(until="loading torch")
    before_torch = time.monotonic() - started
    terminal.read(until=r"epoch (?:[3-9]|\d\d+)/2000")  # the bar does not show every epoch
    assert before_torch < (time.monotonic() - started) / 4
    terminal.process.send_signal(signal.SIGINT)
    shown = terminal.read()
    assert terminal.process.wait() == 130
    assert shown.startswith("loading torch ...\r" + " " * 40 + "\r")
    bar, last = states(shown)[-2:]
    assert bar.startswith("epoch ")
    assert last == "interrupted. The last good checkpoint is kept; go on with: bpfree train --resume run"
    assert "\x1b[?25h" in shown[shown.rindex("ETA") :], "the cursor is there again"


def test_ctrl_c_while_torch_is_imported(tmp_path):
    terminal = Terminal("-m", "bpfree", "list", cwd=tmp_path)
    terminal.read(until="loading torch")
    terminal.process.send_signal(signal.SIGINT)
    assert states(terminal.read()) == ["loading torch ...", " " * 40, "interrupted"][::2]
    assert terminal.process.wait() == 130


def test_a_log_file_gets_one_line_for_each_epoch(capsys):
    bpfree.fit("mlp", "digits", "dfa", epochs=2, verbose=True)
    out, err = capsys.readouterr()
    first, *epochs = err.splitlines()
    assert (out, first) == ("", "training mlp by dfa on digits: 2 epochs on cpu")
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]


def test_a_program_that_uses_bpfree_decides_what_its_log_contains(capsys):
    for verbose in (None, False):
        bpfree.fit("mlp", "digits", "dfa", epochs=1, verbose=verbose)
        assert capsys.readouterr() == ("", "")


def test_verbose_false_is_silent_where_a_note_would_be_shown(capsys):
    for verbose, shown in ((None, "DFA: a note\n"), (False, ""), (True, "DFA: a note\n")):
        Screen(verbose).note("DFA: a note")
        assert capsys.readouterr() == ("", shown)


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [FullDisk(), None])
def test_a_log_that_cannot_be_written_ends_the_lines_and_not_the_training(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    screen = Screen(verbose=True)
    screen.say("epoch 1/2")
    assert screen.place == "nowhere"


def test_a_bar_elsewhere_does_nothing(capsys):
    bar = LiveBar(Screen(verbose=True), total=3)
    bar.update(advance=1)
    bar.stop()
    assert capsys.readouterr() == ("", "")


CELLS = (
    'import bpfree; run = bpfree.fit("mlp", "digits", "dfa", epochs=3, batch_size=256)',
    'bpfree.fit("mlp", "digits", "dfa", epochs=1, batch_size=256, verbose=False);',
    "run",
    """
from bpfree.lab.jobs.runs_bar import RunsBar
with RunsBar() as bar:
    bar([], 2, 4)
""",
)


def test_a_notebook_shows_bars_and_tables(tmp_path, monkeypatch):
    """In a real kernel, and without the widgets of a browser."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    fitted, silent, table, runs = (cell.outputs for cell in notebook.cells)
    first, bar = (output for output in fitted if output.output_type == "display_data")
    assert "training mlp by dfa on digits: 3 epochs on cpu" in first.data["text/plain"]
    assert re.search(r"epoch 3/3 .*━.*loss \d\.\d+  validation accuracy \d+\.\d %", bar.data["text/html"])
    assert "widget" not in str(fitted[1:]).lower()
    assert silent == []
    assert table[0].data["text/html"].startswith("<table>")
    assert table[0].data["text/plain"].startswith("Run\n  rule     DFA()")
    assert re.search(r"runs .*━.*2/4", runs[0].data["text/html"])


def test_a_log_file_gets_a_line_when_a_run_begins_or_ends(tmp_path, capsys, undrawn):
    config = parse({"data": {"name": "digits"}}, "test")
    one, two = (Job(f"dfa seed {seed}", config, tmp_path / str(seed)) for seed in (0, 1))
    with RunsBar(verbose=True) as bar:
        bar([one], 1, 3)
        bar([one, two], 1, 3)
        accuracy = bpfree.fit("mlp", "digits", epochs=1, batch_size=256, out=one.folder).result["test"]["accuracy"]
        bar([two], 2, 3)
        bar([], 3, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"\d+\.\d s", "0.0 s", err).splitlines() == [
        "3 runs, 1 of them finished before",
        "begins: dfa seed 0",
        "begins: dfa seed 1",
        f"ends: dfa seed 0, test accuracy {accuracy:.4f}, 0.0 s, 2/3",
        "ends: dfa seed 1, no result after 0.0 s, 3/3",
    ]
    with RunsBar() as bar:
        bar([one], 1, 3)
    assert capsys.readouterr() == ("", "")
