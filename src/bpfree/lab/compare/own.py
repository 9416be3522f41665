"""The net and the data of a user, as Python objects: `bpfree.compare(MyNet, (x, y), rules=[...])`."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bpfree.data import Dataset
from bpfree.data.files.rows import Rows
from bpfree.disk.atomic import make_folder, write_text
from bpfree.disk.plain import read_json
from bpfree.errors import UserError
from bpfree.inputs import tensors_of
from bpfree.lab.compare.entries import Entry
from bpfree.lab.compare.recipes import Recipes
from bpfree.lab.jobs.jobs import Objects
from bpfree.noise import Noise
from bpfree.runs.fit_options import FitOptions
from bpfree.runs.from_python import describe
from bpfree.spec import Spec
from bpfree.tasks import Loss

FINGERPRINTS = "objects.json"  # in the folder of a comparison
NetChoice = nn.Module | Callable[[], nn.Module] | str | Mapping[str, Any]
"""A net of the user: a module, a function that makes one, or the name or spec of a shipped net."""


class OwnOptions(FitOptions, total=False):
    """The options of a comparison on a net and data of the user: arguments of `bpfree.fit`."""

    epochs: int
    optimizer: Spec
    seed: int
    test: Any
    loss: Loss | str | None


@dataclass(frozen=True)
class Own:
    """The net and the data of a comparison.

    Attributes:
        recipes: makes the configs of rules on this net and these data.
        make_net: makes the net with the first weights of a seed; None if the config names the net.
        dataset: the data; None if the config names them.
        loss: used in place of the task's loss, or None.
    """

    recipes: Recipes
    make_net: Callable[[int], nn.Module] | None
    dataset: Dataset | None
    loss: Loss | None

    @classmethod
    def of(cls, net: NetChoice, data: Any, options: Mapping[str, Any]) -> "Own":
        """Return the net and the data that a call names.

        Args:
            net: see `NetChoice`.
            data: whatever `bpfree.fit` takes.
            options: arguments of `bpfree.fit` beside net, data and rule.

        Raises:
            UserError: an unknown option, data of another form, or a net whose weights cannot be drawn anew.
        """
        others = dict(options)
        train = {key: others.pop(key) for key in ("epochs", "seed") if key in others}
        values = {"optimizer": others.pop("optimizer", "adam"), "train": train}
        test, loss = others.pop("test", None), others.pop("loss", None)
        make_net = None if isinstance(net, str | Mapping) else net_maker(net)
        example = net if make_net is None else make_net(train.get("seed", 0))
        arguments = [name for name in OwnOptions.__annotations__ if name not in FitOptions.__annotations__]
        config, dataset, transforms = describe(
            example, data, "backprop", values, test=test, loss=loss, options=others, arguments=arguments
        )
        if transforms is not None:
            raise UserError(
                "augment: found functions, allowed in a comparison: a section, which may name them, such as "
                '{"transforms": ["my_module:noise"]}'
            )
        objects = [name for name, part in (("net", make_net), ("data", dataset)) if part is not None]
        return cls(Recipes(config, objects), make_net, dataset, loss if callable(loss) else None)

    @property
    def name(self) -> str:
        """The name of the comparison: that of the net and that of the data."""
        config = self.recipes.base
        return f"{str(config.net['name']).rpartition(':')[2].rpartition('.')[2]}-{config.data.name}"

    def objects(self, entry: Entry, seed: int) -> Objects:
        """Return the objects for a run of a row.

        Args:
            entry: the row.
            seed: the seed of the run.
        """
        make = self.make_net if entry.config.net == self.recipes.base.net else None  # some rules bring their own net
        make_net = None if make is None else lambda: make(seed)
        return Objects(make_net, entry.make_rule, self.dataset, self.loss)


def refuse_other_objects(root: Path, entries: Sequence[Entry], own: Own | None) -> None:
    """Raise UserError if the folder of a comparison holds runs with another net, other data or other rules.

    The configs of the runs have only the names of classes, so they cannot show this. The first call writes fingerprints
    of the objects into the folder.

    Args:
        root: the folder of the comparison.
        entries: its rows.
        own: the net and the data; None if configs name them.

    Raises:
        UserError: a fingerprint is not that of the first call.
    """
    now = {f"rule {entry.name}": _of_rule(entry) for entry in entries if entry.make_rule is not None}
    if own is not None and own.make_net is not None:
        now["net"] = _of_net(own.make_net(own.recipes.base.train.seed))
    if own is not None and own.dataset is not None:
        now["data"] = _of_data(own.dataset)
    if not now:
        return
    path = root / FINGERPRINTS
    before: dict[str, str] = read_json(path) if path.exists() else {}
    for name, fingerprint in now.items():
        if before.get(name, fingerprint) != fingerprint:
            raise UserError(f"out: {root} holds runs with another {name}. Choose another folder, or delete that one")
    make_folder(root)
    write_text(path, json.dumps(before | now, indent=1) + "\n")


def net_maker(net: nn.Module | Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Return a function that makes the net with the first weights of a seed.

    The same seed gives the same weights, and another seed gives others: only then do several seeds show how much a
    result depends on the first weights. A module is copied, and the weights of the copy are drawn anew.

    Args:
        net: a module, or a function without arguments that makes one.

    Raises:
        UserError: neither of both, or a module whose weights cannot be drawn anew.

    Example:
        >>> make = net_maker(lambda: nn.Linear(2, 1))
        >>> bool((make(0).weight == make(0).weight).all()), bool((make(0).weight == make(1).weight).all())
        (True, False)
    """
    if isinstance(net, nn.Module):
        _refuse_if_not_redrawn(net, _drawn_anew(net, 0))
        return lambda seed: _drawn_anew(net, seed)
    if not callable(net):
        raise UserError(f"net: found {type(net).__name__}, allowed: a module, a function that makes one, or a name")
    last: list[nn.Module] = []

    def make(seed: int) -> nn.Module:
        with Noise(seed).fold("net").global_rng():
            made = net()
        if not isinstance(made, nn.Module):
            raise UserError(f"net: the function returns {type(made).__name__}, allowed: a new torch.nn.Module")
        if last and made is last[0]:
            raise UserError(
                "net: the function returns the same net twice, and each run needs its own. Return a copy: "
                "lambda: copy.deepcopy(net)"
            )
        last[:] = [made]
        return made

    return make


