"""The common part of the NoProp rules: the embedding to denoise, the trunk, the read-out, and the path of inference."""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from bpfree.diffusion.embeddings import EMBEDDINGS, REBUILDING, Embedding, LabelEmbedding
from bpfree.diffusion.net import DenoisingNet, is_denoising
from bpfree.errors import UserError, check_choice
from bpfree.grad import backward, first_trainable, trainable
from bpfree.inputs import Inputs, one_tensor
from bpfree.local.channels_last import keep_order
from bpfree.local.cut import cut
from bpfree.local.heads.linear import PooledLinear
from bpfree.local.segments import Segment, owners, stages
from bpfree.mesh import drawn_for_samples
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import LOCAL, Locality, Rule
from bpfree.spec import Spec, build, check_options, lookup, split_spec
from bpfree.types import Batch, Epochs, Scalars, Task, kind_of

Decode = Literal["readout", "nearest"]
Inference = Literal["deterministic", "stochastic"]


class Options(TypedDict):
    """The options that every DiffusionRule takes."""

    embedding: Spec | None
    decode: Decode
    inference: Inference


class State(NamedTuple):
    """The state of inference after a step.

    Attributes:
        time: the time, from 0 to 1.
        z: the points [B, E].
        scores: the class scores [B, D] of the block that made z; None before the first step.
    """

    time: float
    z: Tensor
    scores: Tensor | None


