"""Datasets in memory: whole batches are fetched at once where that is proved to give the same, and nowhere else."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import DInterface
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

SIZE = 37
SOURCE = np.random.default_rng(0)
IMAGES = SOURCE.integers(0, 256, (SIZE, 4, 4), dtype=np.uint8)
LABELS = SOURCE.integers(0, 3, SIZE)
LARGE = SOURCE.normal(size=(SIZE, 3)) * 1e300
CALLS: list[Any] = []  # the indices that a dataset was asked for


class Arrays(Dataset):
    """Arrays of NumPy, whole."""

    def __init__(self) -> None:
        self.x, self.y, self.transform = IMAGES, LABELS, None
        self.large = LARGE

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Tensors(Arrays):
    """Tensors, with a docstring, an annotation and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = torch.from_numpy(IMAGES).unsqueeze(1), torch.from_numpy(LABELS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """An image and its class."""
        return {"points": self.x[index], "target": self.y[index]}


class Converted(Arrays):
    """What tutorials write: a transform that is not given, new types, a scale."""

    def __getitem__(self, idx):
        x, y = torch.tensor(self.x[idx], dtype=torch.float32), torch.as_tensor(self.y[idx]).long()
        if self.transform is not None:
            x = self.transform(x)
        if self.transform:
            x = self.transform(x)
        x = x / 255 - 0.5
        return x, y


class Twice(Tensors):
    """An image as input and as target: two tensors, of which a step may change one."""

    def __getitem__(self, i):
        x = self.x[i].float()
        return [x, (x, x.float())]


class Pairs(TensorDataset):
    """A TensorDataset with arguments of its own."""

    def __init__(self) -> None:
        super().__init__(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))


def remember(index: Any) -> None:
    CALLS.append(index)


class Recorded(Arrays):
    """Beside a dataset that is proved, one with the same items that is not: it has an effect."""

    def __getitem__(self, i):
        remember(i)
        return self.x[i], self.y[i]


class Branch(Arrays):
    """Another item behind an index that no trial may meet."""

    def __getitem__(self, i):
        if i == 5:
            return self.x[0], self.y[0]
        return self.x[i], self.y[i]


class Augmented(Arrays):
    """Noise."""

    def __getitem__(self, i):
        return self.x[i] + np.float64(random.random()), self.y[i]


class Counting(Arrays):
    """A state."""

    seen = 0

    def __getitem__(self, i):
        self.seen += 1
        return self.x[i], self.seen


class Windows(Arrays):
    """What depends on the index as a number."""

    def __getitem__(self, i):
        return self.x[i : i + 1], self.y[i]


class Whole(Arrays):
    """int(i)."""

    def __getitem__(self, i):
        return self.x[int(i)], self.y[i]


class Transformed(Arrays):
    """A transform that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = np.flip

    def __getitem__(self, i):
        x = self.x[i].copy()
        if self.transform:
            x = self.transform(x).copy()
        return x, self.y[i]


class Property(Arrays):
    """An attribute that is code."""

    x = property(lambda self: IMAGES if random.random() < 2 else LABELS, lambda self, value: None)


class Decorated(Arrays):
    """A decorator, which may do anything."""

    @torch.no_grad()
    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Rounded(Arrays):
    """Floats that no integer holds: what they become depends on the processor's instruction."""

    def __getitem__(self, i):
        return torch.as_tensor(self.large[i]).long(), self.y[i]


class Turned(Tensors):
    """Rows that do not lie one after another: a network may answer differently on the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.from_numpy(IMAGES).unsqueeze(-1).permute(0, 3, 2, 1)


class Collated(Arrays):
    """A collate_fn of one's own."""

    @staticmethod
    def collate_fn(items: list[Any]) -> Any:
        return default_collate(items[::-1])


PROVED = (Arrays, Tensors, Converted, Twice, Pairs)
LEFT = (Recorded, Branch, Augmented, Counting, Windows, Whole, Transformed, Property, Decorated, Rounded, Turned)


def interface(dataset_class: Callable[..., Any]) -> DInterface:
    return DInterface(dataset_class, batch_size=8, num_workers=0, val_fraction=0.2, test_fraction=0.0)


@pytest.mark.parametrize("dataset_class", PROVED)
def test_whole_batches_are_what_torch_makes_of_the_items(dataset_class: Callable[..., Any]) -> None:
    data = interface(dataset_class)
    train = data.split("train")
    assert isinstance(train, Subset)
    assert data.batched_fetch(train) is not None
    loader, sampler = data.train_dataloader(), data.train_dataloader().epoch_sampler
    for batch, indices in zip(loader, sampler, strict=True):
        items = default_collate([train.dataset[train.indices[index]] for index in indices])
        assert type(batch) is type(items)
        torch.testing.assert_close(batch, items, rtol=0, atol=0, check_stride=True)
        values = batch.values() if isinstance(batch, dict) else batch
        tensors = [one for value in values for one in (value if isinstance(value, list) else [value])]
        assert len({one.data_ptr() for one in tensors}) == len(tensors)


@pytest.mark.parametrize("dataset_class", [*LEFT, Collated])
def test_all_other_code_is_asked_for_items(dataset_class: Callable[..., Any]) -> None:
    data = interface(dataset_class)
    CALLS.clear()
    assert data.batched_fetch(data.split("train")) is None
    assert not CALLS  # what may have an effect is not tried either


