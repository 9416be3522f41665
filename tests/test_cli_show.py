"""The command `bpfree show`, and the names that errors propose."""

import pytest
import yaml

from bpfree.cli.catalog import KINDS, SECTIONS, keys, options
from bpfree.data import FACTS
from bpfree.errors import MOST_NAMES, UserError, similar
from bpfree.runs.config_file import load_config, shipped
from bpfree.spec import check_options
from tests.test_cli import refused, shell


def shown(name):
    result = shell("show", name)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.plural)
def test_every_option_is_explained_and_is_an_option(kind):
    """An option of another type than its own is refused under its name, so it is an option and has a type."""
    for name, thing in kind.table.items():
        maker = thing.of if kind.name == "task" else thing
        for option in options(kind, name):
            assert option.meaning
            assert option.type
            if "." not in option.name:
                with pytest.raises(UserError, match=rf"^{kind.section}\.({option.name}: found|\w+: missing)"):
                    check_options(maker, {option.name: Ellipsis}, kind.section, kind.given)


def test_the_keys_of_sections_are_those_of_their_models():
    for section, (model, _) in SECTIONS.items():
        assert [option.name for option in keys(section)] == list(model.model_fields)


def test_show_a_rule():
    text = shown("dfa")
    for part in (
        "rule dfa: Direct feedback alignment",
        "feedback: uniform or kaiming",
        "default uniform",
        "tasks: any task",
        "differentiated through one part of the net",
        "paper: https://arxiv.org/abs/1609.01596",
        "page: docs/rules/dfa.md",
        "digits/dfa, ",
        "bpfree certify digits/dfa",
    ):
        assert part in text
    assert "1909.01311" not in text, "the paper of drtp, in the same file"


def test_show_a_config_prints_what_runs():
    text = shell("show", "digits/eggroll").stdout
    begin, end = text.index("# "), text.index("Train it:")
    values = yaml.safe_load(text[begin:end])
    assert values["rule"] == load_config("digits/eggroll").rule


def test_a_name_that_means_two_things_shows_both():
    text = shown("mlp")
    assert "net mlp: A Sequential" in text
    assert "configs with this name: digits/mlp, mnist/mlp" in text


def test_show_sections_and_data_sets():
    assert "epochs: int, at least 1; default 10 passes over the training samples." in shown("train")
    assert "cutout: int, at least 0; default 0 the side in pixels" in shown("data.augment")
    text = shown("mnist")
    assert f"{FACTS['mnist'].train:,} training" in text
    assert "12 MB to download" in text


def test_an_unknown_name_is_one_line_with_the_nearest_names():
    assert "Did you mean dfa, digits/dfa" in refused("show", "dfaa")
    line = refused("train", "dfa")
    assert "Did you mean 'digits/dfa'? Also similar: diabetes/dfa, lorenz/dfa, mnist/dfa" in line
    assert "`bpfree list configs` shows them" in line
    assert len(line) < 300


@pytest.mark.parametrize("name", shipped())
def test_a_misspelt_name_finds_its_config_first(name):
    rule = name.partition("/")[2]
    assert similar(name[:-1], shipped())[0] == name or name[:-1] in shipped()
    assert len(similar(rule, shipped())) <= MOST_NAMES
    assert similar(rule, shipped())[0].endswith(f"/{rule}")
