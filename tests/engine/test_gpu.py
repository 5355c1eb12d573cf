"""What only a GPU shows: nothing waits for it, runs repeat, a bad gradient is found, and no warning is printed."""

from pathlib import Path
from typing import Any

import main
import pytest
import torch
from pytorch_lightning import Callback
from test_resume import everything, same
from torch import Tensor, nn

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),  # torch.compile's own
]
QUICK = "--dataset digits --num_workers 0 --pictures false --batch_size 16 --devices 1".split()
LENET = ["--model_name", "lenet", *QUICK]
NAN = ["--model_name", "test_gpu.SometimesNaN", *QUICK]
RUN = Path("lightning_logs/version_0")


class SometimesNaN(nn.Module):
    """A network whose outputs are NaN in training at two calls."""

    def __init__(self, num_classes: int, bad_calls: tuple[int, ...] = (7, 9)) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, num_classes))
        self.calls, self.bad_calls = 0, bad_calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        outputs = self.layers(x)
        return outputs * torch.nan if self.training and self.calls in self.bad_calls else outputs


class Between(Callback):
    """Does something before each training batch, by its number."""

    def __init__(self, **actions: Any) -> None:
        self.actions = actions

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        number = trainer.fit_loop.total_batch_idx
        for action in (self.actions.get(f"at_{number}"), self.actions.get("each")):
            if action is not None:
                action(module)


@pytest.mark.parametrize("flags", [[], ["--precision", "bf16-mixed", "--compile"], ["--gradient_clip_val", "1"]])
def test_no_step_waits_for_the_gpu(flags: list[str]) -> None:
    counted = Between(  # the 33rd to the 46th step: metrics are updated every 16th, and values logged every 1000th
        at_33=lambda _: torch.cuda.set_sync_debug_mode("error"), at_46=lambda _: torch.cuda.set_sync_debug_mode(0)
    )
    try:
        main.main([*LENET, *flags, "--max_epochs", "1", "--log_every_n_steps", "1000"], [counted])
    finally:
        torch.cuda.set_sync_debug_mode(0)


@pytest.mark.parametrize("model", ["vae", "gan"])
def test_neither_do_the_steps_of_other_systems(model: str) -> None:
    counted = Between(
        at_3=lambda _: torch.cuda.set_sync_debug_mode("error"), at_8=lambda _: torch.cuda.set_sync_debug_mode(0)
    )
    try:
        main.main(
            [
                *QUICK,
                "--model_name",
                model,
                "--bad_steps",
                "ignore",
                "--max_epochs",
                "1",
                "--log_every_n_steps",
                "1000",
            ],
            [counted],
        )
    finally:
        torch.cuda.set_sync_debug_mode(0)


