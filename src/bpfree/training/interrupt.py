"""Ctrl-C that waits for a moment at which it does no harm."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupt_between_steps(*, by_sigterm: bool = False) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C set a flag within the block, so that no step is cut in half; a second Ctrl-C interrupts at once.

    Args:
        by_sigterm: True to take SIGTERM for Ctrl-C. It is what torchrun sends if it is terminated itself.

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
    signals = (signal.SIGINT, signal.SIGTERM) if by_sigterm else (signal.SIGINT,)
    before = [signal.getsignal(each) for each in signals]

    def note(_number: int, _frame: Any) -> None:
        if presses:
            raise KeyboardInterrupt
        presses.append(True)

    def was_pressed() -> bool:
        nonlocal is_known
        is_known = bool(presses)
        return is_known

    for each in signals:
        signal.signal(each, note)
    try:
        yield was_pressed
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
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
