"""CSV tables: what columns become, and where what does not fit is."""

import json

import numpy as np
import pytest
import torch

import bpfree
from bpfree.data import DATASETS, Preprocess
from bpfree.data.columns import Column
from bpfree.data.sets.table import read_features
from bpfree.errors import UserError
from tests.test_cli import shell

COLOURS, ANSWERS = ("red", "blue"), ("yes", "no", "perhaps")
TITLES = "colour,size,time,answer\n"


def rows(n=40):
    return "".join(f"{COLOURS[i % 2]},{i * 1.5},{1_700_000_000 + 60 * i},{ANSWERS[i % 3]}\n" for i in range(n))


def table(tmp_path, text, name="in.csv", **options):
    path = tmp_path / name
    path.write_text(text)
    return DATASETS["table"](tmp_path, path=path, **{"label": "answer", **options})


def test_columns_of_numbers_and_of_words(tmp_path):
    data = table(tmp_path, TITLES + rows(), test=0)
    assert data.columns == (Column("colour", ("blue", "red")), Column("size"), Column("time"))
    assert data.class_names == ("no", "perhaps", "yes")
    assert data.train.x[1].tolist() == [1, 0, 1.5, 1_700_000_060]
    assert [data.class_names[k] for k in data.train.y[:3]] == list(ANSWERS)


def test_numbers_are_standardised_by_the_training_samples_alone(tmp_path):
    data = table(tmp_path, TITLES + rows())
    assert (len(data.train.y), len(data.test.y)) == (31, 9), "a fifth of each class"
    train, _ = data.carve(0.25, 0)
    preprocess = Preprocess.of(data, train)
    x = preprocess(train.x)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[:, 2:].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, 2:].std(0, correction=0), torch.ones(2))
    assert set(x[:, 0].tolist()) == {0.0, 1.0}, "words stay as they are"
    torch.testing.assert_close(x[:, 2], x[:, 3], atol=1e-4, rtol=0), "minutes since 1970 are not lost in float32"
    assert Preprocess.load(json.loads(json.dumps(preprocess.save()))) == preprocess


def test_options(tmp_path):
    text = TITLES + rows()
    data = table(tmp_path, text, words=["size"], ignore=["time"], test=0)
    assert [c.name for c in data.columns] == ["colour", "size"]
    assert len(data.columns[1].values) == 40
    assert table(tmp_path, text.replace(",", ";"), test=0).columns == table(tmp_path, text, test=0).columns
    assert table(tmp_path, text.replace(",", "!"), test=0, delimiter="!").classes == 3
    (tmp_path / "test.csv").write_text(TITLES + rows(6))
    assert len(table(tmp_path, text, test_path=tmp_path / "test.csv").test.y) == 6
    assert table(tmp_path, '\ufeffa,"answer"\n1,"x, ""y"""\n2,z\n3,z\n', test=0).class_names == ('x, "y"', "z")


def test_a_label_that_is_a_number(tmp_path):
    text = TITLES + rows()
    data = table(tmp_path, text, label="size", values=True, test=0)
    assert data.train.y.tolist() == [i * 1.5 for i in range(40)]
    spec = {"name": "table", "path": tmp_path / "in.csv", "label": "size", "values": True}
    run = bpfree.fit("mlp", spec, "backprop", task="regress", epochs=60, batch_size=8)
    assert run.result["test"]["r2"] > 0.5
    with pytest.raises(UserError, match="found 40 different numbers in column 'size', such as 1.5, .*values=true"):
        bpfree.fit("mlp", {**spec, "values": False}, "backprop")
    with pytest.raises(UserError, match="'regress' on classes that have names.*data.values=true"):
        bpfree.fit("mlp", {**spec, "label": "answer", "values": False}, "backprop", task="regress")
    with pytest.raises(UserError, match="line 2, column 'answer': found 'yes', allowed: a number"):
        table(tmp_path, text, values=True)


