"""Small nets of Hugging Face with random weights, as people pass them: rules train them, or say what to change."""

import copy

import pytest
import torch

import bpfree
from bpfree import UserError
from bpfree.tasks import Language
from bpfree.training.trainer import Trainer

transformers = pytest.importorskip(
    "transformers", reason="transformers takes 130 MB, so the tests' packages do not have it"
)
V, T, N, CLASSES = 40, 12, 16, 3
SIZES = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
RULES = ["backprop", "mono_forward", "solo", "lopt", "dfa", "shallow", {"name": "eggroll", "population": 4}]


def gpt2(**options):
    sizes = {"vocab_size": V, "n_positions": T, "n_embd": 16, "n_layer": 2, "n_head": 2}
    ends = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | ends | options))


def llama(**options):
    options = {"num_key_value_heads": 1, "max_position_embeddings": T, "tie_word_embeddings": False} | options
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


def bloom():
    """Its blocks give tuples."""
    sizes = {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    return transformers.BloomForCausalLM(transformers.BloomConfig(**sizes, tie_word_embeddings=False))


def bert():
    config = transformers.BertConfig(**SIZES, max_position_embeddings=T, num_labels=CLASSES)
    return transformers.BertForSequenceClassification(config)


def vit():
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES)
    return transformers.ViTForImageClassification(config)


def made(make, **options):
    torch.manual_seed(0)
    return make(**options)


def tokens():
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, T + 1, (N, 1), generator=random)
    return {
        "input_ids": torch.randint(V, (N, T), generator=random),
        "attention_mask": (torch.arange(T) < lengths).long(),
    }


def next_tokens(x):
    return (x * 3 + 1) % V


CASES = {
    "gpt2": (gpt2, "language"),
    "llama": (llama, "language"),
    "bloom": (bloom, "language"),
    "bert": (bert, "classify"),
    "vit": (vit, "classify"),
}


def data_of(name):
    if name == "vit":
        return torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(N) % CLASSES
    x = tokens()
    if name == "bert":
        return x, torch.arange(N) % CLASSES
    return x["input_ids"], next_tokens(x["input_ids"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule if isinstance(rule, str) else rule["name"])
@pytest.mark.parametrize("name", CASES)
def test_rules_train_it(name, rule):
    make, task = CASES[name]
    net = made(make)
    before = copy.deepcopy(net.state_dict())
    data = data_of(name)
    run = bpfree.fit(net, data, rule, task=task, epochs=1, batch_size=8, validation=0, optimizer="adam")
    assert all(value == value for value in run.metrics[-1]["train"].values())
    if rule != "shallow":
        learns = [key for key, p in net.named_parameters() if p.requires_grad]
        still = {key for key in learns if torch.equal(before[key], net.state_dict()[key])}
        # Keys of attention have a bias without effect; of the embeddings of token types one row alone is used.
        assert not [key for key in still if not key.endswith(("bias", "pooler.dense.weight"))]
    shape = (N, T, V) if task == "language" else (N, CLASSES)
    assert run.scores(data[0]).shape == shape
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(("make", "options"), [(gpt2, NO_DROPOUT), (llama, {})])
def test_backprop_is_the_loss_of_the_library(make, options):
    net, x = made(make, **options), tokens()["input_ids"]
    twin = copy.deepcopy(net)
    twin(x, labels=x).loss.backward()
    following = torch.cat([x[:, 1:], torch.full((N, 1), -100)], 1)
    Trainer(net, "backprop", Language(V), {"name": "sgd", "lr": 0.0}).step((x, following))
    for key, p in twin.named_parameters():
        torch.testing.assert_close(net.get_parameter(key).grad, p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("make", "name"), [(gpt2, "transformer.wte.weight"), (llama, "model.embed_tokens.weight")])
def test_a_tied_read_out_is_refused_with_the_cure(make, name):
    x = tokens()["input_ids"]
    data = (x, next_tokens(x))
    with pytest.raises(UserError, match=f"'{name}' is used before and behind .* tie_word_embeddings=False"):
        bpfree.fit(made(make, tie_word_embeddings=True), data, "mono_forward", task="language", epochs=1)
    bpfree.fit(made(make, tie_word_embeddings=True), data, "backprop", task="language", epochs=1, batch_size=8)


@pytest.mark.parametrize("rule", ["backprop", "mono_forward"])
def test_masked_tokens_and_labels_do_not_count(rule):
    x = tokens()
    y = next_tokens(x["input_ids"]).where(x["attention_mask"] == 1, -100)
    other = {**x, "input_ids": x["input_ids"].where(x["attention_mask"] == 1, 7)}
    weights = []
    for samples in (x, other):
        net = made(gpt2, **NO_DROPOUT)
        options = {"task": "language", "epochs": 1, "batch_size": 8, "validation": 0, "classes": V}
        run = bpfree.fit(net, (samples, y), rule, **options, optimizer={"name": "sgd", "lr": 0.5})
        weights.append(net.transformer.h[1].mlp.c_fc.weight.detach())
        assert run.predict(samples).shape == (N, T)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)
    net = made(bert).eval()
    run = bpfree.fit(net, (x, torch.arange(N) % CLASSES), rule, epochs=1, batch_size=8)
    torch.testing.assert_close(run.scores(x), run.scores(other), rtol=1e-5, atol=1e-6)


def test_it_continues_a_prompt(tmp_path):
    (tmp_path / "poem.txt").write_text("Warte nur, balde ruhest du auch.\n" * 30)
    data = {"name": "text", "path": str(tmp_path / "poem.txt"), "dir": str(tmp_path), "context": T}
    net = made(gpt2, vocab_size=256)
    run = bpfree.fit(net, data, "mono_forward", task="language", epochs=1, batch_size=8)
    assert len(run.generate("Warte", tokens=20)) > 5
