"""Losses, optimisers, schedules and metrics by name, and what each of their flags does to the numbers."""

import csv
import math
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
import toys

RUN = Path("lightning_logs/version_0")


def column(name: str, run: Path = RUN) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run: Path = RUN) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


# Two epochs of 5 steps (72 items, 16 a batch) at lr 1, and the rate at each: numbers by hand.
RATES = {
    "constant": [1.0] * 10,
    "linear": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    "cosine": [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)],
    "linear --lr_end 0.5": [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55],
    "linear --lr_interval epoch": [1.0] * 5 + [0.5] * 5,
    "polynomial --lr_power 2": [1.0, 0.81, 0.64, 0.49, 0.36, 0.25, 0.16, 0.09, 0.04, 0.01],
    "step --lr_every 1": [1.0] * 5 + [0.1] * 5,
    "step --lr_every 1 --lr_gamma 0.5": [1.0] * 5 + [0.5] * 5,
    "multistep --lr_milestones 0.4,1": [1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01],
    "exponential --lr_every 1": [10 ** (-step / 5) for step in range(10)],
    "cosine_restarts --lr_every 1": [0.5 * (1 + math.cos(math.pi * step / 5)) for step in (0, 1, 2, 3, 4) * 2],
    "cosine_restarts --lr_every 0.4 --lr_restart_factor 2": [
        *[1.0, 0.5, 1.0, 0.853553, 0.5, 0.146447, 1.0, 0.961940, 0.853553, 0.691342],
    ],
    "one_cycle": [0.04, 0.28, 0.76, 1.0, 0.950485, 0.811746, 0.611262, 0.388742, 0.188258, 0.049519],
    "constant --warmup_steps 3": [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "constant --warmup_epochs 0.8": [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear --warmup_steps 5": [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0, 0.8, 0.6, 0.4, 0.2],
}


@pytest.mark.parametrize("schedule", RATES)
def test_the_rate_at_every_step(train, schedule: str) -> None:
    argv = ["--max_epochs", 2, "--batch_size", 16, "--lr", 1, "--log_every_n_steps", 1, "--optimizer", "SGD"]
    train(*argv, "--lr_scheduler", *schedule.split(), "--logger", "csv")
    assert column("lr") == pytest.approx(RATES[schedule], abs=1e-5)


REFUSED = [
    ("--warmup_steps 10", "--warmup_steps 10 should be less than the 10 steps of the run (5 an epoch)"),
    ("--warmup_epochs 2", "--warmup_epochs 2.0 should be less than the 10 steps of the run (5 an epoch)"),
    ("--warmup_steps 1 --warmup_epochs 1", "--warmup_steps and --warmup_epochs are one thing in two units"),
    ("--lr_scheduler multistep", "--lr_scheduler multistep decays at --lr_milestones"),
    ("--loss cross_entropi", "--loss cross_entropi; did you mean 'cross_entropy'?; there are: binary_cross_entropy"),
    ("--optimizer Adan", "--optimizer Adan; did you mean 'Adam'?; there are: ASGD"),
    ("--momentum 0.9", "unknown flag --momentum"),
    ("--metrics f2", "--metrics f2: torchmetrics has none of that name"),
    ("--metrics mae", "--metrics mae does not go with --loss cross_entropy, whose task is multiclass: acc, f1"),
    ("--lr_scale head=2", "--lr_scale head: no parameter has such a name; the network has layers"),
    ("--lr_scale layers", "--lr_scale layers: write PATTERN=FACTOR"),
    ("--freeze head", "--freeze head: no parameter has such a name; the network has layers"),
    ("--freeze layers", "--freeze layers leaves no parameter to train"),
    ("--unfreeze_epoch 1", "--unfreeze_epoch needs --freeze"),
    (
        "--strategy ddp2",
        "--strategy ddp2; did you mean 'ddp'?; there are: auto, ddp, ddp_find_unused_parameters_false,",
    ),
    ("--devices 2,9", "Lightning's Trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
    ("--monitor val_f1", "--monitor val_f1: there is no such metric; there are: train_loss, train_acc, val_loss"),
    ("--loss mse_loss --class_weights balanced", "--class_weights goes with a loss over classes"),
    ("--loss mse_loss --mixup 1", "--mixup and --cutmix blend classes"),
]


@pytest.mark.parametrize(("argv", "line"), REFUSED)
def test_what_cannot_be_is_said_in_one_line(train, capsys: pytest.CaptureFixture[str], argv: str, line: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--max_epochs", 2, "--batch_size", 16, *argv.split())
    assert f"main.py: error: {line}" in capsys.readouterr().err


def test_arguments_of_the_loss_are_flags(train, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--lr", 0, "--max_epochs", 1, "--dropout", 0, "--noise", 0, "--no-stratify"]
    plain, smooth = train(*argv)["train_loss"], train(*argv, "--label_smoothing", 1)["train_loss"]
    network = toys.Net(2, 3)
    network.load_state_dict({name.removeprefix("network."): one for name, one in weights().items()})
    outputs = network.eval()(torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])).log_softmax(1)
    shares = torch.tensor(_train_shares())
    assert plain == pytest.approx(-(shares * outputs.diag()).sum().item(), abs=1e-5)
    assert smooth == pytest.approx(-(shares * outputs.mean(1)).sum().item(), abs=1e-5)


def _train_shares() -> list[float]:
    """The share of each class among the 72 items to learn from, as the cut with seed 0 makes it."""
    left = torch.randperm(90, generator=torch.Generator().manual_seed(0))[18:] % 3
    return (torch.bincount(left) / len(left)).tolist()


def test_a_loss_of_ones_own(train) -> None:
    told = train("--loss", "toys.twice", "--lr", 0, "--max_epochs", 1, "--factor", 4)
    assert told["train_loss"] == pytest.approx(4 * train("--lr", 0, "--max_epochs", 1)["train_loss"], rel=1e-5)
    assert "train_acc" in told


def test_class_weights(train) -> None:
    train("--dataset", "toys.Lopsided", "--class_weights", "balanced", "--max_epochs", 1, "--lr", 0)
    balanced = column("train_loss")[0]
    train("--dataset", "toys.Lopsided", "--max_epochs", 1, "--lr", 0)
    assert balanced != pytest.approx(column("train_loss", Path("lightning_logs/version_1"))[0], abs=1e-3)


def test_optimisers_and_their_arguments(train) -> None:
    argv = ["--max_epochs", 2, "--lr", 0.01]
    for optimizer in (["SGD", "--momentum", 0.9, "--nesterov"], ["AdamW", "--betas", "0.8,0.99"], ["Adadelta"]):
        assert train(*argv, "--optimizer", *optimizer)["train_loss"] < 1.5
    groups = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [groups[0][key] for key in ("momentum", "nesterov", "weight_decay")] == [0.9, True, 0]
    last = RUN.parent / "version_1" / "checkpoints" / "last.ckpt"
    groups = torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (tuple(groups[0]["betas"]), groups[0]["weight_decay"]) == ((0.8, 0.99), 0.01)  # AdamW's own default


def test_parts_have_rates_and_decays_of_their_own(train) -> None:
    argv = ["--max_epochs", 1, "--lr_scale", "layers.0=0.1", "*.3.bias=0", "--weight_decay", 0.5, "--optimizer", "SGD"]
    train(*argv, "--no_decay_norm_bias", "--lr_scheduler", "constant")
    state = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    found = sorted((round(group["lr"], 9), group["weight_decay"], len(group["params"])) for group in state)
    assert found == [(0.0, 0.0, 1), (0.0002, 0.0, 1), (0.0002, 0.5, 1), (0.002, 0.5, 1)]


def test_what_is_frozen_stays(train) -> None:
    train("--max_epochs", 1, "--lr", 0)
    start = weights()
    train("--max_epochs", 2, "--freeze", "layers.0")
    after = weights(RUN.parent / "version_1")
    same = {name for name in start if torch.equal(start[name], after[name])}
    assert same == {"network.layers.0.weight", "network.layers.0.bias"}
    train("--max_epochs", 2, "--freeze", "layers.0", "--unfreeze_epoch", 2)
    assert torch.equal(weights(RUN.parent / "version_2")["network.layers.0.weight"], start["network.layers.0.weight"])
    train("--max_epochs", 2, "--freeze", "layers.0", "--unfreeze_epoch", 1)
    assert not torch.equal(
        weights(RUN.parent / "version_3")["network.layers.0.weight"], start["network.layers.0.weight"]
    )


def test_l1_makes_weights_nothing(train) -> None:
    argv = ["--max_epochs", 30, "--batch_size", 16, "--lr", 0.02]
    train(*argv)
    train(*argv, "--l1", 0.05)
    small = [(weights(run)["network.layers.0.weight"].abs() < 0.02).float().mean() for run in RUN.parent.iterdir()]
    assert sorted(small)[0] < 0.2
    assert sorted(small)[1] > 0.5


@pytest.mark.parametrize("mix", [["--mixup", 9], ["--cutmix", 9], ["--mixup", 9, "--cutmix", 9]])
def test_images_and_classes_are_mixed(train, mix: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [
        "--model_name",
        "toys.ConvNet",
        "--dataset",
        "toys.ImageBlobs",
        "--max_epochs",
        2,
        "--lr",
        0.05,
    ]
    plain, mixed = train(*argv), train(*argv, *mix)
    assert mixed["train_loss"] > plain["train_loss"]  # no mixed picture is of one class alone
    assert 0 <= mixed["train_acc"] <= 1
    monkeypatch.chdir("lightning_logs")
    assert train(*argv, *mix) == mixed


class InDicts(toys.ImageBlobs):
    """The same items as dicts, the class first."""

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return {"label": target, "name": f"image {index}", "images": image}


def test_items_that_are_dicts_are_mixed_as_tuples_are(train) -> None:
    argv = ["--model_name", "toys.ConvNet", "--max_epochs", 2, "--mixup", 9]
    tuples = train(*argv, "--dataset", "toys.ImageBlobs")
    assert train(*argv, "--dataset", "test_toolbox.InDicts") == pytest.approx(tuples)


METRICS = [
    ("toys.Net", "toys.Blobs", "cross_entropy", "acc f1 AUROC precision", (0, 1)),
    ("toys.Line", "toys.Numbers", "mse_loss", "mae r2 MeanSquaredError", (-100, 100)),
    ("toys.Line", "toys.YesNo", "binary_cross_entropy_with_logits", "acc f1 auroc", (0, 1)),
    ("toys.Tags", "toys.Labels", "binary_cross_entropy_with_logits", "acc f1", (0, 1)),
    ("toys.Blur", "toys.Pictures", "mse_loss", "psnr ssim", (-1, 100)),
]


@pytest.mark.parametrize(("network", "dataset", "loss", "names", "span"), METRICS)
def test_metrics_by_name(train, network: str, dataset: str, loss: str, names: str, span: tuple[int, int]) -> None:
    argv = ["--model_name", network, "--dataset", dataset, "--loss", loss, "--metrics", *names.split()]
    told = train(*argv, "--max_epochs", 1, "--batch_size", 16)
    for name in names.lower().split():
        for stage in ("train", "val", "test"):
            assert span[0] <= told[f"{stage}_{name}"] <= span[1], name
    monitor = f"val_{names.lower().split()[0]}"
    assert main.main(["--ckpt_path", "last", "--max_epochs", "2"])[monitor] is not None
    train(*argv, "--max_epochs", 1, "--monitor", monitor)
    assert list(Path("lightning_logs/version_1/checkpoints").glob(f"best-epoch1-{monitor}=*.ckpt"))


def test_shares_and_logits_of_an_answer_are_measured_alike(train) -> None:
    argv = ["--dataset", "toys.YesNo", "--metrics", "acc", "auroc", "--lr", 0, "--max_epochs", 1]
    logits = train("--model_name", "toys.Line", "--loss", "binary_cross_entropy_with_logits", *argv)
    assert 0 < logits["train_acc"] < 1
    assert train("--model_name", "toys.Share", "--loss", "binary_cross_entropy", *argv) == pytest.approx(logits)
    main.main(["predict", "--ckpt_path", "version_1", "--format", "npy"])
    shares = np.load("lightning_logs/version_1/predictions.npy")
    main.main(["predict", "--ckpt_path", "version_0", "--format", "npy"])
    assert shares == pytest.approx(np.load("lightning_logs/version_0/predictions.npy"))


def test_f1_is_what_it_should_be(train) -> None:
    told = train("--metrics", "f1", "acc", "--lr", 0, "--max_epochs", 1, "--noise", 0, "--dropout", 0, "--no-stratify")
    network = toys.Net(2, 3)
    network.load_state_dict({name.removeprefix("network."): one for name, one in weights().items()})
    said = network.eval()(torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])).argmax(1).tolist()
    shares, f1 = _train_shares(), []
    for label in range(3):
        right = shares[label] if said[label] == label else 0.0
        claimed = sum(shares[other] for other in range(3) if said[other] == label)
        f1.append(2 * right / (shares[label] + claimed))
    assert told["train_f1"] == pytest.approx(sum(f1) / 3, abs=1e-5)
    assert told["train_acc"] == pytest.approx(sum(shares[k] for k in range(3) if said[k] == k), abs=1e-5)
