"""A logger that writes events files for TensorBoard."""

import json
import re
from collections.abc import Sequence
from itertools import count

from bpfree.disk.events import Events, wait_for_a_new_second
from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.spec import refuse_untrusted
from bpfree.trackers.logger import Logger, Point, Status
from bpfree.training.listener import Record
from bpfree.training.trainer import Trainer


class TensorBoard(Logger):
    """Writes config, epochs, measurements and result for TensorBoard.

    A run folder (`out`) has such files without this tracker. It is for trainings in memory, and for one folder that
    collects several trainings: each gets a subfolder of its own, 1, 2, 3 and so on. `tensorboard --logdir FOLDER` shows
    them.

    Args:
        folder: the folder; it is made if it does not exist.
    """

    name = "tensorboard"

    def __init__(self, *, folder: str) -> None:
        self.folder = user_path(folder, "trackers.folder").absolute()
        refuse_untrusted("trackers", f"writes to {self.folder}")
        self._events: Events | None = None  # until `open`

    def open(self, trainer: Trainer, config: Record, run_id: str | None) -> str:
        """Begin an events file in a new subfolder, or another one in that of the resumed training."""
        if run_id is not None and not re.fullmatch(r"[0-9]{1,9}", run_id):
            raise UserError(f"trackers.folder: the checkpoint names the subfolder {run_id!r}, allowed: a number")
        run_id = run_id or self._new()
        path = self.folder / run_id
        path.mkdir(parents=True, exist_ok=True)
        wait_for_a_new_second(path)
        self._events = Events(path, first_step=trainer.progress.step + 1)
        if config:
            self._write_text("config", config)
        return run_id

    def _new(self) -> str:
        """Make the first subfolder that does not exist yet, and return its name."""
        for number in count(1):
            try:
                (self.folder / str(number)).mkdir(parents=True)
            except FileExistsError:
                continue
            return str(number)
        raise AssertionError

    def _write_text(self, tag: str, values: Record) -> None:
        assert self._events is not None
        text = json.dumps(values, indent=1)
        self._events.add_text(tag, f"```\n{text}\n```", 0)  # TensorBoard shows Markdown

    def log(self, points: Sequence[Point]) -> None:
        """Write numbers with their steps."""
        assert self._events is not None
        for step, values in points:
            for name, value in values.items():
                self._events.add(name, value, step)
        self._events.flush()

    def close(self, status: Status, result: Record | None) -> None:
        """Write the result, and close the file."""
        assert self._events is not None
        if result is not None:
            self._write_text("result", result)
            for name, value in (result["test"] or {}).items():
                assert self._trainer is not None
                self._events.add(f"test/{name}", value, self._trainer.progress.step)
            self._events.flush()
        self._events.close()
