"""data/csv_table.py: what is made of a table. Goes with it."""

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import gallery
import main
import numpy as np
import pytest
import torch
from engine.errors import UsageError
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_only

NET = ["--model_name", "toys.Net", "--hidden_dim", "16", "--lr", "0.05", "--num_threads", "1"]
FLAGS = ["--dataset", "csv_table", "--data_dir", ".", "--target", "kind", "--drop", "number", *NET]
SMALL = """name,size,colour,kind
a,0.0,red,yes
b,,blue,no
c,8.0,,yes
d,2.0,red,no
e,100.0,green,yes
f,,red,no
"""
PARTS = ["train", "train", "train", "train", "val", "test"]


def there() -> Any:
    """The module, where it and the package that it needs are there."""
    pytest.importorskip("pandas")
    return pytest.importorskip("data.csv_table")


def table(**given: Any) -> Any:
    return there().CsvTable(**{"data_dir": ".", **given})


@pytest.fixture
def small() -> dict[str, Any]:
    """The first four rows are to learn from."""
    rows = zip(SMALL.splitlines(), ["part", *PARTS], strict=True)
    Path("table.csv").write_text("".join(f"{row},{part}\n" for row, part in rows))
    return {"target": "kind", "id_column": "name", "split_column": "part"}


def test_raw_items_are_the_rows_of_the_file(small) -> None:
    found = table(split="train", **small).raw_items([2, 0])
    assert found == [
        {"name": "c", "size": 8.0, "colour": "", "kind": "yes", "part": "train"},
        {"name": "a", "size": 0.0, "colour": "red", "kind": "yes", "part": "train"},
    ]


def write(rows: int = 600, target: str = "", seed: int = 0) -> None:
    """Points of two numbers and a colour, some of them missing; the target follows from all three."""
    draw = np.random.default_rng(seed)
    x, y = draw.normal(50, 20, rows), draw.normal(0, 0.001, rows)
    red = draw.random(rows) < 0.5
    number = 1000 * ((x - 50) / 20 + y / 0.001 * np.where(red, 1, -1)) + 70_000
    kind = np.where(number > 71_000, "high", np.where(number < 69_000, "low", "middle"))
    lines = ["x,y,colour,number,kind"]
    for at in range(rows):
        shown = "" if at % 50 == 7 else f"{x[at]:.6g}"
        lines.append(f"{shown},{y[at]:.6g},{'red' if red[at] else 'blue'},{number[at]:.6g},{kind[at]}")
    Path("table.csv").write_text("\n".join(lines) + "\n")


def test_only_the_training_part_says_how_to_scale(small: dict[str, Any]) -> None:
    # Sizes to learn from: 0, missing, 8, 2; median 2, mean of 0 2 8 2 = 3, deviation = root of (9 + 1 + 25 + 1) / 4.
    learn, val, test = (table(split=split, **small) for split in ("train", "val", "test"))
    assert learn.preprocessing["size"] == pytest.approx({"median": 2, "mean": 3, "std": 3, "missing": True})
    assert learn.preprocessing["colour"] == {"texts": ["blue", "missing", "red"]}
    assert learn.preprocessing == val.preprocessing == test.preprocessing
    #            size, was it missing, blue, missing, red
    wanted = [[-1, 0, 0, 0, 1], [-1 / 3, 1, 1, 0, 0], [5 / 3, 0, 0, 1, 0], [-1 / 3, 0, 0, 0, 1]]
    torch.testing.assert_close(learn.features, torch.tensor(wanted))
    torch.testing.assert_close(val.features, torch.tensor([[97 / 3, 0, 0, 0, 0]]))  # green is in no training row
    torch.testing.assert_close(test.features, torch.tensor([[-1 / 3, 1, 0, 0, 1]]))
    assert (learn.num_features, learn.classes, learn.num_classes) == (5, ["no", "yes"], 2)
    assert learn.targets.tolist() == [1, 0, 1, 0]
    assert (learn.ids, val.ids, test.ids) == (["a", "b", "c", "d"], ["e"], ["f"])


def test_the_parts_follow_from_the_seed_and_never_overlap() -> None:
    write(100)

    def ids(seed: int) -> list[list[str]]:
        given = {"target": "kind", "val_fraction": 0.2, "test_fraction": 0.1, "seed": seed}
        return [table(split=split, **given).ids for split in ("train", "val", "test")]

    parts = ids(1)
    assert list(map(len, parts)) == [70, 20, 10]
    assert sorted(int(one) for part in parts for one in part) == list(range(100))
    assert ids(1) == parts
    assert ids(2) != parts


def test_classes_are_told_and_the_run_stands_what_all_have_to() -> None:
    there()
    write()
    metrics = gallery.goes_on(*FLAGS, epochs=8)
    assert metrics["test_acc"] > 0.85  # the most frequent class, middle: 0.52
    predicted = gallery.predicts()
    assert predicted.shape == (60, 3)
    names = Path("lightning_logs/version_0/predictions.txt").read_text().split()
    assert len(set(names)) == 60
    gallery.exports()
    labels = json.loads(Path("lightning_logs/version_0/labels.json").read_text())
    assert labels["classes"] == ["high", "low", "middle"]
    assert labels["preprocessing"]["colour"] == {"texts": ["blue", "red"]}
    lines = Path("table.csv").read_text().splitlines()
    new = [lines[0], *(lines[int(name) + 1] for name in names)]
    Path("new.csv").write_text("\n".join(line.rpartition(",")[0] for line in new) + "\n")  # less its target
    np.testing.assert_allclose(gallery.predicts("--rows", "new.csv"), predicted, atol=1e-6)
    assert Path("lightning_logs/version_0/predictions_new.txt").read_text().split() == [str(at) for at in range(60)]


def test_another_table_is_read_as_the_first(small: dict[str, Any]) -> None:
    learnt = table(split="train", **small)
    Path("new.csv").write_text("colour,name,size\nred,x,8\nnone,7,\n")
    ids, features = learnt.open_rows("new.csv")
    assert ids == ["x", "7"]
    assert torch.equal(features[0, :2], learnt.features[2, :2])  # a size of 8
    assert features[:, 2:].tolist() == [[0, 0, 1], [0, 0, 0]]  # blue, missing, red; none of them
    for text, said in (
        ("name,size\nx,8\n", "new.csv has no column 'colour'. It has: name, size"),
        ("name,size,colour\nx,big,red\n", "new.csv: column 'size' is one of numbers, not 'big'"),
    ):
        Path("new.csv").write_text(text)
        with pytest.raises(UsageError, match=said):
            learnt.open_rows("new.csv")


