"""VAE: variational autoencoder: a latent code of images, and new images from noise."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import UsageError
from engine.training.metrics import Mean
from model.model_interface import MInterface


class VAE(MInterface):
    """Encoder, decoder and the evidence lower bound (ELBO) between them, for square images (B, C, S, S).

    It logs `loss` = `recon` + beta * `kl`, which with beta 1 is the negative ELBO, each in nats an image: -log p(x|z)
    with one draw of z, and KL(q(z|x) || N(0, 1)). After each validation reconstructions.png and samples.png
    are drawn. `predict` gives the means of the latent values, (B, Z); `export` the pass without noise.

    Sources: D. Kingma, M. Welling, "Auto-encoding variational Bayes", 2014; beta: I. Higgins et al., "beta-VAE", 2017;
    a learned variance: O. Rybkin et al., "Simple and effective VAE training with calibrated decoders", 2021.
    """

    network: "Autoencoder"
    noise: Tensor

    def __init__(
        self,
        in_channels: int,
        img_size: int,
        latent_dim: int = 16,
        width: int = 32,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        beta: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Builds it.

        Args:
            in_channels: channels of an image, C.
            img_size: height and width of an image, S.
            latent_dim: size of the latent code, Z.
            width: channels of the first convolution; each that halves the image has twice as many.
            likelihood: of each pixel: gaussian, with one learned variance, or bernoulli, for pixels in 0..1.
            beta: weight of the KL term; less than 1 for sharper reconstructions, more for a simpler code.
        """
        network = Autoencoder(in_channels, img_size, latent_dim, width, likelihood == "bernoulli")
        super().__init__(network, loss="mse_loss", metrics=(), **kwargs)
        self.likelihood, self.beta = likelihood, beta
        self.spread = nn.Parameter(torch.zeros(()), requires_grad=likelihood == "gaussian")
        self.register_buffer("noise", torch.randn(64, latent_dim))  # what samples.png is drawn from; the seed's
        for name in [f"{stage}_{part}" for stage in ("train", "val", "test") for part in ("recon", "kl")]:
            self.metrics[name] = Mean()

    @staticmethod
    def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
        """The images are input and target; labels are not used."""
        images = batch if isinstance(batch, Tensor) else batch["image"] if isinstance(batch, dict) else batch[0]
        return [images], images

    def step(self, batch: Any, stage: str) -> Tensor:
        """The negative ELBO of a batch, the mean over its images."""
        _, images = self.unpack_batch(batch)
        noise = torch.randn(len(images), self.noise.shape[1], device=images.device)
        output, mean, log_var = self(images, noise)
        recon = self.negative_log_likelihood(output.float(), images).flatten(1).sum(1).mean()
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        loss = recon + self.beta * kl
        for name, value in (("loss", loss), ("recon", recon), ("kl", kl)):
            self.metrics[f"{stage}_{name}"].update(value.detach(), len(images))  # type: ignore[operator]
        return loss

    def negative_log_likelihood(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each pixel, in nats. Raises: UsageError: pixels outside 0..1 under a Bernoulli likelihood."""
        if self.likelihood == "gaussian":
            log_variance = 10 * self.spread  # ten times the learning rate of a weight: it has further to go
            return 0.5 * ((output - images) ** 2 * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
        low, high = images.aminmax()
        if low < 0 or high > 1:
            given = f"--likelihood bernoulli needs pixels in 0..1, and these are in {low:.3g}..{high:.3g}"
            raise UsageError(f"{given}: take --likelihood gaussian, or have the dataset scale them")
        return functional.binary_cross_entropy_with_logits(output, images, reduction="none")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network.encode(self.unpack_batch(batch)[1])[0]

    def sample_images(self, batch: Any) -> dict[str, Any]:
        """Reconstructions of the first images, and images decoded from fixed noise."""
        _, images = self.unpack_batch(batch)
        low, high = images.aminmax()
        rows = {"input": images[:8], "output": self(images[:8]).clamp(low, high)}
        return {"reconstructions": rows, "samples": self.network.decode(self.noise).clamp(low, high)}


class Autoencoder(nn.Module):
    """Convolutions that halve the image while its side is even and above 4, a linear layer, and the mirror image."""

    def __init__(self, in_channels: int, img_size: int, latent_dim: int, width: int, squash: bool) -> None:
        super().__init__()
        self.squash = squash  # the output is logits of pixels in 0..1
        side, channels = img_size, in_channels
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        while (side % 2 == 0 and side > 4) or not down:
            more, stride = width * 2 ** (len(down) // 2), 2 if side % 2 == 0 else 1
            down += [nn.Conv2d(channels, more, 4 if stride == 2 else 3, stride, 1), nn.SiLU()]  # (B, more, S/2, S/2)
            back = nn.ConvTranspose2d(more, channels, 4 if stride == 2 else 3, stride, 1)
            up = [nn.SiLU(), back, *up]
            side, channels = side // stride, more
        flat = channels * side**2
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * latent_dim))
        self.decoder = nn.Sequential(nn.Linear(latent_dim, flat), nn.Unflatten(1, (channels, side, side)), *up)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Any:
        """Images (B, C, S, S) -> the same, as the decoder draws them from the mean of their code.

        With noise (B, Z): the decoder's output from mean + deviation * noise (logits under a Bernoulli likelihood),
        and the mean and the logarithm of the variance of the code, (B, Z) each.
        """
        mean, log_var = self.encode(images)
        if noise is None:
            return self.decode(mean)
        return self.decoder(mean + (0.5 * log_var).exp() * noise), mean, log_var

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), (B, Z) each, of images (B, C, S, S)."""
        mean, log_var = self.encoder(images).float().chunk(2, dim=1)
        return mean, log_var.clamp(-20, 20)  # an early, too large step would overflow exp

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, C, S, S), their expected pixels, from codes (B, Z)."""
        output = self.decoder(codes)
        return output.sigmoid() if self.squash else output
