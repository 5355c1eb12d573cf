"""`--mixup`, `--cutmix`: training images and their classes blended in pairs (torchvision.transforms.v2).

Sources: Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019. Training accuracy is measured against the class with
the greater share.
"""

from typing import Annotated, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from engine.errors import UsageError


def callbacks(
    data: Any, *, mixup: Annotated[float, "> 0"] | None = None, cutmix: Annotated[float, "> 0"] | None = None
) -> list[Callback]:
    """The callback of --mixup and --cutmix.

    mixup: alpha of Mixup, such as 0.2; together with cutmix, each batch takes one of the two at random.
    cutmix: alpha of CutMix, such as 1.0.
    """
    return [Mixup(mixup, cutmix, data)] if mixup is not None or cutmix is not None else []


class Mixup(Callback):
    """Sets `module.batch_transform`, which a training step applies to its batch; its draws are seeded by the step."""

    changes_step = True  # `plan` and `preview` run with it

    def __init__(self, mixup: float | None, cutmix: float | None, data: Any) -> None:
        self.alphas, self.data = {"MixUp": mixup, "CutMix": cutmix}, data
        self.is_applied = False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        from torchvision.transforms import v2

        classes = self.data.attribute("num_classes")
        if getattr(module, "loss_name", None) != "cross_entropy" or classes is None:
            raise UsageError("--mixup and --cutmix blend classes: they need --loss cross_entropy and a num_classes")
        if self.data.target_info().get("shape"):
            raise UsageError("--mixup and --cutmix need one class per item, not a mask")
        if (sample := self.data.sample()) is not None and not getattr(module, "has_own_step", True):
            fields = self.data.item_fields.split(sample)
            shape = tuple(getattr([*fields.args, *fields.kwargs.values()][0], "shape", ()))
            if len(shape) != 4:
                raise UsageError(f"--mixup and --cutmix blend images (B, C, H, W), and a batch is of shape {shape}")
        options: dict[str, Any] = {"num_classes": classes, "labels_getter": self.data.get_target}
        transforms = [getattr(v2, name)(alpha=one, **options) for name, one in self.alphas.items() if one is not None]
        blend = transforms[0] if len(transforms) == 1 else v2.RandomChoice(transforms)
        before: Any = module.batch_transform or (lambda batch: batch)

        def transform(batch: Any) -> Any:
            self.is_applied, batch = True, before(batch)
            if isinstance(batch, dict):  # torchvision blends the first tensor, so the target goes last
                target = self.data.get_target(batch)
                batch = dict(sorted(batch.items(), key=lambda field: field[1] is target))
            return blend(batch)

        module.batch_transform = transform  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not self.is_applied:
            step = f"{type(module).__name__}.training_step"
            hint = "it may begin with batch = self.batch_transform(batch)"
            raise UsageError(f"--mixup, --cutmix: {step} is its own: {hint}")
