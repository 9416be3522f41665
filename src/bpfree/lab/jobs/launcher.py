"""The choice who starts the processes of many trainings: bpfree itself, Slurm, or submitit on this machine."""

import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpfree.disk.plain import parse_yaml
from bpfree.errors import UserError, check_choice, shown, similar
from bpfree.mesh import launched
from bpfree.spec.extras import library
from bpfree.spec.values import convert

LAUNCHERS = ("local", "slurm", "submitit")
_PROGRAMS = ("sbatch", "srun", "sacct", "scancel")
_STRUCTURED = ("additional_parameters", "setup", "srun_args", "teardown")  # their values are lists or mappings
_TYPES = {
    "additional_parameters": dict[str, Any],
    "cpus_per_task": int,
    "setup": list[str],
    "srun_args": list[str],
    "teardown": list[str],
    "time": int,
}
_ONE_PROCESS = "each job is one process on one machine"
_OURS = {
    "array_parallelism": "--jobs limits how many runs train at the same time",
    "nodes": _ONE_PROCESS,
    "ntasks_per_node": _ONE_PROCESS,
    "num_gpus": "use gpus_per_node",
}


@dataclass(frozen=True)
class Launcher:
    """The choice of a user who starts the processes, checked.

    Attributes:
        name: "local": bpfree starts processes on this machine. "slurm": each process is a job of Slurm. "submitit":
            submitit starts processes on this machine, as a rehearsal for Slurm.
        slurm: options of Slurm by the names that submitit gives them.
    """

    name: str = "local"
    slurm: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, slurm: Mapping[str, Any] | Sequence[str] | None = None) -> "Launcher":
        """Return the launcher that a call names.

        Args:
            name: one of `LAUNCHERS`.
            slurm: options of Slurm, such as {"partition": "gpu", "time": 60} or ["partition=gpu", "time=60"].

        Raises:
            UserError: an unknown name or option, an option of a wrong type, submitit or Slurm are not installed, or
                torchrun started this process and others, which would all start the same trainings.

        Example:
            >>> Launcher.of("local")
            Launcher(name='local', slurm={})
        """
        check_choice("launcher", name, LAUNCHERS)
        if launched() > 1:
            raise UserError(
                f"launcher: found {launched()} processes of torchrun, which would all start the same trainings, "
                "allowed: one process. Start the program without torchrun"
            )
        if slurm and name != "slurm":
            raise UserError(
                f"slurm: found options, but the launcher is {name}. Add --launcher slurm, or leave them out"
            )
        if name == "local":
            return cls()
        if not hasattr(signal, "pthread_sigmask"):
            raise UserError(f"launcher: found {name}, which needs Linux or macOS; allowed on this system: local")
        library("submitit", "slurm", "launcher")
        if name == "submitit":
            return cls(name)
        options = slurm if isinstance(slurm, Mapping) else _parsed(slurm or ())
        checked = {key: _checked(key, value) for key, value in options.items()}
        if "time" not in checked:
            raise UserError("slurm.time: missing; the minutes that a job may take, such as --slurm time=60")
        _need_slurm()
        return cls(name, checked)

    @property
    def is_local(self) -> bool:
        """True if bpfree itself starts the processes, without submitit."""
        return self.name == "local"


LOCAL = Launcher()


def _parsed(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options that "KEY=VALUE" texts of the command line name."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise UserError(f"slurm: found {shown(text)}, allowed: KEY=VALUE, such as partition=gpu")
        # Only these are YAML: it would read an account 007 as 7, and a time 1:30 as 90.
        structured = key in _STRUCTURED and value[0] in "[{"
        options[key] = parse_yaml(value, f"slurm.{key}") if structured else {"true": True}.get(value, value)
    return options


def _checked(key: str, value: Any) -> Any:
    """Return the value of an option in its type; raise UserError if submitit does not have the option."""
    from submitit import SlurmExecutor

    if key in _OURS:
        raise UserError(f"slurm.{key}: not allowed here: {_OURS[key]}")
    known = SlurmExecutor._valid_parameters() - _OURS.keys()
    if key not in known:
        near = similar(key, sorted(known))
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(
            f"slurm: found '{key}', allowed: {', '.join(sorted(known))}.{hint} Other options of sbatch go into "
            "additional_parameters={reservation: NAME}"
        )
    if key in _STRUCTURED and isinstance(value, str):
        value = [value]
    value = convert(_TYPES.get(key, bool | str | int | float), value, f"slurm.{key}")
    if key == "time" and value < 1:
        raise UserError(f"slurm.time: found {value}, allowed: minutes, a whole number above 0")
    return value


def _need_slurm() -> None:
    """Raise UserError if a program of Slurm is not on the path."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"launcher: found slurm, but this machine has no {', '.join(missing)}. Run the command on the login node "
            "of the cluster; --launcher submitit starts jobs on this machine"
        )