def test_texts_that_look_like_numbers_stay_texts() -> None:
    Path("table.csv").write_text("floor,size,target\n" + "1,5,a\nB,5,b\n" * 10)
    Path("new.csv").write_text("floor,size\n1,5\n,5\n")  # with a missing one, pandas would read 1.0
    assert table(split="train").open_rows("new.csv")[1].tolist() == [[1, 0, 0], [0, 0, 0]]


def test_rows_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    there()
    write(100)
    main.main([*gallery.QUICK, *FLAGS, "--max_epochs", "1"])
    Path("empty.csv").write_text("x,y,colour\n")
    for name, said in (("gone.csv", "there is no such folder or file"), ("empty.csv", "there is no row in it")):
        with pytest.raises(SystemExit, match="2"):
            main.main(["predict", "--ckpt_path", "last", "--rows", name])
        assert f"--rows {name}: {said}" in capsys.readouterr().err


class Drawn(Callback):
    """Keeps what predicted.png shows."""

    def on_test_end(self, trainer: Any, module: Any) -> None:
        (self.pairs,) = [one.samples.pairs for one in trainer.callbacks if hasattr(one, "samples")]


def test_a_number_is_told() -> None:
    there()
    write()
    flags = [*gallery.QUICK, "--dataset", "csv_table", "--data_dir", ".", "--target", "number", "--drop", "kind", *NET]
    more = ["--loss", "mse_loss", "--scale_target", "--metrics", "mae", "r2", "--pictures"]
    drawn = Drawn()
    metrics = main.main([*flags, *more, "--max_epochs", "15"], [drawn])
    assert metrics["test_r2"] > 0.9  # the mean: 0
    predicted = gallery.predicts()  # in the unit of the file
    assert predicted.shape == (60, 1)
    lines = Path("table.csv").read_text().splitlines()
    names = Path("lightning_logs/version_0/predictions.txt").read_text().split()
    true = np.array([float(lines[int(name) + 1].split(",")[3]) for name in names])
    main.main(["predict", "--ckpt_path", "last"])
    assert [float(row["true"]) for row in read_predictions("predictions.csv")] == pytest.approx(true, rel=1e-5)
    assert metrics["test_mae"] == pytest.approx(np.abs(predicted[:, 0] - true).mean(), rel=1e-4)
    np.testing.assert_allclose(np.sort(drawn.pairs.numpy().T), np.sort([true, predicted[:, 0]]), rtol=1e-4)
    assert np.square(predicted[:, 0] - true).mean() == pytest.approx((1 - metrics["test_r2"]) * true.var(), rel=1e-3)


