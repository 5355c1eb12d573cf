"""`--mixup`, `--cutmix`: training images blended in pairs, and their classes with them (torchvision.transforms.v2).

Sources: Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019. The training accuracy counts the greater share.
"""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(
    folder: Any, model: Any, data: Any, *, mixup: float | None = None, cutmix: float | None = None
) -> list[Callback]:
    """Blends of images.

    Args:
        mixup: alpha of Mixup, such as 0.2; with cutmix too, each batch takes one of the two.
        cutmix: alpha of CutMix, such as 1.0.
    """
    return [Mix(mixup, cutmix, data)] if mixup is not None or cutmix is not None else []


class Mix(Callback):
    """Has the model mix its training batches. The draws follow from the step, as all others do."""

    def __init__(self, mixup: float | None, cutmix: float | None, data: Any) -> None:
        self.mixup, self.cutmix, self.data = mixup, cutmix, data

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        from torchvision.transforms import v2

        classes = self.data.attribute("num_classes")
        if getattr(module, "loss_name", None) != "cross_entropy" or classes is None:
            raise UsageError("--mixup and --cutmix blend classes: they need --loss cross_entropy and a num_classes")
        if self.data.target_info().get("shape"):
            raise UsageError("--mixup and --cutmix blend whole items: they need one class for each, and no masks")
        both: list[Any] = []
        for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)):
            if alpha is not None:
                if alpha <= 0:
                    raise UsageError(f"--{kind.__name__.lower()} {alpha} should be more than 0")
                both.append(kind(alpha=alpha, num_classes=classes))
        module.batch_transform = both[0] if len(both) == 1 else v2.RandomChoice(both)  # type: ignore[assignment]
