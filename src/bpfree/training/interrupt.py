"""Ctrl-C that waits for a moment at which it does no harm."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C set a flag within the block, so that no step is cut in half; a second Ctrl-C interrupts at once.

    Yields:
        A function that returns True after Ctrl-C.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C was pressed after the last call of the function. It must not be lost.
    """
    # Python allows signal handlers in the main thread only. In another thread Ctrl-C does not arrive anyway.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    presses: list[bool] = []
    is_known = False  # by the block
    before = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: Any) -> None:
        if presses:
            raise KeyboardInterrupt
        presses.append(True)

    def was_pressed() -> bool:
        nonlocal is_known
        is_known = bool(presses)
        return is_known

    signal.signal(signal.SIGINT, note)
    try:
        yield was_pressed
    finally:
        signal.signal(signal.SIGINT, before)
    if presses and not is_known:
        raise KeyboardInterrupt


@contextmanager
def interrupt_at_the_end() -> Iterator[None]:
    """Delay Ctrl-C until the block is over, so that its actions happen together or not at all.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C was pressed.
    """
    with interrupt_between_steps() as interrupted:
        yield
        pressed = interrupted()
    if pressed:  # after the old handler is back
        raise KeyboardInterrupt