def test_parquet_says_the_same_as_csv(small: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas").read_csv("table.csv").to_parquet("table.parquet")
    one, other = (table(split="train", table=name, **small) for name in ("table.csv", "table.parquet"))
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize(
    ("column", "task", "kind"),
    [
        ("0 1 0 1 2 2", None, torch.long),
        ("0.5 1.5 2 3 4 5", None, torch.float32),
        ("1 2 3 1 2 3", "number", torch.float32),
        ("1.0 2.0 3.0 1.0 2.0 3.0", "classes", torch.long),
        ("True False True True False True", None, torch.long),
    ],
)
def test_what_kind_of_target_it_is(column: str, task: str | None, kind: torch.dtype) -> None:
    Path("table.csv").write_text("x,target\n" + "".join(f"{at},{one}\n" for at, one in enumerate(column.split())))
    assert table(split="train", target_kind=task, test_fraction=0, val_fraction=0).targets.dtype == kind


def test_without_validation() -> None:
    there()
    write(100)
    flags = [*gallery.QUICK, "--dataset", "csv_table", "--data_dir", ".", "--target", "kind", *NET]
    metrics = main.main([*flags, "--val_fraction", "0", "--max_epochs", "1"])
    assert "val_loss" not in metrics
    assert "test_loss" in metrics


WRONG = {
    "no column 'prise'. It has: name, size, colour, kind, part": ["--target", "prise"],
    "no column 'place'. It has": ["--drop", "place"],
    "'part' says ['elsewhere'], not train, val or test": ["--split_column", "part"],
    "there is no nothing.csv (--data_dir, --table). . has: numbers.csv, table.csv": ["--table", "nothing.csv"],
    "there is no nowhere/table.csv: no folder nowhere (--data_dir, --table)": ["--data_dir", "nowhere"],
    "has texts in 'kind'": ["--target_kind", "number"],
    "--balanced needs a class for each item, which CsvTable does not have": [
        *["--target", "size", "--split_column", "none", "--table", "numbers.csv", "--loss", "mse_loss", "--balanced"]
    ],
    "leave nothing to learn": ["--val_fraction", "0.5", "--test_fraction", "0.5"],
    "CsvTable has one class, or a number for its target: --loss mse_loss": [
        *["--target", "size", "--split_column", "none", "--table", "numbers.csv"]
    ],
    "'kind' is named twice by --target, --id_column, --split_column, --group_column, --drop": ["--drop", "kind"],
    "--group_column colour: no 'colour' in some of the rows": ["--group_column", "colour"],
    "--group_column name: --split_column says the splits": ["--group_column", "name", "--split_column", "part"],
    "table.csv: 'name' is named twice by": ["--number_columns", "size", "name", "--id_column", "name"],
    "table.csv: 'kind' is named twice by": ["--id_column", "kind"],
    "table.csv: 'part' is named twice by": ["--id_column", "part", "--split_column", "part"],
    "--separator '||' should be one character": ["--separator", "||"],
}


@pytest.mark.parametrize("said", WRONG)
def test_mistakes_are_named(said: str, small: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    there()
    Path("numbers.csv").write_text("size,x\n" + "".join(f"{at}.5,{at}\n" for at in range(20)))
    if "elsewhere" in said:
        Path("table.csv").write_text(Path("table.csv").read_text().replace("val", "elsewhere"))
    with pytest.raises(SystemExit, match="2"):
        main.main([*gallery.QUICK, *NET, "--dataset", "csv_table", "--data_dir", ".", "--target", "kind", *WRONG[said]])
    assert said in capsys.readouterr().err


BROKEN: dict[str, str | bytes] = {
    "table.csv cannot be read: No columns": "",
    "table.csv cannot be read: Error tokenizing": "x,target\n1,2\n1,2,3\n",
    "table.csv has more fields in its rows than in its head line": "x,target\n1,2,3\n4,5,6\n",
    "table.csv has no column 'target'. It has: x;target. If ';' separates them: --separator ';'": "x;target\n1;2\n",
    "table.csv is not utf-8; it can be read as gbk: --encoding gbk": "x,target\n好,2\n".encode("gbk"),
    "table.csv is not utf-8, nor gbk, big5, shift_jis or cp1252: line 3 is": "x,target\n好,2\n".encode()
    + b"\x81\xff,1\n",
    "no 'target' in 1 of the rows, the first of them row 1": "x,target\n1,2\n1,\n3,4\n",
    "table.csv: 'x' has infinite values": "x,target\n1,2\ninf,2\n3,4\n",
    "table.csv has several columns 'target': give each a name of its own": "target,x,target\n1,2,1\n2,1,1\n",
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_file_is_named(said: str) -> None:
    content = BROKEN[said]
    Path("table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        table(split="train", test_fraction=0, val_fraction=0)
    assert "\n" not in str(error.value)


def test_what_is_no_parquet_is_named() -> None:
    pytest.importorskip("pyarrow")
    Path("table.parquet").write_bytes(b"no Parquet" * 100)
    with pytest.raises(UsageError, match=r"^table.parquet cannot be read: .*$"):
        table(split="train", table="table.parquet")


@pytest.mark.parametrize(("separator", "encoding"), [(";", "gbk"), (r"\t", "utf-16"), (",", "utf-8-sig")])
def test_csv_of_other_kinds_says_the_same(separator: str, encoding: str) -> None:
    between = {r"\t": "\t"}.get(separator, separator)
    lines = ["颜色,x,target", *(f"{'红' if at % 2 else '蓝'},{at},{at % 2}" for at in range(4))]
    Path("table.csv").write_bytes("\n".join(lines).replace(",", between).encode(encoding))
    read = table(split="train", separator=separator, encoding=encoding, val_fraction=0, test_fraction=0)
    assert read.columns["颜色"] == {"texts": ["红", "蓝"]}
    assert read.open_rows("table.csv")[1][:, :2].tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]
    with pytest.raises(UsageError, match="--encoding utf-9: there is no such encoding"):
        table(split="train", encoding="utf-9")


def test_columns_that_say_nothing_are_named_with_the_flag_that_leaves_them_out() -> None:
    rows = [f",w{at},t{at},1,{at % 2}" for at in range(200)]
    Path("table.csv").write_text("\n".join(["void,who,my notes,y,target", *rows]))
    with pytest.raises(UsageError) as error:
        table(split="train", drop=("y",), test_fraction=0, val_fraction=0)
    assert str(error.value) == (
        "table.csv: in the train split 'void' is empty, 'who' has 200 different texts, such as 'w0', too many for "
        "categories, 'my notes' has 200 different texts, such as 't0', too many for categories: "
        "--drop y void who 'my notes'"
    )


def test_a_column_that_is_no_input_may_be_dropped_too(small: dict[str, Any]) -> None:
    assert table(split="train", **small, drop=("name",)).ids == table(split="train", **small).ids


def test_the_rows_of_a_group_are_in_one_split() -> None:
    there()
    Path("table.csv").write_text("who,x,kind\n" + "".join(f"0{at % 11},{at},{at % 2}\n" for at in range(88)))
    splits = [table(split=name, target="kind", group_column="who") for name in ("train", "val", "test")]
    who = [{row["who"] for row in one.raw_items([*range(len(one))])} for one in splits]
    assert [len(one) for one in who] == [9, 1, 1]
    assert len(set.union(*who)) == 11
    assert [len(one) for one in splits] == [72, 8, 8]
    assert splits[0].num_features == 1


def test_a_class_that_is_only_told_is_refused(small: dict[str, Any]) -> None:
    Path("table.csv").write_text(Path("table.csv").read_text().replace("green,yes", "green,perhaps"))
    with pytest.raises(UsageError, match="'part' leaves no row to learn from where 'kind' is perhaps"):
        table(split="train", **small)
    assert table(split="train", target="kind", drop=("name", "part")).classes == ["no", "perhaps", "yes"]


DATES = """when,target,part
1970-01-03,1,train
,2,train
1970-01-05 12:00,1,train
1969-12-31T00:00:00,2,train
9 May,1,test
"""


def dates(split: str = "train", **given: Any) -> Any:
    return table(split=split, split_column="part", **given)


def test_dates_are_numbers_of_days() -> None:
    Path("table.csv").write_text(DATES.replace("9 May", "1970-01-11T06:00+06:00"))
    learn, test = dates(), dates("test")
    # Days to learn from: 2, missing, 4.5, -1; median 2, mean 7.5 / 4, deviation from it of 2 2 4.5 -1.
    std = np.std([2, 2, 4.5, -1])
    said = {"median": 2, "mean": 1.875, "std": pytest.approx(std), "missing": True}
    assert learn.preprocessing["when"] == {**said, "unit": "days since 1970-01-01"}
    scaled = [(days - 1.875) / std for days in (2, 2, 4.5, -1, 10)]
    assert torch.cat([learn.features, test.features])[:, 0].tolist() == pytest.approx(scaled)
    assert torch.cat([learn.features, test.features])[:, 1].tolist() == [0, 1, 0, 0, 0]
    Path("new.csv").write_text('when\n""\n1970-01-11\n')
    assert learn.open_rows("new.csv")[1][:, 0].tolist() == pytest.approx([scaled[0], scaled[4]])
    Path("new.csv").write_text('when\n""\n')  # none at all
    assert learn.open_rows("new.csv")[1].tolist() == [[pytest.approx(scaled[0]), 1]]
    for value in ("10", "soon", "1970-13-01"):
        Path("new.csv").write_text(f"when\n{value}\n")
        with pytest.raises(UsageError, match=r"new\.csv: column 'when' is one of dates, such as 2024-05-31"):
            learn.open_rows("new.csv")


@pytest.mark.parametrize("value", ["9 May", "1970-02-30", "19700101"])
def test_a_column_that_is_not_all_dates_stays_one_of_texts(value: str) -> None:
    Path("table.csv").write_text(DATES.replace("9 May", value))
    assert len(dates().columns["when"]["texts"]) == 4


def test_among_dates_one_that_is_none_is_missing_where_that_is_told(capsys) -> None:
    cells = [f"1970-01-{1 + at}" for at in range(29)] + ["1970-02-30", "0000-00-00", "soon"]
    rows = [f"{cell},{'ab'[at % 2]}" for at, cell in enumerate(cells)]
    Path("table.csv").write_text("\n".join(["when,target", *rows]))
    flags: dict[str, Any] = {"split": "train", "val_fraction": 0, "test_fraction": 0}
    assert len(table(**flags).columns["when"]["texts"]) == 32
    assert "'when' is read as 32 categories; it has dates, such as 1970-01-1: --number" in capsys.readouterr().err
    learnt = table(**flags, number_columns=("when",)).columns["when"]
    assert (learnt["median"], learnt["unit"], learnt["missing"]) == (14, "days since 1970-01-01", True)
    assert "'when' is read as dates: '1970-02-30', '0000-00-00', 'soon' is missing" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["datetime64[s]", "datetime64[ns, Asia/Shanghai]", "object"])
def test_dates_in_parquet_say_the_same_as_in_csv(kind: str) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    Path("table.csv").write_text(DATES.replace(" 12:00", "").replace("9 May", "1970-01-11"))
    rows = pandas.read_csv("table.csv")
    days = pandas.to_datetime(rows["when"], format="ISO8601")
    if kind == "object":
        rows["when"] = days.dt.date  # Parquet knows days without a time too
    else:
        rows["when"] = days.dt.tz_localize("UTC").astype(kind) if "," in kind else days.astype(kind)
    rows.to_parquet("table.parquet")
    one, other = dates(), dates(table="table.parquet")
    assert one.preprocessing == other.preprocessing
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.open_rows("table.parquet")[1], other.open_rows("table.csv")[1])


def test_rows_of_parquet_count_from_0_whatever_pandas_calls_them() -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"x": [1.0, 2.0, 3.0], "target": [0, 1, 2]}, index=[7, 7, 9]).to_parquet("table.parquet")
    read = table(split="train", table="table.parquet", val_fraction=0, test_fraction=0)
    assert {read.ids[at]: int(target) for at, target in enumerate(read.targets)} == {"0": 0, "1": 1, "2": 2}


