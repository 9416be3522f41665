"""Save, load and push runs. What is shared is the run folder itself, with a model card as README.md.

Its weights are safetensors and all else is text or pictures, so loading executes nothing, whoever made it. The Hub's
own mixin for PyTorch modules is not used: it keeps one module, and neither the preprocessing nor the config nor the
metrics.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bpfree.disk.atomic import write_text
from bpfree.disk.paths import user_path
from bpfree.errors import UserError
from bpfree.hub.card import card, rule_of
from bpfree.rule import Rule
from bpfree.runs import folder as run_folder
from bpfree.runs.load import load as load_run
from bpfree.runs.run import Run
from bpfree.spec.extras import library

CARD = "README.md"
CHECKPOINTS = [f"{name}/{end}" for name in (run_folder.LAST, run_folder.BEST) for end in ("*.safetensors", "*.json")]
SHARED = [CARD, run_folder.CONFIG, run_folder.METRICS, run_folder.RESULT, *CHECKPOINTS, f"{run_folder.PLOTS}/*"]
"""The files of a run folder that are shared. TensorBoard's events are not: their names tell the machine's."""
NEEDED = [run_folder.CONFIG, run_folder.METRICS, run_folder.RESULT, *CHECKPOINTS]


def save(run: Run, folder: str | Path, *, licence: str | None = None) -> Path:
    """Write a run to a new folder together with its model card.

    Args:
        run: a trained run.
        folder: the new folder; it must not hold a run.
        licence: of the weights, as the Hub names it, such as "mit" or "cc-by-4.0". None: the card says "not stated".

    Returns:
        The path of the folder.

    Raises:
        UserError: the folder cannot be written or holds another run.
    """
    return _save(run, folder, str(folder), licence)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    weights: Literal["last", "best"] | None = None,
    device: str = "auto",
) -> Run:
    """Load a run from a folder, or from a repository of the Hub. Nothing of it is executed.

    Without a network, or with HF_HUB_OFFLINE=1, a repository that was loaded before comes from the Hub's cache.

    Args:
        source: a run folder, or "user/name" of a repository if there is no such folder.
        revision: a branch, tag or commit of the repository. Default: its main branch.
        token: for private repositories. Default: that of `hf auth login`, or of the variable HF_TOKEN.
        net: used instead of the net that the config names; needed if the net was a Python object in training.
        rule: used instead of the rule that the config names; needed in the same case.
        weights: "last" or "best"; default: those that result.json was made with.
        device: name of the device to put the run on; "auto" takes a GPU if there is one.

    Returns:
        The run; see `bpfree.load`.

    Raises:
        UserError: there is no such folder or repository, it holds no run, or its config names code that is not passed
            as an object.
    """
    path = user_path(source, "source")
    if not os.path.isdir(path):  # noqa: PTH112 - False for a name that is too long
        path = _download(str(source), revision, token)
    return load_run(path, net=net, rule=rule, weights=weights, device=device)


def push(
    run: Run, repo_id: str, *, licence: str | None = None, private: bool | None = None, token: str | None = None
) -> str:
    """Upload a run with its model card to a repository of the Hub, which is made if it is missing.

    Args:
        run: a trained run.
        repo_id: "user/name" of the repository.
        licence: of the weights; see `save`.
        private: True if only its owner shall see a new repository. Default: as the owner's settings say, else False.
        token: with the right to write. Default: that of `hf auth login`, or of the variable HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        UserError: the Hub cannot be reached or refuses the upload, or the package huggingface_hub is missing.
    """
    hub = _library()
    cure = "Log in by `hf auth login` or give token=..., and see if the name is yours"
    with tempfile.TemporaryDirectory(prefix="bpfree-hub-") as temporary, _errors("repo_id", repo_id, cure):
        _library(".utils").validate_repo_id(repo_id)
        out = _save(run, Path(temporary) / "run", repo_id, licence)
        api = hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=out, allow_patterns=SHARED, commit_message=f"A run of {rule_of(run)}"
        )
    return str(commit.commit_url)


def _save(run: Run, folder: str | Path, name: str, licence: str | None) -> Path:
    out = run.save(folder)
    write_text(out / CARD, card(run, name, licence))
    return out


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """Return the folder in the Hub's cache that holds a repository's run."""
    hub = _library()
    with _errors("source", repo_id, "Give a run folder, or user/name of a repository that exists"):
        _library(".utils").validate_repo_id(repo_id)
        # Only the files of a run are downloaded, whatever else the repository holds.
        return Path(hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=NEEDED))


def _library(part: str = "") -> Any:
    """Return the package of the Hub, or a module in it, which the package does not import by itself."""
    return library(f"huggingface_hub{part}", "hub", "hub")


@contextmanager
def _errors(argument: str, found: str, cure: str) -> Iterator[None]:
    """Turn what the Hub's library raises into a UserError."""
    from_network = _library(".errors").HTTPError  # of the library by which this version connects
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, from_network) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"{argument}: found {found}, but {reason}. {cure}") from error
