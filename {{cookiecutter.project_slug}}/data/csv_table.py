"""CsvTable: a table in a CSV or Parquet file, one row an item, one column the target."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.cut import cut
from engine.discovery import UsageError

if TYPE_CHECKING:
    import pandas as pd


class CsvTable(Dataset):
    """Rows as features (F,) and a class number, or for a target that is a number, (F,) and that number.

    A column of numbers becomes (x - mean) / std, a missing one its median, and a further 0 or 1 that says whether it
    was missing where that happens in the training part. Any other column becomes a 0 or 1 for each of its texts,
    "missing" being one of them; a text that the training part does not have is all 0.

    Medians, means, deviations and texts are those of the training part alone. They follow from the file, the seed and
    the fractions, so that a run that goes on has the same; `export` writes them to labels.json as `preprocessing`, and
    `predict --rows FILE` reads another table by them, with a target or without.
    """

    def __init__(
        self,
        split: str,
        table: str = "table.csv",
        target: str = "target",
        task: Literal["classes", "number"] | None = None,
        scale_target: bool = False,
        drop: tuple[str, ...] = (),
        id_column: str | None = None,
        split_column: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        data_dir: str = "datasets",
    ) -> None:
        """Reads the file and cuts it.

        Args:
            split: "train", "val" or "test".
            table: the file, below data_dir; .parquet is read as Parquet, anything else as CSV.
            target: the column to be told from the others.
            task: classes or number; none takes a target with fractions, or of over 20 whole numbers, for a number.
            scale_target: tell (target - mean) / std of the training part instead of a number as it stands.
            drop: columns to leave out.
            id_column: names the rows in predictions, and is left out; none names them by their place from 0.
            split_column: says train, val or test of each row, and is left out; none cuts the rows by the seed.
            val_fraction: share of the rows for validation, 0 for none.
            test_fraction: share of the rows for the test.
            seed: the cut follows from it.
            data_dir: folder in which the file lies.

        Raises:
            UsageError: the file or a column is not there, or a column has too many texts.
            ValueError: the file cannot be read, or a value is infinite, or the target is missing.
        """
        path = Path(data_dir, table)
        rows = _read(path)
        known = ", ".join(map(str, rows.columns))
        for name in (target, id_column, split_column, *drop):
            if name is not None and name not in rows:
                raise UsageError(f"{path} has no column {name!r}. It has: {known}")
        if (gone := rows.index[rows[target].isna()]).size:
            said = f"{len(gone)} rows have no {target!r}, the first of them row {gone[0]}, from 0"
            raise ValueError(f"{path}: {said}. Rows to be told belong in a file of their own: predict --rows FILE")
        part = np.empty(len(rows), dtype=object)
        for name, indices in cut(len(rows), seed, val_fraction, test_fraction).items():
            part[indices.numpy()] = name
        part = rows[split_column].to_numpy() if split_column else part
        if wrong := set(part) - {"train", "val", "test"}:
            raise UsageError(f"{path}: {split_column!r} says {sorted(map(str, wrong))}, not train, val or test")
        learn, mine = rows[part == "train"], rows[part == split]
        if learn.empty:
            raise UsageError(f"{path}: no row is left to learn from")
        self.id_column = id_column
        self.columns: dict[str, dict[str, Any]] = {
            str(name): _fit(learn[name], f"{path}: column {name!r}")
            for name in rows
            if name not in (target, id_column, split_column, *drop)
        }
        self.preprocessing: dict[str, Any] = dict(self.columns)
        self.ids, self.features = self._inputs(mine, str(path))  # (N, F)
        self.num_features = self.features.shape[1]
        told = rows[target] if _is_number(rows[target]) else rows[target].astype(str)
        whole = told.dtype.kind != "f" and (told.nunique() <= 20 or not _is_number(told))
        if task == "classes" or (task is None and whole):
            kinds = sorted(told.unique())
            self.classes, self.num_classes = [str(one) for one in kinds], len(kinds)
            self.targets = torch.tensor([kinds.index(one) for one in told[mine.index]], dtype=torch.long)  # (N,)
        elif not _is_number(told):
            raise UsageError(f"--task number: {path} has texts in {target!r}")
        else:
            mean, std = (told[learn.index].mean(), told[learn.index].std(ddof=0)) if scale_target else (0.0, 1.0)
            self.targets = torch.tensor(((told[mine.index] - mean) / (std or 1.0)).to_numpy(np.float32))  # (N,)
            self.preprocessing[target] = {"mean": float(mean), "std": float(std or 1.0)}
            self.num_classes = 1  # one output, for the number

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once."""
        return self.features[indices], self.targets[indices]

    def open_rows(self, path: str) -> tuple[list[str], torch.Tensor]:
        """Names and features (N, F) of another table's rows.

        Raises:
            UsageError: the file or a column is not there.
            ValueError: a value is no number, and those to learn from were.
        """
        rows = _read(Path(path), [name for name, fitted in self.columns.items() if "texts" in fitted])
        for name in (*self.columns, self.id_column):
            if name is not None and name not in rows:
                raise UsageError(f"{path} has no column {name!r}. It has: {', '.join(map(str, rows.columns))}")
        return self._inputs(rows, path)

    def _inputs(self, rows: "pd.DataFrame", path: str) -> tuple[list[str], torch.Tensor]:
        ids = (rows[self.id_column] if self.id_column else rows.index.to_series()).astype(str).tolist()
        columns = [_apply(rows[name], fitted, f"{path}: column {name!r}") for name, fitted in self.columns.items()]
        return ids, torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32))


