"""Cross-validation and listed seeds: flags in, parts and numbers out."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import main
import pytest
import toys
import yaml
from data import DInterface
from engine.features import cross_validation

LOGS = Path("lightning_logs")


def parts(dataset: type, fold: int, num_folds: int = 3, seed: int = 0) -> list[list[int]]:
    cut = cross_validation.splitter(num_folds=num_folds, fold=fold, all_folds=False)
    data = DInterface(dataset, {}, cut, seed=seed)
    return [list(getattr(data.split(name), "indices", [])) for name in ("train", "val", "test")]


def kept(name: str) -> dict[str, float]:
    return json.loads((LOGS / name / "metrics.json").read_text())


def runs() -> list[str]:
    return sorted(path.name for path in LOGS.iterdir())


@pytest.mark.parametrize("dataset", [toys.Blobs, toys.BlobsForTraining])
def test_every_item_is_validated_on_once_and_the_test_part_is_never_seen(dataset: type) -> None:
    cuts = [parts(dataset, fold) for fold in (1, 2, 3)]
    tests = [test for *_, test in cuts]
    assert tests[0] == tests[1] == tests[2] == list(getattr(DInterface(dataset).split("test"), "indices", []))
    pool = sorted(set(range(90)) - set(tests[0]))
    assert sorted(item for _, val, _ in cuts for item in val) == pool
    assert all(sorted(train + val) == pool for train, val, _ in cuts)
    assert parts(dataset, 2) == cuts[1]
    assert parts(dataset, 2, seed=1) != cuts[1]


def test_folds_have_the_classes_in_equal_shares_where_there_are_classes() -> None:
    class Rare(toys.Blobs):
        def __init__(self) -> None:
            super().__init__()
            self.targets = [1 if index < 16 else 0 for index in range(90)]

    class Numbers(toys.Blobs):
        def __init__(self) -> None:
            super().__init__()
            self.targets = [index / 90 for index in range(90)]

    rare = [sum(item < 16 for item in parts(Rare, fold)[1]) for fold in (1, 2, 3)]
    assert max(rare) - min(rare) <= 1
    assert sum(rare) == 16 - sum(item < 16 for item in parts(Rare, 1)[2])
    assert [len(parts(Numbers, fold, num_folds=4)[1]) for fold in (1, 2, 3, 4)] == [21, 20, 20, 20]


class OfPatients(toys.Blobs):
    """Ninety items, of twenty patients."""

    def __init__(self, groups: str = "right") -> None:
        super().__init__()
        names: list[Any] = [f"P{index**2 % 23}" for index in range(90)]
        given = {
            "too_few": names[1:],
            "nested": [names] * 90,
            "gaps": [None, float("nan"), *names[2:]],
            "one": [1] * 90,
        }
        self.groups = {"right": names, "number": 3, "mapping": {"cats": 1}, **given}[groups]


class WithClasses(OfPatients):
    def __init__(self) -> None:
        super().__init__()
        self.targets = [index % 3 for index in range(90)]


@pytest.mark.parametrize("dataset", [OfPatients, WithClasses])
def test_all_items_of_a_group_are_in_one_split(dataset: type, train, capsys) -> None:
    of = dataset().groups
    for fold in (0, 1, 2, 3):  # 0: without folds
        data = DInterface(dataset, {}, None, val_fraction=0.25, test_fraction=0.25)
        alone = [data.split(name).indices for name in ("train", "val", "test")]
        splits = [list(one) for one in alone] if not fold else parts(dataset, fold)
        groups = [{of[item] for item in split} for split in splits]
        assert sorted(item for split in splits for item in split) == [*range(90)]
        assert sum(map(len, groups)) == len({*of}) == 12
        if not fold:
            assert [len(one) for one in groups] == [6, 3, 3]
    assert sorted(item for fold in (1, 2, 3) for item in [*parts(dataset, fold)[1]]) == sorted(
        {*range(90)} - {*parts(dataset, 1)[2]}
    )
    capsys.readouterr()
    train("--dataset", f"test_folds.{dataset.__name__}", "--max_epochs", 1)
    assert "12 groups of items, each in one split as a whole, not stratified by class\n" in capsys.readouterr().out
    assert main.main(["test", "--ckpt_path", "last"])["test_acc"] >= 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--groups too_few",
            "`groups` of OfPatients says what each item belongs to, so that all of a group are in one",
        ),
        ("--groups nested", "give one entry for each of the 90 items, or give that attribute another name"),
        ("--groups mapping", "give one entry for each of the 90 items, or give that attribute another name"),
        ("--groups gaps", "`groups` of OfPatients has none for 2 items: give each one of its own"),
        ("--groups one", "1 groups of items are too few"),
        ("--num_folds 12", "has only 11 groups"),
    ],
)
def test_groups_that_are_none_are_refused(train, flags: str, said: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--dataset", "test_folds.OfPatients", *flags.split())
    assert said in capsys.readouterr().err


def test_an_attribute_groups_that_is_a_number_is_something_else(train, capsys) -> None:
    train("--dataset", "test_folds.OfPatients", "--groups", "number", "--max_epochs", 1)
    assert "groups of items" not in capsys.readouterr().out


def test_each_fold_is_a_run_and_the_end_is_mean_and_spread(train, capsys) -> None:
    told = train("--num_folds", 3, "--max_epochs", 2, "--lr", 0.05, "--val_fraction", 0)
    assert runs() == ["version_0", "version_1", "version_2"]
    summary = json.loads((LOGS / "version_2" / "folds.json").read_text())
    assert told == summary["mean"]
    for name, mean in told.items():
        values = [kept(run)[name] for run in runs()]
        assert mean == pytest.approx(statistics.fmean(values))
        assert summary["std"][name] == pytest.approx(statistics.stdev(values))
    assert {"train_loss", "val_loss", "test_acc"} <= told.keys()
    assert len({kept(run)["val_loss"] for run in runs()}) == 3
    assert f"val_loss     {told['val_loss']:.4f} +- {summary['std']['val_loss']:.4f}" in capsys.readouterr().out
    trained = kept("version_1")["val_loss"]  # of its own fold
    assert main.main(["validate", "--ckpt_path", "version_1"])["val_loss"] == pytest.approx(trained)


def test_one_fold_alone_is_the_same_run_and_the_last_of_them_adds_them_up(train, capsys) -> None:
    argv = ["--num_folds", 2, "--max_epochs", 1]
    told = train(*argv)
    second = train(*argv, "--fold", 2)
    assert second == kept("version_1")
    (LOGS / "version_0" / "fold.json").unlink()
    capsys.readouterr()
    train(*argv, "--fold", 2)
    assert "1 of 2 folds are finished" in capsys.readouterr().out
    train(*argv, "--fold", 1)
    assert json.loads((LOGS / "version_4" / "folds.json").read_text())["mean"] == told
    assert runs() == [f"version_{number}" for number in range(5)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("typed_again", [True, False])
@pytest.mark.parametrize("steps", [9, 13])  # of 3 folds with 2 epochs of 4 steps: before and after fold 2 first saves
def test_killed_it_goes_on_with_that_fold_and_the_rest(train, monkeypatch, tmp_path, typed_again, steps: int) -> None:
    argv = ["--num_folds", 3, "--max_epochs", 2, "--batch_size", 16, "--lr", 0.05]
    whole = train(*argv)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    seen = 0

    def each_forward(self) -> None:
        nonlocal seen
        seen += self.training
        if seen > steps:
            raise Killed

    monkeypatch.setattr(toys.Net, "each_forward", each_forward)
    with pytest.raises(Killed):
        train(*argv)
    first, begun = (LOGS / "version_0" / "metrics.json").stat().st_mtime_ns, runs()
    seen = -1000
    assert (train(*argv, "--ckpt_path", "last") if typed_again else main.main(["--ckpt_path", "last"])) == whole
    assert seen + 1000 == (16 if steps == 9 else 12)  # fold 1 is not repeated, nor what fold 2 had saved
    assert (LOGS / "version_0" / "metrics.json").stat().st_mtime_ns == first
    assert len(runs()) == len(begun) + (2 if steps == 9 else 1)  # where fold 2 had saved, it goes on in its folder


def test_folds_that_are_older_than_a_flag_are_found(train) -> None:
    whole = train("--num_folds", 2, "--max_epochs", 1, "--no-stratify")
    config = LOGS / "version_0" / "config.yaml"
    new = ("stratify:", "new_data:")
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith(new)))
    shutil.rmtree(LOGS / "version_1")
    first = (LOGS / "version_0" / "metrics.json").stat().st_mtime_ns
    assert main.main(["--ckpt_path", "version_0"]) == whole
    assert (LOGS / "version_0" / "metrics.json").stat().st_mtime_ns == first
    assert runs() == ["version_0", "version_1"]


MISTAKES = {
    "--num_folds 1": "should be at least 2",
    "--fold 2": "--fold and --all_folds need --num_folds",
    "--num_folds 3 --fold 4": "--fold 4: there is no such fold; give 1 to 3",
    "--num_folds 3 --fold 0": "should be at least 1",
    "--num_folds 3 --devices 2": "give --devices 1, or one command with --fold K for each fold",
    "--num_folds 60 --fold 1": "--num_folds 60: a class has",
    "--num_folds 3 --dataset toys.BlobsInParts": "BlobsInParts comes with a validation split of its own",
    "--seed 3 --seed_index 3": "give one of them",
    "--seed_index 11": "main.py lists 10 seeds",
    "--seed_index 0": "should be at least 1",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line(typed: str, train, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(*typed.split())
    error = capsys.readouterr().err
    assert MISTAKES[typed] in error
    assert error.count("\n") == 1


def test_the_fold_of_a_checkpoint_stays(train, capsys) -> None:
    train("--num_folds", 2, "--fold", 1, "--max_epochs", 1)
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "version_0", "--fold", "2"])
    assert "--fold 2: the checkpoint was made with 1, and the splits of its data" in capsys.readouterr().err


def test_a_listed_seed_is_a_seed_by_its_place(train, tmp_path: Path) -> None:
    assert train("--max_epochs", 1, "--seed_index", 3) == train("--max_epochs", 1, "--seed", main.SEEDS[2])
    assert yaml.safe_load((LOGS / "version_0" / "config.yaml").read_text())["seed"] == main.SEEDS[2]
    train("--config", "lightning_logs/version_0/config.yaml", "--seed_index", 4)  # what is typed wins over the file
    assert yaml.safe_load((LOGS / "version_2" / "config.yaml").read_text())["seed"] == main.SEEDS[3]
