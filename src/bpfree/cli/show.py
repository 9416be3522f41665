"""The command `bpfree show`."""

import re
import sys
from importlib import resources
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from bpfree.cli import completion
from bpfree.cli.catalog import KINDS, SECTIONS, Kind, describe_in_a_line, is_of_torch, keys, options, tasks_of
from bpfree.cli.shell import errors_in_one_line
from bpfree.data import FACTS
from bpfree.disk.plain import parse_yaml
from bpfree.errors import UserError, similar
from bpfree.rule import Locality, Rule
from bpfree.runs.config_file import shipped
from bpfree.spec import REQUIRED, Option

_THROUGH = {"nothing": "nothing", "part": "one part of the net", "net": "the whole net"}
_MOST_CONFIGS = 12
_LINK = re.compile(r"https?://[^\s,;]*[^\s,;.:]")


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A rule, net, task, data set, tracker, optimizer, schedule, shipped config, or a section "
            "such as train or data.augment.",
            autocompletion=completion.names,
        ),
    ],
) -> None:
    """Explain a name that a config can have: what it is, and its options with types, defaults and meaning.

    \b
    Examples:
      bpfree show dfa
      bpfree show digits/dfa
      bpfree show train
    """  # noqa: D301 -- \b keeps the lines of the examples apart in --help
    with errors_in_one_line():
        if not explain(name, Console(highlight=False)):
            raise _unknown(name)


def explain(name: str, console: Console) -> bool:
    """Print all that is known of a name, once for each thing that has it; return False if nothing has it.

    Args:
        name: a name in a table, a shipped config, or a section of a config.
        console: where it is printed.
    """
    kinds = [kind for kind in KINDS if name in kind.table]
    for kind in kinds:
        _print_thing(kind, name, console)
    if name in SECTIONS:
        console.print(Text(f"section {name} of a config. {describe_in_a_line(SECTIONS[name][0])}"))
        _print_options(keys(name), console)
        console.print(Text(f"Set a key by {name}.KEY=VALUE, such as {name}.{keys(name)[0].name}=..."))
    if name in shipped():
        _print_config(name, console)
        return True
    namesakes = [config for config in shipped() if config.partition("/")[2] == name]
    if namesakes and "rule" not in [kind.name for kind in kinds]:
        _print_list("configs with this name", namesakes, console)
    return bool(kinds or namesakes or name in SECTIONS)


def _unknown(name: str) -> UserError:
    """Return the error for a name that nothing has, with the most similar ones of all kinds."""
    near = similar(name, [*(key for kind in KINDS for key in kind.table), *SECTIONS, *shipped()])
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return UserError(f"show: nothing has the name '{name}'.{hint} `bpfree list` shows all names")


def _print_thing(kind: Kind, name: str, console: Console) -> None:
    thing = kind.table[name]
    console.print(Text(f"{kind.name} {name}: {describe_in_a_line(thing)}", style="bold"))
    if (facts := FACTS.get(name)) and kind.section == "data":
        size = f"{facts.published.megabytes:,} MB to download" if facts.published.megabytes else "no download"
        classes = f"{facts.classes} classes" if facts.classes else "labels are numbers"
        console.print(
            Text(
                f"{facts.train:,} training and {facts.test:,} test samples {list(facts.shape)}, {classes}, {size}, "
                f"licence: {facts.published.licence}\npage: {facts.published.page}"
            )
        )
    _print_options(options(kind, name), console)
    if is_of_torch(thing):
        console.print(Text(f"More: https://docs.pytorch.org/docs/stable/generated/torch.optim.{thing.__name__}.html"))
    if kind.name == "rule":
        _print_rule(name, thing, console)
    users = [config for config in shipped() if _names(config, kind.section, name)]
    _print_list("configs with it", users, console)
    if kind.name == "data set":
        console.print(Text("Keys of every data set (batch_size, validation, ...): bpfree show data"))
    console.print()


def _print_rule(name: str, rule: type[Rule], console: Console) -> None:
    console.print(Text(f"tasks: {tasks_of(rule)}"))
    console.print(Text(f"locality: {_in_words(rule().locality())}"))
    console.print(
        Text(f"  (as the rule declares it; the tests of bpfree measure it, and so does: bpfree certify digits/{name})")
    )
    for link in _papers(name, rule):
        console.print(Text(f"paper: {link}"))
    console.print(Text(f"page: docs/rules/{name}.md"))


def _in_words(locality: Locality) -> str:
    waits = "waits for later parts" if locality.waits else "does not wait for later parts"
    memory = "grow with depth" if locality.memory == "grows" else "do not grow with depth"
    reads = {
        "none": "nothing of the forward weights",
        "signs": "the signs of the forward weights",
        "weights": "the forward weights",
    }
    return (
        f"an objective is differentiated through {_THROUGH[locality.through]}; a part {waits}; the way back reads "
        f"{reads[locality.transports]}; activations in memory {memory}"
    )


def _papers(name: str, rule: type[Rule]) -> list[str]:
    """Return the links of a rule's file that belong to the rule, or all of them if the file has no entry for it."""
    text = sys.modules[rule.__module__].__doc__ or ""
    # A file of several rules has an entry for each, such as "DFA: Nokland 2016, ..." or "`es`: Salimans ...".
    entries = re.split(r"^`?(\w+)`?: (?=[A-Z])", text, flags=re.MULTILINE)
    own = [body for key, body in zip(entries[1::2], entries[2::2], strict=True) if key.lower() == name]
    found = _LINK.findall(own[0].partition("\n\n")[0] if own else text)
    return list(dict.fromkeys(found))


def _print_options(found: list[Option], console: Console) -> None:
    """Print options as blocks and not as a table, whose columns would be too narrow in 80 characters."""
    if not found:
        console.print(Text("It has no options."))
    for option in found:
        default = option.default if option.default == REQUIRED else f"default {option.default}"
        head = Text.assemble("  ", (option.name, "bold"), f": {option.type}; {default}")
        console.print(head)
        console.print(Padding(Text(option.meaning), (0, 0, 0, 6)))


def _print_config(name: str, console: Console) -> None:
    console.print(Text(f"config {name}", style="bold"))
    console.print(Text(_text_of(name).rstrip()), soft_wrap=True)  # so that it can be copied
    console.print(Text(f"Train it: bpfree train {name}. What a name in it means: bpfree show NAME"))


def _print_list(title: str, names: list[str], console: Console) -> None:
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > _MOST_CONFIGS else ""
        console.print(Text(f"{title}: {', '.join(names[:_MOST_CONFIGS])}{more}"))


def _text_of(config: str) -> str:
    return (resources.files("bpfree") / "configs" / f"{config}.yaml").read_text(encoding="utf-8")


def _names(config: str, section: str, name: str) -> bool:
    """Return True if a section of a shipped config names something."""
    text = _text_of(config)
    if not re.search(rf"\b{re.escape(name)}\b", text):  # reading all of the YAML would take seconds
        return False
    spec = (parse_yaml(text, config) or {}).get(section)
    specs = spec if isinstance(spec, list) else [spec]
    return name in [each.get("name") if isinstance(each, dict) else each for each in specs]
