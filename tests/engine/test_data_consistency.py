"""What a run keeps of its data, so that no checkpoint is measured on what it was trained on."""

import json
import random
import shutil
from pathlib import Path

import main
import numpy as np
import pytest
import torch
import toys
from engine.datamodule import splits

RUN = Path("lightning_logs/version_0")
RECORD = RUN / "data.json"
FLAGS = ["--dataset", "toys.FromFile", "--max_epochs", "1", "--no-pictures"]


@pytest.mark.parametrize("action", [["predict"], ["test"], ["export"], ["--max_epochs", "2"]])
def test_data_that_says_something_else_is_refused(train, action: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(toys.Named, "preprocessing", {"mean": 1.5, "words": ["a", "b"]}, raising=False)
    train("--max_epochs", 1, "--dataset", "toys.Named")
    kept = json.loads(RECORD.read_text())
    assert {name: kept[name] for name in ("dataset", "classes", "preprocessing")} == {
        "dataset": "Named",
        "classes": ["a", "b", "c"],
        "preprocessing": {"mean": 1.5, "words": ["a", "b"]},
    }
    main.main(["validate", "--ckpt_path", "version_0"])
    monkeypatch.setattr(toys.Named, "preprocessing", {"mean": 1.5, "words": ["b", "a"]})
    with pytest.raises(SystemExit, match="2"):
        main.main([*action, "--ckpt_path", "version_0"])
    assert "Named is not the data that the checkpoint was trained on: other words." in capsys.readouterr().err
    assert json.loads(RECORD.read_text()) == kept
    main.main(["test", "--ckpt_path", "version_0", "--dataset", "toys.Blobs"])  # other data is no mistake


def write(targets: list[int]) -> None:
    Path("items.txt").write_text("".join(f"item{at} {target}\n" for at, target in enumerate(targets)))


def lines() -> list[str]:
    return Path("items.txt").read_text().splitlines(keepends=True)


CHANGES = {
    "grown": (lambda old: [*old, "new 1\n"], "the train split has 81 items, and had 80"),
    "shrunk": (lambda old: old[20:], "the train split has 64 items, and had 80; the val split has 8 items, and had 10"),
    "reordered": (
        lambda old: random.Random(0).sample(old, len(old)),
        "the train split has other items, or the same in",
    ),
}


def test_a_folder_of_the_same_name_within_the_data_is_part_of_a_name(train, capsys) -> None:
    Path("a").mkdir()
    names = [f"item{number} {number % 3}\n" for number in range(100)]
    Path("a/items.txt").write_text("".join(f"a/{name}" for name in names))
    train(*FLAGS, "--data_dir", "a")
    main.main(["test", "--ckpt_path", str(RUN), "--data_dir", "./a"])
    Path("a/items.txt").write_text("".join(names))
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", str(RUN)])
    assert "has other items" in capsys.readouterr().err


@pytest.mark.parametrize("knows", ["ids", "targets", "nothing"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("lone", [False, True])
def test_items_that_have_changed_are_refused(train, change: str, knows: str, lone: bool, capsys) -> None:
    write([at % 3 for at in range(100)])
    train(*FLAGS, "--knows", knows)
    ckpt = str(RUN)
    if lone:
        ckpt = shutil.move(RUN / "checkpoints" / "last.ckpt", "moved.ckpt")
        shutil.rmtree("lightning_logs")
    measured = main.main(["test", "--ckpt_path", ckpt])
    changed, said = CHANGES[change]
    Path("items.txt").write_text("".join(changed(lines())))
    for action in (["test"], ["--max_epochs", "2"], ["predict"]):
        with pytest.raises(SystemExit, match="2"):
            main.main([*action, "--ckpt_path", ckpt])
        assert said in capsys.readouterr().err
    assert main.main(["test", "--ckpt_path", ckpt, "--new_data"]) != measured
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", ckpt, "--max_epochs", "2", "--new_data"])
    assert "--new_data is for validate, test and predict" in capsys.readouterr().err


class Files(toys.Blobs):
    """Points, each in a file of its name."""

    def __init__(self, data_dir: str = ".") -> None:
        self.paths = sorted(map(str, Path(data_dir).glob("*.txt")))
        super().__init__(len(self.paths))


@pytest.mark.parametrize("edit", ["renumbered", "longer"])
@pytest.mark.parametrize("border", ["", "0" * 1000])
def test_files_of_the_same_names_with_another_content_are_refused(train, edit: str, border: str, capsys) -> None:
    paths = [Path(f"{number:03}.txt") for number in range(300)]
    for path in paths:
        path.write_text(f"point {path}{border}")
    train("--dataset", "test_data_consistency.Files", "--max_epochs", 1)
    main.main(["test", "--ckpt_path", "last"])
    for path, other in zip(paths, reversed(paths), strict=True):
        path.write_text(f"point {other}{border}" if edit == "renumbered" else f"point {path}{border} again")
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "last"])
    assert "the test split has other items" in capsys.readouterr().err


class InMemory(toys.Dataset):
    """Points of points.npy with the same classes whatever they are; each is drawn anew with some noise."""

    num_features, num_classes = 2, 3

    def __init__(self, data_dir: str = ".") -> None:
        self.points = np.load("points.npy")
        self.targets = [at % 3 for at in range(len(self.points))]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.points[index]) + 0.1 * torch.rand(2), self.targets[index]


