"""DiffusionBlocks: the blocks of a Transformer denoise the embedding of the target, each at its own levels of noise.

Shing, Koyama, Akiba 2026, "DiffusionBlocks: Block-wise Neural Network Training via Diffusion Interpretation",
https://arxiv.org/abs/2506.14202. For images it follows the authors' code, https://github.com/SakanaAI/DiffusionBlocks.

    z = e_y + sigma eps,    e = E / |E| row by row,    sigma from the range of levels that block b owns
    D_b(z, sigma, x) = c_skip z + c_out F_b(c_in z; x, c_noise)                       (Karras et al. 2022, EDM)
    loss_b = mean over the batch of w(sigma) CE(readout(D_b), y),    w = (sigma^2 + s^2) / (sigma s)^2
    inference: z <- z + (sigma' - sigma) (z - softmax(scores) e) / sigma,    sigma falling from sigma_max to sigma_min

A block is a group of neighbouring layers of `net: vit` or `net: transformer`, which stays as it is: backprop trains the
same net. The rule itself has what the net lacks: the conditioning of each block on its level (adaptive layer norm), and
the embeddings of classes. In a ViT the noisy embedding stands on the class token. In a decoder it stands beside the
clean tokens: position t reads the clean tokens up to t and its own noisy embedding of token t + 1, and no other one.

Blocks share the embeddings of classes and nothing else. Block 1 owns the patches, or the embeddings of tokens; the
others read them detached. The last block owns the net's last normalisation and read-out; the rule has one of each for
the other blocks.

Where we differ from the authors' code. There one entry, one normalisation and one read-out learn from all blocks; then
no block is independent, and the blocks with little noise, whose weights are large, decide what the patches learn. The
weight w is one number for each sample, as in the paper; the code multiplies
losses [B] by weights [B, 1], which makes [B, B], so that each loss is weighted by the mean weight. Inference uses the
normalised embeddings, as training does; the code uses the rows as they are. The conditioning belongs to each block, has
fewer frequencies, and is linear behind the features of the level. With `order: all`, the default, every block learns
from every batch. Inference starts from z = 0 by default, since noise at the start only costs accuracy. Clean tokens of
a decoder do not know the level of noise.
"""

from copy import deepcopy
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree.data.labels import IGNORED
from bpfree.diffusion.conditioned import Level, changed, run
from bpfree.diffusion.host import Host, host_of
from bpfree.diffusion.noise_levels import NoiseLevels
from bpfree.diffusion.rule import eps_like
from bpfree.diffusion.times import stratified
from bpfree.errors import UserError, check_choice
from bpfree.grad import backward, first_trainable, trainable
from bpfree.inputs import Inputs, one_tensor
from bpfree.mesh import drawn_for_samples
from bpfree.nets.blocks import Block, small_init
from bpfree.noise import Noise
from bpfree.rule import LOCAL, Locality, Rule
from bpfree.spec import Spec
from bpfree.types import Batch, Scalars, Task, kind_of

_START = Noise().fold("diffusion_blocks")
_LEVELS = NoiseLevels()  # those of the paper