def _drawn_anew(net: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a net whose modules have drawn their weights anew, from the key that shipped nets use."""
    fresh = copy.deepcopy(net)
    with Noise(seed).fold("net").global_rng():
        for name, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                raise _not_drawn(net, f"its {name or 'own parameters'} ({type(module).__name__}) cannot be drawn anew")
    return fresh


def _refuse_if_not_redrawn(net: nn.Module, fresh: nn.Module) -> None:
    """Raise UserError if a net's weights do not come from the distribution of its modules' `reset_parameters`.

    A net with an initialisation of its own, or one that was trained, would become another net.

    Args:
        net: the net.
        fresh: a copy whose weights were drawn anew.
    """
    for (name, given), drawn in zip(net.named_parameters(), fresh.parameters(), strict=True):
        if not is_lazy(given) and not _looks_alike(given.detach(), drawn.detach()):
            raise _not_drawn(net, f"its {name} does not look as its reset_parameters() leaves it")
    for (name, count), start in zip(net.named_buffers(), fresh.buffers(), strict=True):
        if name.endswith("num_batches_tracked") and bool((count != start).any()):
            raise _not_drawn(net, f"its {name.rpartition('.')[0]} was trained before")


def _looks_alike(given: Tensor, drawn: Tensor) -> bool:
    """Return True if two tensors may come from one distribution, and were not simply left as they were."""
    if given.numel() == 1 or not given.is_floating_point():  # one number has no spread
        return True
    spread, expected = float(given.std(correction=0)), float(drawn.std(correction=0))
    same = torch.equal(given, drawn)
    sampling = 4 / (2 * given.numel()) ** 0.5  # four standard errors of a standard deviation
    return same if expected == 0 else not same and abs(spread / expected - 1) < 0.1 + sampling


def _not_drawn(net: nn.Module, why: str) -> UserError:
    return UserError(
        f"net: {why}, so it cannot get other first weights for each seed. Give a function that makes the net, such as "
        f"compare(lambda: {type(net).__name__}(...), data, ...). The function may also return a copy of trained weights"
    )


def _of_net(net: nn.Module) -> str:
    """Return a fingerprint of a net: its modules with their options, and the names and shapes of its tensors."""
    shapes = {name: None if is_lazy(t) else list(t.shape) for name, t in net.state_dict(keep_vars=True).items()}
    return _hash([_plain(net), _plain(shapes)])


def _of_rule(entry: Entry) -> str:
    """Return a fingerprint of a rule: its class and its options."""
    options = {key: value for key, value in vars(entry.rule()).items() if not key.startswith("_")}
    return _hash([_plain(entry.config.rule), _plain(options)])


def _of_data(dataset: Dataset) -> str:
    """Return a fingerprint of all samples and labels. Of samples that stay in a file it has the number and the type."""
    splits = [split for split in (dataset.train, dataset.test) if split is not None]
    tensors = [tensor for split in splits for tensor in (*tensors_of(split.x), split.y)]
    shapes = [(str(tensor.dtype), list(tensor.shape)) for tensor in tensors]
    return _hash([_plain(shapes), *(_bytes(tensor) for tensor in tensors if not isinstance(tensor, Rows))])


def _plain(value: Any) -> bytes:
    """Return the repr of a value without addresses in memory, which are others in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()


def _bytes(tensor: Tensor) -> Any:
    """Return the bytes of a tensor, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _hash(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