def test_a_scaled_target_goes_back_to_its_unit() -> None:
    write(100)
    given = {"target": "number", "drop": ("kind",), "split": "train"}
    scaled, plain = table(**given, scale_target=True), table(**given)
    torch.testing.assert_close(scaled.inverse_transform(scaled.targets[:, None]), plain.targets[:, None])
    assert torch.equal(plain.inverse_transform(plain.targets), plain.targets)
    assert abs(scaled.targets.mean()) < 1e-5


KINDS = """id,whole,part,gap,truth,truth_gap,text,text_gap,mixed,day,excel,zone,big,zero,target
00001,1,0.5,1,TRUE,TRUE,a,x,1,2024-05-31,2021/1/1,2024-05-31T10:00:00Z,9007199254741003,003,NA
00002,2,-1.25,,FALSE,FALSE,b,,B,2024-06-01,2021/12/31,2024-06-01T10:00:00+08:00,9007199254741005,014,b
00003,3,1e3,3,TRUE,,a,y,01,,2021/2/3,,9007199254741003,003,NA
00004,4,7,4,FALSE,FALSE,c,NA,2.0,2024-06-03,2021/3/4,2024-07-01T10:00:00Z,9007199254741009,020,b
"""


@pytest.fixture
def kinds() -> dict[str, Any]:
    head, *rows = KINDS.splitlines()
    Path("table.csv").write_text("\n".join([head, *(rows * 10)]) + "\n")
    return {"id_column": "id", "val_fraction": 0.1, "test_fraction": 0.1}


def test_the_table_itself_is_predicted_as_it_was_trained_on(kinds: dict[str, Any]) -> None:
    """By hand too: each kind of column against pandas."""
    pandas = pytest.importorskip("pandas")
    learn = table(split="train", **{**kinds, "val_fraction": 0, "test_fraction": 0, "stratify": False})
    ids, features = learn.open_rows("table.csv")
    order = [learn.ids.index(one) for one in ids[:4]]
    torch.testing.assert_close(features[:4], learn.features[order])
    assert ids[:4] == ["00001", "00002", "00003", "00004"]
    assert learn.classes == ["NA", "b"]
    assert table(split="train", target="zero").classes == ["003", "014", "020"]
    rows = pandas.read_csv("table.csv")
    for name in ("whole", "part", "zero"):
        assert learn.columns[name]["mean"] == pytest.approx(rows[name].mean())
        assert learn.columns[name]["std"] == pytest.approx(rows[name].std(ddof=0))
    assert learn.columns["gap"]["median"] == rows["gap"].median()
    days = (pandas.to_datetime(rows["excel"]) - pandas.Timestamp("1970-01-01")).dt.days
    assert learn.columns["excel"]["mean"] == pytest.approx(days.mean())
    assert learn.columns["truth_gap"] == {"texts": ["False", "True", "missing"]}


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
def test_rows_are_predicted_without_the_table_of_the_training(kinds: dict[str, Any], file: str) -> None:
    if file == "table.parquet":
        pytest.importorskip("pyarrow")
        rows = pytest.importorskip("pandas").read_csv("table.csv", dtype={"id": str})
        rows.fillna({"target": "NA"}).to_parquet(file)
    flags = ["--dataset", "csv_table", "--data_dir", ".", "--table", file, "--id_column", "id", "--val_fraction", "0.2"]
    main.main([*gallery.QUICK, *flags, *NET, "--max_epochs", "3"])
    main.main(["predict", "--ckpt_path", "last"])
    test = read_predictions("predictions.csv")
    Path(file).rename("new" + Path(file).suffix)
    main.main(["predict", "--ckpt_path", "last", "--rows", "new" + Path(file).suffix])
    new = {row["id"]: row for row in read_predictions("predictions_new.csv")}
    assert test
    for row in test:
        for name in ("p0", "p1"):
            assert float(new[row["id"]][name]) == pytest.approx(float(row[name]), abs=1e-5)


