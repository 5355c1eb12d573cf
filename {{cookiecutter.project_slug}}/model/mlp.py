"""MLP: linear layers with a nonlinearity between them; the input is flattened."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Hidden layers of one width, for inputs (B, ...) of `num_features` values each.

    Source: D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """

    def __init__(
        self, num_features: int, num_classes: int, hidden_dim: int = 256, num_layers: int = 2, dropout: float = 0.0
    ) -> None:
        """Builds the layers.

        Args:
            num_features: values of an item, whatever its shape; of an image C * H * W.
            num_classes: number of outputs: logits, or 1 for regression.
            hidden_dim: width of a hidden layer, D.
            num_layers: number of hidden layers; 0 is a linear model.
            dropout: probability of dropping a hidden unit in training.
        """
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]  # (B, ...) -> (B, num_features)
        width = num_features
        for _ in range(num_layers):
            layers += [nn.Linear(width, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]  # -> (B, D)
            width = hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, num_classes) of inputs (B, ...)."""
        return self.layers(inputs)
