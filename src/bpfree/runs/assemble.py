"""Build the parts of a training from a config: the net, the rule, the task and the trainer, on one device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bpfree._version import __version__
from bpfree.data import Batches, Preprocess, Split
from bpfree.data.tokens import preprocess_for_net
from bpfree.data.transforms import Transform
from bpfree.errors import UserError
from bpfree.nets import NETS
from bpfree.nets.acceptance import inner, refuse_meta
from bpfree.noise import Noise
from bpfree.rule import Rule
from bpfree.runs.config import Config
from bpfree.runs.device import resolve_device
from bpfree.spec import build
from bpfree.tasks import TASKS, DataTask, Loss
from bpfree.training.compute import Compute
from bpfree.training.freeze import freeze
from bpfree.training.mesh import MeshSpec
from bpfree.training.trainer import Trainer

_EVALUATION_BATCH = 500  # samples; evaluation keeps no activations, so more fit into memory than in training


# Without eq: `==` of two nets' tensors gives tensors and not True or False. Without repr: it would print all weights.
@dataclass(frozen=True, eq=False, repr=False)
class Setup:
    """The parts that train or predict: a config, the trainer that was built from it, and the preprocessing of samples.

    Attributes:
        config: complete; what `bpfree train` would run.
        trainer: holds the net, the rule and the task.
        preprocess: turns raw samples into the input of the net.
        from_python: names of the parts that were passed as Python objects ("net", "rule", "data", "trackers", "loss",
            "augment"). No config can rebuild them.
        transforms: functions that change training samples; None for those that the config names.
    """

    config: Config
    trainer: Trainer
    preprocess: Preprocess
    from_python: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] | None = None

    @property
    def net(self) -> nn.Module:
        """The net that is trained."""
        return self.trainer.net

    @property
    def task(self) -> DataTask:
        """The task that the net is trained for."""
        assert isinstance(self.trainer.task, DataTask)
        return self.trainer.task

    def batches(self, split: Split) -> Batches:
        """Return the batches of a split in order, for evaluation.

        Args:
            split: raw samples and labels.
        """
        device, dtype = self.trainer.device, self.trainer.dtype
        split, rebuild = self.task.prepare(split), self.task.rebuilds
        return Batches(split, self.preprocess, _EVALUATION_BATCH, device=device, dtype=dtype, rebuild=rebuild)

    def training_batches(self, split: Split) -> Batches:
        """Return the batches of a split, shuffled and augmented as the config says.

        Args:
            split: raw samples and labels.
        """
        data = self.config.data
        return Batches(
            self.task.prepare(split),
            self.preprocess,
            data.batch_size,
            device=self.trainer.device,
            dtype=self.trainer.dtype,
            augment=data.augment.build(self.preprocess, self.transforms),
            seed=self.config.train.seed,
            rebuild=self.task.rebuilds,
        )

    def checkpoint_extra(self) -> dict[str, Any]:
        """Return the plain values that a checkpoint keeps beside the training's own, so that `bpfree.load` can rebuild.

        The key "given" is the name of `from_python` in state.json; checkpoints of earlier versions have it too.
        """
        return {
            "preprocess": self.preprocess.save(),
            "given": list(self.from_python),
            "config": self.config.plain(),
            "version": __version__,
        }


def assemble(
    config: Config,
    preprocess: Preprocess,
    net: nn.Module | None = None,
    rule: Rule | None = None,
    loss: Loss | None = None,
    from_python: Sequence[str] = (),
    *,
    mesh: MeshSpec | None = None,
) -> Setup:
    """Build the net, the rule, the task and the trainer, on the device that the config names.

    Args:
        config: says what is built.
        preprocess: statistics and shapes of the training samples.
        net: used instead of the net that the config names.
        rule: used instead of the rule that the config names.
        loss: used instead of the task's loss.
        from_python: names of the parts that were passed as Python objects.
        mesh: how several processes share the training; None for what the config says.

    Returns:
        The parts. The rule is not bound yet.

    Raises:
        UserError: an option does not fit, the net cannot be trained, or the machine does not have the device.
    """
    seed = config.train.seed
    if net is None and config.net["name"] in NETS:
        # Integers are tokens in a text, or if the config says how many different ones there are. Else they are numbers.
        is_text = TASKS[config.task["name"]].answers == "tokens"
        preprocess = preprocess if is_text or config.net.get("vocabulary") is not None else preprocess.as_numbers()
    preprocess = preprocess_for_net(preprocess, net)
    task = build({name: task.of for name, task in TASKS.items()}, config.task, preprocess, section="task")
    task.use_loss(loss)
    train = config.train
    if net is None:
        _refuse_several(preprocess, config)
        # The key depends on the seed alone: a net has the same first weights whatever random numbers were drawn before.
        with Noise(seed).fold("net").global_rng():
            net = build(NETS, config.net, preprocess.shape, task.dim, section="net", outside=nn.Module)
        preprocess = preprocess_for_net(preprocess, net)  # again: a net of the user's, built just now, may take tokens
    assert net is not None
    refuse_meta(net)
    freeze(inner(net)[1], config.train.freeze)  # patterns name the parameters of the net inside a compiler's wrapper
    trainer = Trainer(
        net.to(resolve_device(config.train.device)),
        rule or config.rule,
        task,
        config.optimizer,
        schedule=config.schedule,
        clip=config.train.clip,
        compute=Compute(train.precision, train.update, train.graph, train.deterministic, mesh or train.mesh.build()),
        seed=seed,
    )
    return Setup(config, trainer, preprocess, tuple(from_python))


def _refuse_several(preprocess: Preprocess, config: Config) -> None:
    """Raise UserError if a shipped net, which takes one tensor, is to learn from samples of several inputs."""
    if preprocess.inputs and config.net["name"] in NETS:
        names = ", ".join(name for name, _ in preprocess.inputs)
        raise UserError(
            f"net: found '{config.net['name']}', which takes one tensor, but samples have {len(preprocess.inputs)} "
            f"inputs ({names}), allowed: a module of your own whose forward takes them"
        )
