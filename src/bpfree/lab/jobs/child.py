"""The training of one job, in a process that `fork_server` starts: from a config file into a run folder."""

import sys
import warnings
from pathlib import Path

from bpfree.errors import UserError
from bpfree.runs.config_file import load_config
from bpfree.runs.folder import CONFIG
from bpfree.runs.train import train
from bpfree.training.allocator import keep_freed_memory

USER_ERROR, INTERRUPTED = 2, 130  # as `bpfree train` ends


def main() -> None:
    """Train the job that the arguments of this process name: a config file and a run folder."""
    config_file, run = sys.argv[1:]
    sys.exit(train_job(Path(config_file), Path(run)))


def train_job(config_file: Path, run: Path) -> int:
    """Train as a config file says into a run folder, or resume the run that was begun there.

    Standard error gets one line for an error that the user can correct, and a traceback for a defect of bpfree.

    Args:
        config_file: a complete config. It is the user's own: names such as "module:Class" are imported.
        run: the run folder. If it holds a config, its run goes on from its last checkpoint.

    Returns:
        The exit status: 0 if the run is finished, 2 after a UserError or OSError, 130 after Ctrl-C.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    keep_freed_memory()
    try:
        # The run folder's own config is not read: `Job.is_over` saw that the run has this config, and `train` checks
        # it again. So data and device are those of this machine, also if the folder came from another one.
        train(load_config(str(config_file)), out=run, resume=(run / CONFIG).exists())
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return 0
