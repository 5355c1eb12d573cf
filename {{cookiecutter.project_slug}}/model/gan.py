"""GAN: generative adversarial network: a generator of images, and a discriminator between these and real ones."""

from itertools import pairwise
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel

from engine.errors import UsageError
from engine.training.metrics import Mean
from model.model_interface import MInterface


class GAN(MInterface):
    """Two networks with an Adam each, for square images (B, C, S, S) of about mean 0 and deviation 1.

    Each batch is a step of the discriminator and one of the generator, with the non-saturating loss; Lightning counts
    both, so that `--every_n_train_steps 100` are 50 batches. Their losses, `train_discriminator` and
    `train_generator`, say little about the quality of the images; `loss` measures it: the energy distance between the
    pixels of a batch and of as many samples, about 0 for the same distribution. After each validation samples.png is
    drawn, always from the same noise. `predict` gives a sample for each item, (B, C, S, S);
    `export` the generator, noise (B, Z) -> images.

    Sources: I. Goodfellow et al., "Generative adversarial nets", 2014; layers and Adam: A. Radford et al.,
    "Unsupervised representation learning with deep convolutional generative adversarial networks", 2016; r1:
    L. Mescheder et al., "Which training methods for GANs do actually converge?", 2018; G. Szekely, M. Rizzo, "Energy
    statistics", 2013.
    """

    noise: Tensor

    def __init__(
        self,
        in_channels: int,
        img_size: int,
        latent_dim: int = 64,
        width: int = 32,
        lr: float = 5e-4,
        beta1: float = 0.5,
        r1: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Builds both.

        Args:
            in_channels: channels of an image, C.
            img_size: height and width of an image, S.
            latent_dim: size of the noise vector, Z.
            width: channels at half of the size; each further halving has twice as many.
            lr: learning rate of both networks.
            beta1: decay rate of the first moment of both Adams.
            r1: weight of the gradient penalty of the discriminator on real images.
        """
        kwargs["component_kwargs"] = {**(kwargs.get("component_kwargs") or {}), "optimizer": {"betas": (beta1, 0.999)}}
        network = generator(in_channels, img_size, latent_dim, width)
        super().__init__(network, loss="mse_loss", metrics=(), optimizer="Adam", lr=lr, **kwargs)
        self.discriminator = discriminator(in_channels, img_size, width)
        self.r1, self.automatic_optimization = r1, False
        self.register_buffer("noise", torch.randn(64, latent_dim))  # what samples.png is drawn from; the seed's
        for name in ("discriminator", "generator"):
            self.metrics[f"train_{name}"] = Mean()

    @staticmethod
    def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
        """The images of a batch; labels are not used."""
        images = batch if isinstance(batch, Tensor) else batch["image"] if isinstance(batch, dict) else batch[0]
        return [images], images

    def arguments(self, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        """The generator's: noise (B, Z)."""
        images = self.unpack_batch(batch)[1]
        return [torch.randn(len(images), self.noise.shape[1], device=images.device)], {}

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """A step of the discriminator, and one of the generator against it."""
        images = self.unpack_batch(batch)[1].detach().requires_grad_()  # for the gradient penalty
        fake = self(*self.arguments(batch)[0])
        logs = self.global_step % self.trainer.log_every_n_steps < 2  # type: ignore[attr-defined]
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        for name, optimizer in zip(("discriminator", "generator"), self.optimizers(), strict=True):  # type: ignore[arg-type]
            self.toggle_optimizer(optimizer)
            if name == "discriminator":
                real = self.discriminator(images)
                (gradient,) = torch.autograd.grad(real.sum(), images, create_graph=True)
                loss = (softplus(-real) + softplus(self.discriminator(fake.detach()))).mean()
                loss = loss + self.r1 / 2 * gradient.square().flatten(1).sum(1).mean()
            else:
                loss = softplus(-self.discriminator(fake)).mean()
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
            self.metrics[f"train_{name}"].update(loss.detach(), len(images))  # type: ignore[operator]
            if logs:
                values[f"train_{name}_step"] = loss.item()
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.step()  # type: ignore[call-arg]
        self._measure(fake, images, "train")
        if logs:
            self.log_now(values)

    def on_train_batch_end(self, *_: Any) -> None:
        if isinstance(model := self.trainer.strategy.model, DistributedDataParallel):
            model.require_forward_param_sync = True  # else the running means of batch norm would differ between ranks

    def step(self, batch: Any, stage: str) -> Tensor:
        """The energy distance of validation and test."""
        return self._measure(self(*self.arguments(batch)[0]), self.unpack_batch(batch)[1], stage)

    def _measure(self, fake: Tensor, images: Tensor, stage: str) -> Tensor:
        distance = energy_distance(fake.detach().float().flatten(1), images.detach().flatten(1))
        self.metrics[f"{stage}_loss"].update(distance, len(images))  # type: ignore[operator]
        return distance

    def sample_images(self, batch: Any) -> dict[str, Any]:
        """Generated images of fixed noise, (64, C, S, S)."""
        return {"samples": self(self.noise).clamp(*self.unpack_batch(batch)[1].aminmax())}

    def configure_optimizers(self) -> Any:
        """Two of MInterface's, with schedules: for the discriminator and for the generator."""
        configured = []
        for other in (self.network, self.discriminator):
            other.requires_grad_(False)  # type: ignore[union-attr]
            configured.append(super().configure_optimizers())
            other.requires_grad_(True)  # type: ignore[union-attr]
        return configured if isinstance(configured[0], dict) else (configured, [])

    def configure_callbacks(self) -> list[Callback]:
        """None. Raises: UsageError: a flag that does not work with two optimizers is given."""
        trainer, name = self.trainer, self.schedule["lr_scheduler"]
        ends_early = trainer.max_steps > 0 and not getattr(trainer, "fast_dev_run", False)
        wrong = {
            f"--gradient_clip_val {trainer.gradient_clip_val}": trainer.gradient_clip_val,
            f"--accumulate_grad_batches {trainer.accumulate_grad_batches}": trainer.accumulate_grad_batches > 1,
            "--lr_scheduler plateau": name == "plateau",
            f"--max_steps with --lr_scheduler {name}": ends_early and name != "constant",  # planned in batches
        }
        if refused := [flag for flag, given in wrong.items() if given]:
            raise UsageError(f"{refused[0]} does not work with the two optimizers of a GAN")
        return []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.trainer.strategy, DDPStrategy):  # a backward pass uses one of the two networks
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)  # there is no public way


