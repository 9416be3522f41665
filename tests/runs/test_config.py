import inspect

import pytest
import yaml

from bpfree import UserError
from bpfree.data import DATASETS
from bpfree.rules import RULES
from bpfree.runs.config import Config, parse
from bpfree.runs.config_file import load_config, shipped
from bpfree.spec import check_options, describe


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_config_holds(name):
    dataset, rule = name.split("/")
    config = load_config(name)
    assert config.data.name == dataset
    of_a_net = "backprop" if rule == config.net["name"] else rule  # what rules are compared on: <data>/<net>
    assert config.rule["name"] in of_a_net, "a variant is called <rule>_<what>"
    assert parse(yaml.safe_load(config.dump())) == config


def test_every_rule_has_a_config_for_digits_and_mnist():
    assert {f"{dataset}/{rule}" for dataset in ("digits", "mnist") for rule in RULES} <= set(shipped())
    named = {name for name, reader in DATASETS.items() if "path" not in inspect.signature(reader).parameters}
    assert {name.split("/")[0] for name in shipped()} == named, "data of one's own have no config that could be shipped"


def test_overrides():
    dotted = ["rule.feedback=orthogonal", "train.epochs=3", "net.hidden=[7, 5]", "optimizer.lr=1e-2"]
    config = load_config("digits/dfa", dotted)
    assert config.rule == {"name": "dfa", "feedback": "orthogonal"}
    assert config.train.epochs == 3
    assert config.net["hidden"] == [7, 5]
    assert load_config("digits/dfa", ["rule=backprop"]).rule == {"name": "backprop"}
    assert load_config("digits/dfa", ["schedule=step", "schedule.gamma=0.1"]).schedule == {"name": "step", "gamma": 0.1}
    assert load_config("digits/dfa", ["train.early_stopping.patience=2"]).train.early_stopping.patience == 2


def test_a_number_written_as_yaml_reads_it_is_a_number():
    """YAML 1.1 takes 1e-2 for a text; pydantic makes it the number that was meant."""
    assert check_options(RULES["dfa"], {"signal_scale": "1e-2"}, "rule") == {"signal_scale": 0.01}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rule=dfaa"], r"unknown rule 'dfaa'. Did you mean 'dfa'\?"),
        (["net=mlpp"], r"unknown net 'mlpp'. Did you mean 'mlp'\?"),
        (["data=mnits"], r"unknown dataset 'mnits'. Did you mean 'mnist'\?"),
        (["rul.name=dfa"], r"unknown key 'rul'. Did you mean 'rule'\?"),
        (["train.epoch=3"], r"unknown key 'train.epoch'. Did you mean 'train.epochs'\?"),
        (["rule.feedbak=kaiming"], r"unknown key 'rule.feedbak'. Did you mean 'rule.feedback'\?"),
        (["train.early_stopping.patient=3"], r"unknown key 'train.early_stopping.patient'"),
        (["optimizer.momentm=0.9", "optimizer.name=sgd"], r"Did you mean 'optimizer.momentum'\?"),
        (["train.epochs=-1"], r"train.epochs: found -1, allowed: greater than or equal to 1"),
        (["train.epochs=many"], r"train.epochs: found 'many', allowed: a valid integer"),
        (["data.validation=1.5"], r"data.validation: found 1.5, allowed: less than 1"),
        (["rule.feedback=gaussian"], r"rule.feedback: found 'gaussian', allowed: uniform or kaiming or xavier"),
        (["net.hidden=wide"], r"net.hidden: found 'wide', allowed: a list of int"),
        (
            ["train.precision=fp4"],
            r"train.precision: found 'fp4', allowed: 'auto', 'float32', 'float32_torch', 'tf32' or 'bfloat16'",
        ),
        (["train.precision=float16"], r"train.precision: found 'float16', allowed: auto, .* Use bfloat16, which has"),
        (["nonsense"], r"override: found 'nonsense', allowed: section.key=value"),
        (["net.hidden.first=3"], r"net.hidden.first=3': hidden is \[256, 256\], allowed: a section"),
        (["train=3"], r"train: found 3"),
    ],
)
def test_what_does_not_hold_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("digits/dfa", overrides)


def test_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("rule: mono_forward\n")
    assert load_config(str(tmp_path / "mine.yaml")) == Config(rule={"name": "mono_forward"})
    (tmp_path / "bad.yaml").write_text("rule: [")
    with pytest.raises(UserError, match="not YAML"):
        load_config(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="found list, allowed: sections"):
        load_config(str(tmp_path / "list.yaml"))
    with pytest.raises(UserError, match=r"unknown config 'digits/dfaa'. Did you mean 'digits/dfa'\?"):
        load_config("digits/dfaa")
    with pytest.raises(UserError, match="config file 'gone.yaml' does not exist"):
        load_config("gone.yaml")


def test_a_config_executes_no_code(tmp_path):
    (tmp_path / "evil.yaml").write_text(f"net: !!python/object/apply:os.system ['touch {tmp_path}/hacked']")
    with pytest.raises(UserError):
        load_config(str(tmp_path / "evil.yaml"))
    with pytest.raises(UserError, match="'os:system' is not a Module"):
        parse({"net": {"name": "os:system", "command": f"touch {tmp_path}/hacked"}})
    assert not (tmp_path / "hacked").exists()


def test_classes_from_outside():
    parse({"net": {"name": "tests.outside:Linear", "bias": False}, "rule": "tests.outside:HalfBackprop"})
    with pytest.raises(UserError, match=r"rule.factor: found 'x', allowed: number"):
        parse({"rule": {"name": "tests.outside:HalfBackprop", "factor": "x"}})


def test_types_in_words():
    assert describe(tuple[float, float]) == "[number, number]"
    assert describe(str | None) == "text or none"
