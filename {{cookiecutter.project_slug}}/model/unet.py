"""UNet: an image to an image of the same size, or to a class for each pixel."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import UsageError


class UNet(nn.Module):
    """Halves the image `depth` times and doubles it again, with a skip connection at each size.

    Letters: B items, C channels, H and W of any size (not below 2^depth), D = width. Source: O. Ronneberger et al.,
    "U-Net: convolutional networks for biomedical image segmentation", 2015, with batch norm, and with bilinear
    interpolation in place of transposed convolutions, which cause checkerboard artifacts.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 32, depth: int = 3, residual: bool = False
    ) -> None:
        """Builds the layers.

        Args:
            in_channels: channels of an image, C.
            out_channels: output channels: a logit a class, or image channels.
            width: channels at full size, D; each halving doubles them.
            depth: number of halvings.
            residual: add the output to the input image, as suits denoising.

        Raises: UsageError: `residual` with another number of channels.
        """
        super().__init__()
        if residual and in_channels != out_channels:
            raise UsageError(f"--residual adds {out_channels} channels to {in_channels}: it goes from image to image")
        self.residual = residual
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = _convolutions(in_channels, width)  # (B, C, H, W) -> (B, D, H, W)
        self.down = nn.ModuleList(_convolutions(small, 2 * small) for small in widths[:-1])
        self.up = nn.ModuleList(_convolutions(3 * small, small) for small in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, out_channels, 1)
        if residual:  # an untrained network returns the image
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, out_channels, H, W) of images (B, C, H, W)."""
        sizes = [self.first(images)]
        for layers in self.down:
            sizes.append(layers(functional.max_pool2d(sizes[-1], 2)))  # (B, D, H, W) -> (B, 2D, H/2, W/2)
        features = sizes.pop()
        for layers in self.up:
            skip = sizes.pop()
            upsampled = functional.interpolate(features, skip.shape[-2:], mode="bilinear")  # (B, 2D, H, W)
            features = layers(torch.cat([upsampled, skip], 1))  # (B, 3D, H, W) -> (B, D, H, W)
        output = self.last(features)
        return images + output if self.residual else output


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        convolution = nn.Conv2d(width, outputs, 3, padding=1, bias=False)  # the norm has one
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
