"""Scalars for TensorBoard, written by this thread: an error is told where it happens, and none is lost in another.

The file is what `SummaryWriter` of torch writes: TensorBoard's own records, one event each.
"""

import itertools
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from bpfree.disk.atomic import write_error

PATTERN = "events.out.tfevents.*"
_numbers = itertools.count()


class Events:
    """An events file of a run folder.

    Args:
        folder: of the run.
        first_step: events of other files from this step on are of steps that are taken anew; TensorBoard hides them.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # only runs with a folder write events
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        name = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / PATTERN.replace("*", name)
        try:
            self._file = open(self.path, "xb")  # noqa: SIM115 - "x": never what is there, nor what a link leads to
        except OSError as error:
            raise write_error(self.path, error) from error
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, name: str, value: float, step: int) -> None:
        """Write one scalar to the events file.

        Raises:
            UserError: the file cannot be written.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def _write(self, **content: object) -> None:
        try:
            self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        except OSError as error:
            raise write_error(self.path, error) from error

    def flush(self) -> None:
        """Let readers see what was noted.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """End the file. What no longer fits is left out: the run has been told of it, or is over."""
        with suppress(OSError):
            self._file.close()
