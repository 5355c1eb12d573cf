"""Texts (data/text_lines.py, model/lstm.py, model/encoder_decoder.py) and clips (data/video_frames.py)."""

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import gallery
import main
import numpy as np
import pytest
import torch
from engine.errors import UsageError

RUN = Path("lightning_logs/version_0")
TEXTS = ["--dataset", "text_lines", "--data_dir", ".", "--num_threads", "1"]
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
    assert learn[1][0].tolist() == [3, 5, 0, 0, 0]
    assert learn.__getitems__([1])[0].tolist() == [[3, 5]]  # a batch is as long as its longest text


def test_a_word_of_the_test_part_alone_is_unknown() -> None:
    Path("texts.tsv").write_text("label\ttext\n" + "".join(f"{at % 2}\tsame w{at}\n" for at in range(20)))
    learn, val, test = (texts(split=split, val_fraction=0.2, test_fraction=0.1) for split in ("train", "val", "test"))
    assert (len(learn), len(val), len(test)) == (14, 4, 2)
    assert learn.vocabulary == val.vocabulary == test.vocabulary
    assert learn.vocabulary_size == 3 + 1 + 14
    assert val.texts[:, :3].tolist() == [[3, 1, 0]] * 4
    assert sorted(learn.ids + val.ids + test.ids, key=lambda one: int(one[10:])) == [
        f"texts.tsv:{line}" for line in range(2, 22)
    ]


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
    with pytest.raises(UsageError, match=re.escape("texts.tsv:2: the target has 3 tokens with its end: --max_length")):
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
    [
        ("yes\t ", "val.tsv:2: the text is empty"),
        ("maybe\ta", "val.tsv:2: 'maybe' is no label to learn: no, yes"),
        ("\ta", "val.tsv:2 has no 'label'. Rows to predict belong in a file of their own: predict --rows FILE"),
        ("yes\ta\tb", "val.tsv:2 has 3 fields, and the head line 2"),
    ],
)
def test_a_row_that_says_nothing_is_named(line: str, said: str) -> None:
    Path("train.tsv").write_text("label\ttext\nno\ta\nyes\tb\n")
    Path("val.tsv").write_text(f"label\ttext\n{line}\n")
    with pytest.raises(UsageError, match=re.escape(said)):
        texts(split="val", file="{split}.tsv")


def test_rows_behind_an_open_quote_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{'ab'[at % 2]},{chr(34) * (at == 5)}word {at}{chr(34) * (at == 9)}" for at in range(20)]
    Path("texts.csv").write_text("\n".join(["label,text", *rows]) + "\n")
    flags = {"file": "texts.csv", "val_fraction": 0, "test_fraction": 0}
    assert len(texts(split="train", **flags)) == 16
    said = "texts.csv:7 has several lines, and 'a,word 6' looks like a row: is a quote open?"
    assert said in capsys.readouterr().err
    Path("texts.csv").write_text('label,text\na,"one\ntwo, three"\nb,four\n')
    texts(split="train", **flags)
    assert "several lines" not in capsys.readouterr().err


def test_labels_that_look_alike_are_refused() -> None:
    Path("texts.tsv").write_text("label\ttext\nno\ta\nno \tb\n")
    with pytest.raises(UsageError, match=r"texts\.tsv: 'label' has 'no' and 'no ', which look alike"):
        texts(split="train")


@pytest.mark.parametrize("pairs", [False, True])
def test_a_row_without_a_target_is_only_to_be_told(pairs: bool) -> None:
    Path("texts.tsv").write_text("text\tlabel\na b\tb a\n")
    read = texts(pairs=pairs, val_fraction=0, test_fraction=0)
    Path("texts.tsv").write_text("text\tlabel\na b\tb a\nb\n")  # the tab is not there
    ids, found = read.open_rows("texts.tsv")
    assert (ids, found[:, :3].tolist()) == (["texts.tsv:2", "texts.tsv:3"], [[3, 4, 0], [4, 0, 0]])
    with pytest.raises(UsageError, match=r"texts\.tsv:3 has no 'label'"):
        texts(pairs=pairs, val_fraction=0, test_fraction=0)


