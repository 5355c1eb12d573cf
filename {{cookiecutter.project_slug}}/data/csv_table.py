"""CsvTable: a table in a CSV or Parquet file, one row an item, one column the target."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from data._tables import missing, no_column, not_in
from engine.datamodule.splits import hash_texts, split_indices
from engine.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

DATE = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?"


class CsvTable(Dataset):
    """Rows as features (F,) and a class number, or for a target that is a number, (F,) and that number.

    A column of numbers becomes (x - mean) / std, a missing one its median, and a further 0 or 1 that says whether it
    was missing where that happens in the train split. Dates, in a CSV file texts like 2024-05-31 or
    2024-05-31 18:30, are numbers of days since 1970-01-01. Any other column becomes a 0 or 1 for each of its texts,
    "missing" being one of them; a text that the train split does not have is all 0.

    Medians, means, deviations and texts are those of the train split alone. They follow from the file, the seed and
    the fractions, so that a run that goes on has the same; `export` writes them to labels.json as `preprocessing`, and
    `predict --rows FILE` reads another table by them, with a target or without, in the same encoding.
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
        separator: str = ",",
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
            table: the file, below data_dir; .parquet is read as Parquet, anything else as CSV.
            target: the column to predict from the others.
            task: classes or number; none takes a target with fractions, or of over 20 whole numbers, for a number.
            scale_target: tell (target - mean) / std of the train split instead of a number as it stands.
            drop: columns to leave out.
            id_column: names the rows in predictions, and is left out; none names them by their place from 0.
            split_column: says train, val or test of each row, and is left out; none cuts the rows by the seed.
            separator: one character between the columns of a CSV file.
            encoding: of a CSV file, such as gbk.
            val_fraction: share of the rows for validation, 0 for none.
            test_fraction: share of the rows for the test.
            stratify: cut the same share of every class.
            seed: the splits follow from it.
            data_dir: folder in which the file lies.

        Raises:
            UsageError: the file or a column is not there or cannot be read, a column is empty or has too many texts, a
                value is infinite, a target is missing, or one is in no row to learn from, by the split_column.
        """
        path, self.id_column = Path(data_dir, table), id_column
        self.separator, self.encoding = separator.replace("\\t", "\t"), encoding
        rows = self._read(path, target, id_column, split_column, *drop)
        if (gone := rows.index[rows[target].isna()]).size:
            said = f"{len(gone)} rows have no {target!r}, the first of them row {gone[0]}, from 0"
            raise UsageError(f"{path}: {said}. Rows to predict belong in a file of their own: predict --rows FILE")
        told = rows[target] if _is_number(rows[target]) else rows[target].astype(str)
        whole = told.dtype.kind != "f" and (told.nunique() <= 20 or not _is_number(told))
        kinds = sorted(told.unique()) if task == "classes" or (task is None and whole) else []
        numbers = told.map({kind: number for number, kind in enumerate(kinds)}) if kinds else None
        cut = numbers.tolist() if numbers is not None and stratify else None
        part = np.empty(len(rows), dtype=object)
        for name, indices in split_indices(len(rows), seed, val_fraction, test_fraction, cut).items():
            part[indices.numpy()] = name
        part = rows[split_column].to_numpy() if split_column else part
        if wrong := set(part) - {"train", "val", "test"}:
            raise UsageError(f"{path}: {split_column!r} says {sorted(map(str, wrong))}, not train, val or test")
        inputs = [str(name) for name in rows if name not in (target, id_column, split_column, *drop)]
        dates = {name: days for name in inputs if (days := _days(rows[name])) is not None}
        learn, mine = rows[part == "train"], rows[part == split]
        if learn.empty:
            raise UsageError(f"{path}: no row is left to learn from")
        useless = {name: "is empty" for name in inputs if learn[name].isna().all()}
        self.columns = {name: _fit(dates.get(name, rows[name])[learn.index]) for name in inputs if name not in useless}
        for name in dates.keys() & self.columns:
            self.columns[name]["unit"] = "days since 1970-01-01"
        for name, fitted in self.columns.items():
            if (texts := len(fitted.get("texts", ()))) > 100:
                useless[name] = f"has {texts} different texts, too many for categories"
        if useless:
            said = ", ".join(f"{name!r} {why}" for name, why in useless.items())
            raise UsageError(f"{path}: in the train split {said}: --drop {shlex.join((*drop, *useless))}")
        self.preprocessing: dict[str, Any] = dict(self.columns)
        self.ids, self.features = self._inputs(mine, str(path))  # (N, F)
        self.num_features = self.features.shape[1]
        cells = mine[[*self.columns, target]].astype(object).fillna("").to_numpy()
        self.fingerprint = hash_texts([str(cell) for cell in cells.ravel()])
        self.scale = 0.0, 1.0  # mean and deviation of a target that is scaled
        if numbers is not None:
            if split_column and (strange := sorted(set(kinds) - set(told[learn.index]))):
                said = f"{split_column!r} leaves no row to learn from where {target!r} is"
                raise UsageError(f"{path}: {said} {', '.join(map(str, strange))}")
            self.classes, self.num_classes = [str(one) for one in kinds], len(kinds)
            self.targets = torch.tensor(numbers[mine.index].to_numpy(), dtype=torch.long)  # (N,)
        elif not _is_number(told):
            raise UsageError(f"--task number: {path} has texts in {target!r}")
        else:
            if scale_target:
                self.scale = float(told[learn.index].mean()), float(told[learn.index].std(ddof=0)) or 1.0
            mean, std = self.scale
            self.targets = torch.tensor(((told[mine.index] - mean) / std).to_numpy(np.float32))  # (N,)
            self.preprocessing[target] = {"mean": mean, "std": std}
            self.num_classes = 1  # one output, for the number

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once."""
        return self.features[indices], self.targets[indices]

    def inverse_transform(self, values: torch.Tensor) -> torch.Tensor:
        """Numbers as the network tells them, (N, ...) -> in the unit of the file, which scale_target leaves."""
        mean, std = self.scale
        return values.float() * std + mean

    def open_rows(self, path: str) -> tuple[list[str], torch.Tensor]:
        """Names and features (N, F) of another table's rows.

        Raises:
            UsageError: the file or a column is not there or cannot be read, or a value is no number or date, and those
                to learn from were.
        """
        texts = {name: str for name, fitted in self.columns.items() if "texts" in fitted}
        rows = self._read(Path(path), *self.columns, self.id_column, texts=texts)
        return self._inputs(rows, path)

    def _inputs(self, rows: "pd.DataFrame", path: str) -> tuple[list[str], torch.Tensor]:
        ids = (rows[self.id_column] if self.id_column else rows.index.to_series()).astype(str).tolist()
        columns = [_apply(rows[name], fitted, f"{path}: column {name!r}") for name, fitted in self.columns.items()]
        return ids, torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32))

    def _read(self, path: Path, *wanted: str | None, texts: dict[str, Any] | None = None) -> "pd.DataFrame":
        """texts: columns whose values are not to be taken for numbers, whatever they look like."""
        if not path.is_file():
            raise missing(path, "--data_dir, --table")
        try:
            import pandas as pd

            if path.suffix == ".parquet":
                rows = pd.read_parquet(path).reset_index(drop=True)
            else:
                rows = pd.read_csv(path, sep=self.separator, encoding=self.encoding, dtype=texts, low_memory=False)
        except ImportError:  # pandas, or pyarrow
            raise UsageError(f'{path} needs further packages: pip install -e ".[tables]"') from None
        except (UnicodeError, LookupError) as error:
            raise not_in(path, self.encoding, error) from None
        except (ValueError, OSError) as error:
            raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        if not rows.index.equals(pd.RangeIndex(len(rows))):
            raise UsageError(f"{path} has more fields in its rows than in its head line: another --separator?")
        if strange := [name for name in wanted if name is not None and name not in rows]:
            raise no_column(path, strange[0], rows)
        if endless := [name for name in rows if rows[name].isin([np.inf, -np.inf]).any()]:
            raise UsageError(f"{path} has infinite values in {endless[0]!r}")
        return rows


