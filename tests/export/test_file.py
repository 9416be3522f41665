"""Exported files: what onnxruntime and torch.export compute from them is what the run computes."""

import json
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bpfree
from bpfree import UserError
from bpfree.cli import app
from bpfree.export import file as export_file
from bpfree.export.programs import FORMS
from bpfree.rules import RULES
from tests.export.test_predictor import Two, several
from tests.export.trainings import answers, samples, trained

CLOSE = 1e-5
FEW = [  # rules whose inference differs, and tasks whose decoding does
    ("noprop_dt", "classify", "mlp"),
    ("backprop", "regress", "mlp"),
    ("mono_forward", "language", "mlp"),
]
ALL = [
    *((rule, "classify", kind) for rule in RULES for kind in ("mlp", "conv")),
    *(("backprop", task, "mlp") for task in ("multilabel", "segment", "reconstruct", "sequence")),
    *(("mono_forward", task, "mlp") for task in ("segment", "regress")),
    *((rule, "reconstruct", "mlp") for rule in ("noprop_dt", "noprop_fm")),
    ("mono_forward", "sequence", "mlp"),
]
OPTIONS = [
    ("mono_forward", ("read", "sum")),
    ("mono_forward", ("read", "last")),
    ("cwcomp", ("read", "sum")),
    ("noprop_ct", ("solver", "heun")),
    ("noprop_dt", ("decode", "nearest")),
    ("deep_supervision", ("rule", "predsim")),
]


def by_onnx(path, *inputs):
    """What onnxruntime computes from a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, [x.numpy() for x in inputs], strict=True)))[0])


def compare(run, x, path):
    """The file gives what the run gives, for batches that it was not traced with."""
    written = run.export(path)
    assert written.path == path
    assert written.difference <= CLOSE
    program = torch.export.load(path).module() if path.suffix == ".pt2" else None
    for n in (1, 3, 64):
        expected = answers(run, x[:n])
        found = program(x[:n]).detach() if program else by_onnx(path, x[:n])
        assert found.shape == expected.shape
        scale = max(1, float(expected.abs().max()))
        assert float((found - expected).abs().max()) <= CLOSE * scale


@pytest.mark.parametrize(("rule", "task", "kind"), FEW)
def test_onnx(rule, task, kind, tmp_path):
    compare(trained(rule, task, kind), samples(task)[0], tmp_path / "model.onnx")


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_texts_of_several_lengths(file, tmp_path):
    """Their ends are filled by a token that does not count."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (64, 1), generator=random)
    x = torch.randint(1, 20, (64, 8), generator=random) * (torch.arange(8) < lengths)
    net = {"name": "transformer", "width": 8, "depth": 2, "heads": 2, "vocabulary": 20, "padding": 0, "pool": "mean"}
    run = bpfree.fit(net, (x, x[:, 0] % 2), "mono_forward", epochs=1, batch_size=16)
    compare(run, x, tmp_path / file)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "task", "kind"), ALL)
def test_onnx_of_every_rule(rule, task, kind, tmp_path):
    compare(trained(rule, task, kind), samples(task)[0], tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "option"), OPTIONS, ids=str)
def test_onnx_of_options_of_inference(rule, option, tmp_path):
    compare(trained(rule, option=option), samples("classify")[0], tmp_path / "model.onnx")


def test_a_program_of_torch(tmp_path):
    compare(trained("cwcomp", option=("read", "sum")), samples("classify")[0], tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_program_of_torch_of_every_rule(rule, tmp_path):
    compare(trained(rule), samples("classify")[0], tmp_path / "model.pt2")


def test_several_inputs_keep_their_names_and_the_file_says_what_it_is(tmp_path):
    x, y = several(70)
    run = bpfree.fit(Two(), (x, np.array(["no", "yes"])[y]), "backprop", epochs=1, batch_size=8)
    path = run.export(tmp_path / "new" / "two.onnx").path
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.input] == ["tokens", "numbers", "mask"]
    assert [each.name for each in model.graph.output] == ["probabilities"]
    for n in (1, 3, 64):
        few = {name: t[:n] for name, t in x.items()}
        torch.testing.assert_close(by_onnx(path, *few.values()), run.predict_proba(few), rtol=0, atol=CLOSE)
    facts = {each.key: each.value for each in model.metadata_props}
    assert facts["bpfree"] == bpfree.__version__
    assert facts["rule"] == "backprop"
    assert facts["task"] == "classify"
    assert json.loads(facts["classes"]) == ["no", "yes"]
    assert json.loads(facts["inputs"])[1] == {"name": "numbers", "shape": ["batch", 3], "dtype": "uint8"}


def test_a_program_of_torch_has_the_names_of_classes(tmp_path):
    x, y = samples("classify")
    names = np.array(["cat", "dog", "owl"])
    run = bpfree.fit("mlp", (x, names[y]), "dfa", epochs=1)
    extra = {"metadata.json": ""}
    torch.export.load(run.export(tmp_path / "m.pt2").path, extra_files=extra)
    assert json.loads(extra["metadata.json"])["classes"] == ["cat", "dog", "owl"]
    assert zipfile.is_zipfile(tmp_path / "m.pt2")