def pyramid(channels: int, side: int, width: int) -> tuple[list[int], int]:
    """Channels at each size, for an image that is halved while its side is even and above 4; the last side."""
    sizes = [channels]
    while side % 2 == 0 and side > 4:
        sizes, side = [*sizes, width * 2 ** (len(sizes) - 1)], side // 2
    return sizes, side


def generator(in_channels: int, img_size: int, latent_dim: int, width: int) -> nn.Sequential:
    """Noise (B, Z) -> images (B, C, S, S)."""
    channels, side = pyramid(in_channels, img_size, width)
    first = nn.Linear(latent_dim, channels[-1] * side**2)
    layers: list[nn.Module] = []
    for more, less in pairwise(reversed(channels)):
        layers += [nn.BatchNorm2d(more), nn.ReLU(), nn.ConvTranspose2d(more, less, 4, 2, 1)]  # (B, less, 2S, 2S)
    return nn.Sequential(first, nn.Unflatten(1, (channels[-1], side, side)), *layers)


def discriminator(in_channels: int, img_size: int, width: int) -> nn.Sequential:
    """Images (B, C, S, S) -> logits of being real (B, 1)."""
    channels, side = pyramid(in_channels, img_size, width)
    layers: list[nn.Module] = []
    for less, more in pairwise(channels):
        layers += [nn.Conv2d(less, more, 4, 2, 1), nn.LeakyReLU(0.2)]  # (B, more, S/2, S/2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, 1))


def energy_distance(left: Tensor, right: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| of items (N, D) and (M, D): 0 for the same distribution, without bias."""
    within = [torch.cdist(one, one).sum() / (len(one) * max(1, len(one) - 1)) for one in (left, right)]
    return 2 * torch.cdist(left, right).mean() - sum(within)
