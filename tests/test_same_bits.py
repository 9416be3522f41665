"""The move into rooms changes no bit of any weight. This file goes when the move is done."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from bpfree.runs.config_file import load_config
from bpfree.runs.train import train

CONFIGS = (
    *("digits/backprop", "digits/dfa", "digits/fa", "digits/mono_forward", "digits/predsim", "digits/forward_forward"),
    *("digits/noprop_dt", "digits/noprop_fm", "digits/eggroll", "digits/recombine", "digits/cwcomp", "digits/pepita"),
    *("lorenz/local", "diabetes/dfa", "digits/shallow"),
)
HASHES = Path(__file__).with_name("same_bits.json")


def weights_hash(name: str) -> str:
    torch.set_num_threads(1)
    run = train(load_config(name, ["train.epochs=2", "train.device=cpu"]))
    digest = hashlib.sha256()
    for module in (run.net, run.trainer.rule):
        for key, value in sorted(module.state_dict().items()):
            digest.update(key.encode() + value.contiguous().cpu().numpy().tobytes())
    digest.update(json.dumps(run.result["test"], sort_keys=True).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_from_before_the_move(name):
    assert weights_hash(name) == json.loads(HASHES.read_text())[name]


if __name__ == "__main__":
    HASHES.write_text(json.dumps({name: weights_hash(name) for name in CONFIGS}, indent=1) + "\n")