class ByLength(nn.Module):
    """A net that keeps the number of samples as a constant, and one that looks at values."""

    def __init__(self, looks):
        super().__init__()
        self.fc, self.looks = nn.Linear(64, 3), looks

    def forward(self, x):
        x = x.flatten(1)
        if self.looks and x.sum() > 1e9:
            return self.fc(x) * 2
        return self.fc(x) if self.looks else self.fc(x).view(len(x), 3)


@pytest.mark.parametrize("looks", [True, False])
def test_a_net_that_cannot_be_traced_is_refused_with_the_cure(looks, tmp_path):
    run = bpfree.fit(ByLength(looks), samples("classify"), "backprop", epochs=1)
    with pytest.raises(UserError, match=r"torch.export cannot trace ByLength .*x.shape\[0\] in place of len\(x\)"):
        run.export(tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rule", "option", "said"),
    [
        ("noprop_dt", ("inference", "stochastic"), "found rule.inference=stochastic, .*allowed: deterministic"),
        ("noprop_ct", ("solver", "rk4"), "found rule.solver=rk4 of torchdiffeq, .*allowed: euler, heun"),
        ("noprop_ct", ("solver", "dopri5"), "found rule.solver=dopri5 of torchdiffeq, .*allowed: euler, heun"),
    ],
)
def test_inference_that_a_file_cannot_hold_is_refused(rule, option, said, tmp_path):
    with pytest.raises(UserError, match=said):
        trained(rule, option=option).export(tmp_path / "m.onnx")


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    wrong = FORMS["torch"]._replace(open=lambda data: lambda x: torch.zeros(len(x[0]), 3))
    monkeypatch.setitem(FORMS, "torch", wrong)
    (tmp_path / "m.pt2").write_text("before")
    with pytest.raises(UserError, match=r"m.pt2: not written, since the exported net differs from torch by \d"):
        trained("dfa").export(tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_text() == "before"
    monkeypatch.setitem(FORMS, "torch", wrong._replace(open=lambda data: lambda x: torch.zeros(2, 3)))
    with pytest.raises(UserError, match=r"gives \[2, 3\] for 1 samples where torch gives \[1, 3\]"):
        trained("dfa").export(tmp_path / "m.pt2")


def test_names_and_formats_of_files(tmp_path):
    run = trained("dfa")
    with pytest.raises(UserError, match=r"path: found m.h5, allowed: a name that ends in .onnx \(onnx\) or .pt2"):
        run.export(tmp_path / "m.h5")
    with pytest.raises(UserError, match=r"path: found m.onnx, allowed: a name that ends in .pt2 \(torch\)"):
        run.export(tmp_path / "m.onnx", "torch")
    with pytest.raises(UserError, match="format: found 'tf', allowed: onnx, torch"):
        run.export(tmp_path / "m.onnx", "tf")
    (tmp_path / "link.pt2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        run.export(tmp_path / "link.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_its_cure(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}, .*pip install 'bpfree\[export\]'"):
        trained("dfa").export(tmp_path / "m.onnx")


@pytest.mark.parametrize("task", ["classify", "regress", "sequence"])
def test_samples_of_the_check_are_like_those_of_the_training(task):
    run, x = trained("backprop", task), samples(task)[0]
    (like,) = export_file.samples_like(run.preprocess.scaling, 64)
    assert like.dtype == x.dtype
    assert like.shape[1:] == x.shape[1:]
    assert float(x.min()) <= float(like.min()) < float(like.max()) <= float(x.max())


def test_the_command(tmp_path, undrawn):
    run = bpfree.fit("mlp", samples("classify"), "mono_forward", epochs=1, out=tmp_path / "run").folder
    done = CliRunner().invoke(app, ["export", str(run), "--format", "torch"])
    assert done.exit_code == 0, done.output
    path, verdict = done.stdout.splitlines()
    assert path == str(run / "model.pt2")
    assert verdict.startswith("checked with torch.export: batches of 1, 3, 64 differ from torch by at most ")
    assert float(verdict.split()[-1]) <= CLOSE
    refused = CliRunner().invoke(app, ["export", str(run), "--format", "tf"])
    assert refused.exit_code == 2
    assert refused.stderr == "error: --format: found 'tf', allowed: onnx, torch\n"


def test_without_onnxruntime_the_command_says_that_nothing_was_checked(tmp_path, monkeypatch, undrawn):
    run = bpfree.fit("mlp", samples("classify"), "mono_forward", epochs=1, out=tmp_path / "run").folder
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "m.onnx")])
    assert done.exit_code == 0, done.output
    assert "not checked: onnxruntime is not installed. Install it: pip install 'bpfree[export]'" in done.stdout
    torch.testing.assert_close(
        by_onnx(tmp_path / "m.onnx", samples("classify")[0]),
        bpfree.load(run).predict_proba(samples("classify")[0]),
        rtol=0,
        atol=CLOSE,
    )