BROKEN: dict[str, tuple[bytes, list[str]]] = {
    "texts.csv is empty": (b"", []),
    "texts.csv has no row below its head": (b"text,label\n", []),
    "It has: text;label. If ';' separates them: --separator ';'": (b"text;label\na;b\n", []),
    "It has: text\\tlabel. If '\\t' separates them: --separator '\\t'": (b"text\tlabel\na\tb\n", []),
    "--separator ';;' should be one character": (b"text;label\na;b\n", ["--separator", ";;"]),
    "texts.csv is not utf-8; it can be read as gbk: --encoding gbk": ("text,label\n好,b\n".encode("gbk"), []),
    "texts.csv is not gbk; it can be read as utf-8: --encoding utf-8": (
        "text,label\n好,b\n".encode(),
        ["--encoding", "gbk"],
    ),
    "--encoding utf-9: there is no such encoding": (b"text,label\na,b\n", ["--encoding", "utf-9"]),
    "texts.csv:3: unexpected end of data": (b'text,label\na,b\n"c,d\ne,f\n', []),
    "--max_length 0 should be at least 1": (b"text,label\na,b\n", ["--max_length", "0"]),
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_file_of_another_kind_is_named(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.lstm")
    Path("texts.csv").write_bytes(BROKEN[said][0])
    with pytest.raises(SystemExit, match="2"):
        main.main([*gallery.QUICK, *TEXTS, "--model_name", "lstm", "--file", "texts.csv", *BROKEN[said][1]])
    assert said in capsys.readouterr().err


def test_a_folder_that_is_not_there_and_one_of_many_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no nowhere/texts\.tsv: no folder nowhere "):
        texts(data_dir="nowhere")
    for at in range(12):
        Path(f"{at:02}.txt").touch()
    with pytest.raises(UsageError, match=r"has: 00\.txt, .*, 09\.txt and 2 more$"):
        texts(data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("file", "separator", "encoding"),
    [
        ("texts.csv", ";", "gbk"),
        ("texts.csv", r"\t", "utf-16"),
        ("texts.tsv", None, "utf-8-sig"),
        ("texts.tsv", "|", "utf-8"),
    ],
)
def test_files_of_many_kinds_say_the_same(file: str, separator: str | None, encoding: str) -> None:
    between = {r"\t": "\t", None: "\t"}.get(separator, separator)
    Path(file).write_bytes(f"text{between}label\r\n你好 a{between}是\r\n".encode(encoding))
    read = texts(file=file, separator=separator, encoding=encoding, val_fraction=0, test_fraction=0)
    assert (read.vocabulary[3:], read.classes) == (["a", "你", "好"], ["是"])
    assert read.open_rows(file)[1][:, :4].tolist() == [[4, 5, 3, 0]]


def test_a_row_is_where_it_begins_and_may_be_long() -> None:
    Path("texts.csv").write_text(f'text,label\n"a\nb",x\n\n"{"c" * 200_000}\n""d""",y\ne,x\n')
    ids, found = texts(file="texts.csv", val_fraction=0, test_fraction=0).open_rows("texts.csv")
    assert ids == ["texts.csv:2", "texts.csv:5", "texts.csv:7"]
    assert (found != 0).sum(1).tolist() == [2, 2, 1]


def test_what_is_written_without_blanks_comes_apart() -> None:
    Path("texts.tsv").write_text(
        "text\tlabel\n我用 GPU训练、very fast。\tx\nカナ한글 ab\tカナ한글 ab\n", encoding="utf-8"
    )
    learn = texts(val_fraction=0, test_fraction=0)
    assert learn.apart("我用 GPU训练、very fast。") == "我 用 GPU 训 练 、 very fast 。".split()
    assert learn.apart("カナ한글 ab\u3000𠀀") == "カ ナ 한글 ab 𠀀".split()
    assert learn.decode(learn.encode("我用 GPU训练、very fast。")) == "我用 GPU 训练、 very fast 。"
    assert learn.decode(learn.encode("very 𠀀 用")) == "very <unknown> 用"


def rows(*flags: str) -> list[dict[str, str]]:
    """What `predict` writes as a table."""
    main.main(["predict", "--ckpt_path", "version_0", *flags])
    name = f"predictions_{Path(flags[-1]).stem}.csv" if "--rows" in flags else "predictions.csv"
    return list(csv.DictReader((RUN / name).read_text().splitlines()))


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
    assert set(labels["preprocessing"].pop("vocabulary")[3:]) == set("abcdef")
    said = {"tokens": "words", "lowercase": False, "max_length": 8, "padding": 0, "unknown": 1, "end": 2}
    assert labels["preprocessing"] == said
    lines = Path("texts.tsv").read_text().splitlines()
    found = rows()
    texts = [lines[int(row["id"].split(":")[1]) - 1].split("\t")[1] for row in found]
    Path("new.tsv").write_text("\n".join(["text", *texts]) + "\n")
    Path("texts.tsv").unlink()  # the run has all that is needed
    for row, again in zip(found, rows("--rows", "new.tsv"), strict=True):
        assert (row["name"], float(row["p0"])) == (again["name"], pytest.approx(float(again["p0"]), abs=1e-5))


CLIPPED = ["--gradient_clip_val", "1", "--ema_decay", "0.9"]
MORE = ["--precision", "bf16-mixed", *CLIPPED]


def computes_lstm_in_bf16() -> bool:
    """Whether torch has a kernel for it on this CPU: on some it raises."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(4, 4, batch_first=True)(torch.zeros(2, 3, 4))
    except RuntimeError:
        return False
    return True


def test_an_lstm_with_all_that_goes_beside() -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.lstm")
    write_orders()
    more = MORE if computes_lstm_in_bf16() else CLIPPED
    assert main.main([*gallery.QUICK, *LSTM, *more, "--max_epochs", "6"])["test_acc"] > 0.9


def test_its_numbers_are_those_of_a_packed_sequence() -> None:
    network = pytest.importorskip("model.lstm").LSTM(9, 2, num_layers=2).eval()
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [3, 0, 0, 0]])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        network.embedding(tokens), torch.tensor([4, 2, 1]), batch_first=True
    )
    _, (hidden, _) = network.lstm(packed)
    torch.testing.assert_close(network(tokens), network.head(hidden[-1]))


REWRITER = [
    *[*TEXTS, "--model_name", "encoder_decoder", "--pairs", "--target_column", "back", "--tokens", "characters"],
    *["--max_length", "7", "--hidden_dim", "64", "--embedding_dim", "32", "--lr", "0.01", "--gradient_clip_val", "1"],
]


def write_backwards(rows: int = 2000) -> None:
    """Texts of two to six letters, and the same from behind."""
    draw = random.Random(0)
    said = ["".join(draw.choices("abcdef", k=draw.randint(2, 6))) for _ in range(rows)]
    Path("texts.tsv").write_text("\n".join(["text\tback", *(f"{one}\t{one[::-1]}" for one in said)]) + "\n")


def test_an_encoder_decoder_learns_to_write_backwards() -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.encoder_decoder")
    write_backwards()
    metrics = main.main([*gallery.QUICK, *REWRITER, "--max_epochs", "8", "--monitor", "val_exact_match"])
    assert metrics["test_exact_match"] > 0.9  # the text as it stands, where it reads the same both ways: 0.08
    assert 1 > metrics["train_acc"] > metrics["train_exact_match"]  # of tokens, and of texts
    assert list(RUN.glob("checkpoints/best-*val_exact_match=0.9*"))  # more is better
    lines = Path("texts.tsv").read_text().splitlines()
    right = [row["text"] == lines[int(row["id"].split(":")[1]) - 1].split("\t")[1] for row in rows()]
    assert np.mean(right) == pytest.approx(metrics["test_exact_match"])
    written = gallery.predicts()
    assert written.shape == (200, 7)
    at = written[0].tolist().index(2)
    assert written[0][at:].tolist() == [2] + [0] * (6 - at)
    exported = gallery.exports()
    text = torch.tensor([[3, 4, 5, 0, 0, 0, 0]])
    assert exported(text).tolist() == [[5, 4, 3, 2, 0, 0, 0]]


def test_an_encoder_decoder_with_all_that_goes_beside() -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.encoder_decoder")
    write_backwards()
    metrics = main.main([*gallery.QUICK, *REWRITER, *MORE, "--max_epochs", "5"])
    assert metrics["test_exact_match"] > 0.8


def test_an_encoder_decoder_goes_on() -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.encoder_decoder")
    write_backwards(300)
    gallery.goes_on(*REWRITER, "--teacher_forcing", "0.5")


def test_an_encoder_decoder_wants_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("data.text_lines")
    pytest.importorskip("model.encoder_decoder")
    write_orders(20)
    with pytest.raises(SystemExit, match="2"):
        main.main([*gallery.QUICK, *TEXTS, "--model_name", "encoder_decoder", "--max_epochs", "1"])
    assert "EncoderDecoder needs texts as targets, not classes: give --pairs" in capsys.readouterr().err


def test_it_reads_what_it_should() -> None:
    network = pytest.importorskip("model.encoder_decoder").Rewriter(9, 3, 2, 4, 8)
    source, target = torch.tensor([[3, 4, 0], [5, 0, 0]]), torch.tensor([[4, 3, 2], [5, 2, 0]])
    free, taught = network(source, target), network(source, target, 1.0)  # (2, 3, 9)
    torch.testing.assert_close(free[:, 0], taught[:, 0])  # nothing is written yet
    torch.testing.assert_close(network(source, free.argmax(2), 1.0), free)
    other = network(source, torch.tensor([[6, 3, 2], [5, 2, 0]]), 1.0)
    assert not torch.equal(other[0, 1], taught[0, 1])  # it was told another token
    torch.testing.assert_close(other[1], taught[1])  # and the other text has nothing to do with it
    longer = torch.nn.functional.pad(source, (0, 2))
    torch.testing.assert_close(network(longer, target), free)  # padding is not read


class Motion(torch.nn.Module):
    """Sees two frames at a time."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(in_channels, 8, (2, 3, 3))
        self.head = torch.nn.Linear(8, num_classes)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(clips.transpose(1, 2)).relu().mean((2, 3, 4)))  # (B, K, C, H, W) -> (B, classes)


CLIPS = ["--dataset", "video_frames", "--data_dir", "clips", "--num_frames", "4", "--img_size", "16"]
CLIPS += ["--model_name", "test_gallery_sequences.Motion", "--lr", "0.03", "--num_threads", "1"]


def write_clip(path: Path, frames: np.ndarray) -> None:
    """frames: (N, H, W, 3), bytes."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def write_motions(each: int = 40) -> None:
    """A bar that moves to the left or to the right, from anywhere: no single frame tells."""
    draw = np.random.default_rng(0)
    for name, step in (("left", -1), ("right", 1)):
        for number in range(each):
            clip, begin = np.zeros((12, 16, 16, 3), np.uint8), draw.integers(16)
            for at in range(12):
                clip[at, :, [(begin + step * at + wide) % 16 for wide in range(4)]] = 255
            write_clip(Path("clips", name, f"{number}.mp4"), clip)


def test_one_frame_of_each_segment() -> None:
    places = pytest.importorskip("data.video_frames").places
    assert places(20, 4, draw=False) == [2, 7, 12, 17]
    assert places(10, 3, draw=False) == [1, 4, 8]  # of 0 to 2, 3 to 5, and 6 to 9
    assert places(3, 3, draw=False) == places(3, 3, draw=True) == [0, 1, 2]
    drawn = [places(10, 3, draw=True) for _ in range(200)]
    assert [{*one} for one in zip(*drawn, strict=True)] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8, 9}]


def test_the_frames_are_those_of_the_clip() -> None:
    # Twelve frames of 24 by 48, each of one grey, and a white edge left and right that the cut leaves out.
    video = pytest.importorskip("data.video_frames")
    frames = np.zeros((12, 24, 48, 3), np.uint8) + np.arange(0, 240, 20, dtype=np.uint8)[:, None, None, None]
    frames[:, :, :8] = frames[:, :, -8:] = 255
    write_clip(Path("clips/grey/a.mkv"), frames)
    found = video.read(Path("clips/grey/a.mkv"), 3, 12, draw=False)
    assert found.shape == (3, 12, 12, 3)
    assert found[:, 2:-2, 2:-2].mean((1, 2, 3)) == pytest.approx([40, 120, 200], abs=4)  # the third, seventh, eleventh


def test_motion_is_learned_from_clips_and_the_run_stands_what_all_have_to() -> None:
    pytest.importorskip("data.video_frames")
    write_motions()
    metrics = gallery.goes_on(*CLIPS, "--batch_size", "16", "--test_fraction", "0.25", epochs=6)
    assert metrics["test_acc"] > 0.9  # by chance 0.5
    assert gallery.predicts().shape == (20, 2)
    names = (RUN / "predictions.txt").read_text().split()
    assert set(names) <= set(map(str, Path("clips").glob("*/*")))
    gallery.exports()


@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_networks_of_the_gallery_take_clips(name: str) -> None:
    pytest.importorskip("data.video_frames")
    pytest.importorskip(f"model.{name}")
    write_motions(10)
    Path("clips/left/._0.mp4").write_bytes(b"the system's own")
    main.main([*gallery.QUICK, *CLIPS, "--model_name", name, "--max_epochs", "1"])
    assert gallery.predicts().shape == (2, 2)
    exported, clips = gallery.exports(), torch.rand(3, 4, 3, 16, 16)
    told = exported(clips)
    assert told.shape == (3, 2)
    if name == "resnet":  # the mean over the frames
        frames = exported(clips[:, :1].expand(-1, 4, -1, -1, -1)) / 4
        for at in range(1, 4):
            frames = frames + exported(clips[:, at : at + 1].expand(-1, 4, -1, -1, -1)) / 4
        torch.testing.assert_close(frames, told, atol=1e-4, rtol=1e-4)


def test_clips_may_come_as_networks_of_volumes_take_them() -> None:
    video = pytest.importorskip("data.video_frames")
    write_motions(5)
    given = {"data_dir": "clips", "num_frames": 4, "img_size": 16}
    plain, turned = (video.VideoFrames("val", channels_first=first, **given)[0][0] for first in (False, True))
    assert turned.shape == (3, 4, 16, 16)
    assert torch.equal(turned.transpose(0, 1), plain)
    network = ["--channels_first", "--model_name", "torchvision.models.video.r3d_18"]
    assert "test_acc" in main.main([*gallery.QUICK, *CLIPS, *network, "--fast_dev_run"])


def test_parts_that_lie_in_folders_of_their_own() -> None:
    video = pytest.importorskip("data.video_frames")
    clip = np.zeros((4, 16, 16, 3), np.uint8)
    for name in ("train/a/1.mp4", "train/b/2.mp4", "val/b/3.mp4", "test/c/4.mp4"):
        write_clip(Path("clips", name), clip)
    learn, val = (video.VideoFrames(split, data_dir="clips") for split in ("train", "val"))
    assert (learn.paths, learn.targets.tolist()) == (["clips/train/a/1.mp4", "clips/train/b/2.mp4"], [0, 1])
    assert (val.paths, val.targets.tolist(), val.classes) == (["clips/val/b/3.mp4"], [1], ["a", "b"])
    with pytest.raises(UsageError, match="clips/train has no class 'c'"):
        video.VideoFrames("test", data_dir="clips")
    with pytest.raises(UsageError, match="there is no clip nowhere/CLASS/CLIP"):
        video.VideoFrames("train", data_dir="nowhere")


@pytest.mark.parametrize(
    ("said", "spoil"),
    [
        (": it has 4 frames that can be read, and --num_frames is 5", lambda path: None),
        (
            r" cannot be decoded \(Invalid data found .*\): mend it",
            lambda path: path.write_bytes(b"no clip at all" * 100),
        ),
        (": it has no video", lambda path: path.write_bytes(path.read_bytes()[:300])),
    ],
)
def test_a_clip_that_is_too_short_or_broken_is_named(said: str, spoil: Any) -> None:
    video = pytest.importorskip("data.video_frames")
    path = Path("clips/a/1.mp4")
    write_clip(path, np.zeros((4, 16, 16, 3), np.uint8))
    spoil(path)
    with pytest.raises(ValueError, match=f"clips/a/1.mp4{said}"):
        video.read(path, 5, 16, draw=False)