@pytest.mark.parametrize("change", ["other", "reordered", "columns", "one"])
def test_inputs_in_memory_that_change_beneath_the_same_targets_are_refused(
    train, change: str, capsys, monkeypatch
) -> None:
    points = np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    np.save("points.npy", points)
    train("--dataset", "test_data_consistency.InMemory", "--max_epochs", 1)
    torch.rand(1)  # the noise of items is not compared
    np.save("points.npy", points * (1 + 1e-7))  # rounded otherwise
    main.main(["test", "--ckpt_path", "last"])
    one = points.copy()
    one[40] += 3
    changed = {"other": points * 1.1, "reordered": np.roll(points, 3, 0), "columns": points[:, ::-1].copy(), "one": one}
    np.save("points.npy", changed[change])
    for action in (["test"], ["--max_epochs", "2"]):
        with pytest.raises(SystemExit, match="2"):
            main.main([*action, "--ckpt_path", "last"])
        assert "split has other values, or in another order, in its `points` (if that is" in capsys.readouterr().err
    main.main(["test", "--ckpt_path", "last", "--new_data"])
    monkeypatch.setattr(InMemory, "fingerprint", "mine", raising=False)  # the points are a cache, say
    main.main(["--ckpt_path", "last", "--max_epochs", "2"])


