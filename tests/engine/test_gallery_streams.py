"""Data that is read in chunks: the order, what a resumed run reads, and how much is in memory."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import hosts
import main
import numpy as np
import pytest
import torch
from engine.datamodule.resumable_loader import ResumableLoader
from engine.errors import UsageError
from gallery import QUICK, exports, goes_on, predicts
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

NET = ["--model_name", "test_gallery_streams.Net", "--dataset", "streaming", "--data_dir", "rows"]


class Net(nn.Module):
    """A hidden layer."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, 16), nn.ReLU(), nn.Linear(16, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


class Points(Dataset):
    """Each tells its number, and which third of the circle it is in."""

    def __init__(self, items: int) -> None:
        self.items = items

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        angle = torch.tensor(index * 2.4)  # goes round and round
        return torch.stack([angle.cos(), angle.sin(), torch.tensor(float(index))]), int(angle % (2 * torch.pi) // 2.1)


@pytest.fixture
def streaming() -> Any:
    """The class, with a training part of 10 chunks, in 3 files, and two small parts."""
    pytest.importorskip("pyarrow")
    found = pytest.importorskip("data.streaming").Streaming
    for part, items in (("train", 95), ("val", 20), ("test", 20)):
        found.write(Points(items), f"rows/{part}", chunk_items=10, chunks_a_file=4)
    return found


def numbers(loader: Any) -> list[int]:
    return [int(number) for points, _ in loader for number in points[:, 2]]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_goes_on_exactly_within_an_epoch(streaming: Any, workers: str) -> None:
    goes_on(*NET, "--batch_size", "8", "--num_workers", workers, "--ema_decay", "0.9", batch=5)
    assert predicts().shape == (20, 3)
    exports()


def test_a_network_learns_from_it(streaming: Any) -> None:
    streaming.write(Points(2000), "more/train")
    for part in ("val", "test"):
        streaming.write(Points(500), f"more/{part}")
    argv = [*QUICK, *NET, "--data_dir", "more", "--max_epochs", "10", "--lr", "1e-2", "--precision", "bf16-mixed"]
    assert main.main(argv)["test_acc"] > 0.5  # chance is 0.35; the item's number among the inputs makes it no easier


def test_an_item_comes_back_as_it_was(streaming: Any) -> None:
    read = streaming("train", "rows")
    assert (len(read), len(read.chunks), read.num_classes, read.num_features) == (95, 10, 3, 3)
    for index in (0, 9, 10, 94):
        point, target = Points(95)[index]
        assert torch.equal(read[index][0], point)
        assert read[index][1] == target
    points, targets = read.__getitems__([94, 3, 57, 4])
    assert points[:, 2].tolist() == [94, 3, 57, 4]
    assert targets.tolist() == [Points(95)[index][1] for index in (94, 3, 57, 4)]


def test_images_of_bytes_come_as_floats(streaming: Any) -> None:
    images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    streaming.write(torch.utils.data.TensorDataset(images, torch.arange(7)), "bytes/train", chunk_items=3)
    read = streaming("train", str(Path("bytes").absolute()))
    assert (read.in_channels, read.img_size, read.num_classes) == (3, 4, 7)
    assert torch.equal(read.__getitems__(list(range(7)))[0], images / 255)
    assert torch.equal(streaming("train", Path("bytes").absolute().as_uri())[5][0], images[5] / 255)  # by an address


def test_every_chunk_is_read_once_an_epoch_and_few_are_held(streaming: Any) -> None:
    read = streaming("train", "rows", window=2)
    loader = ResumableLoader(read, 8, seed=0, shuffle=True)
    held, read.reads = 0, 0
    read._held.clear()
    seen = []
    for points, _ in loader:
        seen += points[:, 2].tolist()
        held = max(held, len(read._held))
    assert sorted(seen) == list(range(95))
    assert (read.reads, held) == (10, 2)
    assert seen != sorted(seen)
    assert len({int(number) // 10 for number in seen[:15]}) == 2  # two chunks, mixed
    read.reads = 0
    loader.current_epoch = lambda: 1
    assert numbers(loader) != seen


def test_ranks_share_the_items_and_the_chunks(streaming: Any) -> None:
    ranks, reads = [], 0
    for rank in range(2):
        read = streaming("train", "rows", window=2)
        read._held.clear()
        read.reads = 0
        ranks += numbers(ResumableLoader(read, 8, seed=0, shuffle=True, rank=rank, world_size=2))
        reads += read.reads
    assert len(ranks) == 96  # one item fills up
    assert sorted(set(ranks)) == list(range(95))
    assert reads <= 13  # the 10, those of the window in which the cut is, and that of the item that fills up


def test_a_rank_goes_on_within_an_epoch(streaming: Any) -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(streaming("train", "rows"), 8, seed=0, shuffle=True, rank=1, world_size=2)

    first, again = loader(), loader()
    seen = numbers(first)
    again.load_state_dict(first.state_after(5) | {"batches": 2})
    assert numbers(again) == seen[16:]


def test_a_part_of_it_keeps_its_order(streaming: Any) -> None:
    read = streaming("train", "rows", window=2)
    read._held.clear()
    read.reads = 0
    half = list(range(0, 95, 2))
    assert sorted(numbers(ResumableLoader(Subset(read, half), 8, seed=0, shuffle=True))) == half
    assert read.reads == 10


def test_other_files_are_read_too(streaming: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    Path("other/train").mkdir(parents=True)
    table = pa.table({"size": [1.5, 2.5], "shape": pa.array([[1.0, 2.0], [3.0, 4.0]]), "label": [0, 4]})
    parquet.write_table(table, "other/train/a.parquet")
    read = streaming("train", "other")
    size, shape, label = read[1]
    assert (size, shape.tolist(), label) == (2.5, [3.0, 4.0], 4)
    assert read.num_classes == 5
    wanted = "use numbers, or lists of numbers of one length"
    for values, wrong in (
        ([1.0, None], "size has 1 missing values"),
        (["a", "b"], f"size is of type string: {wanted}"),
        (np.array([0, 1], "datetime64[ms]"), rf"size is of type timestamp\[ms\]: {wanted}"),
        ([[1.0], [1.0, 2.0]], f"size is of type list<.*>: {wanted}"),
    ):
        parquet.write_table(pa.table({"size": values, "label": [0, 4]}), "other/train/a.parquet")
        with pytest.raises(ValueError, match=f"other/train/a.parquet: its row group 0 cannot be read: {wrong}"):
            streaming("train", "other")


def write_plain(rows: int = 60, classes: int = 2, part: str = "train", number: bool = False) -> Any:
    """A table of pandas, a third of its rows a file; the target follows from both columns."""
    pandas = pytest.importorskip("pandas")
    draw = np.random.default_rng(0)
    table = pandas.DataFrame({"size": draw.normal(size=rows), "count": draw.integers(0, 5, rows)})
    told = table["size"] + table["count"] if number else table.index % classes
    table["target"] = told if number else np.asarray(told, np.int32)
    Path("plain", part).mkdir(parents=True)
    for at in range(3):
        table.iloc[at * rows // 3 : (at + 1) * rows // 3].to_parquet(f"plain/{part}/{at}.parquet")
    return table


def test_a_table_of_numbers_that_pandas_wrote_is_one_tensor(streaming: Any) -> None:
    table = write_plain()
    read = streaming("train", "plain")
    assert (len(read), read.num_features, read.num_classes) == (60, 2, 2)
    inputs, targets = read.__getitems__(list(range(60)))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.long)
    np.testing.assert_allclose(inputs, table[["size", "count"]], rtol=1e-6)
    assert targets.tolist() == table["target"].tolist()


def test_the_index_of_pandas_is_no_column(streaming: Any) -> None:
    table = write_plain()
    for path in Path("plain/train").glob("*"):
        path.unlink()
    table.index = table.index + 100  # greater than any class
    table.sample(frac=1, random_state=0).to_parquet("plain/train/0.parquet")  # as __index_level_0__, behind the target
    table.rename_axis("name").set_index(table.index.astype(str), append=True).to_parquet("plain/train/1.parquet")
    read = streaming("train", "plain")
    assert (len(read), read.num_features, read.num_classes) == (120, 2, 2)
    np.testing.assert_allclose(read.__getitems__(list(range(60, 120)))[0], table[["size", "count"]], rtol=1e-6)


def test_a_number_is_told(streaming: Any) -> None:
    for part in ("train", "val", "test"):
        write_plain(600, part=part, number=True)
    read = streaming("train", "plain")
    assert (read.num_classes, read[0][1].dtype, read[0][1].shape) == (1, torch.float32, ())
    flags = [*QUICK, *NET, "--data_dir", "plain", "--loss", "mse_loss", "--metrics", "r2", "--lr", "0.01"]
    assert main.main([*flags, "--max_epochs", "20"])["test_r2"] > 0.9  # the mean: 0


def test_floats_in_double_come_in_single_precision(streaming: Any) -> None:
    points = torch.randn(6, 2, 3, dtype=torch.float64)
    streaming.write(torch.utils.data.TensorDataset(points, points[:, 0]), "double/train", chunk_items=4)
    point, target = streaming("train", "double")[5]
    assert torch.equal(point, points[5].float())
    assert torch.equal(target, points[5, 0].float())


def test_a_class_that_is_never_learnt_is_refused(streaming: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for part, classes in (("train", 2), ("val", 3), ("test", 2)):
        write_plain(classes=classes, part=part)
    with pytest.raises(SystemExit, match="2"):
        main.main([*QUICK, *NET, "--data_dir", "plain", "--max_epochs", "1"])
    said = "the val split of Streaming has 3 classes, and the train split 2: the others are never learnt"
    assert said in capsys.readouterr().err


def spoil(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[60] ^= 255
    path.write_bytes(whole)


BROKEN = {
    "is no Parquet file, or is cut short": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "its row group 0 cannot be read": spoil,
    "its columns are not those of": lambda path: path.write_bytes(Path("else/train/000000.parquet").read_bytes()),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_chunk_is_named(streaming: Any, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    streaming.write(torch.utils.data.TensorDataset(torch.zeros(3)), "else/train")
    BROKEN[wrong](Path("rows/train/000001.parquet"))
    with pytest.raises(SystemExit, match="2"):
        main.main([*QUICK, *NET, "--max_epochs", "1"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("main.py: error: rows/train/000001.parquet")
    assert wrong in line


def test_a_chunk_that_is_gone_is_named(streaming: Any) -> None:
    read = streaming("train", "rows")
    Path("rows/train/000002.parquet").unlink()
    with pytest.raises(ValueError, match=r"rows/train/000002\.parquet"):
        numbers(ResumableLoader(read, 8, seed=0))
    with pytest.raises(UsageError, match=r"nowhere/train has no files \*.parquet; Streaming.write"):
        streaming("train", "nowhere")


def test_it_is_not_drawn_from_item_by_item(streaming: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main([*QUICK, *NET, "--balanced", "--max_epochs", "1"])
    assert "--balanced: Streaming is read in chunks" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_see_each_item_once_an_epoch(streaming: Any, ranks) -> None:
    argv = [*QUICK, *NET, "--model_name", "test_gallery_streams.Witness", "--batch_size", "8"]
    ranks(*argv, "--max_epochs", "1")
    seen = np.concatenate([np.fromfile(path) for path in Path().glob("seen.*")])
    assert sorted(set(seen.tolist())) == list(range(95))
    assert len(seen) == 96


@pytest.mark.slow
def test_a_rank_that_dies_and_is_started_again_changes_nothing_at_the_end(streaming: Any) -> None:
    argv = [*QUICK, *NET, "--data_dir", str(Path("rows").resolve()), "--batch_size", "8", "--every_n_train_steps", "1"]
    for folder, network in (("whole", "Net"), ("killed", "Mortal")):
        words = [*argv, "--model_name", f"test_gallery_streams.{network}", "--max_epochs", "2", "--devices", "2"]
        Path(folder).mkdir()
        with contextlib.chdir(folder):
            status, said = hosts.ranks(2, lambda words=words: main.main(words), restarts=1)
        assert status == 0, said
    assert Path("killed/dead").exists()
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    whole, killed = (torch.load(Path(folder) / last, weights_only=True) for folder in ("whole", "killed"))
    assert whole["global_step"] == killed["global_step"] == 12
    assert all(torch.equal(whole["state_dict"][name], killed["state_dict"][name]) for name in whole["state_dict"])


class Mortal(Net):
    """Kills the second of its processes within the first epoch, once."""

    def forward(self, points: Tensor) -> Tensor:
        if (
            self.training
            and os.environ["RANK"] == "1"
            and list(Path().rglob("last.ckpt"))
            and not Path("dead").exists()
        ):
            Path("dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(points)


class Witness(Net):
    """Notes what it is trained on."""

    def forward(self, points: Tensor) -> Tensor:
        if self.training:
            rank = torch.distributed.get_rank()
            with Path(f"seen.{rank}").open("ab") as file:
                file.write(points[:, 2].double().numpy().tobytes())
        return super().forward(points)
