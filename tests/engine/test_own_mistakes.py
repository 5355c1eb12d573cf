"""Natural mistakes in a training of one's own: each is said in one line, and none trains nothing in silence."""

from typing import Any

import main
import pytest
import torch
from gallery import QUICK, RUN
from model import MInterface
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HERE = f"{__name__}."
FLAGS = [*QUICK, "--dataset", "toys.Blobs", "--batch_size", "16", "--max_epochs", "3"]
pytestmark = pytest.mark.filterwarnings("ignore:.*training_step. returned .None.")


class Base(MInterface):
    manual = True

    def __init__(self, num_features: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(nn.Linear(num_features, num_classes), **kwargs)
        self.automatic_optimization = not self.manual

    def loss_of(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer, loss = self.optimizers(), self.loss_of(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class NoStep(Base):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch)


class NoBackward(Base):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.loss_of(batch)
        self.optimizers().step()


class NoLoss(NoStep):
    manual = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.loss_of(batch)


class NoLossInDict(NoLoss):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"los": self.loss_of(batch)}


class Configures(NoStep):
    manual = False

    def __init__(self, num_features: int, num_classes: int, answer: str = "", **kwargs: Any) -> None:
        super().__init__(num_features, num_classes, **kwargs)
        self.answer_is = answer

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(adam, 1)
        answers = {
            "none": None,
            "empty": [],
            "two": [adam, torch.optim.Adam(self.parameters())],
            "text": "Adam",
            "misspelt": {"optimiser": adam},
            "unknown": {"optimizer": adam, "scheduler": schedule},
            "pair": (adam, schedule),
            "plateau": {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(adam)},
        }
        return answers[self.answer_is]


class Late(NoStep):
    """Has a teacher that comes when training begins."""

    manual = False

    def on_fit_start(self) -> None:
        self.teacher = nn.Linear(2, 3)


class LogsTooLate(NoStep):
    """Calls self.log where Lightning does not take it."""

    manual = False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.log("late", 1.0)


class InSetup(NoStep):
    """Has a teacher that only training builds."""

    manual = False

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.teacher = nn.Linear(2, 3).requires_grad_(False)


MISTAKES = {
    "NoStep": "nothing is trained: automatic_optimization is False, and NoStep.training_step never calls",
    "NoBackward": "no step of the epoch has a gradient, for NoBackward.training_step calls no self.manual_backward",
    "NoLoss": "no step of the epoch has a gradient, for NoLoss.training_step returns no loss",
    "NoLoss --bad_steps ignore": "no step of the epoch has a gradient, for NoLoss.training_step returns no loss",
    "NoLossInDict": "the 'loss' key needs to be present",
    "Base --gradient_clip_val 1": "gradient clipping is not supported for manual optimization",
    "Base --accumulate_grad_batches 2": "gradient accumulation is not supported for manual optimization",
    "Base --mixup 0.2": "Base.training_step is its own: it may begin with batch = self.batch_transform(batch)",
    "Configures --answer none": "Configures.configure_optimizers returns 0 optimizers: return one",
    "Configures --answer empty": "Configures.configure_optimizers returns 0 optimizers",
    "Configures --answer two": "returns 2 optimizers: return one, or set self.automatic_optimization = False",
    "Configures --answer text": "Lightning: Unknown configuration for model optimizers",
    "Configures --answer misspelt": "returns a dict of optimiser; Lightning takes optimizer, lr_scheduler, monitor",
    "Configures --answer unknown": "returns a dict of optimizer, scheduler; Lightning takes",
    "Configures --answer pair": "Lightning: Unknown configuration for model optimizers",
    "Configures --answer plateau": "must include a monitor when a `ReduceLROnPlateau` scheduler is used",
    "Configures --optimizer AdamW": "--optimizer would have no effect: Configures trains by methods of its own",
    "Configures --lr_scheduler step": "--lr_scheduler would have no effect",
    "Late": "teacher.bias came when training began, too late to be read from a checkpoint again",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_said_in_one_line(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*FLAGS, "--model_name", *(HERE + mistake).split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert MISTAKES[mistake] in lines[-1]


def test_what_lightning_refuses_in_a_line_of_ones_own_keeps_its_traceback() -> None:
    with pytest.raises(MisconfigurationException, match="You can't") as error:
        main.main([*FLAGS, "--model_name", f"{HERE}LogsTooLate"])
    assert any(frame.name == "on_save_checkpoint" and str(frame.path) == __file__ for frame in error.traceback)


def test_a_schedule_that_nobody_moves_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, told in (([], 1), (["--lr_scheduler", "constant"], 0)):
        main.main([*FLAGS, "--model_name", f"{HERE}Base", *flags])
        out = capsys.readouterr().out
        assert out.count("the learning rate does not change: Base.training_step never calls self.lr_sch") == told


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_what_only_setup_builds_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*FLAGS, "--model_name", f"{HERE}InSetup"])
    assert "teacher.bias was built by InSetup.setup or configure_model: setup(stage) must" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "last"])
    assert "teacher.bias is not here" in capsys.readouterr().err
    assert (RUN / "checkpoints/last.ckpt").exists()