def read_predictions(name: str) -> list[dict[str, str]]:
    with Path("lightning_logs/version_0", name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_whole_numbers_of_parquet_stay_whole() -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    big = pandas.array([9007199254741003, None, 7], dtype="Int64")
    pandas.DataFrame({"id": big, "x": [1.0, 2, 3], "target": ["a", "b", "a"]}).to_parquet("table.parquet")
    learn = table(split="train", table="table.parquet", id_column="id", val_fraction=0, test_fraction=0, drop=())
    assert sorted(learn.ids) == ["", "7", "9007199254741003"]


def comma(rows: int) -> None:
    lines = (f"{at % 7};{at},25;{at % 2}" for at in range(rows))
    Path("table.csv").write_text("\n".join(["x;price;target", *lines]) + "\n")


@pytest.mark.parametrize("rows", [40, 300])
def test_a_comma_before_the_fraction(rows: int) -> None:
    comma(rows)
    given = {"separator": ";", "val_fraction": 0, "test_fraction": 0}
    with pytest.raises(UsageError, match=r"'price' has numbers with a ',', such as .*,25: --decimal ,") as error:
        table(split="train", **given)
    assert "--drop" not in str(error.value)
    price = table(split="train", decimal=",", **given).columns["price"]
    assert price["mean"] == pytest.approx(np.mean(np.arange(rows) + 0.25))
    if rows == 40:
        assert len(table(split="train", decimal=".", **given).columns["price"]["texts"]) == rows
    with pytest.raises(UsageError, match="'price' has numbers with a ','"):
        table(split="train", target="price", **given)
    told = table(split="train", target="price", decimal=",", **given)
    assert sorted(told.targets.tolist()) == [at + 0.25 for at in range(rows)]


def test_a_comma_is_given_on_the_command_line() -> None:
    there()
    comma(60)
    flags = ["--dataset", "csv_table", "--data_dir", ".", "--separator", ";", "--decimal", ",", *NET]
    main.main([*gallery.QUICK, *flags, "--max_epochs", "1"])
    record = json.loads(Path("lightning_logs/version_0/data.json").read_text())
    assert record["preprocessing"]["price"]["median"] > 10


LOOKS = {
    "32.2 km": "'area' has numbers with a unit, such as .* km: --number_columns area",
    "1e32a": "'area' has numbers with a unit, such as .*a: --number_columns area",
    "05/31/2021": "'area' has dates, such as .*: written as 2024-05-31 they are read as days",
}


@pytest.mark.parametrize("rows", [40, 300])
@pytest.mark.parametrize("cell", LOOKS)
def test_what_looks_like_something_else_is_said(cell: str, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell.replace("32", str(at)).replace("2021", str(1000 + at)) for at in range(rows)]
    lines = (f"{at % 7},{one},{at % 2}" for at, one in enumerate(cells))
    Path("table.csv").write_text("\n".join(["x,area,target", *lines]) + "\n")
    if rows > 100:
        with pytest.raises(UsageError, match=LOOKS[cell]) as error:
            table(split="train", val_fraction=0, test_fraction=0)
        assert "--drop" not in str(error.value)
        return
    table(split="train", val_fraction=0, test_fraction=0)
    said = LOOKS[cell].replace("'area' has", "'area' is read as 40 categories; it has")
    assert re.search(said, capsys.readouterr().err)


def test_the_index_of_pandas_is_left_out_and_a_name_may_have_a_comma(capsys: pytest.CaptureFixture[str]) -> None:
    pandas = pytest.importorskip("pandas")
    there()
    notes = [f"note {at}" for at in range(200)]
    pandas.DataFrame({"x": range(200), "Notes, free": notes, "target": [0, 1] * 100}).to_csv("table.csv")
    flags = ["--dataset", "csv_table", "--data_dir", ".", *NET]
    with pytest.raises(SystemExit, match="2"):
        main.main([*gallery.QUICK, *flags])
    assert "--drop 'Notes, free'" in capsys.readouterr().err
    main.main([*gallery.QUICK, *flags, "--drop", "Notes, free", "--max_epochs", "1"])
    assert capsys.readouterr().err.count("'Unnamed: 0' counts the rows, as pandas writes its index") == 1
    record = json.loads(Path("lightning_logs/version_0/data.json").read_text())
    assert list(record["preprocessing"]) == ["x"]
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "--ckpt_path", "last", "--drop", "nothing"])


def test_rows_swapped_within_a_class_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    there()
    write(100)
    main.main([*gallery.QUICK, *FLAGS, "--max_epochs", "1"])
    head, *rows = Path("table.csv").read_text().splitlines()
    Path("table.csv").write_text("\n".join([head, *sorted(rows, key=lambda row: row.rsplit(",")[-1])]) + "\n")
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "last"])
    assert "the train split has other items, or the same in another order" in capsys.readouterr().err


def column(cells: list[str], target: Any = None, **given: Any) -> Any:
    """The train split, of all rows in the order of the file: `cells`, a number, and a target of two classes."""
    lines = [f'"{one}",{at % 7},{at % 2 if target is None else target[at]}' for at, one in enumerate(cells)]
    Path("table.csv").write_text("\n".join(["c,x,target", *lines]) + "\n")
    read = table(split="train", val_fraction=0, test_fraction=0, **given)
    order = torch.tensor([int(one) for one in read.ids]).argsort()
    read.features, read.targets = read.features[order], read.targets[order]
    return read


WRITTEN = {
    "percent": ("{}.5%", lambda at: at + 0.5, {}),
    "dollars": ("-${}.25", lambda at: -(at + 0.25), {}),
    "euros": ("{} €", lambda at: at, {}),
    "area": ("{}.2㎡", lambda at: at + 0.2, {}),
    "degrees": ("{}.5 °C", lambda at: at + 0.5, {}),
    "blanks": ("1 00{}.5", lambda at: 1000.5 + at, {}),
    "narrow": ("2\u202f300\u202f00{}", lambda at: 2_300_000 + at, {}),
    "commas": ("$1,00{}.5", lambda at: 1000.5 + at, {"decimal": "."}),
    "points": ("1.00{},5", lambda at: 1000.5 + at, {"decimal": ","}),
}