def test_missing_values_are_named_or_dropped(tmp_path):
    text = "a,b,answer\n1,x,yes\n,y,no\n3,NA,yes\n4,y,\n5,x,no\n6,y,yes\n"
    with pytest.raises(
        UserError,
        match=r"found 3 cells without a value in 3 of 6 rows: line 3, column 'a'; line 4, column 'b'; line 5, "
        r"column 'answer'. Fill them in, .*data.missing=drop.*data.ignore",
    ):
        table(tmp_path, text)
    assert table(tmp_path, text, missing="drop", test=0).train.x[:, 0].tolist() == [1, 5, 6]
    with pytest.raises(UserError, match="every row lacks a value"):
        table(tmp_path, "a,answer\n,x\n1,\n", missing="drop")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "found no rows below the titles"),
        (TITLES, {}, "found no rows below the titles"),
        (TITLES + rows(), {"label": "anser"}, "unknown column in data.label 'anser'. Did you mean 'answer'"),
        (TITLES + rows(), {"ignore": ["x"]}, "unknown column in data.ignore 'x'"),
        (TITLES + rows(), {"words": ["x"]}, "unknown column in data.words 'x'"),
        (TITLES + rows(), {"ignore": ["colour", "size", "time"]}, "found no column beside 'answer'"),
        (TITLES + rows(), {"delimiter": "ab"}, "data.delimiter: found 'ab'"),
        ("a,answer\n1,x\n2\n", {}, "line 3: found 1 cells, allowed: 2"),
        ("a,a,answer\n1,2,x\n", {}, "found the column 'a' twice"),
        ("a,answer\n1,x\n2,x\n", {}, "found one value in column 'answer', 'x'"),
        ("a,answer\n1,x\n2,y\n3k,y\n", {}, r"line 4, column 'a': found '3k', in all 1 of 3 .*data.words=\[a\]"),
        ("a,answer\n1,x\ninf,y\n", {}, "line 3, column 'a': found 'inf'"),
        ('a,answer\n"1,x\n', {}, "not a table that can be read"),
        ("a,answer\n" + "".join(f"w{i},{i % 2}\n" for i in range(300)), {}, "column 'a': found 300 different words"),
    ],
)
def test_tables_that_cannot_work(tmp_path, text, options, message):
    with pytest.raises(UserError, match=message) as caught:
        table(tmp_path, text, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour,size,answer\nred,1,no\n", "lacks the column 'time'"),
        (
            TITLES + "green,1,2,no\n",
            "test.csv, line 2, column 'colour': found 'green', allowed: blue, red, as in training",
        ),
        (TITLES + "red,big,2,no\n", "test.csv, line 2, column 'size': found 'big', allowed: a number"),
        (TITLES + "red,1,2,never\n", "found the label 'never'"),
        (TITLES + "red,,2,no\n", "test.csv: found 1 cells without a value"),
    ],
)
def test_test_tables_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        table(tmp_path, TITLES + rows(), test_path=tmp_path / "test.csv")


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "in.csv").write_bytes(bytes(range(256)))
    for name, why in (("in.csv", "not a table that can be read"), ("none.csv", "found nothing there")):
        with pytest.raises(UserError, match=rf"{name}: {why}"):
            DATASETS["table"](tmp_path, path=tmp_path / name, label="x")


def test_a_run_learns_from_a_table_and_predicts_rows_of_another(tmp_path):
    rng = np.random.default_rng(0)
    sizes, colours = rng.normal(100, 20, 400), rng.integers(0, 2, 400)
    answers = np.where((sizes > 100) ^ (colours == 1), "big", "small")
    lines = [f"{c},{s:.3f},{a}" for c, s, a in zip(np.array(COLOURS)[colours], sizes, answers, strict=True)]
    (tmp_path / "in.csv").write_text("colour,size,answer\n" + "\n".join(lines) + "\n")
    spec = {"name": "table", "path": tmp_path / "in.csv", "label": "answer"}
    run = bpfree.fit("mlp", spec, "backprop", epochs=15, out=tmp_path / "run")
    assert run.result["test"]["accuracy"] > 0.9
    (tmp_path / "new.csv").write_text("size;colour\n170;red\n30;red\n170;blue\n")
    shown = shell("predict", tmp_path / "run", tmp_path / "new.csv").stdout.splitlines()
    assert [line.split("\t")[1] for line in shown] == ["big", "small", "small"]
    assert shown[0].startswith(f"{tmp_path / 'new.csv'}[0]\t")
    (tmp_path / "other.csv").write_text("size\n1\n")
    with pytest.raises(UserError, match="unknown column 'colour'"):
        read_features(tmp_path / "other.csv", run.preprocess.columns)