def test_a_bad_gradient_stops_the_run_before_the_weights_change() -> None:
    weights: list[Tensor] = []
    watch = Between(at_6=lambda module: weights.extend(one.detach().clone() for one in module.network.parameters()))
    with pytest.raises(FloatingPointError, match=r"step 6 \(epoch 1, batch 6\).* network\.layers\.1\.weight.* 1 more"):
        main.main([*NAN, "--max_epochs", "1"], [watch])
    kept = torch.load(RUN / "bad_step_6.pt", weights_only=True)
    for before, after in zip(weights, kept["state_dict"].values(), strict=True):
        assert torch.equal(before, after)
    assert not (RUN / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("last", [False, True])
def test_bad_gradients_are_skipped_and_counted(last: bool) -> None:
    calls = ["7", "90"] if last else ["7", "9"]  # an epoch has 90 steps
    weights: dict[int, Tensor] = {}

    def keep(module: Any) -> None:
        weights[module.trainer.fit_loop.total_batch_idx] = module.network.layers[1].weight.detach().clone()

    argv = [*NAN, "--bad_calls", *calls, "--max_epochs", "2", "--bad_steps", "skip"]
    main.main(argv, [Between(each=keep)])
    for call in map(int, calls):
        assert torch.equal(weights[call - 1], weights[call])
        assert not torch.equal(weights[call], weights[call + 1])
    checkpoint = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["Guard"] == {"skipped": 2}
    assert not any(one.isnan().any() for one in checkpoint["state_dict"].values())


@pytest.mark.parametrize("flags", [[], ["--precision", "bf16-mixed", "--ema_decay", "0.9", "--mixup", "0.3"]])
def test_a_killed_run_goes_on_bit_for_bit(flags: list[str]) -> None:
    argv = [*LENET, "--deterministic", "true", "--max_epochs", "2", "--every_n_train_steps", "1", *flags]
    metrics = main.main(argv)

    def halt(_: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        main.main(argv, [Between(at_50=halt)])
    assert main.main(["--ckpt_path", "version_1"]) == metrics
    same(everything(Path("lightning_logs/version_1")), everything(RUN))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_network_learns_the_same(mode: str) -> None:
    plain = main.main([*LENET, "--max_epochs", "2"])
    compiled = main.main([*LENET, "--max_epochs", "2", "--compile", "--compile_mode", mode])
    assert compiled == pytest.approx(plain, abs=0.05)


@pytest.mark.parametrize("strategy", ["ddp", "model_parallel"])
def test_a_strategy_of_several_gpus_takes_one(strategy: str) -> None:
    plain = main.main([*LENET, "--max_epochs", "1"])
    alone = main.main([*LENET, "--max_epochs", "1", "--strategy", strategy])
    assert alone == pytest.approx(plain, abs=0.05)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
def test_fsdp_takes_one_gpu() -> None:
    plain = main.main([*LENET, "--max_epochs", "1"])
    assert main.main([*LENET, "--max_epochs", "1", "--strategy", "fsdp"]) == pytest.approx(plain, abs=0.05)


def test_a_run_of_the_gpu_is_tested_predicted_and_exported_on_either(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = main.main([*LENET, "--max_epochs", "2"])
    for flags in ([], ["--accelerator", "cpu"]):
        told = main.main(["test", "--ckpt_path", "best", *flags])
        assert told["test_loss"] == pytest.approx(metrics["test_loss"], abs=1e-3)
        main.main(["predict", "--ckpt_path", "best", *flags])
        main.main(["export", "--ckpt_path", "best", *flags])
    assert "GPU available" not in capsys.readouterr().err


class Memory(Callback):
    """The most memory that tensors took in the steps of training."""

    peak = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        Memory.peak = torch.cuda.max_memory_allocated()


class Photos(torch.utils.data.Dataset):
    """Noise (3, 64, 64) in ten classes."""

    num_classes, in_channels, img_size = 10, 3, 64

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 64, 64), index % 10


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_plan_tells_the_memory_that_is_needed(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    net = "--model_name torchvision.models.resnet18 --dataset test_gpu.Photos --batch_size 128".split()
    net += ["--precision", precision, "--num_workers", "0"]
    told = main.main(["plan", *net, "--measure_steps", "0"])
    before = torch.cuda.memory_allocated()
    main.main([*net, "--max_epochs", "1", "--pictures", "false", "--val_fraction", "0"], [Memory()])
    assert told["memory"] < Memory.peak - before < told["memory"] + 150e6  # the workspaces of cuBLAS and cuDNN


class Bytes(Photos):
    """Images in bytes, which the network scales."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), index % 10


class Scaled(nn.Module):
    """A network that is given bytes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x / 255)


def test_pictures_are_drawn_of_bytes_on_the_gpu() -> None:
    main.main("--model_name test_gpu.Scaled --dataset test_gpu.Bytes --num_workers 0 --max_epochs 1".split())
    assert {"first_batch.png", "mistakes.png"} <= {path.name for path in RUN.iterdir()}


class Answers(torch.utils.data.Dataset):
    """Yes or no of points; one of the last answers is missing."""

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.randn(2), torch.tensor(-1.0 if index == 70 else float(index % 2))


class Answer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)


def test_a_missing_answer_that_the_loss_would_learn_stops_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--loss binary_cross_entropy_with_logits --val_fraction 0 --test_fraction 0 --batch_size 2 --devices 1"
    argv = ["--model_name", "test_gpu.Answer", "--dataset", "test_gpu.Answers", *flags.split()]
    with pytest.raises(SystemExit):
        main.main([*argv, "--max_epochs", "1", "--pictures", "false"])
    assert "NaN" in capsys.readouterr().err
