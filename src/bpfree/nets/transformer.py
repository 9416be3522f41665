"""A decoder of Transformer blocks for tokens, for sequences of numbers, and for images that are read row by row.

The blocks are those of `bpfree.nets.blocks`. A token sees only itself and the tokens before it. With `each_step` the
net predicts at each step, as language models do. Else it reads one output from the last token or from the mean.

A local rule cuts the net behind each block. The embedding belongs to the first block: alone it could learn only from
single tokens. A tied read-out shares its matrix with the embedding, so no cut is sound then, and local rules refuse it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from bpfree.errors import UserError, check_choice, check_positive
from bpfree.nets.blocks import Block, BlockForm, Cache, MLPName, NormName, Pool, block_layers, dropout_layer, small_init
from bpfree.nets.recurrent import Rows


class Embed(nn.Module):
    """A layer that gives each token or each step of numbers its features, and its position if positions are learned.

    Args:
        values: tokens [B, T] or numbers [B, T, F] -> features [B, T, H].
        positions: the number of learned positions; 0 for none.
        form: H and the dropout.
        padding: the token that fills short sequences, whose features are 0; None if there is none.
    """

    joins_next_stage: ClassVar[bool] = True

    def __init__(self, values: nn.Module, positions: int, form: BlockForm, padding: int | None = None) -> None:
        super().__init__()
        self.padding = padding
        self.values = values
        self.positions = nn.Embedding(positions, form.width) if positions else None
        self.drop = dropout_layer(form.dropout)
        for table in (values, self.positions):
            if isinstance(table, nn.Embedding):
                small_init(table, form.width)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return features [B, T, H].

        Args:
            x: tokens [B, T], or numbers as the layer takes them.
            start: the position of the first step.

        Raises:
            UserError: tokens are not integers or not below the vocabulary, or there are more steps than positions.
        """
        h: Tensor = looked_up(self.values, x) if isinstance(self.values, nn.Embedding) else self.values(x)
        if self.positions is not None:
            end = start + h.shape[1]
            if end > self.positions.num_embeddings:
                raise UserError(
                    f"net: found {end} steps, allowed: at most {self.positions.num_embeddings}, the number of learned "
                    "positions. Use net.positions=rope for sequences of any length"
                )
            h = h + self.positions.weight[start:end]
        out: Tensor = self.drop(h)
        return out if self.padding is None else out * (x != self.padding).unsqueeze(-1)


def looked_up(table: nn.Embedding, x: Tensor) -> Tensor:
    """Return the features [B, T, H] of tokens.

    Args:
        table: the features of each token, [V, H].
        x: tokens [B, T], integers below V.

    Raises:
        UserError: x is not of an integer type, or on a CPU a token is not below V.
    """
    if x.is_floating_point():
        raise UserError(
            f"net transformer: found samples of type {x.dtype} with one value for each step, allowed: integers, which "
            "are tokens. Give numbers the shape [steps, values]"
        )
    try:
        h: Tensor = table(x)
    except IndexError as error:
        token = int(x.min() if x.min() < 0 else x.max())
        raise UserError(
            f"net.vocabulary: found the token {token}, allowed: from 0 to {table.num_embeddings - 1}. Give "
            "net.vocabulary a larger number"
        ) from error
    return h