def _read(path: Path, texts: Iterable[str] = ()) -> "pd.DataFrame":
    """texts: columns whose values are not to be taken for numbers, whatever they look like."""
    if not path.is_file():
        there = ", ".join(sorted(one.name for one in path.parent.glob("*") if one.is_file())) or "no file"
        raise UsageError(f"there is no {path} (--data_dir, --table). {path.parent} has: {there}")
    try:
        import pandas as pd

        if path.suffix == ".parquet":
            rows = pd.read_parquet(path)
        else:
            rows = pd.read_csv(path, low_memory=False, dtype=dict.fromkeys(texts, str))
    except ImportError:  # pandas, or pyarrow
        raise UsageError(f'{path} needs further packages: pip install -e ".[tables]"') from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name in rows:
        if rows[name].isin([np.inf, -np.inf]).any():
            raise ValueError(f"{path} has infinite values in {name!r}")
    return rows


def _is_number(column: "pd.Series") -> bool:
    return column.dtype.kind in "biuf"


def _fit(column: "pd.Series", said: str) -> dict[str, Any]:
    """What a column of the training part says of itself."""
    if column.isna().all():
        raise UsageError(f"{said} is empty in the training part: --drop {column.name}")
    if _is_number(column):
        full = column.astype(float).fillna(median := float(column.median()))
        std = float(full.std(ddof=0))
        return {"median": median, "mean": float(full.mean()), "std": std or 1.0, "missing": bool(column.isna().any())}
    texts = sorted(set(column.astype(object).where(column.notna(), "missing").astype(str)))
    if len(texts) > 100:
        raise UsageError(f"{said} has {len(texts)} different texts, too many for categories: --drop {column.name}")
    return {"texts": texts}


def _apply(column: "pd.Series", fitted: dict[str, Any], said: str) -> np.ndarray:
    """Features of a column (N, columns made of it)."""
    if "texts" in fitted:
        texts = column.astype(object).where(column.notna(), "missing").astype(str).to_numpy(dtype=object)
        return texts[:, None] == np.array(fitted["texts"], dtype=object)
    gone = column.isna().to_numpy()[:, None]
    try:
        values = column.astype(float).fillna(fitted["median"]).to_numpy()[:, None]
    except ValueError as error:
        raise ValueError(f"{said} is one of numbers: {error}") from None
    scaled = (values - fitted["mean"]) / fitted["std"]
    return np.concatenate([scaled, gone], axis=1) if fitted["missing"] else scaled
