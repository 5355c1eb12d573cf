"""Streaming: data too large for memory: Parquet files on disk or in a cloud store, read a chunk at a time."""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine.errors import FileError, UsageError


class Streaming(Dataset):
    """The rows of the *.parquet files in the folder of a split, in the order of their names.

    A chunk is a row group. An epoch takes the chunks in a new order and mixes the items of `window` of them at a time,
    so that each is read once an epoch, by one rank (and by each of its workers, where --num_workers asks for such). In
    memory are `window` chunks a process. An item is its row: every column a tensor, the last one the target, a class or
    a number; images of bytes (C, H, W) come as floats in 0..1. Where all columns before the target are single numbers,
    they come as one tensor (F,) of floats. An index that pandas keeps in the file is left out. Such files are written
    by pandas' `to_parquet`, and, from any dataset, by

        Streaming.write(dataset, "datasets/train")

    It knows `num_classes`, from the files' statistics, or 1 for a target that is a number, and of the first input
    `in_channels` and `img_size`, or `num_features`. Sources: https://parquet.apache.org; pyarrow, whose file systems
    take s3:// and gs:// addresses.
    """

    def __init__(self, split: str, data_dir: str = "datasets", window: int = 4) -> None:
        """Reads the footer of each file: columns, row groups, statistics.

        Args:
            split: "train", "val" or "test".
            data_dir: folder, or address such as s3://bucket/folder, with the folders train, val and test.
            window: chunks whose items are mixed.

        Raises:
            UsageError: pyarrow is not installed; window is below 1; there are no such files.
            FileError: a file is broken, has other columns than the first, or a column that is no numbers; the message
                names it.
        """
        if window < 1:
            raise UsageError(f"--window {window} should be at least 1")
        self.window, self.reads = window, 0  # chunks read so far, by this process
        self._store, paths = _files(f"{data_dir}/{split}")
        self._metadata: dict[str, Any] = {}  # the footer of each file
        self.chunks: list[tuple[str, int]] = []  # file and row group
        self._held: OrderedDict[int, list[Tensor]] = OrderedDict()  # chunks in memory, the latest used last
        self._columns: list[tuple[Any, ...]] = []
        sizes, greatest = list[int](), list[Any]()
        for path in paths:
            file = _open(self._store, path)
            columns, self._metadata[path] = _columns(file.schema_arrow), file.metadata
            self._columns = self._columns or columns
            if columns != self._columns:
                raise FileError(f"{path}: its columns are not those of {paths[0]}")
            target = f"{columns[-1][0]}."  # of lists, the numbers are at target.list.element
            at = max(at for at in range(len(file.schema)) if f"{file.schema.column(at).path}.".startswith(target))
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            self.chunks += [(path, number) for number in range(len(groups))]
            sizes += [group.num_rows for group in groups]
            found = [group.column(at).statistics for group in groups]
            greatest += [one.max if one is not None and one.has_min_max else None for one in found]
        self.starts = [0, *accumulate(sizes)]
        item = self[0] if len(self) else (torch.empty(0, 0),)
        shape = item[0].shape
        if sizes and all(isinstance(one, int) for one in greatest):
            self.num_classes = max(greatest) + 1
        elif item[-1].is_floating_point() and not item[-1].dim():
            self.num_classes = 1  # one output, for the number
        if len(shape) == 3:
            self.in_channels, self.img_size = shape[0], shape[2]
        elif len(shape) == 1:
            self.num_features = shape[0]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[0] for column in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """A whole batch at once: (B, ...) of every column."""
        where: dict[int, list[int]] = {}  # chunk -> places in the batch
        for place, index in enumerate(indices):
            where.setdefault(bisect_right(self.starts, index) - 1, []).append(place)
        batch: list[Tensor] = []
        for chunk in sorted(where, key=lambda one: one not in self._held):  # those in memory first: then they may go
            rows = torch.tensor([indices[place] - self.starts[chunk] for place in where[chunk]])
            columns = self._chunk(chunk)
            batch = batch or [column.new_empty(len(indices), *column.shape[1:]) for column in columns]
            for out, column in zip(batch, columns, strict=True):
                out[where[chunk]] = column[rows]
        return tuple(one.float() / 255 if one.dtype == torch.uint8 and one.dim() == 4 else one for one in batch)

    def order(self, generator: torch.Generator) -> Tensor:
        """The order (items,) of an epoch: chunks in a new order, and the items of `window` of them mixed."""
        parts = []
        for some in torch.randperm(len(self.chunks), generator=generator).split(self.window):
            items = torch.cat([torch.arange(self.starts[one], self.starts[one + 1]) for one in some.tolist()])
            parts.append(items[torch.randperm(len(items), generator=generator)])
        return torch.cat(parts)

    def _chunk(self, chunk: int) -> list[Tensor]:
        if chunk not in self._held:
            while len(self._held) >= self.window:
                self._held.popitem(last=False)
            from pyarrow import ArrowException

            path, number = self.chunks[chunk]
            try:
                names = [name for name, *_ in self._columns]
                table = _open(self._store, path, self._metadata[path]).read_row_group(number, names)
                self._held[chunk] = _as_inputs([_tensor(table, name) for name in names])
            except (OSError, ArrowException, ValueError) as error:  # the last one: of what is no number
                raise FileError(f"{path}: its row group {number} cannot be read: {error}") from None
            self.reads += 1
        self._held.move_to_end(chunk)
        return self._held[chunk]

    @staticmethod
    def write(dataset: Any, folder: str, chunk_items: int = 1000, chunks_a_file: int = 64) -> None:
        """Writes a map-style dataset, whose items are (*inputs, target) of tensors or numbers, to a new folder.

        One chunk is in memory at a time. It is best of some 10 to 100 MB: `window` of them have to fit into memory
        when they are read, and a far store answers slowly.
        """
        from pyarrow import parquet

        Path(folder).mkdir(parents=True)
        starts = range(0, len(dataset), chunk_items)
        for number in range(0, len(starts), chunks_a_file):
            path, writer = Path(folder, f"{number // chunks_a_file:06}.parquet"), None
            for start in starts[number : number + chunks_a_file]:
                items = [dataset[index] for index in range(start, min(start + chunk_items, len(dataset)))]
                table = _table([np.stack(column) for column in zip(*items, strict=True)])
                writer = writer or parquet.ParquetWriter(
                    path, table.schema, write_page_checksum=True, use_dictionary=False, write_statistics=["target"]
                )
                writer.write_table(table, chunk_items)
            if writer is not None:
                writer.close()