@pytest.mark.parametrize("gap", ["", "?", "-", "N.A.", "Unknown"])
@pytest.mark.parametrize("written", WRITTEN)
def test_numbers_with_a_unit_marks_of_thousands_and_gaps_are_numbers(written: str, gap: str, capsys) -> None:
    form, value, given = WRITTEN[written]
    known = np.array([value(at) for at in range(10)])
    cells = [form.format(at) for at in range(10)]
    number = {"drop": ("c",), "target_kind": "number", **given}
    assert column(cells, [f'"{one}"' for one in cells], **number).targets.tolist() == pytest.approx(known)
    capsys.readouterr()
    read = column([*cells, gap], **given)
    values = np.append(known, np.median(known))
    assert read.columns["c"]["mean"] == pytest.approx(values.mean())
    np.testing.assert_allclose(read.features[:, 0], (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-5)
    assert read.features[:, 1].tolist() == [0] * 10 + [1]
    said = capsys.readouterr().err
    assert f"'c' is read as numbers: {cells[0]!r} is {value(0):g}" in said
    assert not gap or f"{gap!r} is missing" in said
    Path("new.csv").write_text(f'x,c\n1,"{cells[3]}"\n1,"{gap}"\n')
    torch.testing.assert_close(read.open_rows("new.csv")[1][:, :2], read.features[[3, 10], :2])


@pytest.mark.parametrize(("cell", "said"), [("3 g", "not '3 g'"), ("3", "not '3'"), ("a", "not 'a'")])
def test_rows_in_another_unit_are_refused(cell: str, said: str) -> None:
    read = column([f"{at}.5%" for at in range(10)])
    Path("new.csv").write_text(f"x,c\n1,{cell}\n")
    with pytest.raises(UsageError, match=f"new.csv: column 'c' is one of numbers with the unit %, {said}"):
        read.open_rows("new.csv")


def test_a_target_with_a_unit_is_a_number_and_one_that_may_be_is_asked_for(capsys) -> None:
    percent = column(["a", "b"] * 15, [f"{at}.5%" for at in range(30)])
    assert percent.targets.tolist() == [at + 0.5 for at in range(30)]
    assert "'target' is read as numbers: '0.5%' is 0.5" in capsys.readouterr().err
    forms = {"with a unit, such as 0.5 km": "{}.5 km", "among texts such as 'old'": "{}.5", "dates": "2024-05-{:02}"}
    for said, form in forms.items():
        texts = [form.format(at + (said == "dates")) for at in range(30)]
        texts = ["old", *texts[1:]] if "old" in said else texts
        with pytest.raises(
            UsageError, match=rf"'target' has .*{said}.*: --target_kind number, or --target_kind classes"
        ):
            column(["a", "b"] * 15, texts)
        assert column(["a", "b"] * 15, texts, target_kind="classes").classes == sorted(texts)
        if "old" not in said:
            first = 19844 if said == "dates" else 0.5  # days from 1970 to the first of May, 2024
            read = column(["a", "b"] * 15, texts, target_kind="number")
            assert read.targets.tolist() == [first + at for at in range(30)]
    assert column(["a", "b"] * 15, ["1楼", "2楼", "3+"] * 10).num_classes == 3


def test_a_column_is_read_as_numbers_where_that_is_told() -> None:
    cells = ["old", *(f"{at} km" for at in range(1, 200)), "5"]
    told = column(cells[:-1], number_columns=("c",))
    values = np.array([100, *range(1, 200)])  # the median of 1 to 199 is 100
    assert told.columns["c"]["std"] == pytest.approx(values.std())
    assert told.features[:, 1].tolist() == [1] + [0] * 199
    with pytest.raises(UsageError, match="'c' has 201 different texts, such as '1 km', too many for categories"):
        column(cells, number_columns=("c",))  # of two units, "km" and none


def test_floors_and_bands_stay_categories_without_a_word(capsys) -> None:
    for texts in (["1楼", "2楼", "3楼"], ["0", "1", "2", "3+"], ["0-10", "10-20"], ["A1", "A2"], ["1:30", "2:30"]):
        assert column(texts * 10).columns["c"]["texts"] == texts
    assert "is read as" not in capsys.readouterr().err


def test_dates_with_gaps_are_dates(capsys) -> None:
    read = column(["2024-05-31", "?", "2024-06-02"])
    assert read.columns["c"]["median"] == 19875  # 2024-06-01
    assert "'c' is read as dates: '?' is missing" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [("dog", "dog "), ("hot dog", "hot  dog"), ("caf\u00e9", "cafe\u0301")])
def test_texts_that_look_alike_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"'c' has {pair[0]!r} and {pair[1]!r}, which look alike"):
        column([*pair, "cat"] * 4)
    with pytest.raises(UsageError, match=f"'target' has {pair[0]!r} and {pair[1]!r}, which look alike"):
        column(["a"] * 8, [*pair] * 4)


def test_what_was_not_learnt_is_said(capsys) -> None:
    read = column(["red", "blue"] * 5)
    Path("new.csv").write_text("x,c\n1,red\n1,green\n1,\n1,Red\n")
    assert read.open_rows("new.csv")[1][:, :2].tolist() == [[0, 1], [0, 0], [0, 0], [0, 0]]
    said = "new.csv: 'c' has texts that were not learnt in 3 of the rows, such as 'green'"
    assert said in capsys.readouterr().err


def test_what_is_said_of_new_rows_is_said_once_for_all_processes(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    read = column([f"{at}.5" for at in range(9)], number_columns=("c",))
    words = column(["red", "blue"] * 5)
    Path("new.csv").write_text("x,c\n1,3.5\n1,?\n1,abc\n1,-\n")
    capsys.readouterr()
    features = read.open_rows("new.csv")[1][:, 0]
    np.testing.assert_allclose(features, [-1 / np.std(np.arange(9)), 0, 0, 0], atol=1e-6)  # 4.5 is mean and median
    assert "new.csv: 'c' is read as numbers: '?', 'abc', '-' is missing\n" in capsys.readouterr().err
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    read.open_rows("new.csv")
    words.open_rows("new.csv")
    column([f"{at}%" for at in range(9)])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("cell", "decimal", "mend"), [("1,234", None, "--decimal , where"), ("1.5", ",", "take")])
def test_a_number_with_another_mark_is_never_missing(cell: str, decimal: Any, mend: str) -> None:
    told = {"number_columns": ("c",), "decimal": decimal}
    said = f"'c' has numbers with a {cell[1]!r}, such as {cell}: {mend}"
    with pytest.raises(UsageError, match=re.escape(f"table.csv: {said}")):
        column(["old", "3", "5 ", f" {cell}"], **told)
    read = column(["old", "3", "5"], **told)
    Path("new.csv").write_text(f'x,c\n1,2\n1,"{cell}"\n')
    with pytest.raises(UsageError, match=re.escape(f"new.csv: {said}")):
        read.open_rows("new.csv")
    with pytest.raises(UsageError, match=re.escape(said.replace("'c'", "'target'"))):
        column(["a"] * 3, ["3", "5", f'"{cell}"'], target_kind="number", decimal=decimal)
    assert column(["old", "3", "5", "1,234"], number_columns=("c",), decimal=".").features[3, 0] > 0


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e999"])
def test_infinite_values_beside_a_gap_are_refused(cell: str) -> None:
    with pytest.raises(UsageError, match="'c' has infinite values"):
        column(["1", "?", cell])
    read = column(["1", "?", "2"])
    Path("new.csv").write_text(f"x,c\n1,?\n1,{cell}\n")
    with pytest.raises(UsageError, match=r"new\.csv: 'c' has infinite values"):
        read.open_rows("new.csv")


