"""`--swa_epoch` and `--ema_decay`: what is validated, kept and tested is an average of the weights."""

from pathlib import Path
from typing import Any

import main
import pytest
import torch
from paths import TOYS
from pytorch_lightning import Callback
from test_resume import everything, same

RUN = Path("lightning_logs/version_0")


class Watch(Callback):
    """Keeps a weight as it is after each epoch, and ends the run before the batch of a number."""

    def __init__(self, halt: int = -1) -> None:
        self.weights: list[torch.Tensor] = []
        self.halt = halt

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.halt:
            raise InterruptedError

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            self.weights.append(module.network.layers[0].weight.detach().clone())


def saved(name: str) -> torch.Tensor:
    path = next((RUN / "checkpoints").glob(name))
    return torch.load(path, weights_only=True)["state_dict"]["network.layers.0.weight"]


def test_the_mean_of_the_last_epochs_is_kept_and_measured(train) -> None:
    watch = Watch()
    main.main([*TOYS, "--max_epochs", "5", "--swa_epoch", "3", "--save_top_k", "-1"], [watch])
    for number, weight in enumerate(watch.weights):  # the third epoch has number 2
        mean = torch.stack(watch.weights[2 : number + 1]).mean(0) if number >= 2 else weight
        torch.testing.assert_close(saved(f"best-epoch{number + 1}-*"), mean)
    torch.testing.assert_close(saved("last.ckpt"), torch.stack(watch.weights[2:]).mean(0))


@pytest.mark.parametrize("argv", [["--swa_epoch", "2"], ["--ema_decay", "0.95"]])
def test_the_mean_is_what_is_tested_when_training_ends(train, argv: list[str]) -> None:
    at_once = train("--max_epochs", 3, "--lr", 0.05, *argv)
    assert main.main(["test", "--ckpt_path", "best"])["test_loss"] == pytest.approx(at_once["test_loss"])
    assert train("--max_epochs", 3, "--lr", 0.05)["test_loss"] != pytest.approx(at_once["test_loss"], rel=1e-2)


@pytest.mark.parametrize("halt", [5, 12])  # before the mean has begun, and after
def test_a_run_that_goes_on_ends_the_same(halt: int) -> None:
    argv = [*TOYS, "--batch_size", "16", "--max_epochs", "4", "--swa_epoch", "2", "--every_n_train_steps", "1"]
    told = main.main(argv)
    with pytest.raises(InterruptedError):
        main.main(argv, [Watch(halt)])
    assert main.main(["--ckpt_path", "version_1"]) == told
    same(everything(RUN.with_name("version_1")), everything(RUN))


@pytest.mark.parametrize(("argv", "line"), [(["--ema_decay", "0.9"], "give one of them"), ([], "the run ends before")])
def test_what_cannot_be_averaged_is_refused(train, capsys, argv: list[str], line: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--max_epochs", 1, "--swa_epoch", 1 if argv else 2, *argv)
    assert line in capsys.readouterr().err


@pytest.mark.filterwarnings("default")  # Lightning's, about few steps
def test_an_averaged_network_is_profiled(train) -> None:
    train("--max_epochs", 2, "--batch_size", 8, "--profiler", "pytorch", "--ema_decay", 0.9)
    assert "Self CPU time total" in (RUN / "fit-profile.txt").read_text()
