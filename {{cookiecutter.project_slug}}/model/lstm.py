"""LSTM: a text classifier over token ids."""

from torch import Tensor, nn


class LSTM(nn.Module):
    """Logits (B, num_classes) of texts (B, T), token ids padded with 0.

    The head reads the state after the last token, taken from the states of all steps: the same numbers as with a packed
    sequence, which cannot be exported. For long texts, clip the gradients:
    `--gradient_clip_val 1`.

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", 1997.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_classes: int,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """Builds the layers.

        Args:
            vocabulary_size: number of token ids, padding included.
            num_classes: number of output logits.
            embedding_dim: size of a token embedding, E.
            hidden_dim: size of a hidden state, H.
            num_layers: number of stacked LSTM layers.
            dropout: dropout probability in training, of the embeddings and of the last state.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_classes) of texts (B, T); of an empty one, the logits after one padding token."""
        states, _ = self.lstm(self.dropout(self.embedding(tokens)))  # (B, T) -> (B, T, E) -> (B, T, H)
        last = ((tokens != 0).sum(1) - 1).clamp(min=0)  # (B,)
        state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)  # (B, H)
        return self.head(self.dropout(state))