def test_infinite_values_of_a_column_that_is_left_out_do_no_harm() -> None:
    cells = ["1.5", "inf", "-inf", "2"]
    assert column(cells, drop=("c",)).num_features == 1
    assert sorted(table(split="train", id_column="c", val_fraction=0, test_fraction=0).ids) == sorted(cells)
    Path("new.csv").write_text("x,other\n1,inf\n")
    assert len(table(split="train", drop=("c",), val_fraction=0, test_fraction=0).open_rows("new.csv")[0]) == 1
    with pytest.raises(UsageError, match="'target' has infinite values"):
        column(["a"] * 4, cells)


def test_infinite_values_in_parquet_are_refused_where_they_are_used() -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"x": [1.0, 2, 3], "target": [0.5, np.inf, 1.5]}).to_parquet("table.parquet")
    with pytest.raises(UsageError, match="'target' has infinite values"):
        table(split="train", table="table.parquet")


@pytest.mark.parametrize(
    "texts",
    [
        *(["none", "null"], ["none", "1", "2"], ["?", "yes", "no"], ["NA", "1"], ["true", "none"]),
        *(["003", "014"], ["nan", "inf"], ["-", "+"], ["null", "003", "true"]),
    ],
)
def test_classes_are_called_as_they_are_written(texts: list[str]) -> None:
    read = column(["a"] * 4 * len(texts), texts * 4, target_kind="classes")
    assert sorted(read.classes) == sorted(texts)
    assert [read.classes[number] for number in read.targets] == texts * 4


@pytest.mark.parametrize("texts", [["TRUE", "FALSE"], ["true", "false"], ["True", "False"]])
def test_truth_values_are_called_as_pandas_calls_them(texts: list[str]) -> None:
    read = column(["a"] * 8, texts * 4)
    assert (read.classes, read.targets.tolist()) == (["False", "True"], [1, 0] * 4)


def test_classes_that_are_one_number_are_said(capsys) -> None:
    read = column(["a"] * 12, ["003", "3", "4"] * 4, target_kind="classes")
    assert (read.classes, read.targets.tolist()) == (["3", "4"], [0, 0, 1] * 4)
    assert "table.csv: '003', '3' in 'target' are taken for one class" in capsys.readouterr().err


def test_rows_behind_an_open_quote_are_said(capsys) -> None:
    Path("table.csv").write_text('a,b,target\n1,x,0\n2,"y,1\n3,z,0\n4,w",1\n5,x,0\n')
    assert len(table(split="train", val_fraction=0, test_fraction=0)) == 3
    said = r"table.csv: 'b' of row 1, from 0, has several lines: 'y,1\n3,z,0\n4,w'; is a quote open?"
    assert said in capsys.readouterr().err
    Path("table.csv").write_text('a,b,target\n1,"x\ny",0\n2,y,1\n')
    table(split="train", val_fraction=0, test_fraction=0)
    assert "several lines" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["\u2212{}.5", "\uff0b{}\uff0e5", "{}\uff0e5\uff05"])
def test_signs_of_print_and_full_width_are_read(form: str, capsys) -> None:
    sign = -1 if "\u2212" in form else 1
    read = column([form.format(at) for at in range(30)])
    assert read.columns["c"]["mean"] == sign * 15
    assert f"'c' is read as numbers: {form.format(0)!r} is {sign * 0.5:g}" in capsys.readouterr().err
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in "120")
    assert column(["a", "b"], [wide, "3"], target_kind="number").targets.tolist() == [120, 3]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (["{}%", "{}"], "it has numbers in several units, such as 0% and "),
        (["({}.5)"], "it has texts with digits, such as '(0.5)'"),
        (["USD {}"], "it has texts with digits, such as 'USD 0'"),
        (["{}:30"], "it has texts with digits, such as '0:30'"),
    ],
)
def test_what_is_read_as_many_categories_is_said(form: list[str], said: str, capsys) -> None:
    column([form[at % len(form)].format(at) for at in range(30)])
    assert f"'c' is read as 30 categories; {said}" in capsys.readouterr().err


def test_numbers_whose_square_is_infinite_are_refused() -> None:
    with pytest.raises(UsageError, match="'c' has infinite values, or nearly infinite ones"):
        column(["1", "2", "1.7976931348623157e308"])


@pytest.mark.parametrize("scale_target", [False, True])
def test_targets_beyond_float32_are_refused(scale_target: bool) -> None:
    with pytest.raises(UsageError, match="'target' has infinite values, or nearly infinite ones"):
        column(["a", "b", "c"], ["0.5", "1.5", "1e39"], scale_target=scale_target)
    largest = float(np.finfo(np.float32).max)
    assert column(["a", "b", "c"], [0.5, 1.5, largest]).targets.tolist() == [0.5, 1.5, largest]


def test_lists_in_cells_are_named() -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1, 2, 3, 4], "many": [[1], None, [2], [3]], "target": [0, 1, 0, 1]})
    frame.to_parquet("table.parquet")
    with pytest.raises(UsageError, match="'many' has lists or dicts in its cells: --drop many"):
        table(split="train", table="table.parquet")
    assert table(split="train", table="table.parquet", drop=("many",)).num_features == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table.zip", "table.zip cannot be read: File is not a zip file"),
        ("table.csv.gz", "table.csv.gz cannot be read: Compressed file ended"),
        ("table.xlsx", "table.xlsx is a zip file, as Excel writes: save the table as CSV"),
    ],
)
def test_packed_files_that_are_no_table(name: str, said: str) -> None:
    packed = (
        gzip.compress(b"x,target\n" + b"1,0\n2,1\n" * 9)[:-12] if name.endswith("gz") else b"PK\x03\x04\xff\xfe" * 9
    )
    Path(name).write_bytes(packed)
    with pytest.raises(UsageError, match=said):
        table(split="train", table=name)