def _files(folder: str) -> tuple[Any, list[str]]:
    """The file system of an address, and its *.parquet files by name."""
    try:
        from pyarrow import fs
    except ImportError:
        raise UsageError('data/streaming.py needs pyarrow: pip install -e ".[streaming]"') from None
    store, inside = fs.FileSystem.from_uri(folder) if "://" in folder else (fs.LocalFileSystem(), folder)
    found = store.get_file_info(fs.FileSelector(inside, allow_not_found=True))
    if not (paths := sorted(one.path for one in found if one.path.endswith(".parquet"))):
        raise UsageError(f"{folder} has no files *.parquet; Streaming.write(dataset, folder) makes them")
    return store, paths


def _open(store: Any, path: str, metadata: Any = None) -> Any:
    """A Parquet file. metadata: its footer, if that has been read already."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(store.open_input_file(path), metadata=metadata, page_checksum_verification=True)
    except (OSError, ArrowException) as error:
        raise FileError(f"{path} is no Parquet file, or is cut short: {error}") from None


def _columns(schema: Any) -> list[tuple[Any, ...]]:
    """Name, type and own metadata of the columns, less those in which pandas keeps its index."""
    indices, own = (schema.pandas_metadata or {}).get("index_columns", []), (b"shape", b"dtype")
    return [(one.name, one.type, *map((one.metadata or {}).get, own)) for one in schema if one.name not in indices]


def _table(columns: list[np.ndarray]) -> Any:
    """Of arrays (N, ...), the last one the target. Those with a shape are kept as bytes: 40 times as fast as lists."""
    import pyarrow as pa

    fields, arrays = [], []
    for name, column in zip([*(f"input{at}" for at in range(len(columns) - 1)), "target"], columns, strict=True):
        if column.ndim == 1:
            arrays.append(pa.array(column))
            fields.append(pa.field(name, arrays[-1].type))
        else:
            kind, raw = pa.binary(column[0].nbytes), pa.py_buffer(np.ascontiguousarray(column))
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(column), [None, raw]))
            metadata = {"dtype": str(column.dtype), "shape": ",".join(map(str, column.shape[1:]))}
            fields.append(pa.field(name, kind, metadata=metadata))
    return pa.table(arrays, schema=pa.schema(fields))


def _tensor(table: Any, name: str) -> Tensor:
    """A column (N, ...): of `write`, of numbers, or of lists of numbers, all of one length."""
    column, metadata = table[name].combine_chunks(), table.schema.field(name).metadata or {}
    if column.null_count:
        raise ValueError(f"{name} has {column.null_count} missing values")
    if b"shape" in metadata:
        shape = tuple(map(int, metadata[b"shape"].split(b",")))
        width = column.type.byte_width
        raw = bytearray(column.buffers()[1][column.offset * width : (column.offset + len(column)) * width])
        return torch.frombuffer(raw, dtype=getattr(torch, metadata[b"dtype"].decode())).view(len(column), *shape)
    try:
        values = column.to_numpy_ndarray() if hasattr(column, "to_numpy_ndarray") else column.to_numpy(False)
        return torch.from_numpy(np.array(np.stack(values) if values.dtype == object else values))
    except (TypeError, ValueError):
        raise ValueError(f"{name} is of type {column.type}: use numbers, or lists of numbers of one length") from None


def _as_inputs(columns: list[Tensor]) -> list[Tensor]:
    """Columns (N, ...) as networks take them: floats in single precision, classes as int64; inputs that are all single
    numbers are stacked to one input (N, F)."""
    *inputs, target = (one.float() if one.dtype == torch.float64 else one for one in columns)
    if inputs and all(one.dim() == 1 for one in inputs):
        inputs = [torch.stack([one.float() for one in inputs], 1)]  # (N, F)
    return [*inputs, target if target.is_floating_point() or target.dim() > 1 else target.long()]
