"""EncoderDecoder: a text read by one network and written anew by another, which looks back at what was read."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from engine.errors import UsageError
from model.model_interface import MInterface


class EncoderDecoder(MInterface):
    """Learns to make texts (B, T) of texts (B, T), numbers of tokens that 0 fills up; `end_id` ends a target.

    Besides the loss and the accuracy of tokens, padding left out, it measures `val_exact_match`, the share of texts
    without any mistake. Validation, test and `predict` write token by token, taking the likeliest and reading it
    again (greedy decoding); `predict` gives the numbers of tokens (B, T), 0 behind the end.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_length: int,
        end_id: int,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        teacher_forcing: float = 0.9,
        **kwargs: Any,
    ) -> None:
        """Builds both networks.

        Args:
            vocabulary_size: number of token ids, padding included, V.
            max_length: tokens that it writes at most, T.
            end_id: the token that ends a text.
            embedding_dim: size of a token embedding, E.
            hidden_dim: size of a hidden state, H.
            teacher_forcing: share of the tokens that training reads from the target instead of its own output, 0 to 1.
            kwargs: those of MInterface.
        """
        super().__init__(Rewriter(vocabulary_size, max_length, end_id, embedding_dim, hidden_dim), **kwargs)
        self.teacher_forcing = teacher_forcing
        self.is_multiclass = False  # predict gives token ids, not logits
        for stage in ("train", "val", "test"):
            self.metrics[f"{stage}_exact_match"] = MeanMetric()

    def step(self, batch: Any, stage: str) -> Tensor:
        source, target = batch
        if target.dim() != 2:
            raise UsageError("EncoderDecoder makes texts of texts, not classes: --pairs, where the data has that flag")
        logits = self(source, target, self.teacher_forcing if stage == "train" else 0.0)  # (B, T, V)
        counts = target != 0  # (B, T)
        loss = self.loss(logits[counts], target[counts])
        exact = ((logits.argmax(2) == target) | ~counts).all(1).float()  # (B,)
        for name, metric in self.stage_metrics(stage).items():
            if name.endswith("_loss"):
                metric.add(loss.detach(), int(counts.sum()))  # type: ignore[operator]
            elif name.endswith("_exact_match"):
                metric.update(exact)
            else:
                metric.update(logits[counts].detach(), target[counts])
        return loss


class Rewriter(nn.Module):
    """Texts (B, T) to texts (B, T): a GRU reads, another one writes and looks at all states of the first.

    Sources: D. Bahdanau et al., "Neural machine translation by jointly learning to align and translate", 2015; the
    look back is that of T. Luong et al., "Effective approaches to attention-based neural machine translation", 2015;
    reading its own output now and then, S. Bengio et al., "Scheduled sampling", 2015.
    """

    def __init__(self, vocabulary_size: int, max_length: int, end_id: int, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.max_length, self.end_id = max_length, end_id
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)  # 0 begins what is written
        self.encoder = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.decoder = nn.GRUCell(embedding_dim + hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.head = nn.Linear(2 * hidden_dim, vocabulary_size)

    def forward(self, source: Tensor, target: Tensor | None = None, teacher_forcing: float = 0.0) -> Tensor:
        """The output texts for texts (B, T): token ids (B, T), 0 behind the end.

        With a target (B, T), the logits of each token (B, T, V); the one before it is the target's for that share of
        the tokens, and the likeliest for the others.
        """
        states, _ = self.encoder(self.embedding(source))  # (B, T, H)
        keys = self.key(states)  # (B, T, H)
        read = source != 0  # (B, T)
        last = (read.sum(1) - 1).clamp(min=0)  # (B,)
        state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)  # (B, H)
        seen, token, found = torch.zeros_like(state), torch.zeros_like(last), []  # (B, H), (B,)
        for at in range(self.max_length):
            state = self.decoder(torch.cat([self.embedding(token), seen], 1), state)
            scores = (keys @ state[:, :, None]).squeeze(2).masked_fill(~read, -1e4)  # (B, T)
            seen = (scores.softmax(1)[:, None] @ states).squeeze(1)  # (B, H)
            found.append(self.head(torch.cat([state, seen], 1)))  # (B, V)
            token = found[-1].argmax(1)
            if target is not None and teacher_forcing:
                taught = torch.rand(token.shape, device=token.device) < teacher_forcing
                token = torch.where(taught, target[:, at], token)
        logits = torch.stack(found, 1)  # (B, T, V)
        if target is not None:
            return logits
        written = logits.argmax(2)  # (B, T)
        ends = (written == self.end_id).long()
        return written * (ends.cumsum(1) == ends)  # before the first end, or there
