"""Optimisers for kinds of parameters, first weights, and activations that are computed again: against plain PyTorch."""

import os
import signal
from pathlib import Path
from typing import Any

import main
import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

HERE = "test_networks."
FLAGS = ["--dataset", f"{HERE}Words", "--accelerator", "cpu", "--num_workers", "0", "--batch_size", "8"]
FLAGS += ["--test_fraction", "0", "--lr_scheduler", "constant", "--max_epochs", "2"]


class Words(Dataset):
    """Four words of seven, whose class is that of their sum."""

    num_classes = 3

    def __init__(self) -> None:
        self.words = torch.randint(7, (40, 4), generator=torch.Generator().manual_seed(0))
        self.targets = (self.words.sum(1) % 3).tolist()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.words[index], self.targets[index]


class Reader(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 16, bias=False))
        self.head = nn.Linear(16, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(words)))


class Record(Callback):
    """Keeps the first weights and every batch; sends SIGTERM before the batch of a number."""

    def __init__(self, kill_before: int = -1) -> None:
        self.kill_before = kill_before
        self.first: dict[str, Tensor] = {}
        self.batches: list[Any] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.first = {name: one.clone() for name, one in module.network.state_dict().items()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append([one.clone() for one in batch])
        if trainer.fit_loop.total_batch_idx == self.kill_before:
            os.kill(os.getpid(), signal.SIGTERM)


def checkpoint(number: int = 0) -> dict[str, Any]:
    return torch.load(f"lightning_logs/version_{number}/checkpoints/last.ckpt", weights_only=True)


def weights(number: int = 0) -> dict[str, Tensor]:
    return {name.removeprefix("network."): one for name, one in checkpoint(number)["state_dict"].items()}


def error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main.main(argv)
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1, text
    return text


MUON = ["--model_name", f"{HERE}Reader", *FLAGS, "--optimizer", "Muon", "--lr", "0.02", "--adamw_lr", "0.003"]
MUON += ["--adjust_lr_fn", "original", "--adamw_layers", "head"]


def test_muon_moves_the_matrices_and_adamw_the_rest_as_two_optimizers_do() -> None:
    record = Record()
    main.main([*MUON, "--lr_scale", "layers.1=0.5", "--log_every_n_steps", "1"], callbacks=[record])
    net = Reader()
    net.load_state_dict(record.first)
    muon = [{"params": [net.layers[1].weight], "lr": 0.01}, {"params": [net.layers[3].weight]}]
    adamw = [{"params": [net.layers[1].bias], "lr": 0.0015}]
    adamw += [{"params": [net.embedding.weight, net.head.weight, net.head.bias]}]
    both = torch.optim.Muon(muon, lr=0.02), torch.optim.AdamW(adamw, lr=0.003, fused=True)
    for words, targets in record.batches:
        for optimizer in both:
            optimizer.zero_grad()
        functional.cross_entropy(net(words), targets).backward()
        for optimizer in both:
            optimizer.step()
    assert len(record.batches) == 10
    for name, one in net.state_dict().items():
        torch.testing.assert_close(weights()[name], one, rtol=0, atol=0)
    logged = Path("lightning_logs/version_0/metrics.csv").read_text().partition("\n")[0].split(",")
    assert {"lr", "lr/layers.1", "lr/adamw", "lr/adamw_layers.1"} <= {*logged}


def test_muon_goes_on_exactly() -> None:
    whole = main.main(MUON)
    with pytest.raises(SystemExit):
        main.main(MUON, callbacks=[Record(kill_before=5)])
    assert main.main(["--ckpt_path", "last"]) == whole
    once, twice = checkpoint(0), checkpoint(1)
    assert all(torch.equal(one, twice["state_dict"][name]) for name, one in once["state_dict"].items())
    states = [one["optimizer_states"][0]["state"] for one in (once, twice)]
    assert [sorted(one) for one in states[0].values()] == [["momentum_buffer"]] * 2 + [
        ["exp_avg", "exp_avg_sq", "step"]
    ] * 4
    for number, state in states[0].items():
        assert all(torch.equal(one, states[1][number][key]) for key, one in state.items())


def test_muon_without_a_matrix_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no matrix is trained" in error([*MUON, "--adamw_layers", "layers", "head"], capsys)
    assert "--adamw_layers tail: no parameter" in error([*MUON, "--adamw_layers", "tail"], capsys)


class Stacked(nn.Module):
    """Blocks with all that a second pass could change: dropout, batch norms, spectral norms, keyword arguments."""

    def __init__(self, num_features: int = 2, num_classes: int = 3, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(num_features, 16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(depth))
        self.head = nn.Linear(16, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.stem(points)
        for block in self.blocks:
            hidden = block(hidden, scale=0.5)
        return self.head(hidden)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(width, 4 * width))
        norm = nn.BatchNorm1d(4 * width, momentum=None)
        self.layers = nn.Sequential(spectral, norm, nn.GELU(), nn.Dropout(0.2), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, scale: float) -> Tensor:
        return hidden + scale * self.layers(hidden)


STACKED = ["--model_name", f"{HERE}Stacked", "--dataset", "toys.Blobs", *FLAGS[2:-1], "3"]


class Saved(Callback):
    """Bytes that a forward pass of training saves for the backward pass."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda one: one)
        self.hooks.__enter__()

    def pack(self, one: Tensor) -> Tensor:
        self.bytes += one.nbytes
        return one

    def on_before_backward(self, *_: Any) -> None:
        self.hooks.__exit__(None, None, None)


@pytest.mark.parametrize("pattern", ["blocks", "blocks.*", "*"])
def test_checkpointed_activations_take_less_memory_and_give_the_same_numbers(pattern: str) -> None:
    plain, again = Saved(), Saved()
    metrics = main.main(STACKED, callbacks=[plain])
    assert main.main([*STACKED, "--activation_checkpointing", pattern], callbacks=[again]) == metrics
    once, twice = checkpoint(0), checkpoint(1)
    assert once["state_dict"].keys() == twice["state_dict"].keys()
    assert all(torch.equal(one, twice["state_dict"][name]) for name, one in once["state_dict"].items())
    assert again.bytes < plain.bytes / 3


def test_activations_are_checkpointed_in_a_run_that_began_without_and_the_other_way_round(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = main.main(STACKED)
    for before, after in (("blocks", "[]"), ("[]", "blocks")):
        with pytest.raises(SystemExit):
            main.main([*STACKED, "--activation_checkpointing", before], callbacks=[Record(kill_before=17)])
        assert main.main(["--ckpt_path", "last", "--activation_checkpointing", after]) == metrics
    main.main(["export", "--ckpt_path", "last"])
    assert torch.export.load("lightning_logs/version_2/network.pt2").module()(torch.randn(4, 2)).shape == (4, 3)
    assert "no layer has such a name; the network has stem, blocks, blocks.0" in error(
        [*STACKED, "--activation_checkpointing", "layer"], capsys
    )


class Images(Dataset):
    num_classes = 2

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), index / 20), index % 2


class Convolutions(nn.Module):
    def __init__(self, num_classes: int, pretrained: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64)
        self.position, self.head = nn.Parameter(torch.ones(1, 64)), nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).amax((2, 3)) + self.position)


INIT = ["--model_name", f"{HERE}Convolutions", "--dataset", f"{HERE}Images", *FLAGS[2:-1], "1"]


def first_weights(*argv: str) -> dict[str, Tensor]:
    record = Record()
    main.main([*INIT, *argv], callbacks=[record])
    return record.first


def test_first_weights_by_the_name_of_a_function_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    constant = first_weights("--init", "constant", "--init_args", "val=0.25")
    assert "constant: weights of 2 layers, biases 0; as they were: position" in capsys.readouterr().out
    for name in ("conv.weight", "head.weight"):
        assert constant[name].eq(0.25).all()
    assert not constant["conv.bias"].any()
    assert not constant["head.bias"].any()
    assert constant["position"].eq(1).all()
    assert constant["norm.weight"].eq(1).all()
    kaiming = first_weights("--init", "kaiming_normal", "--init_args", "mode=fan_out", "nonlinearity=relu")
    assert kaiming["conv.weight"].std().item() == pytest.approx((2 / (64 * 25)) ** 0.5, rel=0.05)
    xavier = first_weights("--init", "xavier_uniform")["conv.weight"]
    most = (6 / (3 * 25 + 64 * 25)) ** 0.5
    assert most * 0.98 < xavier.abs().max().item() <= most
    orthogonal = first_weights("--init", "orthogonal")
    torch.testing.assert_close(orthogonal["head.weight"] @ orthogonal["head.weight"].T, torch.eye(2))
    other_format = first_weights("--init", "orthogonal", "--no-channels_last")
    assert all(torch.equal(one, other_format[name]) for name, one in orthogonal.items())


def test_a_run_that_goes_on_keeps_its_weights_and_pretrained_ones_are_not_drawn_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = main.main([*INIT[:-1], "2", "--init", "orthogonal"])
    with pytest.raises(SystemExit):
        main.main([*INIT[:-1], "2", "--init", "orthogonal"], callbacks=[Record(kill_before=3)])
    assert main.main(["--ckpt_path", "last"]) == whole
    assert all(torch.equal(one, weights(1)[name]) for name, one in weights(0).items())
    flags = [*INIT, "--init", "orthogonal"]
    assert "would overwrite weights of --init_from" in error([*flags, "--init_from", "version_0"], capsys)
    assert "overwrite weights of --pretrained True" in error([*flags, "--pretrained"], capsys)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--init kaiming", "--init kaiming; did you mean 'kaiming_normal'?; there are: constant, dirac, eye"),
        ("--init constant", "--init constant needs --init_args val=..."),
        ("--init normal --init_args gain=2", "--init_args gain=2: normal has mean: float = 0.0, std: float = 1.0"),
        ("--init eye", "--init eye: conv.weight (64, 3, 5, 5): Only tensors with 2 dimensions are supported"),
        ("--init_args std=1", "--init_args are arguments of --init"),
    ],
)
def test_first_weights_that_cannot_be(capsys: pytest.CaptureFixture[str], argv: str, line: str) -> None:
    assert line in error([*INIT, *argv.split()], capsys)


@pytest.mark.slow
def test_two_processes_checkpoint_activations_with_the_same_numbers(ranks) -> None:
    for more in ([], ["--activation_checkpointing", "blocks"]):
        ranks(*STACKED, "--no-pictures", *more)
    once, twice = checkpoint(0), checkpoint(1)
    assert all(torch.equal(one, twice["state_dict"][name]) for name, one in once["state_dict"].items())
