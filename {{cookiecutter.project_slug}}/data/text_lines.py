"""TextLines: short texts in a .tsv or .csv file, one a row, with a label or with a text to be made of them."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import Dataset

from engine.cut import cut
from engine.discovery import UsageError

UNKNOWN, END = 1, 2


class Row(NamedTuple):
    """A text, its target, and the file and line where they stand."""

    text: str
    target: str
    where: str


class TextLines(Dataset):
    """Texts as numbers of tokens (T,), filled up with 0, and their classes; or, with `pairs`, the target texts (T,).

    0 pads, in a batch up to its longest text; 1 stands for a token that the training part does not have, 2 ends a
    target text. The vocabulary is that of the training part alone. It follows from the file, the seed and the
    fractions, so that a run that goes on has the same; `export` writes it to labels.json as `preprocessing`, and
    `predict --rows FILE` reads other texts by it.
    """

    end_id = END

    def __init__(
        self,
        split: str,
        file: str = "texts.tsv",
        text_column: str = "text",
        target_column: str = "label",
        pairs: bool = False,
        tokens: Literal["words", "characters"] = "words",
        lowercase: bool = False,
        max_length: int = 64,
        min_count: int = 1,
        max_vocabulary: int = 20_000,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        data_dir: str = "datasets",
    ) -> None:
        """Reads the file and cuts it.

        Args:
            split: "train", "val" or "test".
            file: below data_dir, with a head line; {split} in its name means one file for each of train, val and test.
            text_column: the texts.
            target_column: their labels, or the texts to be made of them.
            pairs: the targets are texts too.
            tokens: words are what stands between blanks.
            lowercase: take capitals for small letters.
            max_length: tokens of a text that are read, T; the rest of a longer one is cut off.
            min_count: tokens that are rarer in the training part count as unknown.
            max_vocabulary: only so many tokens, the most frequent ones, are known.
            val_fraction: share of the rows for validation, 0 for none, where there is one file.
            test_fraction: share of the rows for the test, where there is one file.
            seed: the cut follows from it.
            data_dir: folder in which the file lies.

        Raises:
            UsageError: the file or a column is not there.
            ValueError: a text is empty, a target text is too long, or a label is none of those to learn from.
        """
        self.tokens, self.lowercase, self.max_length = tokens, lowercase, max_length
        learn = _read(Path(data_dir, file.replace("{split}", "train")), text_column, target_column)
        labels = sorted({row.target for row in learn})
        if "{split}" in file:
            mine = _read(Path(data_dir, file.replace("{split}", split)), text_column, target_column)
        else:
            parts = cut(len(learn), seed, val_fraction, test_fraction)
            mine = [learn[at] for at in parts[split]]
            learn = [learn[at] for at in parts["train"]]
        self.ids = [row.where for row in mine]
        counts = Counter(token for row in learn for text in row[: 1 + pairs] for token in self.apart(text))
        often = sorted(counts, key=lambda token: (-counts[token], token))[:max_vocabulary]
        known = [token for token in often if counts[token] >= min_count]
        self.vocabulary = ["<padding>", "<unknown>", "<end>", *known]
        self.vocabulary_size = len(self.vocabulary)
        self._numbers = {token: number for number, token in enumerate(self.vocabulary) if number > END}
        self.preprocessing: dict[str, Any] = {"tokens": tokens, "lowercase": lowercase, "vocabulary": self.vocabulary}
        self.text_column, self.texts = text_column, self._inputs(mine)  # (N, T)
        if not pairs:
            self.classes = labels
            if strange := [row for row in mine if row.target not in labels]:
                raise ValueError(f"{strange[0].where}: {strange[0].target!r} is no label to learn: {', '.join(labels)}")
            self.targets = torch.tensor([labels.index(row.target) for row in mine])  # (N,)
            return
        self.targets = torch.zeros_like(self.texts)
        for text, row in zip(self.targets, mine, strict=True):
            numbers = [*self.encode(row.target), END]
            if len(numbers) > max_length:
                raise ValueError(f"{row.where}: the target has {len(numbers)} tokens with its end: --max_length")
            text[: len(numbers)] = torch.tensor(numbers)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.texts[index].long(), self.targets[index].long()

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once, whose texts are as long as the longest of them."""
        texts = self.texts[indices].long()
        return texts[:, : int((texts != 0).sum(1).max())], self.targets[indices].long()

    def open_rows(self, path: str) -> tuple[list[str], torch.Tensor]:
        """Where each text of another file stands, and the texts (N, T).

        Raises:
            UsageError: the file or the column of the texts is not there.
            ValueError: a text is empty.
        """
        rows = _read(Path(path), self.text_column)
        return [row.where for row in rows], self._inputs(rows).long()

    def _inputs(self, rows: list[Row]) -> torch.Tensor:
        texts = torch.zeros(len(rows), self.max_length, dtype=torch.int32)
        for text, row in zip(texts, rows, strict=True):
            numbers = self.encode(row.text)[: self.max_length]
            if not numbers:
                raise ValueError(f"{row.where}: the text is empty")
            text[: len(numbers)] = torch.tensor(numbers)
        return texts

    def apart(self, text: str) -> list[str]:
        """The tokens of a text."""
        text = text.lower() if self.lowercase else text
        return text.split() if self.tokens == "words" else list(text)

    def encode(self, text: str) -> list[int]:
        """The numbers of its tokens."""
        return [self._numbers.get(token, UNKNOWN) for token in self.apart(text)]

    def decode(self, numbers: list[int]) -> str:
        """The text of numbers, up to its end or padding."""
        ends = next((at for at, number in enumerate(numbers) if number in (0, END)), len(numbers))
        return (" " if self.tokens == "words" else "").join(self.vocabulary[number] for number in numbers[:ends])


def _read(path: Path, text: str, target: str = "") -> list[Row]:
    if not path.is_file():
        there = ", ".join(sorted(one.name for one in path.parent.glob("*") if one.is_file())) or "no file"
        raise UsageError(f"there is no {path} (--data_dir, --file). {path.parent} has: {there}")
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, **tabs)
        for name in filter(None, (text, target)):
            if name not in (reader.fieldnames or []):
                raise UsageError(f"{path} has no column {name!r}. It has: {', '.join(reader.fieldnames or [])}")
        return [Row(row[text] or "", row.get(target) or "", f"{path.name}:{reader.line_num}") for row in reader]