class DiffusionBlocks(Rule):
    """A rule whose blocks, groups of layers of a ViT or a decoder, denoise the target's embedding at their own levels.

    Args:
        blocks: T, the number of groups of layers; at most the number of layers. Block 1 has the highest noise.
        noise: the levels of noise, see `bpfree.diffusion.NoiseLevels`.
        weighting: the weights of samples by their level: "edm", w(sigma), or "equal".
        order: the blocks that learn from a batch: "all", one after the other, or "random", one of them, with T times
            its loss.
        steps: the number of levels in inference. Default: T, one for each block.
        start: where inference starts: "zero", or "noise" of length sqrt(1 + sigma_max^2) for each value, as in the
            paper. The noise is the same for all samples, so that an answer does not depend on the rest of a batch.
        experimental: true to allow the task language. There the rule is far behind backprop.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify", "language")
    needs_net = "vit"
    also_takes: ClassVar[tuple[str, ...]] = ("transformer",)
    uses_loss: ClassVar[bool] = False
    mean_over_samples: ClassVar[bool] = False  # noise is drawn for a whole batch
    _first: Tensor  # [H], where inference starts

    def __init__(
        self,
        *,
        blocks: int = 3,
        noise: NoiseLevels | Spec = _LEVELS,
        weighting: Literal["edm", "equal"] = "edm",
        order: Literal["all", "random"] = "all",
        steps: int | None = None,
        start: Literal["zero", "noise"] = "zero",
        experimental: bool = False,
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise UserError(f"blocks: found {blocks}, allowed: at least 1")
        if steps is not None and steps < 1:
            raise UserError(f"steps: found {steps}, allowed: at least 1")
        check_choice("weighting", weighting, ("edm", "equal"))
        check_choice("order", order, ("all", "random"))
        check_choice("start", start, ("zero", "noise"))
        self.blocks = blocks
        self.noise = NoiseLevels.of(noise, "noise")
        self.weighting = weighting
        self.order = order
        self.steps = steps
        self.start = start
        self.experimental = experimental
        self.levels = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.readouts = nn.ModuleList()
        self.classes: nn.Embedding | None = None

    def bind(self, net: nn.Module, task: Task, batch: Batch) -> None:
        """Make the conditioning of each block and the embeddings of classes.

        Args:
            net: a ViT, or a decoder for the task language.
            task: classify or language.
            batch: a first batch.

        Raises:
            UserError: the net is another one, has fewer layers than blocks, or the task needs `experimental`.
        """
        super().bind(net, task, batch)
        self._text = kind_of(task) == "language"
        if self._text and not self.experimental:
            raise UserError(
                "rule.experimental: found false with task=language, where this rule is far behind backprop. Use "
                "rule.experimental=true to try it"
            )
        self._outputs = task.dim
        host = self._host(net)
        if len(host.layers) < self.blocks:
            raise UserError(f"rule.blocks: found {self.blocks}, allowed: at most the net's {len(host.layers)} layers")
        width, like = host.readout.in_features, first_trainable(net)
        self.levels = nn.ModuleList(
            Level(width, len(self._layers(host, block)), max(8, width // 6)) for block in range(1, self.blocks + 1)
        ).to(like)
        others = range(self.blocks - 1)
        self.norms = nn.ModuleList(deepcopy(host.norm) for _ in others)
        self.readouts = nn.ModuleList(_new_readout(width, task.dim) for _ in others).to(like)
        self.classes = None if host.table is not None else nn.Embedding(task.dim, width).to(like)
        first = (
            (1 + self.noise.sigma_max**2) ** 0.5 * _START.randn(width) if self.start == "noise" else torch.zeros(width)
        )
        self.register_buffer("_first", first.to(like), persistent=False)

    @property
    def is_bound(self) -> bool:
        """True if the blocks have their conditioning."""
        return len(self.levels) > 0

    def gradients(self, net: nn.Module, task: Task, batch: Batch, noise: Noise) -> Scalars:
        """Add the gradients of the blocks that learn from this batch, and return their losses.

        Each block runs forward and backward before the next one starts, so only one block's activations are in memory.
        The scalars `loss/block1`, ... are cross-entropies without weights, and `loss` is their mean over the blocks
        that learned. `accuracy` is that of block 1, whose input tells least of the label.
        """
        self.refuse_unbound()
        host, scalars = self._host(net), Scalars()
        turns = self._turns(noise)
        factor, tokens = self.blocks / len(turns), None
        for block in turns:
            key = noise.fold("block", block)
            with key.global_rng(batch.device):
                tokens = self._entered(host, block, batch.tensor) if tokens is None else tokens.detach()
                sigma, scores, nats = self._learned(host, block, batch, tokens, key)
            backward(factor * self.weighted(nats, sigma))  # inside the loop: it frees this block's activations
            scalars[f"loss/block{block}"] = nats.detach().mean()
            if block == 1:
                counted = batch.y != IGNORED
                right = (scores.detach().argmax(-1) == batch.y) & counted
                scalars["accuracy"] = right.sum() / counted.sum().clamp_min(1)
        return scalars | {"loss": torch.stack([scalars[f"loss/block{block}"] for block in turns]).mean()}

    def weighted(self, nats: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean of the losses, each with the weight of its own level, 0-d.

        Args:
            nats: the loss of each sample, [B].
            sigma: the level of each sample, [B].
        """
        return (nats * self.noise.weight(sigma)).mean() if self.weighting == "edm" else nats.mean()

    @staticmethod
    def _entered(host: Host, block: int, x: Tensor) -> Tensor:
        """The tokens that a block reads; only block 1 learns through them."""
        with torch.set_grad_enabled(block == 1 and torch.is_grad_enabled()):
            tokens: Tensor = host.entry(x)
            return tokens

    def _learned(
        self, host: Host, block: int, batch: Batch, tokens: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The levels [B], the scores [B, D] or [B, T, D], and the losses [B] of a block."""
        counted = batch.y != IGNORED
        e = self._embeddings(host)[batch.y.where(counted, 0)]  # [B, H] or [B, T, H]
        if block > 1 and self.classes is None:
            e = e.detach()  # block 1 owns the embeddings of tokens
        uniform = drawn_for_samples(lambda n: stratified(n, e, noise.fold("sigma")), len(e))
        sigma = self.noise.draw(block, self.blocks, uniform)
        z = e + _wide(sigma, e) * eps_like(e, noise.fold("z"))
        scores = self._scores(host, block, tokens, z, sigma)
        exact = scores if scores.dtype == torch.float64 else scores.float()
        nats = F.cross_entropy(exact.movedim(-1, 1), batch.y, ignore_index=IGNORED, reduction="none")
        if nats.dim() > 1:
            nats = nats.sum(1) / counted.sum(1).clamp_min(1)
        return sigma, scores, nats.to(sigma.dtype)

    def _scores(self, host: Host, block: int, tokens: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """The scores of one block for noisy embeddings z [B, H] or [B, T, H] at levels [B]."""
        c = self.noise.scalings(sigma)
        changes, end = self.levels[block - 1](c.noise)
        h, context = host.place(tokens, _wide(c.into, z) * z)
        last = block == self.blocks
        norm = host.norm if last else self.norms[block - 1]
        f = host.taken(norm(run(self._layers(host, block), changes, h, context)))
        shift, scale = (end if z.dim() > 2 else end[:, 0]).chunk(2, -1)
        denoised = _wide(c.skip, z) * z + _wide(c.out, z) * f
        readout = host.readout if last else self.readouts[block - 1]
        scores: Tensor = readout(changed(denoised, shift, scale))
        return scores

    def predict(self, net: nn.Module, x: Inputs) -> Tensor:
        """Return the scores [B, D] or [B, T, D] at the end of inference.

        Args:
            net: the net.
            x: samples [B, ...], or tokens [B, T].
        """
        return self._walk(net, one_tensor(x), self.noise.spaced(self.steps or self.blocks))

    def extra_outputs(self, net: nn.Module, x: Inputs) -> dict[str, Tensor]:
        """Return the scores of block 1 alone at the highest level, where z tells nothing of the target, as "block1".

        Args:
            net: the net.
            x: samples [B, ...], or tokens [B, T].
        """
        return {"block1": self._walk(net, one_tensor(x), [self.noise.sigma_max])}

    def _walk(self, net: nn.Module, x: Tensor, levels: list[float]) -> Tensor:
        """The scores at the last of some falling levels, after an Euler step from each level to the next."""
        self.refuse_unbound()
        host = self._host(net)
        tokens: Tensor = host.entry(x)
        e = self._embeddings(host)
        shape = x.shape if self._text else x.shape[:1]
        z = self._first.expand(*shape, -1)
        scores = tokens
        for i, level in enumerate(levels):
            sigma = z.new_full(x.shape[:1], level)
            scores = self._scores(host, self.noise.owner(level, self.blocks), tokens, z, sigma)
            if i + 1 < len(levels):
                denoised = scores.softmax(-1).to(e.dtype) @ e
                z = z + (levels[i + 1] / level - 1) * (z - denoised)
        return scores

    def _turns(self, noise: Noise) -> list[int]:
        """The numbers of the blocks that learn in this step."""
        if self.order == "all":
            return list(range(1, self.blocks + 1))
        return [1 + int(torch.randint(self.blocks, (), generator=noise.fold("turn").generator()))]

    def _host(self, net: nn.Module) -> Host:
        return host_of(net, self._outputs, tokens=self._text)

    def _layers(self, host: Host, block: int) -> list[Block]:
        """The layers of the net that are a block, from 1 to T."""
        depth = len(host.layers)
        return host.layers[depth * (block - 1) // self.blocks : depth * block // self.blocks]

    def _embeddings(self, host: Host) -> Tensor:
        """The embeddings e of classes or tokens, rows of length 1, [D, H]."""
        table = host.table if self.classes is None else self.classes.weight
        assert table is not None
        e: Tensor = F.normalize(table, dim=-1)
        return e

    def forward_passes(self, net: nn.Module, task: Task) -> float:
        """Return 1 if every block learns from a batch, or 1/T if one of T blocks does."""
        return 1 if self.order == "all" else 1 / self.blocks

    def locality(self) -> Locality:
        """Return `LOCAL`: each block learns without waiting for another one."""
        return LOCAL

    def units(self, net: nn.Module) -> list[list[nn.Parameter]]:
        """Return the blocks with all that they own, and last the embeddings of classes, which they share.

        Args:
            net: the net.
        """
        host = self._host(net)
        norms, readouts = [*self.norms, host.norm], [*self.readouts, host.readout]
        entry: list[nn.Module] = [host.entry]
        own = [
            trainable(*entry[block - 1 :], *self._layers(host, block), level, norm, readout)
            for block, (level, norm, readout) in enumerate(zip(self.levels, norms, readouts, strict=True), start=1)
        ]
        shared = [] if self.classes is None else trainable(self.classes)
        return [unit for unit in (*own, shared) if unit]


def _new_readout(width: int, outputs: int) -> nn.Linear:
    """A read-out with the initial weights that those of nets have."""
    readout = nn.Linear(width, outputs)
    small_init(readout, width)
    return readout


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of samples [B] in a shape that multiplies [B, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
