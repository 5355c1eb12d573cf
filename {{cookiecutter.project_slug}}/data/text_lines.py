"""TextLines: short texts in a .tsv or .csv file, one a row, with a label or with a text to be made of them."""

import csv
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import Dataset

from data._file_errors import missing, no_column, not_in
from engine.datamodule.class_balance import look_alike
from engine.datamodule.splits import hash_texts, split_indices
from engine.errors import UsageError

UNKNOWN, END = 1, 2
# Ideographs, kana, and the punctuation that goes with them: what is written without blanks.
ALONE = "\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff5b-\uff9f\U00020000-\U0003ffff"
WORD = re.compile(f"[{ALONE}]|[^\\s{ALONE}]+")
BLANK = re.compile(f"(?<=[{ALONE}]) (?=[{ALONE}])")


class Row(NamedTuple):
    """A text, its target, and the file and line where they stand."""

    text: str
    target: str
    where: str


class TextLines(Dataset):
    """Texts as token ids (T,), padded with 0, and their classes; or, with `pairs`, the target texts (T,).

    0 pads, in a batch up to its longest text; 1 stands for a token that the train split does not have, 2 ends a
    target text. The vocabulary is that of the train split alone. It follows from the file, the seed and the
    fractions, so that a run that goes on has the same; `export` writes it to labels.json as `preprocessing`, and
    `predict --rows FILE` reads other texts by it, in the same encoding. An exported network takes texts of
    `max_length` numbers, (B, T).

    In a .csv file, quotes may hold a text that has separators or ends of lines in it; in a .tsv file they are letters
    like any other. Words are found as in J. Devlin et al., "BERT: Pre-training of deep bidirectional transformers for
    language understanding", 2019: what stands between blanks, and each Chinese character or kana by itself.
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
        separator: str | None = None,
        encoding: str = "utf-8",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        stratify: bool = True,
        seed: int = 0,
        data_dir: str = "datasets",
    ) -> None:
        """Reads the file and splits it.

        Args:
            split: "train", "val" or "test".
            file: the file, below data_dir, with a header line; {split} in its name stands for train, val and test.
            text_column: name of the column of texts.
            target_column: name of the column of labels, or, with pairs, of the texts to generate.
            pairs: the targets are texts too.
            tokens: words splits at blanks, and takes each Chinese character or kana as a token of its own.
            lowercase: convert texts to lower case.
            max_length: tokens of a text that are kept, T; a longer one is truncated.
            min_count: tokens that are rarer in the train split count as unknown.
            max_vocabulary: size of the vocabulary; the most frequent tokens are kept.
            separator: one character between columns, none for a tab in a .tsv file and a comma in others.
            encoding: encoding of the file, such as gbk.
            val_fraction: share of the rows for validation, 0 for none, where there is one file.
            test_fraction: share of the rows for the test, where there is one file.
            stratify: cut the same share of every label.
            seed: the splits follow from it.
            data_dir: folder in which the file lies.

        Raises:
            UsageError: the file or a column is not there or cannot be read; a text or a label is empty, a target text
                too long, a label none of those to learn from, two of them that look alike, or max_length below 1.
        """
        if max_length < 1:
            raise UsageError(f"--max_length {max_length} should be at least 1")
        self.separator, self.encoding, self.text_column = separator, encoding, text_column
        self.tokens, self.lowercase = tokens, lowercase
        learn = self._read(Path(data_dir, file.replace("{split}", "train")), target_column)
        if not learn:
            raise UsageError(f"{Path(data_dir, file.replace('{split}', 'train'))} has no row below its head line")
        labels = sorted({row.target for row in learn})
        if split == "train" and not pairs:
            _say_joined(learn, labels, self._separator_of(Path(file)))
        if "{split}" in file:
            mine = self._read(Path(data_dir, file.replace("{split}", split)), target_column)
        else:
            numbers = [labels.index(row.target) for row in learn] if stratify and not pairs else None
            splits = split_indices(len(learn), seed, val_fraction, test_fraction, numbers)
            mine = [learn[at] for at in splits[split]]
            learn = [learn[at] for at in splits["train"]]
        self.ids = [row.where for row in mine]
        self.fingerprint = hash_texts([text for row in mine for text in row[:2]])
        counts = Counter(token for row in learn for text in row[: 1 + pairs] for token in self.apart(text))
        often = sorted(counts, key=lambda token: (-counts[token], token))[:max_vocabulary]
        known = [token for token in often if counts[token] >= min_count]
        vocabulary = ["<padding>", "<unknown>", "<end>", *known]
        preprocessing: dict[str, Any] = {"tokens": tokens, "lowercase": lowercase, "vocabulary": vocabulary}
        preprocessing |= {"max_length": max_length, "padding": 0, "unknown": UNKNOWN, "end": END}
        self._set_preprocessing(preprocessing)
        self.texts = self._inputs(mine)  # (N, T)
        if not pairs:
            if alike := look_alike(labels):
                said = f"{alike}, which look alike: write them in one way"
                raise UsageError(f"{Path(data_dir, file)}: {target_column!r} has {said}")
            self.classes = labels
            if strange := [row for row in mine if row.target not in labels]:
                raise UsageError(f"{strange[0].where}: {strange[0].target!r} is no label to learn: {', '.join(labels)}")
            self.targets = torch.tensor([labels.index(row.target) for row in mine])  # (N,)
            return
        self.targets = torch.zeros_like(self.texts)
        for text, row in zip(self.targets, mine, strict=True):
            numbers = [*self.encode(row.target), END]
            if len(numbers) > max_length:
                raise UsageError(f"{row.where}: the target has {len(numbers)} tokens with its end: --max_length")
            text[: len(numbers)] = torch.tensor(numbers)

    @classmethod
    def from_record(
        cls, record: dict[str, Any], *, separator: str | None, encoding: str, text_column: str, **_: Any
    ) -> "TextLines":
        """A dataset without texts, as a run kept it: for `open_rows`. The arguments are those of the constructor."""
        dataset = cls.__new__(cls)
        dataset.separator, dataset.encoding, dataset.text_column = separator, encoding, text_column
        dataset._set_preprocessing(record["preprocessing"])
        if record["classes"]:
            dataset.classes = record["classes"]
        return dataset

    def _set_preprocessing(self, preprocessing: dict[str, Any]) -> None:
        self.preprocessing, self.vocabulary = preprocessing, preprocessing["vocabulary"]
        self.tokens, self.lowercase = preprocessing["tokens"], preprocessing["lowercase"]
        self.max_length, self.vocabulary_size = preprocessing["max_length"], len(self.vocabulary)
        self._numbers = {token: number for number, token in enumerate(self.vocabulary) if number > END}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.texts[index].long(), self.targets[index].long()

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch, padded to its longest text."""
        texts = self.texts[indices].long()
        return texts[:, : int((texts != 0).sum(1).max())], self.targets[indices].long()

    def open_rows(self, path: str) -> tuple[list[str], torch.Tensor]:
        """Where each text of another file stands, and the texts (N, T).

        Raises: UsageError: the file or the column of the texts is not there or cannot be read, or a text is empty.
        """
        rows = self._read(Path(path))
        return [row.where for row in rows], self._inputs(rows).long()

    def _inputs(self, rows: list[Row]) -> torch.Tensor:
        texts = torch.zeros(len(rows), self.max_length, dtype=torch.int32)
        for text, row in zip(texts, rows, strict=True):
            numbers = self.encode(row.text)[: self.max_length]
            if not numbers:
                raise UsageError(f"{row.where}: the text is empty")
            text[: len(numbers)] = torch.tensor(numbers)
        return texts

    def apart(self, text: str) -> list[str]:
        """The tokens of a text."""
        text = text.lower() if self.lowercase else text
        return WORD.findall(text) if self.tokens == "words" else list(text)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        return [self._numbers.get(token, UNKNOWN) for token in self.apart(text)]

    def decode(self, numbers: list[int]) -> str:
        """The text of token ids, up to its end or padding."""
        ends = next((at for at, number in enumerate(numbers) if number in (0, END)), len(numbers))
        words = [self.vocabulary[number] for number in numbers[:ends]]
        return BLANK.sub("", " ".join(words)) if self.tokens == "words" else "".join(words)

    def _separator_of(self, path: Path) -> str:
        return (self.separator or ("\t" if path.suffix == ".tsv" else ",")).replace("\\t", "\t")

    def _read(self, path: Path, target_column: str = "") -> list[Row]:
        if not path.is_file():
            raise missing(path, "--data_dir, --file")
        separator = self._separator_of(path)
        if len(separator) != 1:
            raise UsageError(f"--separator {separator!r} should be one character")
        csv.field_size_limit(2**31 - 1)  # a text may be long
        rows, line = list[Row](), 0
        try:
            encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding  # Excel begins a file with a mark
            with path.open(encoding=encoding, newline="") as lines:
                quotes: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
                reader = csv.reader(lines, delimiter=separator, strict=True, **quotes)
                head = next(reader, [])
                wanted = [name for name in (self.text_column, target_column) if name]
                if strange := [name for name in wanted if name not in head]:
                    raise no_column(path, strange[0], head) if head else UsageError(f"{path} is empty")
                line = reader.line_num
                for fields in reader:
                    where, line = f"{path.name}:{line + 1}", reader.line_num
                    if any(fields[len(head) :]):
                        raise UsageError(f"{where} has {len(fields)} fields, and the head line {len(head)}")
                    found = dict(zip(head, fields, strict=False))
                    row = Row(found.get(self.text_column, ""), found.get(target_column, ""), where)
                    if fields and target_column and not row.target.strip():
                        said = "Rows to predict belong in a file of their own: predict --rows FILE"
                        raise UsageError(f"{where} has no {target_column!r}. {said}")
                    rows += [row] if fields else []
        except csv.Error as error:
            raise UsageError(f"{path}:{line + 1}: {error}") from None
        except (UnicodeError, LookupError) as error:
            raise not_in(path, self.encoding, error) from None
        return rows


@rank_zero_only
def _say_joined(rows: list[Row], labels: list[str], separator: str) -> None:
    """Prints which text holds a line that looks like a row of its own, as behind a quote that nothing closes."""
    for row in rows:
        for line in row.text.splitlines()[1:]:
            if separator in line and {line.partition(separator)[0], line.rpartition(separator)[2]} & {*labels}:
                print(
                    f"{row.where} has several lines, and {line!r} looks like a row: is a quote open?", file=sys.stderr
                )
                return
