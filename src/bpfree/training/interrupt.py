"""Ctrl-C where it does no harm."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag, so that no step is cut in half; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupt_at_the_end() -> Iterator[None]:
    """Ctrl-C within the block interrupts when the block is over, so that what belongs together is done together.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C was pressed.
    """
    with interrupt_between_steps() as asked:
        yield
        pressed = asked()
    if pressed:
        raise KeyboardInterrupt
