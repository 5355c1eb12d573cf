"""Texts (data/text_lines.py, model/lstm.py, model/encoder_decoder.py) and clips (data/video_frames.py)."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from tests import gallery

RUN = Path("lightning_logs/version_0")
TEXTS = ["--dataset", "text_lines", "--data_dir", "."]
LSTM = [*TEXTS, "--model_name", "lstm", "--max_length", "8", "--hidden_dim", "32", "--lr", "0.01"]


def texts(**given: Any) -> Any:
    return pytest.importorskip("data.text_lines").TextLines(**{"split": "train", "data_dir": ".", **given})


def write_orders(rows: int = 600) -> None:
    """Texts of three to eight words; label "forth" where a comes before b: which words there are does not tell."""
    draw = random.Random(0)
    lines = ["label\ttext"]
    for _ in range(rows):
        words = ["a", "b", *draw.choices("c d e f".split(), k=draw.randint(1, 6))]
        draw.shuffle(words)
        lines.append(f"{'forth' if words.index('a') < words.index('b') else 'back'}\t{' '.join(words)}")
    Path("texts.tsv").write_text("\n".join(lines) + "\n")


def test_texts_become_numbers_of_the_training_part() -> None:
    Path("train.tsv").write_text('label\ttext\nno\tto be or not to be\nyes\tbe "it\n')
    Path("val.tsv").write_text("label\ttext\nyes\tor is it to\n")
    learn, val = (texts(split=split, file="{split}.tsv", max_length=5) for split in ("train", "val"))
    # By how often they come, then by the alphabet: be 3, to 2, "it 1, not 1, or 1.
    assert learn.vocabulary == ["<padding>", "<unknown>", "<end>", "be", "to", '"it', "not", "or"]
    assert learn.vocabulary_size == 8
    assert learn.texts.tolist() == [[4, 3, 7, 6, 4], [3, 5, 0, 0, 0]]
    assert val.texts.tolist() == [[7, 1, 1, 4, 0]]
    assert learn.targets.tolist() == [0, 1]
    assert (learn.classes, val.classes, val.ids) == (["no", "yes"], ["no", "yes"], ["val.tsv:2"])
    assert learn.decode([4, 3, 7, 0, 0]) == "to be or"


def test_characters_rare_ones_and_capitals() -> None:
    Path("texts.csv").write_text('label,text\n1,"Aab, b"\n')
    given = {"file": "texts.csv", "tokens": "characters", "val_fraction": 0, "test_fraction": 0, "max_length": 8}
    assert texts(**given, lowercase=True, min_count=2).vocabulary[3:] == ["a", "b"]
    assert texts(**given, max_vocabulary=2).vocabulary[3:] == ["b", " "]
    assert texts(**given, min_count=2).texts.tolist() == [[1, 1, 3, 1, 1, 3, 0, 0]]


def test_a_target_that_is_a_text() -> None:
    Path("texts.tsv").write_text("label\ttext\nb a\ta b\n")
    given = {"pairs": True, "val_fraction": 0, "test_fraction": 0}
    pairs = texts(**given, max_length=3)
    assert pairs.texts.tolist() == [[3, 4, 0]]
    assert pairs.targets.tolist() == [[4, 3, 2]]
    assert pairs.decode([4, 3, 2]) == "b a"
    with pytest.raises(ValueError, match=re.escape("texts.tsv:2: the target has 3 tokens with its end: --max_length")):
        texts(**given, max_length=2)


WRONG = {
    "texts.tsv has no column 'lable'. It has: label, text": ["--target_column", "lable"],
    "there is no nothing.tsv (--data_dir, --file). . has: texts.tsv": ["--file", "nothing.tsv"],
    "leave nothing to learn": ["--val_fraction", "0.5", "--test_fraction", "0.5"],
}


@pytest.mark.parametrize("said", WRONG)
def test_mistakes_about_texts_are_named(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.lstm")
    write_orders(10)
    with pytest.raises(SystemExit, match="2"):
        main.main([*gallery.QUICK, *LSTM, *WRONG[said]])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [("yes\t ", "val.tsv:2: the text is empty"), ("maybe\ta", "val.tsv:2: 'maybe' is no label to learn: no, yes")],
)
def test_a_row_that_says_nothing_is_named(line: str, said: str) -> None:
    Path("train.tsv").write_text("label\ttext\nno\ta\nyes\tb\n")
    Path("val.tsv").write_text(f"label\ttext\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        texts(split="val", file="{split}.tsv")


def test_an_lstm_learns_what_a_bag_of_words_cannot() -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.lstm")
    write_orders()
    metrics = gallery.goes_on(*LSTM, epochs=6)
    assert metrics["test_acc"] > 0.9  # any bag of words: 0.5
    assert gallery.predicts().shape == (60, 2)
    exported = gallery.exports()
    alone = torch.tensor([[3, 4, 5, 0, 0, 0, 0, 0]])
    other = torch.tensor([[4, 3, 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(exported(torch.cat([alone, other]))[:1], exported(alone))
    labels = json.loads((RUN / "labels.json").read_text())
    assert labels["classes"] == ["back", "forth"]
    assert set(labels["preprocessing"]["vocabulary"][3:]) == set("abcdef")


def test_its_numbers_are_those_of_a_packed_sequence() -> None:
    network = pytest.importorskip("model.lstm").LSTM(9, 2, num_layers=2).eval()
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [3, 0, 0, 0]])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        network.embedding(tokens), torch.tensor([4, 2, 1]), batch_first=True
    )
    _, (hidden, _) = network.lstm(packed)
    torch.testing.assert_close(network(tokens), network.head(hidden[-1]))
