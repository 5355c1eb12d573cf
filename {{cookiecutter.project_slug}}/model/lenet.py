"""LeNet: LeNet-5, the small convolutional network of 1998, with ReLU and max pooling."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions and three linear layers, for square images (B, C, S, S) with S >= 4.

    Source: Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998 (LeNet-5), with ReLU and
    max pooling. Images below 16 pixels get 3x3 kernels, more channels and one pooling.
    """

    def __init__(self, in_channels: int, num_classes: int, img_size: int, dropout: float = 0.0) -> None:
        """Builds the layers.

        Args:
            in_channels: channels of an image, C.
            num_classes: number of output logits.
            img_size: height and width of an image, S.
            dropout: probability of dropping a hidden unit in training.
        """
        super().__init__()
        small = img_size < 16
        kernel, first, second = (3, 16, 32) if small else (5, 6, 16)
        side = img_size // 2 if small else (img_size // 2 - 4) // 2  # D, height and width of the feature map
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, first, kernel, padding=kernel // 2),  # (B, C, S, S) -> (B, 6, S, S)
            nn.ReLU(),
            nn.Identity() if small else nn.MaxPool2d(2),  # -> (B, 6, S/2, S/2)
            nn.Conv2d(first, second, kernel, padding=1 if small else 0),  # -> (B, 16, 2D, 2D)
            nn.ReLU(),
            nn.MaxPool2d(2),  # -> (B, 16, D, D)
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(second * side**2, 120),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, S, S)."""
        return self.head(self.features(images))
