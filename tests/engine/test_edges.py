"""Runs that have nothing, or next to nothing, to train on, to validate with or to tell apart."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import main
import pytest
import torch
import toys
from engine.cli import annotations


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--num_items", "0"], "the train split of Blobs has no item"),
        (["--dataset", "toys.BlobsInParts", "--num_items", "0"], "the train split of BlobsInParts has no item"),
        (["--max_epochs", "0"], "--max_epochs 0 should be other than 0"),
        (["--max_steps", "0"], "--max_steps 0 should be other than 0"),
        (["--limit_train_batches", "0"], "--limit_train_batches 0 should be more than 0"),
        (
            ["--limit_val_batches", "0", "--patience", "2"],
            "--patience waits for val_loss, and this run has no validation",
        ),
        (
            ["--val_check_interval", "100"],
            "--val_check_interval: `val_check_interval` (100) must be less than or equal",
        ),
        (["--val_check_interval", "0"], "--val_check_interval 0 should be more than 0"),
        (["--overfit_batches", "0.001"], "--overfit_batches: You requested to check 0.001 of the `train_dataloader`"),
        (["--overfit_batches", "0.001"], "Please increase the `overfit_batches` argument."),
        (["--limit_val_batches", "0.001"], "--limit_val_batches: You requested to check 0.001 of the `val_dataloader`"),
        (["--dataset", "toys.FromFile", "--num_classes", "1", "--knows", "nothing"], "FromFile has one class"),
    ],
)
def test_nothing_to_train_on_is_one_line(train, argv: list[str], said: str, capsys) -> None:
    Path("items.txt").write_text("a 0\nb 0\nc 0\n" * 10)
    with pytest.raises(SystemExit, match="2"):
        train("--max_epochs", 1, *argv)
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not Path("lightning_logs/version_0").exists()


@pytest.mark.parametrize("action", ["validate", "test", "predict"])
def test_nothing_to_measure_is_one_line(train, action: str, capsys) -> None:
    train("--max_epochs", 1, "--limit_val_batches", 0, "--limit_test_batches", 0)  # which training may do without
    limit = f"--limit_{'val' if action == 'validate' else action}_batches"
    for number, said in (
        (
            "0",
            "limit_predict_batches 0 should be more than 0"
            if action == "predict"
            else f"there is nothing to {action}: no ",
        ),
        ("0.001", "Please increase the"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main.main([action, "--ckpt_path", "last", limit, number])
        line = capsys.readouterr().err.splitlines()[-1]
        assert limit in line
        assert said in line
    assert not list(Path().rglob("predictions*"))


def test_a_split_that_is_not_there_is_not_validated(train, capsys) -> None:
    train("--max_epochs", 1, "--val_fraction", 0)
    with pytest.raises(SystemExit, match="2"):
        main.main(["validate", "--ckpt_path", "last"])
    assert "there is nothing to validate: no val split, or --limit_val_batches 0" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["--val_fraction", "--test_fraction"])
def test_fast_dev_run_without_a_split(train, left: str) -> None:
    metrics = train("--fast_dev_run", left, 0)
    assert {name.partition("_")[0] for name in metrics} == {"epoch", "train", "val", "test"} - {
        left[2:].partition("_")[0]
    }


@pytest.mark.parametrize("argv", [["--limit_val_batches", 0], ["--check_val_every_n_epoch", 5]])
def test_a_run_that_is_never_validated_says_that_no_checkpoint_is_the_best(train, argv: list, capsys) -> None:
    metrics = train("--max_epochs", 2, "--monitor", "val_acc", *argv)
    assert not [name for name in metrics if name.startswith("best")]
    assert "no checkpoint is the best: val_acc had no value" in capsys.readouterr().out
    assert main.main(["test", "--ckpt_path", "last"])["test_loss"] == metrics["test_loss"]
    assert json.loads(Path("lightning_logs/version_0/metrics.json").read_text())["epoch"] == 2


def test_no_patience_stops_at_the_first_validation_that_is_no_better(train, capsys) -> None:
    metrics = train("--max_epochs", 5, "--lr", 0, "--noise", 0, "--patience", 0)
    assert metrics["epoch"] == 2
    assert "and 1 validations since were no better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--task binary", "--task binary does not go with --loss cross_entropy, which is of classes: --loss bi"),
        ("--task multilabel", "--task multilabel is of several answers an item, and each target is one: --task b"),
        (
            "--task multilabel --loss mse_loss",
            "--task multilabel is of several answers an item, and each target is one",
        ),
        ("--compile_mode max-autotune", "--compile_mode max-autotune needs --compile"),
        ("--min_epochs 3", "--min_epochs 3 is more than --max_epochs 2, at which the run ends"),
        ("--min_steps 9 --max_steps 4", "--min_steps 9 is more than --max_steps 4, at which the run ends"),
        ("--gradient_clip_algorithm value", "--gradient_clip_algorithm value needs --gradient_clip_val"),
        ("--x_axis epoch --logger csv", "--x_axis epoch needs TensorBoard, which is not in --logger"),
        ("--mixup 0.2", "--mixup and --cutmix blend images (B, C, H, W), and a batch is of shape (2, 2)"),
        (f"--run_name {'x' * 300}", "letters, digits and _ . + = - only, 100 at most, and not last"),
    ],
)
def test_flags_that_contradict_each_other_are_one_line(train, argv: str, said: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--max_epochs", 2, *argv.split())
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "unused"),
    [
        ("--lr_gamma 0.5 --lr_every 3", ["lr_gamma", "lr_every"]),
        ("--lr_scheduler step --lr_gamma 0.5 --lr_every 3", []),
        (
            "--lr_scheduler constant --lr_milestones 1 --lr_power 2 --lr_end 0.1",
            ["lr_milestones", "lr_power", "lr_end"],
        ),
    ],
)
def test_flags_that_a_schedule_does_not_use_are_said(train, argv: str, unused: list[str], capsys) -> None:
    train("--max_epochs", 1, *argv.split())
    said = capsys.readouterr().out
    assert said.count("has no effect with --lr_scheduler") == len(unused)
    assert all(f"--{name} has no effect" in said for name in unused)


@pytest.mark.parametrize(
    ("argv", "unused"),
    [
        ("--metric_thresholds 20", "--metric_thresholds has no effect: none of the metrics has bins"),
        ("--metric_thresholds 20 --metrics acc auroc", ""),
        ("--num_folds 2 --fold 1 --val_fraction 0.3", "--val_fraction has no effect with --num_folds"),
        ("--num_folds 2 --fold 1", ""),
        ("--freeze layers --unfreeze_epoch 2", "--unfreeze_epoch 2 has no effect: the run ends at epoch 2"),
        ("--freeze layers --unfreeze_epoch 1", ""),
    ],
)
def test_flags_without_effect_are_said(train, argv: str, unused: str, capsys) -> None:
    train("--max_epochs", 2, *argv.split())
    said = capsys.readouterr().out
    assert unused in said
    assert said.count("has no effect") == bool(unused)


@pytest.mark.parametrize("num_items", [1, 2, 3])
def test_next_to_no_items(train, num_items: int) -> None:
    metrics = train("--num_items", num_items, "--max_epochs", 2, "--patience", 1, "--batch_size", 1000)
    assert all(value == value for value in metrics.values())
    assert ("val_loss" in metrics, "test_loss" in metrics) == (num_items > 2, num_items > 1)


def test_types_in_help_are_plain() -> None:
    for text, shown in (
        ("Annotated[float, '>= 0', '< 1']", "float >= 0 and < 1"),
        ("tuple[Annotated[float, '>= 0'], ...]", "a list of float >= 0"),
        ("Optional[list[tuple[int, ...]]]", "a list of int,int,... or none"),
        ("tuple[str, ...]", "str,str,..."),
    ):
        assert annotations.describe(annotations.from_text(text)) == shown


@pytest.mark.parametrize(
    ("argv", "shown", "hidden"),
    [
        (["test", "--help"], "usage: python main.py test --ckpt_path WHICH [", "[ACTION]"),
        (["--help"], "usage: python main.py [ACTION] --model_name NAME --dataset NAME [", "WHICH ["),
        (["--help", "--model_name", "toys.Net", "--dataset", "toys.Blobs"], "regression, other or none;", "_PRECISION"),
        (["--help", "--model_name", "toys.Tally", "--dataset", "toys.Blobs"], "--lr ", "component_kwargs"),
    ],
)
def test_help_has_no_riddles(argv: list[str], shown: str, hidden: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(argv)
    text = " ".join(capsys.readouterr().out.split())
    assert shown in text
    assert hidden not in text


class OtherTargets(toys.Blobs):
    """Points whose `targets` is something else than a class of each item."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.targets = [number % 3 for number in range(90)]
        item = super().__getitem__(index)
        self.targets = [0, 1, 2]
        return item

    def __init__(self, noise: float = 0.3) -> None:
        super().__init__(noise=noise)
        self.targets = [0, 1, 2]


