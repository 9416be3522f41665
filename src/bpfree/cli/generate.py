"""The command `bpfree generate`, which continues a text."""

import os
import sys
from collections.abc import Iterable
from typing import Annotated
from unicodedata import category

import typer

from bpfree import api
from bpfree.cli.shell import RunArgument, Trust, errors_in_one_line
from bpfree.errors import UserError


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input.")],
    tokens: Annotated[int, typer.Option(help="How many tokens are drawn.")] = 200,
    temperature: Annotated[
        float, typer.Option(help="Below 1: likely tokens are drawn more often. 0: always the likeliest.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many likeliest tokens. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    trust: Trust = False,
) -> None:
    """Continue a text with a run of the task language, and print it as it comes.

    \b
    Examples:
      bpfree generate runs/tinyshakespeare-backprop "ROMEO:"
      cat poem.txt | bpfree generate runs/tinyshakespeare-backprop - --tokens 500
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        loaded = api.load(run, trust=trust)
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if prompt == "-" else prompt
        pieces = loaded.stream(text, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
        try:
            _print([text])
            _print(pieces)
        except BrokenPipeError:  # the reader has enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
            raise typer.Exit(1) from None
        except (KeyboardInterrupt, UserError):
            typer.echo()  # what comes next begins on its own line
            raise
        typer.echo()


def _print(pieces: Iterable[str]) -> None:
    """Print pieces of text at once, as far as the terminal can show them."""
    encoding = sys.stdout.encoding or "utf-8"
    for piece in pieces:
        sys.stdout.write(_shown(piece).encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()


def _shown(text: str) -> str:
    """Return a text without control characters, by which a net could command the terminal."""
    return "".join(letter if category(letter) != "Cc" or letter in "\n\r\t" else "\ufffd" for letter in text)
