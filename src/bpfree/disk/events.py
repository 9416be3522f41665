"""Scalars for TensorBoard, written by the training's own thread, so that an error appears where it happens.

The `SummaryWriter` of torch writes in a thread of its own, where an error is lost. The file is the same: TensorBoard's
own records, one event each.
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
    """An events file in a folder.

    Args:
        folder: the folder, such as a run folder.
        first_step: the first step that is written here. After a resume, steps from this one on are taken again, and
            TensorBoard hides what other files of the run say of them.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported here: only runs with a folder write events, and the import takes a while.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # TensorBoard finds files by this pattern and orders them by the second; the process and a counter make the
        # name unique on a disk that several machines share.
        name = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / PATTERN.replace("*", name)
        try:
            self._file = open(self.path, "xb")  # noqa: SIM115 - "x": never what is there, nor what a link leads to
        except OSError as error:
            raise write_error(self.path, error) from error
        self._records = RecordWriter(self._file)
        # Only in files of version 2 does TensorBoard look at the START below, and hide older events from that step on.
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, name: str, value: float, step: int) -> None:
        """Write one scalar to the events file.

        Args:
            name: the tag in TensorBoard, such as "train/loss".
            value: the scalar.
            step: training steps taken, from 1 on.

        Raises:
            UserError: the file cannot be written.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def add_text(self, name: str, text: str, step: int) -> None:
        """Write a text to the events file.

        Args:
            name: the tag in TensorBoard.
            text: Markdown.
            step: training steps taken.

        Raises:
            UserError: the file cannot be written.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        about = create_summary_metadata(name, "")
        value = Summary.Value(tag=name, metadata=about, tensor=make_tensor_proto(text))
        self._write(step=step, summary=Summary(value=[value]))

    def _write(self, **content: object) -> None:
        try:
            self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        except OSError as error:
            raise write_error(self.path, error) from error

    def flush(self) -> None:
        """Write the buffered events, so that readers see them.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Close the file. An error is ignored: `flush` raised it before, or the run is over and loses only events."""
        with suppress(OSError):
            self._file.close()


def wait_for_a_new_second(folder: Path) -> None:
    """Sleep until the name of a new events file sorts behind those in the folder.

    TensorBoard orders the files of a run by the second in their names. Two files of one second come in any order, and
    then the events of a resume may be hidden.

    Args:
        folder: the run folder.
    """
    seconds = [file.name.split(".")[3] for file in folder.glob(PATTERN)]
    if str(int(time.time())) in seconds:
        time.sleep(1)
