"""The runs that a user means by folders."""

import json

import pytest

from bpfree.errors import UserError
from bpfree.serve.found import find_runs


@pytest.fixture
def make(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "config.yaml").write_text("")
        return tmp_path

    return make


def ids(paths):
    return [found.id for found in find_runs(paths)]


def test_a_folder_of_runs_stands_for_its_runs(make):
    root = make("b", "a", "deep/er/c")
    (root / "no_run").mkdir()
    assert ids([root]) == ["a", "b"]
    assert ids([root / "b", root, root / "a" / ".." / "b"]) == ["b", "a"], "each once, in the order of the user"


def test_names_are_different_and_can_be_addresses(make):
    root = make("x/run", "y/run", "z/a b?#%", "..../p/...")
    assert ids([root / "x/run", root / "y/run", root / "z/a b?#%"]) == ["run", "run-2", "a-b---"]
    assert ids([root / "..../p/..."]) == ["run"]


def test_the_first_runs_are_shown(make):
    shown = [found.shown for found in find_runs([make(*"abcdefgh")])]
    assert shown == [True] * 6 + [False] * 2


def test_a_comparison_stands_for_the_first_seed_of_each_row(make):
    root = make("runs/bp-0", "runs/bp-1", "runs/shallow-0", "runs/dfa-0", "outside")
    rows = [
        {"name": "bp", "kind": "baseline", "runs": [{"folder": "runs/bp-0"}, {"folder": "runs/bp-1"}]},
        {"name": "bp, checkpointed", "kind": "baseline", "runs": [{"folder": "runs/gone-0"}]},
        {"name": "shallow", "kind": "control", "runs": [{"folder": "runs/shallow-0"}]},
        {"name": "dfa", "kind": "rule", "runs": [{"folder": "runs/dfa-0"}]},
        {"name": "evil", "kind": "rule", "runs": [{"folder": "../outside"}, {"folder": "/etc"}, {"folder": 3}]},
    ]
    (root / "compare.json").write_text(json.dumps({"groups": [{"baseline": "bp", "rows": rows}]}))
    assert [(f.id, f.shown) for f in find_runs([root])] == [("bp-0", True), ("shallow-0", False), ("dfa-0", True)]


@pytest.mark.parametrize("text", ["[]", '{"groups": 3}', '{"groups": [{"rows": [3, {"runs": {}}]}]}'])
def test_a_damaged_comparison_is_refused(tmp_path, text):
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(UserError, match="without run folders"):
        find_runs([tmp_path])


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        find_runs([tmp_path / "nowhere"])
