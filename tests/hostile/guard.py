"""What must hold whatever is read: no traceback, no hang, nothing executed, nothing lost."""

import hashlib
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

import bpfree
from bpfree.cli import app

LONGEST = 3000  # letters of an error
SECONDS = 60  # for one case; most take a tenth of one, but a machine may be busy
EVIL = "evil_module_of_a_stranger"  # importing it writes a file, the canary


class HangError(BaseException):
    """A case took too long."""


class Guarded:
    """A folder in which cases run, with the current folder there and a module that tells when it is imported.

    Args:
        root: empty. `outside` in it stands for files of the user's that no case may change.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.canary = root / "executed"
        self.outside = root / "outside"
        self.outside.mkdir()
        (self.outside / "precious.png").write_bytes(b"precious")
        (self.outside / "notes.txt").write_text("precious")
        code = f"from torch import nn\nopen({str(self.canary)!r}, 'w').close()\nclass Net(nn.Module): pass\n"
        (root / f"{EVIL}.py").write_text(code)
        self._before = self._prints(self.outside)

    def plant(self, folder: Path) -> None:
        """The module beside a stranger's run too."""
        (folder / f"{EVIL}.py").write_text((self.root / f"{EVIL}.py").read_text())

    def check(self) -> None:
        """Raise AssertionError if something was executed or a file outside was changed."""
        assert not self.canary.exists(), "code of a stranger was executed"
        assert self._prints(self.outside) == self._before, "files outside were changed"

    @staticmethod
    def _prints(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Raise HangError if the block takes longer."""

    def rang(*_: object) -> None:
        raise HangError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, rang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused_or_done(action: Callable[[], object]) -> str:
    """Run it: it is done, or refused in words. Anything else is raised.

    Returns:
        The words, "" if it is done.
    """
    with limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except bpfree.UserError as refused:
            words = str(refused).strip()
            if not 0 < len(words) < LONGEST:
                raise AssertionError(f"an error of {len(words)} letters is no clear line: {words[:300]}") from None
            return words
    return ""


def shell(*arguments: object) -> Callable[[], object]:
    """A command as an action: exit codes 0 to 2, and no traceback."""

    def action() -> None:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), result.output
        assert "Traceback" not in result.output
        if result.exit_code == 2:
            raise bpfree.UserError(result.stderr.strip()[:2500] or "no word")

    return action


def lost(before: set[str], folder: Path) -> set[str]:
    """Names that were in a folder and are gone."""
    return before - names(folder)


def names(folder: Path) -> set[str]:
    """Everything in a folder."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}
