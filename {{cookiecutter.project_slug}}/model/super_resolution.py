"""SuperResolution: enlarges an image `scale` times, with more detail than bicubic interpolation."""

from torch import Tensor, nn
from torch.nn import functional

from engine.errors import UsageError


class SuperResolution(nn.Module):
    """Convolutions at the small size and a pixel shuffle, added to a bicubic enlargement.

    Letters: B items, C channels, H and W of the small image, R = scale. Source: W. Shi et al., "Real-time single image
    and video super-resolution using an efficient sub-pixel convolutional neural network", 2016 (ESPCN), here deeper,
    and as a residual of the bicubic enlargement, initially 0.
    """

    def __init__(self, in_channels: int, scale: int, width: int = 64, num_layers: int = 3) -> None:
        """Builds the layers.

        Args:
            in_channels: channels of an image, C.
            scale: factor of height and width, R.
            width: channels between the convolutions.
            num_layers: convolutions before the last one.

        Raises: UsageError: scale is below 2.
        """
        super().__init__()
        if scale < 2:
            raise UsageError(f"--scale {scale}: should be 2 or more")
        self.scale = scale
        layers: list[nn.Module] = []
        for number in range(num_layers):
            kernel = 3 if number else 5
            layers += [nn.Conv2d(width if number else in_channels, width, kernel, padding=kernel // 2), nn.Tanh()]
        last = nn.Conv2d(width if num_layers else in_channels, in_channels * scale**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(scale))  # -> (B, C*R*R, H, W) -> (B, C, H*R, W*R)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H*R, W*R) of images (B, C, H, W)."""
        enlarged = functional.interpolate(images, scale_factor=self.scale, mode="bicubic")
        return enlarged + self.layers(images)
