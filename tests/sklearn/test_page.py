"""The page on scikit-learn: its code runs, and its table of parameters is that of the constructors."""

import inspect
import re
from pathlib import Path

from bpfree.sklearn import BPFreeAutoencoder, BPFreeClassifier

PAGE = (Path(__file__).parents[2] / "docs" / "sklearn.md").read_text("utf-8")


def test_the_code_of_the_page_runs(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        # New processes would import everything again.
        exec(compile(block.replace("n_jobs=2", "n_jobs=1"), "sklearn.md", "exec"), names)
    assert names["search"].best_score_ > 0.95
    assert "(1797, 8) fc2" in capsys.readouterr().out


def test_the_table_has_every_parameter_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(\w+)`? \|", PAGE, re.MULTILINE))
    for kind in (BPFreeClassifier, BPFreeAutoencoder):
        for name, parameter in inspect.signature(kind).parameters.items():
            if (kind, name) != (BPFreeAutoencoder, "net"):
                assert rows[name] == str(parameter.default), name
