"""ViTSmall: a small vision transformer, which treats an image as a sequence of patches."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from engine.errors import UsageError


class ViTSmall(nn.Module):
    """Images (B, C, S, S) are cut into N = (S / patch_size)^2 patches, the tokens of `depth` transformer blocks.

    Letters: B items, N tokens, D values of a token, H heads. Sources: A. Dosovitskiy et al., "An image is worth 16x16
    words", 2021; the mean in place of the class token: L. Beyer et al., "Better plain ViT baselines", 2022.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        img_size: int,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        pooling: Literal["mean", "token"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        """Builds the layers.

        Args:
            in_channels: channels of an image, C.
            num_classes: number of output logits.
            img_size: height and width of an image, S.
            patch_size: height and width of a patch; img_size is a multiple of it.
            dim: values of a token, D.
            depth: number of transformer blocks.
            num_heads: heads of the attention, H; dim is a multiple of it.
            pooling: the head reads the mean of all tokens, or an additional class token.
            dropout: probability of dropping a value before it is added to a token, in training.

        Raises: UsageError: img_size is no multiple of patch_size, or dim none of num_heads.
        """
        super().__init__()
        if img_size % patch_size or dim % num_heads:
            sizes = f"--img_size {img_size} --patch_size {patch_size} --dim {dim} --num_heads {num_heads}"
            raise UsageError(f"{sizes}: the first should be a multiple of the second, and the third of the fourth")
        num_tokens = (img_size // patch_size) ** 2 + (pooling == "token")
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.token = nn.Parameter(torch.zeros(1, 1, dim)) if pooling == "token" else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, dropout) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        self.register_load_state_dict_pre_hook(_rename_keys_of_version_0_1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, S, S)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (B, C, S, S) -> (B, D, N) -> (B, N, D)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)  # (B, 1 + N, D)
        tokens = self.blocks(tokens + self.positions)
        return self.head(tokens.mean(1) if self.token is None else tokens[:, 0])  # (B, N, D) -> (B, D) -> logits


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then an MLP, each with a residual connection: (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.qkv, self.projection = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D)."""
        heads = self.qkv(self.norm(tokens)).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, H, D/H)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D/H)
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, N, D)
        tokens = tokens + self.dropout(self.projection(attended))
        return tokens + self.dropout(self.mlp(tokens))


def _rename_keys_of_version_0_1(_module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    names = {"places": "positions", "asks": "qkv", "gives": "projection", "wide": "mlp"}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        parts = key.removeprefix(prefix).split(".")
        state_dict[prefix + ".".join(names.get(part, part) for part in parts)] = state_dict.pop(key)