class Doubled(Subset):
    """A Subset that changes its items, as many write for an augmentation."""

    def __getitem__(self, index):
        x, y = self.dataset[self.indices[index]]
        return x * 2, y

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_a_subset_with_items_of_its_own_is_asked_for_them() -> None:
    data = interface(lambda: Doubled(Arrays(), list(range(SIZE))[::-1]))
    train = data.split("train")
    assert isinstance(train, Subset)
    loader = data.train_dataloader()
    for batch, indices in zip(loader, loader.epoch_sampler, strict=True):
        places = [SIZE - 1 - train.indices[index] for index in indices]
        torch.testing.assert_close(batch[0], torch.from_numpy(IMAGES[places] * 2), rtol=0, atol=0)


def test_attributes_that_are_set_later_are_not_taken_for_those_of_the_proof() -> None:
    data = interface(Converted)
    loader, dataset = data.train_dataloader(), data.split("train").dataset  # type: ignore[union-attr]
    before = next(iter(loader))[0]
    calls: list[Any] = []
    dataset.transform = lambda image: calls.append(image.shape) or image * 2
    after = next(iter(loader))[0]
    assert calls[:16] == [(4, 4)] * 16  # two transforms of each item
    torch.testing.assert_close(after, (before + 0.5) * 4 - 0.5, rtol=0, atol=1e-6)


def test_code_that_has_changed_since_its_import_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch.utils.data import Dataset\nimport torch\n\n\nclass Edited(Dataset):\n"
    code += (
        "    def __init__(self):\n        self.x = torch.arange(20.0)\n\n    def __len__(self):\n        return 20\n\n"
    )
    code += "    def __getitem__(self, i):\n        return self.x[{}]\n"
    path = tmp_path / "edited.py"
    path.write_text(code.format("int(i) // 2"))
    monkeypatch.syspath_prepend(tmp_path)
    import edited  # type: ignore[import-not-found]

    path.write_text(code.format("i"))
    assert interface(edited.Edited).batched_fetch(edited.Edited()) is None


class Net(nn.Module):
    """A linear classifier of images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points.flatten(1).float())


def test_a_run_says_so_and_ends_in_the_same_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also with two workers, and resumed within an epoch."""
    import main

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 6:  # in the second of three epochs
                signal.raise_signal(signal.SIGTERM)

    def weights(dataset: str, folder: str, *flags: str, callbacks: tuple[Callback, ...] = ()) -> Tensor:
        root = ["--default_root_dir", str(tmp_path / folder), "--accelerator", "cpu"]
        names = ["--model_name", "test_batched_fetch.Net", "--dataset", f"test_batched_fetch.{dataset}"]
        argv = flags if "last" in flags else (*names, "--batch_size", "8", *flags)
        main.main([*root, *argv], callbacks)
        run = max((tmp_path / folder / "lightning_logs").glob("version_*"))
        saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        return saved["state_dict"]["network.layer.weight"]

    whole = weights("Arrays", "whole", "--max_epochs", "3")
    assert "whole batches" in capsys.readouterr().out
    one_by_one = weights("Recorded", "items", "--max_epochs", "3", "--num_workers", "0")
    assert "whole batches" not in capsys.readouterr().out
    assert torch.equal(whole, one_by_one)
    assert torch.equal(whole, weights("Arrays", "workers", "--max_epochs", "3", "--num_workers", "2"))
    with pytest.raises(SystemExit):
        weights("Arrays", "resumed", "--max_epochs", "3", callbacks=(Stop(),))
    assert torch.equal(whole, weights("Arrays", "resumed", "--ckpt_path", "last"))


class Tuples(Dataset):
    """Numbers in a list, which are read one by one; counts how often."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.rows = [(at, at % 3, float(at)) for at in range(60)]
        self.seconds, self.asked = seconds, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, int, float]:
        time.sleep(self.seconds)
        self.asked += 1
        return self.rows[index]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core loads by itself")
def test_that_items_are_quick_to_read_is_said_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def said(seconds: float) -> bool:
        data = DInterface(Tuples, {"seconds": seconds}, batch_size=8)
        before = torch.get_rng_state() if data.sample() else None
        quick, loader = data.reads_quickly, data.train_dataloader()
        assert torch.equal(torch.get_rng_state(), before)
        assert data.split("train").dataset.asked == 2
        assert loader.loader.num_workers == min(len(os.sched_getaffinity(0)), 8)
        loader.close()
        return quick

    assert not said(0.002)
    assert True in [said(0.0) for _ in range(9)]  # another process may be in the way of some
    assert not DInterface(Tuples, num_workers=1).reads_quickly
    import main

    names = [
        "--model_name",
        "test_batched_fetch.Net",
        "--dataset",
        "test_batched_fetch.Recorded",
        "--accelerator",
        "cpu",
    ]
    lines = []
    for _ in range(3):
        main.main([*names, "--max_steps", "1", "--batch_size", "1", "--limit_val_batches", "0"])
        lines.append(capsys.readouterr().out)
    assert any("items are quick to read: try --num_workers 0" in line for line in lines)
