"""Hostile configs, overrides and arguments of commands."""

from tests.hostile.guard import EVIL

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIGS: dict[str, str] = {
    "an alias bomb": _BOMB,
    "an alias bomb in a section": "net: {name: mlp, hidden: &h [1,1,1,1,1,1,1,1]}\n" + _BOMB,
    "an alias within itself": "net: &n {name: mlp, hidden: *n}",
    "a merge of itself": "net: &n\n  <<: *n\n",
    "many merges": "a: &a {x: 1}\n" + "".join(f"k{i}: {{<<: [{','.join(['*a'] * 100)}]}}\n" for i in range(100)),
    "deep lists": "net: " + "[" * 3000,
    "deep lists, closed": "net: " + "[" * 3000 + "]" * 3000,
    "deep mappings": "net: " + "{a: " * 3000,
    "deep blocks": "- " * 5000,
    "deep by aliases": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
    "a key twice": "train: {epochs: 1, epochs: 2}",
    "a section twice": "train: {epochs: 1}\ntrain: {epochs: 2}",
    "a number as a key": "train: {1: 2}",
    "a list as a key": "? [a, b]\n: c",
    "yes as a key": "yes: 1",
    "a bad date": "train: {epochs: 2020-99-99}",
    "a date": "train: {epochs: 2020-01-01}",
    "a long number": f"train: {{epochs: {'9' * 6000}}}",
    "a long sexagesimal": f"train: {{epochs: {'1:' * 3000}1}}",
    "a Python object": "net: !!python/object/apply:os.system [echo]",
    "a Python name": "net: !!python/name:os.system",
    "binary": "net: !!binary aGVsbG8=",
    "a set": "net: !!set {a, b}",
    "two documents": "a: 1\n---\nb: 2",
    "a list": "[1, 2]",
    "a word": "word",
    "nothing": "",
    "nul": "net: \0",
    "tabs": "net:\n\tname: mlp",
    "too large": "# " + "x" * 400_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(30_000)),
    "not a number": "train: {clip: .nan}\n",
    "infinite": "optimizer: {name: sgd, lr: .inf}\ntrain: {epochs: 1}",
    "huge net": "net: {name: mlp, hidden: [1000000000000]}",
    "negative net": "net: {name: mlp, hidden: [-5]}",
    "huge batch": "data: {batch_size: 100000000000000000000}",
    "a data path with nul": 'data: {name: folder, path: "a\\0b"}',
    "a cache of nobody": "data: {name: folder, path: ., cache: ~nouserofthisname/x}",
    "a dir of nobody": "data: {dir: ~nouserofthisname}",
    "a dir with nul": 'data: {dir: "a\\0b"}',
    "an empty path": "data: {name: folder, path: ''}",
    "missing module": "net: {name: 'nowhere.at_all:Net'}",
    "no class": "net: {name: 'os:system'}",
    "empty module": "net: {name: ':'}",
    "a module of dots": "net: {name: '...:x'}",
    "text for a section": "train: hello",
    "a number for a section": "train: 3",
    "null sections": "train:\nnet:\ndata:\nrule:\n",
    "trackers of nothing": "trackers: [null, 3]",
    "a tracker without a name": "trackers: [{}]",
    "a marker": "optimizer: {name: adam, lr: {search: log, low: 1, high: 0}}",
}

OVERRIDES = [
    *("", "=", "a", "a=", ".=1", "..=1", "net..x=1", "train.epochs", "train.epochs=", "train.epochs=x"),
    *("train.epochs=[", "train.epochs={a: *b}", "train.epochs=&a [*a]", "train.epochs=0", "train.epochs=-1"),
    *("train.epochs=1e400", "train.epochs=.inf", "train.seed=-1", f"train.seed={'9' * 5000}", "train.seed=1e30"),
    *("train.device=nowhere", "train.device=cuda:99", "train.precision=x", "train.freeze=x", "train.freeze=[1]"),
    *("net=nowhere", "net=[]", "net={}", "net=3", "net.name=3", "net.hidden=x", "net.hidden=[[]]", "net.x.y.z=1"),
    *("rule=x", "rule={name: dfa, feedback: x}", "rule.name=null", "data.fraction=0", "data.fraction=.nan"),
    *("data.classes=[99]", "data.classes=[]", "data.classes=[0]", "data.batch_size=0", "data.validation=1"),
    *(
        "data.skew=3",
        "data.skew={kind: x, factor: 1}",
        "data.augment.mixup=-1",
        "data.augment.cutout=99999999999",
        "data.augment.shift=100000",
    ),
    *("optimizer.lr=x", "optimizer.lr=-1", "optimizer.betas=[1]", "optimizer.betas=x", "optimizer.nope=1"),
    *("schedule=x", "schedule={name: step, milestones: x}", "trackers=x", "trackers=[x]", "trackers={a: 1}"),
    *("train.early_stopping={patience: 0}", "train.early_stopping=3", "train.clip=0", "task=x", "tune={trials: 0}"),
    "train.epochs=" + "[" * 2000,
    "\0=1",
    "net.name=\0",
    "\udcff=1",
]


def commands(run: str) -> list[list[str]]:
    """Arguments of commands that are refused, or do no harm."""
    bad = ["", " ", "/", "~nouserofthisname", "a\0b", "/dev/null", "/proc/self/x", "x" * 300, "nowhere/" * 600]
    made: list[list[str]] = [
        ["train", "digits/dfa", "train.epochs=1", "--out", path] for path in bad if path != "nowhere/"
    ]
    made += [["train", "--resume", path] for path in bad]
    made += [["train", path] for path in bad]
    made += [[command, path] for command in ("eval", "plots", "report", "certify") for path in bad]
    made += [["predict", run, path] for path in bad]
    made += [["predict", path, "x.png"] for path in bad[:4]]
    made += [["eval", run, "--data-dir", path] for path in bad[:5]]
    made += [["eval", run, override] for override in OVERRIDES[:20]]
    made += [
        ["tune", "digits/dfa", "optimizer.lr={search: log, low: 1e-4, high: 1e-1}", "--out", path] for path in bad[:5]
    ]
    made += [["compare", "digits/dfa", "--out", path] for path in bad[:5]]
    made += [["compare", path] for path in bad[:6]]
    made += [["report", run, "--out", path] for path in bad]
    made += [
        ["train", "digits/dfa", f"net.name={EVIL}_nowhere:Net"],
        ["list", "nowhere"],
        ["nowhere"],
        ["data", "get", ""],
    ]
    return made