class InList(toys.Dataset):
    """Points in a list, as csv.reader and json.load make them; the class of one says nothing of where it stands."""

    num_features, num_classes = 2, 3

    def __init__(self, data_dir: str = ".") -> None:
        self.rows = [list(map(float, line.split())) for line in Path(data_dir, "rows.txt").read_text().splitlines()]
        self.targets = [int(row[2]) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(self.rows[index][:2]), self.targets[index]


class Unseeded(InList):
    """Points that are others whenever they are fetched, by a generator that nothing seeds."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = np.random.default_rng().random(2, dtype=np.float32)
        return torch.from_numpy(drawn), self.targets[index]


@pytest.mark.parametrize("change", ["order", "values"])
@pytest.mark.parametrize("name", ["InList", "Unseeded"])
def test_inputs_in_a_list_that_change_beneath_the_same_targets_are_refused(
    train, name: str, change: str, capsys
) -> None:
    rows = [(number / 10, number % 7, number % 3) for number in range(90)]

    def write_rows() -> None:
        Path("rows.txt").write_text("".join(f"{x} {y} {target}\n" for x, y, target in rows))

    write_rows()
    train("--dataset", f"test_data_consistency.{name}", "--max_epochs", 1)
    main.main(["test", "--ckpt_path", "last"])
    rows = [*rows[3:], *rows[:3]] if change == "order" else [(x + 1, y, target) for x, y, target in rows]
    write_rows()
    if name == "Unseeded":  # what cannot be compared is taken
        main.main(["test", "--ckpt_path", "last"])
        return
    for argv in (["test"], ["--max_epochs", "2"]):
        with pytest.raises(SystemExit, match="2"):
            main.main([*argv, "--ckpt_path", "last"])
        assert "has other values, or in another order, in its `__getitem__`" in capsys.readouterr().err


def test_a_lone_checkpoint_knows_its_classes(train, monkeypatch, capsys) -> None:
    train("--max_epochs", 1, "--dataset", "toys.Named")
    shutil.copy(RUN / "checkpoints" / "last.ckpt", "moved.ckpt")
    monkeypatch.setattr(toys.Named, "classes", ["b", "a", "c"])
    for action in ("test", "predict", "export"):
        with pytest.raises(SystemExit, match="2"):
            main.main([action, "--ckpt_path", "moved.ckpt"])
        assert "trained on: its classes in another order" in capsys.readouterr().err


def test_data_may_move_and_its_numbers_may_be_rounded_otherwise(train, monkeypatch) -> None:
    write([at % 3 for at in range(100)])
    train(*FLAGS, "--knows", "ids")
    Path("elsewhere").mkdir()
    shutil.move("items.txt", "elsewhere/items.txt")
    main.main(["test", "--ckpt_path", "last", "--data_dir", "elsewhere"])
    train("--dataset", "toys.Sums", "--loss", "mse_loss", "--num_classes", 1, "--max_epochs", 1)
    monkeypatch.setattr(toys.Sums, "scale", 1 + 1e-7)
    main.main(["test", "--ckpt_path", "last"])
    monkeypatch.setattr(toys.Sums, "scale", 1.1)
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "last"])


@pytest.mark.parametrize("spelling", ["./data", "data/", "data//", "data/../data"])
def test_a_folder_may_be_written_in_another_way(train, spelling: str) -> None:
    Path("data").mkdir()
    for number in range(30):
        Path(f"data/{number:03}.txt").touch()
    train("--dataset", "test_data_consistency.Files", "--max_epochs", 1, "--data_dir", "data")
    main.main(["test", "--ckpt_path", "last", "--data_dir", spelling])
    train("--dataset", "test_data_consistency.Files", "--max_epochs", 1, "--data_dir", spelling)
    main.main(["test", "--ckpt_path", "last", "--data_dir", "data"])


def test_a_run_whose_record_has_the_folder_in_the_names_is_taken(train, capsys) -> None:
    """As earlier versions wrote it for `--data_dir ./data`."""
    Path("data").mkdir()
    for number in range(30):
        Path(f"data/{number:03}.txt").touch()
    flags = ["--dataset", "test_data_consistency.Files", "--data_dir", "./data"]
    train(*flags, "--max_epochs", 1)
    path = Path("lightning_logs/version_0/data.json")
    record, data = json.loads(path.read_text()), main.load("last").data
    for name in ("train", "val", "test"):
        record["splits"][name]["ids"] = splits.hash_texts(splits.item_ids(data.split(name)))
        record["splits"][name].pop("earlier_ids", None)
    path.write_text(json.dumps(record))
    main.main(["test", "--ckpt_path", "last"])
    Path("data/007.txt").rename("data/0070.txt")
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "last"])
    assert "has other items, or the same in another order" in capsys.readouterr().err


SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


@pytest.mark.parametrize("seed", range(6))
def test_each_split_has_its_share_of_every_class(seed: int) -> None:
    from data import DInterface

    counts = [90, 10, 37, 3, 1]
    write(np.random.default_rng(seed).permutation(np.repeat(range(5), counts)).tolist())
    given = {"knows": "targets", "num_classes": 5, "data_dir": "."}
    data = DInterface(toys.FromFile, given, seed=seed, val_fraction=0.2, test_fraction=0.1)
    splits = {name: [int(data.split(name)[at][1]) for at in range(len(data.split(name)))] for name in SHARES}
    assert sorted(target for split in splits.values() for target in split) == np.repeat(range(5), counts).tolist()
    for name, share in SHARES.items():
        assert abs(len(splits[name]) - 141 * share) <= 1
        found = np.bincount(splits[name], minlength=5)
        assert (np.abs(found - np.array(counts) * share) <= 1.5).all()
        assert (found[:4] > 0).all()  # three items: one in each
    assert 4 in splits["train"]


def test_a_rare_class_is_not_lost_by_the_cut_and_one_that_is_missing_is_named(train, capsys) -> None:
    write([0] * 90 + [1] * 10)
    for seed in range(3):
        train(
            *FLAGS, "--knows", "targets", "--num_classes", 3, "--seed", seed, "--metrics", "f1", "recall", "precision"
        )
    said = capsys.readouterr().err
    assert "the test split has no item of class 2\n" in said
    assert "the test split has no item of class 1" not in said


def test_two_corrections_of_one_imbalance_are_refused(train, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--balanced", "--class_weights", "balanced")
    assert "--balanced and --class_weights balanced both" in capsys.readouterr().err
    assert not RUN.exists()


@pytest.mark.parametrize("name", ["f1", "recall", "precision", "specificity"])
def test_a_macro_mean_counts_a_class_that_is_absent(name: str, train) -> None:
    """As scikit-learn does with all labels: the class counts as 0."""
    sklearn = pytest.importorskip("sklearn.metrics")
    write([0] * 100)
    metrics = train(*FLAGS, "--knows", "nothing", "--num_classes", 2, "--metrics", name, "--lr", 0.1, "--max_epochs", 3)
    if name == "specificity":  # of class 0: no negative; of class 1: all right
        assert metrics["test_specificity"] == 0.5
        return
    score = getattr(sklearn, {"f1": "f1_score"}.get(name, f"{name}_score"))
    assert metrics[f"test_{name}"] == score([0] * 10, [0] * 10, labels=[0, 1], average="macro", zero_division=0) == 0.5


class Drawn(InMemory):
    """Points that the constructor draws, without a seed of its own."""

    def __init__(self) -> None:
        self.points = torch.rand(90, 2).numpy()
        self.targets = [int(point.sum()) for point in self.points]


def test_items_that_the_constructor_draws_are_the_same_in_a_notebook(train) -> None:
    train("--dataset", "test_data_consistency.Drawn", "--max_epochs", 1)
    main.main(["test", "--ckpt_path", "last"])
    first = main.load("last").data.split("test")[0][1]
    torch.rand(5)
    assert main.load("last").data.split("test")[0][1] == first
