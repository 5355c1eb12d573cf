"""EncoderDecoder: sequence to sequence, by two recurrent networks with attention."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from engine.errors import UsageError
from model.model_interface import MInterface


class EncoderDecoder(MInterface):
    """Trains a network from texts (B, T) to texts (B, T), token ids padded with 0; `end_id` ends a target.

    Besides the loss and the accuracy of tokens, padding left out, it measures `val_exact_match`, the share of texts
    without any mistake. Validation, test and `predict` decode greedily; `predict` gives token ids (B, T), 0 behind the
    end.
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
            max_length: largest number of tokens of an output, T.
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
            self.metrics[f"{stage}_exact_match"] = ExactMatch()

    def step(self, batch: Any, stage: str) -> Tensor:
        source, target = batch
        if target.dim() != 2:
            raise UsageError("EncoderDecoder needs texts as targets, not classes: give --pairs, if the data has it")
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


class ExactMatch(MeanMetric):
    """The share of texts that are right to the last token, 0 to 1."""

    higher_is_better = True  # type: ignore[assignment]


class Rewriter(nn.Module):
    """Texts (B, T) to texts (B, T): a GRU encoder, and a GRU decoder with attention over the encoder's states.

    Sources: D. Bahdanau et al., "Neural machine translation by jointly learning to align and translate", 2015; the
    attention scores: T. Luong et al., "Effective approaches to attention-based neural machine translation", 2015;
    teacher_forcing below 1: S. Bengio et al., "Scheduled sampling", 2015.
    """

    def __init__(self, vocabulary_size: int, max_length: int, end_id: int, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.max_length, self.end_id = max_length, end_id
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)  # 0 is the first input of the decoder
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
        mask = source != 0  # (B, T)
        last = (mask.sum(1) - 1).clamp(min=0)  # (B,)
        state = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)  # (B, H)
        context, token, outputs = torch.zeros_like(state), torch.zeros_like(last), []  # (B, H), (B,)
        for step in range(self.max_length):
            state = self.decoder(torch.cat([self.embedding(token), context], 1), state)
            scores = (keys @ state[:, :, None]).squeeze(2).masked_fill(~mask, -1e4)  # (B, T)
            context = (scores.softmax(1)[:, None] @ states).squeeze(1)  # (B, H)
            outputs.append(self.head(torch.cat([state, context], 1)))  # (B, V)
            token = outputs[-1].argmax(1)
            if target is not None and teacher_forcing:
                forced = torch.rand(token.shape, device=token.device) < teacher_forcing
                token = torch.where(forced, target[:, step], token)
        logits = torch.stack(outputs, 1)  # (B, T, V)
        if target is not None:
            return logits
        tokens = logits.argmax(2)  # (B, T)
        ends = (tokens == self.end_id).long()
        return tokens * (ends.cumsum(1) == ends)  # up to the first end
