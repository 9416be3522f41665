"""Fine-tuning: a net starts with the weights of a run."""

from pathlib import Path

from torch import nn

from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.runs import checkpoint, folder, tensor_files


def start_from(net: nn.Module, run: str | Path) -> None:
    """Give a net the weights that a run ended with. Nothing in the run's folder is executed.

    The rule, the optimiser and the data of that run do not matter.

    Args:
        net: it has the parameters and buffers of the run's net; changed in place.
        run: the run folder.

    Raises:
        UserError: the folder does not hold a run that trained, or the run's net is another one.
    """
    path = user_path(run, "train.start_from")
    weights = (folder.read_result(path) or {}).get("weights", "last")
    place = checkpoint.locate(path / f"{weights}.ckpt")
    try:
        net.load_state_dict(tensor_files.read(place, tensor_files.NAMES[0]))
    except RuntimeError as error:
        raise UserError(
            f"train.start_from: found {run}, whose net has other weights than the net to train, allowed: a run of the "
            f"same net ({' '.join(str(error).split())[:300]})"
        ) from error