class DiffusionRule(Rule):
    """A rule whose blocks learn to remove noise from the embedding of the target.

    Args:
        embedding: the embedding of labels: "one_hot" (fixed, the default), "learned", or "prototype" (learned, as wide
            as a sample; each class starts at one of its samples). "image" for samples to rebuild. Options, as in
            `{name: learned, scale: 1, norm_clip: 50, weight_decay: 0}`: see `bpfree.diffusion.embeddings`.
        decode: how z at the end becomes class scores: by a linear "readout", or by the "nearest" embedding.
        inference: "deterministic", or "stochastic" from noise that is the same in each call.

    Attributes:
        embedding: the embedding of targets, `Embedding`; made by `bind`.
        readout: a Linear layer from z [B, E] to scores [B, D]; None if the nearest embedding decides. Made by `bind`.
        stage_heads: with `trunk: local` a classifier for each stage of the trunk.
        predicts: the output that the rule needs from the heads of the net, "scores" or "embedding".
        timed: True if the rule gives the heads the time as an input.
        first: the name of the first step of inference in results, such as "block1".
    """

    needs_net = "denoiser"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "reconstruct")
    uses_loss: ClassVar[bool] = False  # blocks learn to denoise
    mean_over_samples: ClassVar[bool] = False  # noise is drawn for a whole batch
    predicts: Literal["scores", "embedding"] = "scores"
    timed = False
    first = "block1"

    def __init__(
        self,
        *,
        embedding: Spec | None,
        decode: Decode,
        inference: Inference,
    ) -> None:
        super().__init__()
        if embedding is not None:  # check it now and not in `bind`, before any data are loaded
            name, options = split_spec(embedding, "embedding")
            # The first three arguments (task, dim, inputs) are not options: `bind` gives them.
            check_options(lookup({**EMBEDDINGS, **REBUILDING}, name, "embedding"), options, "embedding", given=3)
        check_choice("decode", decode, ("readout", "nearest"))
        check_choice("inference", inference, ("deterministic", "stochastic"))
        self._embedding_spec = embedding
        self.decode = decode
        self.inference = inference
        self.stage_heads = nn.ModuleList()
        self._stages: list[Segment] = []

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the embedding [C, E], the read-out, and a classifier for each stage of a local trunk.

        Args:
            net: the net, with denoising blocks.
            task: the task.
            batch: a first batch, for the shapes.

        Raises:
            UserError: the net does not have denoising blocks, or their widths do not fit.
        """
        super().bind(net, task, batch)
        blocks = self._blocks(net)
        like = first_trainable(net)
        self.embedding = self._new_embedding(blocks.embedding_dim, task, batch).to(like)
        self.readout = None
        if isinstance(self.embedding, LabelEmbedding) and self.decode == "readout":
            self.readout = nn.Linear(self.embedding.dim, task.dim).to(like)
        self.start_readout()
        self._stages = owners(blocks.trunks[0], stages(blocks.trunks[0]), batch.tensor[:2]) if blocks.local else []
        self.stage_heads = nn.ModuleList(PooledLinear(tuple(s.shape), task.dim) for s in self._stages).to(like)
        self._try(blocks, batch.tensor[:2], task.dim)

    @property
    def is_bound(self) -> bool:
        """True if the embedding has been made."""
        return hasattr(self, "embedding")

    def _new_embedding(self, dim: int, task: Task, batch: Batch) -> Embedding:
        rebuilds = kind_of(task) == "reconstruct"
        spec = self._embedding_spec or ("image" if rebuilds else "one_hot")
        table = REBUILDING if rebuilds else EMBEDDINGS
        made: Embedding = build(table, spec, task, dim, batch.tensor[0].numel(), section="embedding")
        return made

    @torch.no_grad()
    def _try(self, blocks: DenoisingNet, x: Tensor, outputs: int) -> None:
        """Run the first block once, so that a net that does not fit is refused before training."""
        expected = outputs if self.predicts == "scores" else blocks.embedding_dim
        assert isinstance(blocks, nn.Module)
        # Batch norm would update its statistics, and dropout would draw numbers; neither may change the training.
        with unchanged_buffers(blocks), Noise().global_rng(x.device):
            features = blocks.trunks[0](x)
            z = features.new_zeros(len(x), blocks.embedding_dim)
            out = blocks.heads[0](features, z, *([z.new_zeros(len(x))] if self.timed else []))
        if out.shape != (len(x), expected):
            raise UserError(
                f"net: its blocks give {list(out.shape)} for {len(x)} samples, but {type(self).__name__} needs "
                f"[{len(x)}, {expected}] for {outputs} outputs"
            )

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """Let the embedding choose its prototypes among all training samples.

        Args:
            data: the training batches.
            steps: the number of training steps in all epochs.
            resumed: True if the training goes on from a checkpoint, which has the embedding already.
        """
        if not resumed:
            self.embedding.begin(data.epoch())
            self.start_readout()  # again, since prototypes are known only now

    @torch.no_grad()
    def start_readout(self) -> None:
        """Set the read-out to z W_embed^T, a classifier by the embedding; a new Linear layer is random."""
        if self.readout is not None:
            assert isinstance(self.embedding, LabelEmbedding)
            self.readout.weight.copy_(self.embedding.weight)
            self.readout.bias.zero_()

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return the scores [B, D] at the end of inference; the features of a shared trunk are computed once.

        Args:
            net: the net.
            x: samples [B, ...].
        """
        return self.conclude(self.walk(net, one_tensor(x), stochastic=self.inference == "stochastic"))

    def conclude(self, walk: Iterator[State]) -> Tensor:
        """Return the scores [B, D] at the last state of a walk.

        Args:
            walk: the states of inference, see `walk`.
        """
        *_, last = walk
        return self.read(last.z)

    @abstractmethod
    def walk(self, net: nn.Module, x: Tensor, *, stochastic: bool) -> Iterator[State]:
        """Yield the states of inference from time 0 to 1, the first before any step. Labels are not used.

        Args:
            net: the net.
            x: samples [B, ...].
            stochastic: True to start from noise; False to start from z_0 = 0.
        """

    def read(self, z: Tensor) -> Tensor:
        """Return the class scores [B, D] of points z [B, E], from the read-out or the nearest embedding."""
        return self.embedding.nearest(z) if self.readout is None else self.readout(z)

    def extra_outputs(self, net: nn.Module, x: Inputs) -> dict[str, Tensor]:
        """Return the scores [B, D] of the first block (or step) alone and of the other kind of inference, by name.

        Args:
            net: the net.
            x: samples [B, ...].
        """
        stochastic = self.inference == "stochastic"
        # The walk of a block rule is lazy: only its first block runs here.
        _, first = islice(self.walk(net, one_tensor(x), stochastic=False), 2)
        assert first.scores is not None
        other = self.conclude(self.walk(net, one_tensor(x), stochastic=not stochastic))
        return {self.first: first.scores, "deterministic" if stochastic else "stochastic": other}

    def optimizer_groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters; a learned embedding is a group with its own weight decay.

        Args:
            net: the net.
        """
        groups = super().optimizer_groups(net)
        own = {id(p) for p in self.embedding.parameters()}
        if not own or self.embedding.weight_decay is None:
            return groups
        rest = [p for p in groups[0]["params"] if id(p) not in own]
        return [{"params": rest}, {"params": trainable(self.embedding), "weight_decay": self.embedding.weight_decay}]

    def locality(self) -> Locality:
        """Return `LOCAL`: each block, or each stage of a local trunk, learns without waiting for another one."""
        return LOCAL

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """Return the parts that learn independently: stages of a local trunk, blocks, and what the blocks share.

        The first block comes with the trunk that it owns. The shared part has the embedding and the read-out.

        Args:
            net: the net.
        """
        blocks = self._blocks(net)
        trunks = [] if blocks.local else list(blocks.trunks)
        own = [trainable(*trunks[t : t + 1], head) for t, head in enumerate(blocks.heads)]
        trunk = blocks.trunks[0]
        local = [
            [p for p in (trunk.get_parameter(name) for name in stage.parameters) if p.requires_grad] + trainable(head)
            for stage, head in zip(self._stages, self.stage_heads, strict=True)
        ]
        taken = {id(p) for unit in local for p in unit}  # stage heads are parameters of the rule, too, but not shared
        shared = [p for p in trainable(self) if id(p) not in taken]
        return [unit for unit in (*local, *own, shared) if unit]

    def _learn_trunk(self, blocks: DenoisingNet, task: Task, batch: Batch, scalars: Scalars) -> Tensor:
        """The features [B, H] of a local trunk. Each stage learns on the way by the loss of its own classifier.

        The losses go into `scalars`.
        """
        trunk = blocks.trunks[0]

        def learn(index: int, h: Tensor) -> Tensor:
            keep_order(h)
            loss = task.loss(self.stage_heads[index](h), batch)
            # Here and not after the pass: it frees the graph of this stage before the next stage runs.
            backward(loss)
            scalars[f"loss/trunk{index + 1}"] = loss.detach()
            return h.detach()

        # The last stage ends where the trunk ends. It is not cut: its features are taught below, when the pass is over.
        with cut(trunk, [stage.name for stage in self._stages[:-1]], learn):
            features = trunk(batch.tensor)
        return learn(len(self._stages) - 1, features)

    def _blocks(self, net: nn.Module) -> DenoisingNet:
        name = type(self).__name__
        if not is_denoising(net):
            raise UserError(
                f"net: found {type(net).__name__}, but NoProp needs denoising blocks, that is `trunks`, `heads` and "
                "`embedding_dim` as in bpfree.nets.Denoiser. Use net.name=denoiser"
            )
        if net.timed != self.timed or (self.timed and len(net.heads) > 1):
            raise UserError(
                f"net: it has {len(net.heads)} blocks and timed={net.timed}, but {name} takes "
                + (
                    "one block that takes the time as an input. Use net.blocks=1 net.head.timed=true"
                    if self.timed
                    else "a block for each step. Use net.head.timed=false"
                )
            )
        if net.predicts != self.predicts:
            raise UserError(
                f"net: its blocks predict {net.predicts}, allowed with {name}: net.head.predicts={self.predicts}"
            )
        return net


def eps_like(z: Tensor, noise: Noise) -> Tensor:
    """Draw standard normal numbers of the shape, type and device of z.

    Args:
        z: [B, ...], or several copies of a batch, one after the other.
        noise: the source of the numbers; the same source gives the same numbers.
    """
    return drawn_for_samples(lambda rows: noise.randn(rows, *z.shape[1:], device=z.device, dtype=z.dtype), len(z))