@pytest.mark.parametrize(
    ("cells", "cure"),
    [
        (["0,5", "1,25", "-3,0"], r"found '-3,0'.*data.decimal=','"),
        (["12.3%", "4%", "5%"], r"looks like a number or a date.*data.ignore=\[a\].*data.words=\[a\]"),
        (["1,234.5", "2,000.0", "17,000.25"], "Write plain numbers"),
        (["1 234", "2 000", "3 000"], "Write plain numbers"),
        (["$5", "$6", "€7"], "Write plain numbers"),
        (["2024-01-31", "2023-12-01", "31.12.2020"], "a number or a date"),
        (["31 Jan 2024", "Feb 3, 2020", "12:30"], "a number or a date"),
        (["12 kg", "9 kg", "1.5 kg"], "Write plain numbers"),
        (["1_000", "2_000", "3_000"], "Write plain numbers"),
        (["1", "2,5", "3"], r"found '2,5'.*data.decimal=','"),
        ([f"name{i}" for i in range(12)], "found 12 different words in 24 rows|few rows have the same word"),
    ],
)
def test_words_that_are_numbers_dates_or_names_are_not_made_one_hot(tmp_path, cells, cure):
    distinct = len(cells) > 5
    lines = [f'"{cells[i % len(cells)]}{i if distinct else ""}",{"yn"[i % 2]}\n' for i in range(24)]
    with pytest.raises(UserError, match=cure):
        table(tmp_path, "a,answer\n" + "".join(lines))
    if not distinct:
        table(tmp_path, "a,answer\n" + "".join(lines), words=["a"])


def test_decimal_commas(tmp_path):
    text = "a;b;answer\n0,5;x;1\n1,5;y;0\n-2;x;1\n3e1;y;0\n"
    data = table(tmp_path, text, decimal=",", test=0)
    assert data.train.x[:, 0].tolist() == [0.5, 1.5, -2, 30]
    numbers = table(tmp_path, text, label="a", values=True, decimal=",", test=0)
    assert numbers.train.y.tolist() == [0.5, 1.5, -2, 30]
    with pytest.raises(UserError, match=r"found '0.5'.*data.decimal='.'"):
        table(tmp_path, text + "0.5;x;1\n", decimal=",")
    with pytest.raises(UserError, match="data.decimal: found ';'"):
        table(tmp_path, text, decimal=";")
    assert read_features(tmp_path / "in.csv", data.columns[1:]).tolist()[0] == [1, 0]


def test_a_run_with_decimal_commas_predicts_such_rows(tmp_path):
    lines = "".join(f"{i % 7},{i}!{'yn'[i % 2]}\n" for i in range(40))
    table(tmp_path, "a!answer\n" + lines, decimal=",", delimiter="!")
    spec = {"name": "table", "path": tmp_path / "in.csv", "label": "answer", "decimal": ",", "delimiter": "!"}
    bpfree.fit("mlp", spec, "backprop", epochs=1, out=tmp_path / "run")
    (tmp_path / "new.csv").write_text("a!b\n0,5!1\n")
    assert len(shell("predict", tmp_path / "run", tmp_path / "new.csv").stdout.splitlines()) == 1


@pytest.mark.parametrize("title", ["", "Unnamed: 0"])
def test_a_column_of_row_numbers_is_not_a_feature(tmp_path, title):
    text = f"{title},a,answer\n" + "".join(f"{i},{i % 5},{'yn'[i % 2]}\n" for i in range(20))
    with pytest.raises(UserError, match=rf"found the column '{title}', which has no real .*data.ignore=\['{title}'\]"):
        table(tmp_path, text)
    assert [column.name for column in table(tmp_path, text, ignore=[title]).columns] == ["a"]


def test_labels_that_are_no_classes(tmp_path):
    rows = "".join(f"{i % 5},{i * 3}\n" for i in range(40))
    with pytest.raises(UserError, match=r"found 40 different labels in the 40 rows.*data.values=true"):
        table(tmp_path, "a,answer\n" + rows)
    with pytest.raises(UserError, match="found '1' and '1.0' in column 'answer', which are one number"):
        table(tmp_path, "a,answer\n1,1\n2,1.0\n3,0\n4,1\n")
    with pytest.raises(UserError, match="found 2 different numbers in column 'answer', such as 0,5"):
        table(tmp_path, 'a,answer\n1,"0,5"\n2,"1,5"\n3,"0,5"\n')


def test_missing_markers_spaces_and_booleans(tmp_path):
    text = "a;b;answer\n 1 ; True;y\n2;False ;n\n<NA>;True;y\n#N/A;True;n\n 3;False;y\n"
    data = table(tmp_path, text, missing="drop", test=0)
    assert data.columns == (Column("a"), Column("b", ("False", "True")))
    assert data.train.x[:, 0].tolist() == [1, 2, 3]
