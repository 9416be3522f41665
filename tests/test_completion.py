"""The TAB key, in a real bash, and what other shells are given."""

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bpfree
from bpfree.cli import app, completion
from bpfree.rules import RULES
from bpfree.runs.config_file import shipped

SOURCE = Path(bpfree.__file__).parents[1]


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="no bash")
def test_bash_completes_commands_configs_and_rules(tmp_path):
    """`bpfree --install-completion` from a bash, and then the TAB key in a new one."""
    pexpect = pytest.importorskip("pexpect")
    script = tmp_path / "bin" / "bpfree"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom bpfree.cli import main\n\nmain()\n")
    script.chmod(0o755)
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("_TYPER")},
        "HOME": str(tmp_path),
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCE),
        "TERM": "dumb",
        "PS1": "$ ",
    }
    pexpect.run("bash --norc -c 'bpfree --install-completion; true'", env=env, timeout=60)
    assert (tmp_path / ".bashrc").is_file()
    bash = pexpect.spawn("bash", ["--rcfile", str(tmp_path / ".bashrc"), "-i"], env=env, timeout=60, encoding="utf-8")
    try:
        for typed, whole in (
            ("bpfree cert", "certify"),
            ("bpfree train digits/mono", "digits/mono_forward"),
            ("bpfree compare digits/mlp --rules dfa,mono", "dfa,mono_forward"),
        ):
            bash.send(f"{typed}\t")
            bash.expect_exact(whole)
            assert "loading" not in bash.before
            bash.sendcontrol("u")
    finally:
        bash.close(force=True)


def completed(shell, words, incomplete):
    env = {"_BPFREE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": f"bpfree {words}{incomplete}"}
    if shell == "fish":
        env |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_WORD_TO_COMPLETE": incomplete}
    return CliRunner().invoke(app, [], env=env, prog_name="bpfree").stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_same_names(shell):
    assert "digits/mono_forward" in completed(shell, "train ", "digits/mono")
    assert "svhn" in completed(shell, "data get ", "sv")
    assert "#compdef" in CliRunner().invoke(app, [], env={"_BPFREE_COMPLETE": "source_zsh"}, prog_name="bpfree").stdout


def test_names_that_are_proposed():
    assert completion.configs("") == shipped()
    assert completion.configs("digits/fo") == ["digits/forward_forward", "digits/forward_gradient"]
    assert completion.rules("") == [*RULES, "all"]
    assert completion.rules("dfa,fa,mono") == ["dfa,fa,mono_forward"]
    assert completion.changes("rule=mono") == ["rule=mono_forward"]
    assert completion.changes("ru") == ["rule="]
    assert completion.changes("data.x=") == []
    assert completion.configs_and_changes("optim") == ["optimizer="]
    assert completion.names("data.a") == ["data.augment"]
    assert "mono_forward" in completion.names("mono")
    assert completion.kinds("tr") == ["trackers"]


def test_bash_splits_a_change_at_its_sign(monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "bpfree train digits/dfa net = ml")
    assert completion.changes("ml") == ["mlp"]
    monkeypatch.setenv("COMP_WORDS", "bpfree train digits/dfa rule =")
    assert completion.changes("") == list(RULES)
