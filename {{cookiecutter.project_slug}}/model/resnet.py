"""ResNet: a classifier of torchvision with a new head, pretrained on ImageNet or not."""

import pickle
import socket
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from engine.errors import UsageError


class ResNet(nn.Module):
    """`backbone`, a network of torchvision without its last layer, and `head`, a new one: images (B, 1|3, H, W).

    The logits of a clip (B, K, 1|3, H, W) are the mean of its frames' logits (temporal segments).

    To fine-tune: `--pretrained --freeze backbone --unfreeze_epoch 3 --lr_scale backbone=0.1` trains the head alone for
    three epochs, then all of it, the backbone at a tenth of the rate.

    Sources: K. He et al., "Deep residual learning for image recognition", 2016; the others: torchvision's pages; clips:
    L. Wang et al., "Temporal segment networks", 2016.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        backbone: str = "resnet18",
        pretrained: bool = False,
        weights_file: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Builds the layers, with fresh weights.

        Args:
            num_classes: number of output logits.
            in_channels: channels of an image; a grey one is repeated three times.
            backbone: name of a classifier in torchvision.models, such as resnet50, convnext_tiny, vit_b_16.
            pretrained: start from torchvision's weights, which are downloaded once.
            weights_file: start from the weights in this file, as torchvision offers it for download.
            dropout: probability of dropping an input of the head in training.

        Raises: UsageError: there is no such classifier, or it has no single linear layer as its head.
        """
        super().__init__()
        known = models.list_models(module=models, exclude=["googlenet", "inception*", "squeezenet*"])  # no single head
        if backbone not in known or in_channels not in (1, 3):
            what = f"--backbone {backbone} for {in_channels} channels"
            raise UsageError(f"{what}: for 1 or 3 channels there are {', '.join(known)}")
        self.name, self.pretrained, self.weights_file = backbone, pretrained, weights_file
        self.backbone = models.get_model(backbone)
        self._last, old = [one for one in self.backbone.named_modules() if isinstance(one[1], nn.Linear)][-1]
        self.backbone.set_submodule(self._last, nn.Identity())  # (B, 3, H, W) -> (B, D)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(old.in_features, num_classes))  # -> (B, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 1|3, H, W) or clips (B, K, 1|3, H, W)."""
        if images.dim() == 5:
            return self(images.flatten(0, 1)).unflatten(0, (-1, images.shape[1])).mean(1)
        return self.head(self.backbone(images.expand(-1, 3, -1, -1)))

    def fetch_weights(self) -> None:
        """Loads the pretrained weights into the backbone; called unless a checkpoint is loaded.

        Raises: RuntimeError: they cannot be fetched or do not fit; the message has the ways out.
        """
        if not (self.pretrained or self.weights_file):
            return
        weights = models.get_model_weights(self.name).DEFAULT  # type: ignore[attr-defined]
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)  # seconds to wait for a server
        try:
            if self.weights_file:
                state = torch.load(Path(self.weights_file), map_location="cpu", weights_only=True)
            else:
                state = weights.get_state_dict(progress=False, check_hash=True)
            body = {name: one for name, one in state.items() if not name.startswith(f"{self._last}.")}
            self.backbone.load_state_dict(body)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            why = str(error).splitlines()[0]
            raise RuntimeError(
                f"no weights for {self.name} from {self.weights_file or weights.url} ({why}). Ways out: fetch that "
                f"address where there is a connection and give the file by --weights_file; or leave --pretrained out"
            ) from None
        finally:
            socket.setdefaulttimeout(before)
