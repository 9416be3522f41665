"""The page about the nets names all of them, and its code runs."""

import re
from pathlib import Path

from bpfree.nets import NETS

PAGE = (Path(__file__).parents[2] / "docs" / "nets.md").read_text(encoding="utf-8")


def test_it_names_every_net():
    assert set(NETS) <= set(re.findall(r"`(\w+)`", PAGE.partition("These nets have")[0]))


def test_its_code_runs():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "nets.md", "exec"), names)
    assert names["run"].preprocess.has_tokens
    assert names["scores"].shape == (1, 1, 256)
    assert len(bytes(names["tokens"][0].tolist())) == 13