def _is_number(column: "pd.Series") -> bool:
    return column.dtype.kind in "biuf"


def _days(column: "pd.Series") -> "pd.Series | None":
    """Days since 1970-01-01 of a column of dates, None of any other."""
    import pandas as pd

    if column.dtype.kind == "M":
        dates = pd.to_datetime(column, utc=True)
    else:
        texts = column.dropna().astype(str)
        if (_is_number(column) and len(texts)) or not texts.str.fullmatch(DATE).all():
            return None
        try:
            dates = pd.to_datetime(texts, utc=True, format="ISO8601").reindex(column.index)
        except ValueError:  # such as 2024-02-30
            return None
    return (dates - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)


def _fit(column: "pd.Series") -> dict[str, Any]:
    """The statistics of a column in the train split."""
    if _is_number(column):
        full = column.astype(float).fillna(median := float(column.median()))
        std = float(full.std(ddof=0))
        return {"median": median, "mean": float(full.mean()), "std": std or 1.0, "missing": bool(column.isna().any())}
    return {"texts": sorted(set(column.astype(object).where(column.notna(), "missing").astype(str)))}


def _apply(column: "pd.Series", fitted: dict[str, Any], said: str) -> np.ndarray:
    """Features of a column (N, columns made of it)."""
    if "texts" in fitted:
        texts = column.astype(object).where(column.notna(), "missing").astype(str).to_numpy(dtype=object)
        return texts[:, None] == np.array(fitted["texts"], dtype=object)
    if "unit" in fitted and (column := _days(column)) is None:
        raise UsageError(f"{said} is one of dates, such as 2024-05-31")
    try:
        values = column.astype(float).fillna(fitted["median"]).to_numpy()[:, None]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{said} is one of numbers: {error}") from None
    scaled = (values - fitted["mean"]) / fitted["std"]
    return np.concatenate([scaled, column.isna().to_numpy()[:, None]], axis=1) if fitted["missing"] else scaled
