"""data/csv_table.py: what is made of a table. Goes with it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main
from engine.discovery import UsageError
from tests import gallery

NET = ["--model_name", "tests.toys.Net", "--hidden_dim", "16", "--lr", "0.05", "--num_threads", "1"]
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
    assert Path("lightning_logs/version_0/predictions.txt").read_text().split() == [str(at) for at in range(60)]


def test_another_table_is_read_as_the_first(small: dict[str, Any]) -> None:
    learnt = table(split="train", **small)
    Path("new.csv").write_text("colour,name,size\nred,x,8\nnone,7,\n")
    ids, features = learnt.open_rows("new.csv")
    assert ids == ["x", "7"]
    assert torch.equal(features[0, :2], learnt.features[2, :2])  # a size of 8
    assert features[:, 2:].tolist() == [[0, 0, 1], [0, 0, 0]]  # blue, missing, red; none of them
    for text, said in (
        ("name,size\nx,8\n", "new.csv has no column 'colour'. It has: name, size"),
        ("name,size,colour\nx,big,red\n", "new.csv: column 'size' is one of numbers: could not convert .* 'big'"),
    ):
        Path("new.csv").write_text(text)
        with pytest.raises((UsageError, ValueError), match=said):
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
    for name, said in (("gone.csv", "there is no such file"), ("empty.csv", "there is no row in it")):
        with pytest.raises(SystemExit, match="2"):
            main.main(["predict", "--ckpt_path", "last", "--rows", name])
        assert f"--rows {name}: {said}" in capsys.readouterr().err


def test_a_number_is_told() -> None:
    there()
    write()
    flags = [*gallery.QUICK, "--dataset", "csv_table", "--data_dir", ".", "--target", "number", "--drop", "kind", *NET]
    more = ["--loss", "mse_loss", "--scale_target", "--metrics", "mae", "r2"]
    metrics = main.main([*flags, *more, "--max_epochs", "15"])
    assert metrics["test_r2"] > 0.9  # the mean: 0
    assert gallery.predicts().shape == (60, 1)


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
    assert table(split="train", task=task, test_fraction=0, val_fraction=0).targets.dtype == kind


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
    "there is no nothing.csv": ["--table", "nothing.csv"],
    "has texts in 'kind'": ["--task", "number"],
    "--balanced needs a class for each item, which CsvTable does not have": [
        *["--target", "size", "--split_column", "none", "--table", "numbers.csv", "--loss", "mse_loss", "--balanced"]
    ],
    "leave nothing to learn": ["--val_fraction", "0.5", "--test_fraction", "0.5"],
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


BROKEN = {
    "table.csv cannot be read: No columns": "",
    "table.csv cannot be read: Error tokenizing": "x,target\n1,2\n1,2,3\n",
    "1 rows have no 'target', the first of them row 1": "x,target\n1,2\n1,\n3,4\n",
    "table.csv has infinite values in 'x'": "x,target\n1,2\ninf,2\n3,4\n",
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_file_is_named(said: str) -> None:
    Path("table.csv").write_text(BROKEN[said])
    with pytest.raises(ValueError, match=re.escape(said)):
        table(split="train", test_fraction=0, val_fraction=0)


@pytest.mark.parametrize(
    ("said", "values"),
    [("empty in the training part: --drop x", [""] * 200), ("200 different texts", [f"t{at}" for at in range(200)])],
)
def test_a_column_that_says_nothing_is_named(said: str, values: list[str]) -> None:
    Path("table.csv").write_text("x,y,target\n" + "".join(f"{one},1,{at % 2}\n" for at, one in enumerate(values)))
    from engine.discovery import UsageError

    with pytest.raises(UsageError, match=said):
        table(split="train", test_fraction=0, val_fraction=0)