class Transformer(nn.Sequential):
    """A decoder: an embedding, blocks, a normalisation, and a linear read-out of each step or of all.

    Args:
        embed: samples -> features [B, T, H].
        form: what each block is made of; rules can make more such blocks from it.
        depth: L, the number of blocks.
        out_features: D.
        pool: how features of all steps become one vector; None for an output at each step.
        tied: True if the read-out uses the matrix of the embedding.
    """

    def __init__(
        self,
        embed: Embed,
        form: BlockForm,
        depth: int,
        out_features: int,
        *,
        pool: Literal["last", "mean"] | None,
        tied: bool,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(embed=embed)
        layers |= block_layers(form, depth)
        if pool is not None:
            layers["pool"] = Pool(pool, form.filled)
        layers["fc"] = readout = nn.Linear(form.width, out_features, bias=False)
        small_init(readout, form.width)
        if tied and isinstance(embed.values, nn.Embedding):
            readout.weight = embed.values.weight
        super().__init__(layers)
        self.form = form

    def step(self, x: Tensor, cache: tuple[Cache, ...] | None = None) -> tuple[Tensor, tuple[Cache, ...]]:
        """Go on with sequences whose earlier steps are in a cache.

        The outputs are those that the net with `each_step` has at these steps for the whole sequences. The time of a
        step grows with the number of steps before it, but not with its square.

        Args:
            x: the next tokens [B, t], or the next steps of numbers [B, t, F].
            cache: what the step before returned; None at the start of the sequences.

        Returns:
            The outputs [B, t, D], and the cache that includes the steps of x.

        Raises:
            UserError: see `Embed.forward`.

        Example:
            >>> import torch
            >>> net = transformer((8,), 256, each_step=True)
            >>> logits, cache = net.step(torch.tensor([[104, 105]]))
            >>> logits, cache = net.step(logits[:, -1:].argmax(-1), cache)
            >>> logits.shape, cache[0][0].shape
            (torch.Size([1, 1, 256]), torch.Size([1, 4, 3, 32]))
        """
        blocks = [layer for layer in self if isinstance(layer, Block)]
        start = 0 if cache is None else cache[0][0].shape[-2]
        h: Tensor = self.get_submodule("embed")(x, start)
        after: list[Cache] = []
        for block, past in zip(blocks, cache or [None] * len(blocks), strict=True):
            h, kept = block.step(h, past)
            after.append(kept)
        out: Tensor = self.get_submodule("fc")(self.get_submodule("norm")(h))
        return out, tuple(after)


def transformer(
    in_shape: int | Sequence[int],
    out_features: int,
    *,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    hidden: int | None = None,
    norm: NormName = "rms",
    mlp: MLPName = "swiglu",
    positions: Literal["rope", "learned"] = "rope",
    tied: bool = False,
    vocabulary: int | None = None,
    each_step: bool = False,
    pool: Literal["last", "mean"] = "last",
    dropout: float = 0.0,
    padding: int | None = None,
) -> Transformer:
    """Return a Transformer decoder, a Sequential whose stages are its blocks.

    Args:
        in_shape: [steps] of tokens, [steps, values] of numbers, or [channels, height, width] of an image, which is read
            row by row.
        out_features: D; with `each_step` on tokens usually the vocabulary.
        width: H, the number of features of each token.
        depth: the number of blocks.
        heads: the number of attention heads of each block.
        hidden: the width of the feed-forward nets. Default: 4 H for "gelu"; for "swiglu" 8/3 H, rounded up to a
            multiple of 8.
        norm: "rms" for RMSNorm and layers without biases, as in Llama; "layer" for LayerNorm and biases, as in GPT-2.
        mlp: the feed-forward nets, "swiglu" or "gelu".
        positions: "rope" for rotary positions, which do not limit the length; "learned" for a vector of each step.
        tied: true if the read-out uses the matrix of the embedding. Local rules need an untied read-out.
        vocabulary: the number of different tokens. Default: D with `each_step`; else it must be given for tokens.
        each_step: true for an output at each step, [B, T, D]; false for one output, [B, D].
        pool: without `each_step`, the output is read from the features of the "last" step or from their "mean".
        dropout: the probability that a feature is dropped behind the embedding and at the end of each branch.
        padding: the token that fills short sequences at their end, 0 in the data set `sst2`. It does not count: its
            features are 0, no other token sees it, and neither "last" nor "mean" reads it.

    Raises:
        UserError: samples of another shape, or options that do not fit together.

    Example:
        >>> import torch
        >>> net = transformer((16,), 65, each_step=True, width=32, depth=2)
        >>> net(torch.zeros(3, 16, dtype=torch.long)).shape
        torch.Size([3, 16, 65])
    """
    shape = (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)
    check_choice("net.positions", positions, ("rope", "learned"))
    form = BlockForm(
        width, heads, hidden, norm, mlp, rotary=positions == "rope", dropout=dropout, filled=padding is not None
    )
    steps, values = _values(shape, form, out_features if each_step and vocabulary is None else vocabulary)
    if tied and (not isinstance(values, nn.Embedding) or values.num_embeddings != out_features):
        raise UserError(
            f"net.tied: found true with {out_features} outputs, allowed: as many outputs as the vocabulary has tokens. "
            "Use net.tied=false"
        )
    _check_padding(padding, values)
    embed = Embed(values, 0 if form.rotary else steps, form, padding)
    return Transformer(embed, form, depth, out_features, pool=None if each_step else pool, tied=tied)


def _check_padding(padding: int | None, values: nn.Module) -> None:
    if padding is None:
        return
    if not isinstance(values, nn.Embedding):
        raise UserError(f"net.padding: found {padding} for samples that are numbers, allowed: tokens. Leave it out")
    if not 0 <= padding < values.num_embeddings:
        raise UserError(f"net.padding: found {padding}, allowed: a token, from 0 to {values.num_embeddings - 1}")


def _values(shape: tuple[int, ...], form: BlockForm, vocabulary: int | None) -> tuple[int, nn.Module]:
    """The number of steps, and the layer that gives each step its features."""
    if len(shape) == 1:
        if vocabulary is None:
            raise UserError(
                "net.vocabulary: found none, allowed: the number of different tokens in the samples. A net without "
                "each_step needs it, since its outputs do not tell it"
            )
        check_positive("net.vocabulary", vocabulary)
        return shape[0], nn.Embedding(vocabulary, form.width)
    if len(shape) in (2, 3):
        steps, features = shape if len(shape) == 2 else (shape[1], shape[0] * shape[2])
        return steps, nn.Sequential(OrderedDict(rows=Rows(), fc=nn.Linear(features, form.width)))
    raise UserError(
        f"net transformer: found samples of shape {list(shape)}, allowed: tokens [steps], [steps, values], or images "
        "[channels, height, width], whose rows are the steps"
    )