class Alike(toys.Named):
    """Points whose classes have the names of the test."""


@pytest.mark.parametrize(
    ("pair", "differ"), [(["Dog", "dog"], True), (["\uff24\uff4f\uff47", "dog"], True), (["a", "b"], False)]
)
def test_classes_that_differ_only_in_case_or_width_are_said(
    train, monkeypatch, capsys, pair: list[str], differ: bool
) -> None:
    monkeypatch.setattr(Alike, "classes", [*pair, "cat"])
    train("--dataset", "test_edges.Alike", "--max_epochs", 1)
    said = f"the classes {pair[0]!r} and {pair[1]!r} differ only in case, width or blanks: they are taken for two"
    assert capsys.readouterr().err.count(said) == differ


def test_targets_that_are_not_one_an_item(train) -> None:
    for flags in ([], ["--balanced"], ["--class_weights", "balanced"]):
        argv = ["--max_epochs", 1, "--stratify", "false", *flags]
        assert train("--dataset", "test_edges.OtherTargets", *argv) == train(*argv)


class TooLarge(toys.Net):
    """A network for which there is not enough memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_too_little_memory_says_what_helps(train) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train("--model_name", "test_edges.TooLarge", "--max_epochs", 1)
    assert "a smaller --batch_size" in caught.value.__notes__[0]


def counted(init: Any) -> Any:
    """A decorator that does not say what it decorates: without functools.wraps."""

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.calls = 1

    return call


def reported(init: Any) -> Any:
    """The same, with a variable that has no value yet."""

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.report = lambda: print(later)

    if not callable(init):
        later = init
    return call


class Reported(toys.Net):
    @reported
    def __init__(self, num_features: int, num_classes: int, width: int = 5) -> None:
        super().__init__(num_features, num_classes, hidden_dim=width)


class Decorated(toys.Net):
    @counted
    def __init__(self, num_features: int, num_classes: int, width: int = 5) -> None:
        super().__init__(num_features, num_classes, hidden_dim=width)


def test_arguments_are_found_behind_a_decorator(train) -> None:
    train("--model_name", "test_edges.Decorated", "--width", 7, "--max_epochs", 1)
    network = main.load("last").network
    assert network.calls == 1
    assert {len(one) for one in network.state_dict().values()} == {7, 3}
    train("--model_name", "test_edges.Decorated", "--max_epochs", 1)
    assert {len(one) for one in main.load("last").network.state_dict().values()} == {5, 3}


def test_a_variable_without_a_value_hides_no_arguments(train) -> None:
    train("--model_name", "test_edges.Reported", "--width", 7, "--max_epochs", 1)
    assert {len(one) for one in main.load("last").network.state_dict().values()} == {7, 3}


class Sets(toys.Net):
    def __init__(
        self,
        num_features,
        num_classes,
        some={1},  # noqa: B006
        few=frozenset({2}),
        names: Set[str] = frozenset(),
    ) -> None:
        super().__init__(num_features, num_classes)
        self.taken = some, few, names


def test_sets_stay_sets(train) -> None:
    train("--model_name", "test_edges.Sets", "--max_epochs", 1)
    assert main.load("last").network.taken == ({1}, {2}, set())
    train("--model_name", "test_edges.Sets", "--some", 4, "--few", 5, 6, "--names", "a", "b", "--max_epochs", 1)
    assert main.load("last").network.taken == ({4}, {5, 6}, {"a", "b"})
