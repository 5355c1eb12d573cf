"""Inputs of `predict` beside the test split: files, or the rows of files, read by the dataset."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, StackDataset, TensorDataset, default_collate

from engine.errors import UsageError


def prediction_dataset(data: Any, images: str | None, rows: str | None, files: str | None) -> Dataset[Any] | None:
    """The dataset that --images, --rows or --files means; None where none of them is given.

    Raises: UsageError: several are, or the dataset opens no such files, or none is there.
    """
    given = {"--images": images, "--rows": rows, "--files": files}
    if len(flags := [flag for flag, path in given.items() if path is not None]) > 1:
        raise UsageError(f"{' and '.join(flags)} cannot be combined: run predict once for each")
    name = data.dataset_class.__name__
    if images is not None:
        if (open_image := data.image_opener()) is None:
            method = "open_image(path), a static method that makes of an image file what the network takes"
            raise UsageError(f"--images: {name} has no {method}")
        return Files("--images", images, open_image, None)
    if files is not None:
        if (open_file := data.attribute("open_file")) is None:
            method = "open_file(path), a method that makes of a file an item like those of __getitem__"
            raise UsageError(f"--files: {name} has no {method}, with anything for its target")
        return Files("--files", files, open_file, data.collate_of())
    return _file_rows(data, rows) if rows is not None else None


class Files(Dataset[Any]):
    """The files below a folder, by path, or one file; an item is what `open_file` makes of one. Of --images, those
    that are images, in batches of one size.

    readable: which of those that were fetched could be read (files,), in memory that worker processes share; for
    another one stands the first that can be.

    Raises: UsageError: there is none that can be read.
    """

    def __init__(self, flag: str, folder: str, open_file: Callable[[str], Any], collate_fn: Any) -> None:
        """open_file: returns an item, or its only input. collate_fn: None for torch's default_collate."""
        # What is raised for a file that is broken; anything else is a mistake in open_file.
        self.broken: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError)
        self.flag, self.open_file, self.own_collate = flag, open_file, collate_fn
        self.ids, what = _files(folder, flag), "file"
        if flag == "--images":
            from PIL import Image

            Image.init()
            self.broken += (Image.DecompressionBombError,)
            self.ids, what = [path for path in self.ids if Path(path).suffix.lower() in Image.EXTENSION], "image file"
        if not self.ids:
            raise UsageError(f"{flag} {folder}: there is no {what} below it")
        self.readable = torch.ones(len(self), dtype=torch.bool).share_memory_()
        readable = (item for path in self.ids if not isinstance(item := self._read(path), Exception))
        if (first := next(readable, None)) is None:
            raise UsageError(f"{flag} {folder}: none of its {len(self)} {what}s can be read, as {self.why(0)}")
        self.first = first

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        item = self._read(self.ids[index])
        self.readable[index] = readable = not isinstance(item, Exception)
        return item if readable else self.first

    def collate_fn(self, items: list[Any]) -> Any:
        """A batch."""
        if self.own_collate is not None:
            return self.own_collate(items)
        try:
            return default_collate(items)
        except RuntimeError as error:
            why = f"they are of different sizes, so each is a batch: --batch_size 1 ({error})"
            raise UsageError(f"{self.flag}: {why}") from error

    def why(self, index: int) -> str:
        """The error for a file that cannot be read."""
        path, reason = self.ids[index], str(self._read(self.ids[index]))
        return reason if path in reason else f"{path} ({reason})"

    def _read(self, path: str) -> Any:
        """The item of a file, a lone input with a 0 for its target; or what was raised, as it is broken."""
        try:
            item = self.open_file(path)
        except self.broken as error:
            return error
        except Exception as error:
            error.add_note(f"while reading {path}")
            raise
        if self.flag == "--images" and not isinstance(item, Tensor):
            what = f"open_image returns {type(item).__name__}, where a tensor is expected"
            raise UsageError(f"--images: {what}; for anything else there are open_file and --files")
        return (item, 0) if isinstance(item, (Tensor, np.ndarray)) else item


def _files(folder: str, flag: str) -> list[str]:
    """The file, or the visible files below a folder, sorted, with those of folders that are links; each folder once.

    Raises: UsageError: it is not there.
    """
    if not os.path.exists(folder):
        raise UsageError(f"{flag} {folder}: there is no such folder or file")
    if os.path.isfile(folder):
        return [folder]
    paths, visited = list[Path](), set()
    for root, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        folders[:] = sorted(one for one in folders if os.path.realpath(os.path.join(root, one)) not in visited)
        paths += [Path(root, name) for name in names]
    return sorted(str(path) for path in paths if path.name[0] != "." and path.is_file())


def _file_rows(data: Any, path: str) -> Dataset[Any]:
    """The rows of a file, or of the files below a folder, with the names that the dataset gives them, as its `ids`.

    An item is (*inputs, a 0 instead of the target), or a dict where the dataset gives its inputs by name.

    Raises: UsageError: the dataset reads no files, or returns something else, or there is no row.
    """
    read = data.attribute("open_rows")
    if read is None:
        method = "open_rows(path), a method that makes of a file the names of its rows and their inputs (N, ...)"
        raise UsageError(f"--rows: {data.dataset_class.__name__} has no {method}")
    ids, parts = list[str](), list[Any]()
    for file in (opened := _files(path, "--rows")):
        found = read(file)
        names, inputs = found if isinstance(found, (tuple, list)) and len(found) == 2 else ((), None)
        inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
        columns = inputs if isinstance(inputs, Mapping) else dict(enumerate(inputs or ()))
        if not columns or not all(isinstance(one, Tensor) and len(one) == len(names) for one in columns.values()):
            what = "a name for each row, and a tensor of their inputs (N, ...), or a tuple or dict of such"
            raise UsageError(f"--rows: {data.dataset_class.__name__}.open_rows should return {what}")
        shapes = {key: tuple(one.shape[1:]) for key, one in columns.items()}
        if parts and shapes != (first := {key: tuple(one.shape[1:]) for key, one in parts[0].items()}):
            raise UsageError(f"--rows: the rows of {file} are of shapes {shapes}, and those of {opened[0]} of {first}")
        ids += names if os.path.isfile(path) else [f"{file}: {name}" for name in names]
        parts.append(columns)
    if not ids:
        raise UsageError(f"--rows {path}: there is no row in it")
    whole: dict[Any, Any] = {key: torch.cat([one[key] for one in parts]) for key in parts[0]}
    named = isinstance(inputs, Mapping)
    rows: Any = StackDataset(**whole) if named else TensorDataset(*whole.values(), torch.zeros(len(ids)))
    rows.ids = ids
    return rows
