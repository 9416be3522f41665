"""What the NoProp rules have in common: an embedding to denoise, a trunk, a read-out, and a path to look at."""

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
from bpfree.local.cut import Segment, cut, owners, stages
from bpfree.local.heads import PooledLinear
from bpfree.nets.unchanged import unchanged_buffers
from bpfree.noise import Noise
from bpfree.rule import LOCAL, Locality, Rule
from bpfree.spec import Spec, build, check_options, lookup, split_spec
from bpfree.types import Batch, Epochs, Scalars, Task, kind_of

Decode = Literal["readout", "nearest"]
Inference = Literal["deterministic", "stochastic"]


class Options(TypedDict):
    """What every DiffusionRule takes."""

    embedding: Spec | None
    decode: Decode
    inference: Inference


class State(NamedTuple):
    """Where inference is after a step.

    Attributes:
        time: from 0 to 1.
        z: [B, E].
        scores: [B, D], what the block that made z takes the sample for; None before the first step.
    """

    time: float
    z: Tensor
    scores: Tensor | None


class DiffusionRule(Rule):
    """A rule whose blocks learn to remove noise from the embedding of the target.

    Args:
        embedding: of labels "one_hot" (fixed, the default), "learned", or "prototype" (learned, as wide as a sample,
            starting at one of each class); "image" of samples to rebuild. With options as
            `{name: learned, scale: 1, norm_clip: 50, weight_decay: 0}`, see `bpfree.diffusion.embeddings`.
        decode: how z at the end becomes class scores: by a linear "readout", or by the "nearest" embedding.
        inference: "deterministic", or "stochastic": from noise, keyed so that it repeats.
    """

    needs_net = "denoiser"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "reconstruct")
    uses_loss: ClassVar[bool] = False  # blocks learn to denoise
    mean_over_samples: ClassVar[bool] = False  # noise is drawn for a whole batch
    predicts: Literal["scores", "embedding"] = "scores"  # what the rule takes the net's heads to give
    timed = False  # whether it tells them the time
    first = "block1"  # what to call the first step of a path

    def __init__(
        self,
        *,
        embedding: Spec | None,
        decode: Decode,
        inference: Inference,
    ) -> None:
        super().__init__()
        if embedding is not None:
            name, options = split_spec(embedding, "embedding")
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

        Raises:
            UserError: the net has no denoising blocks, or ones of other widths.
        """
        super().bind(net, task, batch)
        blocks = self._blocks(net)
        like = first_trainable(net)
        self.embedding = self._new_embedding(blocks.embedding_dim, task, batch).to(like)
        self.readout = None
        if isinstance(self.embedding, LabelEmbedding) and self.decode == "readout":
            self.readout = nn.Linear(self.embedding.dim, task.dim).to(like)
            with torch.no_grad():
                self.readout.weight.copy_(self.embedding.weight)
                self.readout.bias.zero_()
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
        """Run the first block once, to refuse a net that does not fit before it trains."""
        expected = outputs if self.predicts == "scores" else blocks.embedding_dim
        assert isinstance(blocks, nn.Module)
        with unchanged_buffers(blocks), Noise().global_rng(x.device):
            features = blocks.trunks[0](x)
            z = features.new_zeros(len(x), blocks.embedding_dim)
            found = blocks.heads[0](features, z, *([z.new_zeros(len(x))] if self.timed else []))
        if found.shape != (len(x), expected):
            raise UserError(
                f"net: its blocks give {list(found.shape)} for {len(x)} samples, but {type(self).__name__} needs "
                f"[{len(x)}, {expected}] for {outputs} outputs"
            )

    def begin(self, data: Epochs, *, steps: int, resumed: bool) -> None:
        """Prototypes are chosen among all training samples."""
        if not resumed:
            self.embedding.begin(data.epoch())

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Scores [B, D] at the end of the path; of a trunk that blocks share, features are computed once."""
        return self.conclude(self.walk(net, one_tensor(x), stochastic=self.inference == "stochastic"))

    def conclude(self, walk: Iterator[State]) -> Tensor:
        """Scores [B, D] from where a path ends."""
        *_, last = walk
        return self.read(last.z)

    @abstractmethod
    def walk(self, net: nn.Module, x: Tensor, *, stochastic: bool) -> Iterator[State]:
        """The path of z for samples x [B, ...], step by step, from time 0 to 1; the label is never seen."""

    def read(self, z: Tensor) -> Tensor:
        """Scores [B, D] of points z [B, E]."""
        return self.embedding.nearest(z) if self.readout is None else self.readout(z)

    def extra_outputs(self, net: nn.Module, x: Inputs) -> dict[str, Tensor]:
        """The first block (or step) alone, and the other kind of inference."""
        stochastic = self.inference == "stochastic"
        _, first = islice(self.walk(net, one_tensor(x), stochastic=False), 2)
        assert first.scores is not None
        other = self.conclude(self.walk(net, one_tensor(x), stochastic=not stochastic))
        return {self.first: first.scores, "deterministic" if stochastic else "stochastic": other}

    def optimizer_groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Learned embeddings have a weight decay of their own."""
        groups = super().optimizer_groups(net)
        own = {id(p) for p in self.embedding.parameters()}
        if not own or self.embedding.weight_decay is None:
            return groups
        rest = [p for p in groups[0]["params"] if id(p) not in own]
        return [{"params": rest}, {"params": trainable(self.embedding), "weight_decay": self.embedding.weight_decay}]

    def locality(self) -> Locality:
        """A block at a time, or a stage of a local trunk; none waits for another."""
        return LOCAL

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """The stages of a local trunk, the blocks (the first with the trunk that it owns), and what they share."""
        blocks = self._blocks(net)
        trunks = [] if blocks.local else list(blocks.trunks)
        own = [trainable(*trunks[t : t + 1], head) for t, head in enumerate(blocks.heads)]
        trunk = blocks.trunks[0]
        local = [
            [p for p in (trunk.get_parameter(name) for name in stage.parameters) if p.requires_grad] + trainable(head)
            for stage, head in zip(self._stages, self.stage_heads, strict=True)
        ]
        taken = {id(p) for unit in local for p in unit}
        shared = [p for p in trainable(self) if id(p) not in taken]
        return [unit for unit in (*local, *own, shared) if unit]

    def _learn_trunk(self, blocks: DenoisingNet, task: Task, batch: Batch, scalars: Scalars) -> Tensor:
        """Features [B, H] of a local trunk, each stage of which learns on the way by the loss of its classifier."""
        trunk = blocks.trunks[0]

        def learn(index: int, h: Tensor) -> Tensor:
            keep_order(h)
            loss = task.loss(self.stage_heads[index](h), batch)
            backward(loss)
            scalars[f"loss/trunk{index + 1}"] = loss.detach()
            return h.detach()

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
                    "one block that is told the time. Use net.blocks=1 net.timed=true"
                    if self.timed
                    else "a block for each step. Use net.timed=false"
                )
            )
        if net.predicts != self.predicts:
            raise UserError(
                f"net: its blocks predict {net.predicts}, allowed with {name}: net.predicts={self.predicts}"
            )
        return net


def eps_like(z: Tensor, noise: Noise) -> Tensor:
    """Standard normal numbers of the shape and type of z."""
    return noise.randn(*z.shape, device=z.device, dtype=z.dtype)
