"""The choice how progress is shown: a live bar at a terminal or in a notebook, plain lines elsewhere.

Every bar of bpfree uses this module. A notebook gets the bar of rich as an output that is replaced, which needs no
widgets. Lines and bars go to standard error, so that standard output has results alone; in a notebook they go to
standard output, because a notebook shows standard error on red ground.
"""

import sys
import time
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress, ProgressColumn

from bpfree.screen.first import is_first

Place = Literal["terminal", "notebook", "lines", "notes", "nowhere"]
"""A bar at a terminal, a bar in a notebook, plain lines, only notes about what bpfree chose by itself, or nothing."""

_REPLACE_EVERY = 0.2  # seconds between two states of a bar in a notebook; each is a message to the browser


class Screen:
    """The place where a command or a call shows its progress. Of several processes, only the first one has a place.

    Args:
        verbose: True: a live bar at a terminal or in a notebook, and lines elsewhere. False: nothing. None: a live bar
            where there is a terminal or a notebook, and elsewhere only notes, because a program that uses bpfree as a
            library decides what its log contains.

    Attributes:
        place: where progress is shown.
        console: the console of rich; bars and lines share it, so that a line does not break a bar.

    Example:
        >>> Screen(verbose=False).place
        'nowhere'
    """

    def __init__(self, verbose: bool | None = None) -> None:
        self.console = Console(stderr=True)
        if self.console.is_jupyter:
            self.console = Console()
        self.place = self._choose(verbose)

    def _choose(self, verbose: bool | None) -> Place:
        # Standard error is None in a Windows program without a console.
        if verbose is False or sys.stderr is None or not is_first():
            return "nowhere"
        if self.console.is_jupyter:
            return "notebook"
        if self.console.is_interactive:  # a terminal that cannot move its cursor (TERM=dumb) gets lines
            return "terminal"
        return "lines" if verbose or self.console.is_terminal else "notes"

    @property
    def is_live(self) -> bool:
        """True if bars are shown."""
        return self.place in ("terminal", "notebook")

    @property
    def width(self) -> int:
        """The number of characters on a line. It changes when the user changes the window."""
        return self.console.width

    def say(self, text: str) -> None:
        """Show a line at once, unless only notes or nothing are shown."""
        if self.place != "notes":
            self.note(text)

    def note(self, text: str) -> None:
        """Show a line at once about something that bpfree chose by itself, unless nothing is shown."""
        if self.place == "nowhere":
            return
        try:
            if self.is_live:
                # Without colours for numbers and without a meaning of [brackets]; rich wraps at words.
                self.console.print(text, markup=False, highlight=False)
            else:
                self.console.file.write(f"{text}\n")  # not wrapped: in a file a line stays a line
            self.console.file.flush()
        # A closed pipe, as after `| head`, or a full disk must not end a training of hours.
        except (OSError, ValueError):
            self.place = "nowhere"


class LiveBar:
    """A bar on a screen that is live; on other screens every method does nothing.

    Args:
        screen: where it is shown.
        columns: the columns of rich.
        total: the number of steps; None if it is not known.
        done: the number of steps that were done before.
        expand: True if the bar takes the width that is left of the line.
        fields: further values that the columns show, such as `description`.
    """

    def __init__(
        self,
        screen: Screen,
        *columns: ProgressColumn,
        total: float | None = None,
        done: int = 0,
        expand: bool = False,
        **fields: Any,
    ) -> None:
        self._screen = screen
        self._handle: Any = None
        self._replaced = time.monotonic()
        in_terminal = screen.place == "terminal"
        # A notebook does not get the thread of rich, which would print the bar again and again.
        self._bar = Progress(*columns, console=screen.console, expand=expand, auto_refresh=in_terminal)
        self._task = self._bar.add_task(fields.pop("description", ""), total=total, completed=done, **fields)
        if in_terminal:
            self._bar.start()
        elif screen.place == "notebook":
            from IPython.display import display  # a notebook always has it

            self._handle = display(self._bar, display_id=True)  # type: ignore[no-untyped-call]

    @property
    def speed(self) -> float | None:
        """Steps per second over the last half minute; None before the second step."""
        return self._bar.tasks[0].speed

    def update(self, **changes: Any) -> None:
        """Change what the bar shows.

        Args:
            changes: `completed`, `advance`, `total`, `description`, or a field.
        """
        if not self._screen.is_live:
            return
        self._bar.update(self._task, **changes)
        if self._handle is not None and time.monotonic() - self._replaced > _REPLACE_EVERY:
            self._replaced = time.monotonic()
            self._handle.update(self._bar)

    def stop(self) -> None:
        """Leave the last state of the bar on the screen, and the cursor on a new line."""
        if self._screen.place == "terminal":
            self._bar.stop()
        elif self._handle is not None:
            self._handle.update(self._bar)
