"""The arguments of `bpfree.fit`: their types, and the errors for others."""

import inspect
import re
import typing

import pytest
from pydantic import BaseModel

import bpfree
from bpfree.rules import RULES, RuleTable
from bpfree.runs.config import Config, EarlyStoppingConfig, MeshConfig, TrainConfig
from bpfree.runs.data_config import AugmentConfig, DataConfig, SkewConfig
from bpfree.runs.fit_options import (
    OTHER_NAMES,
    AugmentOptions,
    EarlyStoppingOptions,
    FitOptions,
    MeshOptions,
    SkewOptions,
)
from bpfree.tasks import TASKS, TaskTable

ARGUMENTS = set(inspect.signature(bpfree.fit).parameters)
# The types of these are broader than in a config.
BROADER = {
    "dir",
    "classes",
    "freeze",
    "skew",
    "augment",
    "early_stopping",
    "mesh",
    "schedule",
    "task",
}  # than in a config


def test_the_options_of_fit_are_the_keys_of_a_config():
    keys = {*DataConfig.model_fields, *TrainConfig.model_fields, "schedule", "task"}
    assert set(FitOptions.__annotations__) == keys - {"name"} - ARGUMENTS
    assert set(Config.model_fields) == {"data", "train", "schedule", "task", "net", "rule", "optimizer", "trackers"}


def test_the_types_of_options_are_those_of_the_config():
    hints = typing.get_type_hints(FitOptions)
    fields = DataConfig.model_fields | TrainConfig.model_fields
    for name in hints.keys() - BROADER:
        assert hints[name] == fields[name].annotation, name


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (AugmentOptions, AugmentConfig),
        (SkewOptions, SkewConfig),
        (EarlyStoppingOptions, EarlyStoppingConfig),
        (MeshOptions, MeshConfig),
    ],
)
def test_sections_within_a_section_have_the_types_of_their_models(options, model: type[BaseModel]):
    assert typing.get_type_hints(options) == {name: field.annotation for name, field in model.model_fields.items()}


@pytest.mark.parametrize(("table", "entries"), [(RuleTable, RULES), (TaskTable, TASKS)])
def test_type_checkers_know_each_entry_of_a_table(table, entries):
    known = {}
    for overload in typing.get_overloads(table.__getitem__):
        hints = typing.get_type_hints(overload)
        if hints["name"] is not str:
            (name,) = typing.get_args(hints["name"])
            (known[name],) = typing.get_args(hints["return"])
    assert known == dict(entries)


@pytest.mark.parametrize(
    ("option", "value", "cure"),
    [
        ("lr", 0.1, 'optimizer={"name": "adam", "lr": 0.1}'),
        ("learning_rate", 0.1, 'optimizer={"name": "adam", "lr": 0.1}'),
        ("weight_decay", 0.01, 'optimizer={"name": "adam", "weight_decay": 0.01}'),
        ("betas", (0.9, 0.99), 'optimizer={"name": "adam", "betas": (0.9, 0.99)}'),
        ("momentum", 0.9, 'optimizer={"name": "sgd", "momentum": 0.9}'),
        ("batchsize", 32, "batch_size=32"),
        ("num_epochs", 2, "epochs=2"),
        ("feedback", "orthogonal", 'rule={"name": "dfa", "feedback": "orthogonal"}'),
        ("label_smoothing", 0.1, 'task={"name": "classify", "label_smoothing": 0.1}'),
        ("gamma", 0.5, 'schedule={"name": "step", "gamma": 0.5}'),
    ],
)
def test_an_option_at_the_wrong_place_is_refused_with_a_cure_that_works(option, value, cure):
    with pytest.raises(bpfree.UserError) as refused:
        bpfree.fit("mlp", "digits", **{option: value})
    assert str(refused.value).endswith(cure)
    options = eval(f"dict({cure})")
    assert bpfree.fit("mlp", "digits", **{"epochs": 1, "fraction": 0.1, **options}).result["test"]


def test_an_option_of_the_chosen_optimizer_keeps_its_other_options():
    with pytest.raises(bpfree.UserError, match=r'optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9}'):
        bpfree.fit("mlp", "digits", optimizer={"name": "sgd", "lr": 0.1}, momentum=0.9)


def test_other_unknown_options_get_the_nearest_names():
    with pytest.raises(bpfree.UserError, match="unknown argument 'validaton'. Did you mean 'validation'") as refused:
        bpfree.fit("mlp", "digits", validaton=0.2)
    assert len(str(refused.value)) < 200
    with pytest.raises(bpfree.UserError, match="`bpfree show train`"):
        bpfree.fit("mlp", "digits", zzzzzz=1)


def test_other_names_lead_to_names_that_exist():
    for name in OTHER_NAMES.values():
        assert name in {*ARGUMENTS, *FitOptions.__annotations__, "lr", "weight_decay"}


def test_resume_is_in_the_package(tmp_path, undrawn):
    run = bpfree.fit("mlp", "digits", "backprop", epochs=1, fraction=0.1, out=tmp_path / "run")
    assert bpfree.resume(run.folder).result == run.result
    assert re.search("weights become the same", bpfree.resume.__doc__)