def test_cells_of_blanks_are_missing(capsys) -> None:
    read = column(["1", " ", "2.5", "  "])
    assert read.columns["c"]["median"] == 1.75
    assert read.features[:, 1].tolist() == [0, 1, 0, 1]
    with pytest.raises(UsageError, match="no 'target' in 2 of the rows, the first of them row 1"):
        column(["a"] * 6, ["yes", " ", "no", "  ", "no", "yes"])


@pytest.mark.parametrize("pair", [("Red", "red"), ("\uff11\u697c", "1\u697c")])
def test_categories_that_differ_in_case_or_width_are_said(pair: tuple[str, str], capsys) -> None:
    assert len(column([*pair, "blue"] * 4).columns["c"]["texts"]) == 3
    first, second = sorted(pair)
    said = f"'c' is read as 3 categories; it has {first!r} and {second!r}, which differ only in case, width or blanks"
    assert said in capsys.readouterr().err


def test_a_number_that_is_missing_for_the_first_time_is_said(capsys) -> None:
    read = column(["1", "2", "6"])
    Path("new.csv").write_text("x,c\n1,\n1,5\n1,\n")
    features = read.open_rows("new.csv")[1][:, 0]
    torch.testing.assert_close(features, torch.tensor([-1, 2, -1]) / np.std([1, 2, 6]))  # mean 3, median 2
    said = "new.csv: 'c' is missing in 2 of the rows, and was in none to learn from: its median is taken"
    assert said in capsys.readouterr().err


def test_marks_alone_are_texts() -> None:
    starred = column(["*", "", "*", ""])
    assert starred.columns["c"] == {"texts": ["*", "missing"]}
    assert starred.features[:, :2].tolist() == [[1, 0], [0, 1]] * 2
    assert column(["Unknown", "None", "missing", "unknown."]).columns["c"]["texts"][0] == "Unknown"
    assert column(["Unknown", "none"] * 2).columns["c"]["texts"] == ["Unknown", "none"]
    assert column(["a"] * 4, ["unknown", "none"] * 2).classes == ["none", "unknown"]
    for empty, given in (([""] * 4, {}), (["?"] * 4, {"number_columns": ("c",)})):
        with pytest.raises(UsageError, match="'c' is empty"):
            column(empty, **given)
    with pytest.raises(UsageError, match="no 'target' in 4 of the rows"):
        column(["a"] * 4, ["?"] * 4)


@pytest.mark.parametrize(
    ("decimal", "cells", "numbers"),
    [
        (None, [" 1", "-2.5", "3e2", "+4."], [1, -2.5, 300, 4]),
        (",", ["1.000", "2,5", "3e2", "4"], [1000, 2.5, 300, 4]),
        (".", ["1,000", "2.5", "3e2", "4"], [1000, 2.5, 300, 4]),
    ],
)
def test_numbers_of_a_target_are_exact(decimal: Any, cells: list[str], numbers: list[float]) -> None:
    read = column(["a"] * 4, [f'"{one}"' for one in cells], target_kind="number", decimal=decimal)
    assert read.targets.tolist() == numbers


def test_a_column_that_says_the_target_is_named(capsys) -> None:
    column(["no", "yes"] * 20)
    said = "'c' says the same as 'target' in every row; unless it is known before: --drop c"
    assert said in capsys.readouterr().err
    column([f"{at}.5" for at in range(40)], [f"{at}.50" for at in range(40)])
    assert said in capsys.readouterr().err
    column([f"{at}.5" for at in range(40)], [f"{at}.6" for at in range(40)])
    column(["no", "yes", "perhaps", "yes"] * 10)
    assert "says the same" not in capsys.readouterr().err


def test_a_truth_value_that_is_missing_for_the_first_time(capsys) -> None:
    learnt = column(["True", "False"] * 20, ["a", "a", "b", "b"] * 10)
    Path("new.csv").write_text("c,x\nFALSE,1\n,1\nTrue,1\n")
    features = learnt.open_rows("new.csv")[1]
    assert features[:, 0].tolist() == [-1, 0, 1]  # mean and deviation of the training rows are 0.5
    assert "'c' is missing in 1 of the rows, and was in none to learn from" in capsys.readouterr().err


def test_scaling_classes_is_said_to_have_no_effect(small: dict[str, Any], capsys) -> None:
    table(split="train", scale_target=True, **small)
    assert "table.csv: 'kind' has classes: --scale_target has no effect" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_short_floats_of_parquet_are_read_without_a_warning(kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    rows = pandas.DataFrame({"x": np.arange(600.0).astype(kind), "target": ["a", "b"] * 300})
    rows.to_parquet("table.parquet")
    learnt = table(split="train", table="table.parquet", val_fraction=0, test_fraction=0)
    assert learnt.columns["x"]["std"] == pytest.approx(np.arange(600.0).std())


def test_a_table_of_a_target_alone_is_refused() -> None:
    Path("table.csv").write_text("target\n" + "0\n1\n" * 10)
    with pytest.raises(UsageError, match=r"table\.csv: no column but 'target' is left to learn from"):
        table(split="train")


@pytest.mark.parametrize(
    ("cells", "dates"),
    [
        ([f"202401{day:02}" for day in range(1, 31)], True),
        (["", *(f"202401{day:02}" for day in range(1, 30))], True),
        ([f"202401{day:02}" for day in range(10, 40)], False),
        ([f"{day}" for day in range(1, 31)], False),
    ],
)
def test_whole_numbers_that_may_be_dates_are_said(cells: list[str], dates: bool, capsys) -> None:
    assert column(cells).columns["c"]["mean"] > 0
    assert ("'c' is read as numbers, and 20240101 may be a date" in capsys.readouterr().err) == dates


@pytest.mark.parametrize("first", [2**60, 2**63, 2**64])
def test_whole_numbers_that_are_rounded_are_said(first: int, capsys) -> None:
    cells = [str(first + at) for at in range(30)]
    column(cells)
    said = "'c' has whole numbers beyond 2^53, which are rounded; where they name the rows: --id_column c"
    assert said in capsys.readouterr().err
    named = table(split="train", id_column="c", val_fraction=0, test_fraction=0)
    assert sorted(named.ids) == cells
    kinds = [str(first + at % 3) for at in range(30)]
    if first < 2**64:
        assert column(["a"] * 30, kinds).classes == kinds[:3]
    else:
        with pytest.raises(UsageError, match="'target' has whole numbers beyond 2"):
            column(["a"] * 30, kinds)
