"""CsvTable: a table in a CSV or Parquet file, one row an item, one column the target."""

import re
import shlex
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import Dataset

from data import _columns
from data._file_errors import missing, no_column, not_in
from engine.datamodule.class_balance import look_alike
from engine.datamodule.splits import hash_texts, split_indices
from engine.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


class CsvTable(Dataset):
    """Rows as features (F,) and a class number, or for a target that is a number, (F,) and that number.

    A column of numbers becomes (x - mean) / std, a missing one its median, and a further 0 or 1 that says whether it
    was missing where that happens in the train split. Dates, in a CSV file texts like 2024-05-31, 2024/5/31 or
    2024-05-31 18:30, are numbers of days since 1970-01-01. Cells like 11.5%, $1.50, 32.2㎡ or 1 000 are numbers where
    the unit of all is the same, and "?" or "-" among numbers is a missing one; a printed line says so. Any other column
    becomes a 0 or 1 for each of its texts, "missing" being one of them; a text that the train split does not have is
    all 0.

    Medians, means, deviations and texts are those of the train split alone. They follow from the file, the seed and
    the fractions, so that a run that goes on has the same; `export` writes them to labels.json as `preprocessing`, and
    `predict --rows FILE` reads another table by them, with a target or without, in the same encoding. It does not need
    the table that was learnt from.
    """

    def __init__(
        self,
        split: str,
        table: str = "table.csv",
        target: str = "target",
        target_kind: Literal["classes", "number"] | None = None,
        scale_target: bool = False,
        number_columns: tuple[str, ...] = (),
        drop: tuple[str, ...] = (),
        id_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        separator: str = ",",
        decimal: Literal[".", ","] | None = None,
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
            target_kind: classes or number; none takes a target with fractions, or over 20 whole numbers, for a number.
            scale_target: learn (target - mean) / std of the train split instead of a number as it stands. The loss is
                of the scaled numbers; metrics, pictures and predictions are in the unit of the file.
            number_columns: columns to read as numbers where that is not certain: a word may be their unit, such as 32
                km, and a cell that is no number is missing.
            drop: columns to leave out.
            id_column: the column that names the rows in predictions, no input; none numbers them from 0.
            split_column: the column that says train, val or test of each row, no input; none splits by the seed.
            group_column: the column that says what each row belongs to, such as a patient, no input: all rows of one
                are in one split, the fractions are shares of the groups, and stratify has no effect.
            separator: one character between the columns of a CSV file, \\t for a tab, \\s+ for any white space.
            decimal: the decimal mark of numbers in a CSV file; none takes a point, and refuses a column of numbers with
                commas. Where it is given, the other mark may stand between thousands.
            encoding: encoding of a CSV file, such as gbk.
            val_fraction: share of the rows for validation, 0 for none.
            test_fraction: share of the rows for the test.
            stratify: cut the same share of every class.
            seed: the splits follow from it.
            data_dir: folder in which the file lies.

        Raises:
            UsageError: the file or a column is not there or cannot be read, a row has no group, a column is empty or
                has too many texts, or two that look alike, a value is infinite, a target is missing or may be a number
                or not, or one is in no row to learn from, by the split_column.
        """
        path = Path(data_dir, table)
        self._set_format(id_column, separator, decimal, encoding, number_columns)
        as_written = target, id_column, group_column
        rows = self._read(path, *as_written, split_column, written=as_written)
        if split == "train" and (joined := _columns.joined_rows(rows, self.separator)):
            _print(f"{path}: {joined}")
        self.number_columns = _named(number_columns, rows, path)
        dropped = _named(drop, rows, path)
        apart = [split_column, *{id_column, group_column}]
        named = [target, *apart, *(name for name in dropped if name not in apart), *self.number_columns]
        if twice := [name for name in named if name is not None and named.count(name) > 1]:
            flags = "--target, --id_column, --split_column, --group_column, --drop and --number_columns"
            raise UsageError(f"{path}: {twice[0]!r} is named twice by {flags}")
        told, said = _columns.target(rows[target], decimal, target_kind, typed=path.suffix == ".parquet")
        if said:
            raise UsageError(f"{path}: {target!r} {said}")
        if (gone := rows.index[told.isna()]).size:
            said = f"no {target!r} in {len(gone)} of the rows, the first of them row {gone[0]}, from 0"
            raise UsageError(f"{path}: {said}. Rows to predict belong in a file of their own: predict --rows FILE")
        if _columns.is_number(told) and (reading := _columns.reading(rows[target], told, "", decimal)):
            _note(split, f"{path}: {target!r} {reading}")
        whole = told.dtype.kind != "f" and (told.nunique() <= 20 or not _columns.is_number(told))
        kinds = sorted(told.unique()) if target_kind == "classes" or (target_kind is None and whole) else []
        numbers = told.map({kind: number for number, kind in enumerate(kinds)}) if kinds else None
        part = np.empty(len(rows), dtype=object)
        cut = numbers.tolist() if numbers is not None and stratify else None
        groups = rows[group_column].astype(str).to_numpy() if group_column else None
        if groups is not None and (split_column or rows[group_column].replace("", None).isna().any()):
            said = "--split_column says the splits" if split_column else f"no {group_column!r} in some of the rows"
            raise UsageError(f"{path}: --group_column {group_column}: {said}")
        for name, indices in split_indices(len(rows), seed, val_fraction, test_fraction, cut, groups).items():
            part[indices.numpy()] = name
        if groups is not None:
            said = f"{len({*groups}):,} groups in {group_column!r}, each in one split as a whole"
            _note(split, f"{path}: {said}{', not stratified by class' if cut else ''}")
        part = rows[split_column].to_numpy() if split_column else part
        if wrong := set(part) - {"train", "val", "test"}:
            raise UsageError(f"{path}: {split_column!r} says {sorted(map(str, wrong))}, not train, val or test")
        inputs = [str(name) for name in rows if name not in (target, *apart, *dropped)]
        for name in [name for name in inputs if _counts_rows(name, rows[name])]:
            inputs.remove(name)
            _note(split, f"{path}: {name!r} counts the rows, as pandas writes its index: it is left out")
        learn, mine = rows[part == "train"], rows[part == split]
        if learn.empty or not inputs:
            raise UsageError(f"{path}: no {'row' if inputs else f'column but {target!r}'} is left to learn from")
        cells = ((name, rows[name].map(type)) for name in inputs if rows[name].dtype == object)
        if nested := [name for name, kinds in cells if kinds.isin([list, dict, np.ndarray]).any()]:
            raise UsageError(
                f"{path}: {nested[0]!r} has lists or dicts in its cells: --drop {shlex.join([*dropped, *nested])}"
            )
        for name in inputs:
            if _columns.same(rows[name], told, classes=bool(kinds)):
                why = f"says the same as {target!r} in every row; unless it is known before: --drop"
                _note(split, f"{path}: {name!r} {why} {shlex.join((*dropped, name))}")
        self.columns = self._fit(rows[inputs], learn.index, path, split, dropped)
        self.preprocessing: dict[str, Any] = dict(self.columns)
        self.ids, self.features = self._inputs(mine, str(path))  # (N, F)
        self._path, self._places = path, mine.index
        self.num_features = self.features.shape[1]
        cells = mine[[*self.columns, target]].astype(object).fillna("").to_numpy()
        self.fingerprint = hash_texts([str(cell) for cell in cells.ravel()])
        self.scale = 0.0, 1.0  # mean and deviation of a target that is scaled
        if scale_target and kinds:
            _note(split, f"{path}: {target!r} has classes: --scale_target has no effect")
        if numbers is not None:
            if split_column and (strange := sorted(set(kinds) - set(told[learn.index]))):
                said = f"{split_column!r} leaves no row to learn from where {target!r} is"
                raise UsageError(f"{path}: {said} {', '.join(map(str, strange))}")
            spellings = [rows[target][told == kind].astype(str).unique().tolist() for kind in kinds]
            for one in (one for one in spellings if len(one) > 1):
                _note(split, f"{path}: {', '.join(map(repr, one[:5]))} in {target!r} are taken for one class")
            unique = all(len(one) == 1 for one in spellings) and not {*kinds} <= {*_columns.BOOLEANS.values()}
            self.classes = [one[0] for one in spellings] if unique else [str(kind) for kind in kinds]
            self.num_classes = len(kinds)
            self.targets = torch.tensor(numbers[mine.index].to_numpy(), dtype=torch.long)  # (N,)
        elif not _columns.is_number(told):
            raise UsageError(f"--target_kind number: {path} has texts in {target!r}")
        else:
            if scale_target:
                self.scale = float(told[learn.index].mean()), float(told[learn.index].std(ddof=0)) or 1.0
            mean, std = self.scale
            self.targets = torch.tensor(((told[mine.index] - mean) / std).to_numpy(np.float32))  # (N,)
            self.preprocessing[target] = {"mean": mean, "std": std}
            self.num_classes = 1  # one output, for the number

    @classmethod
    def from_record(cls, record: dict[str, Any], *, target: str, **given: Any) -> "CsvTable":
        """A table without rows, as a run kept it: for `open_rows`. The arguments are those of the constructor."""
        table = cls.__new__(cls)
        table._set_format(**given)
        table.preprocessing, classes = record["preprocessing"], record["classes"]
        table.columns = {name: one for name, one in table.preprocessing.items() if classes or name != target}
        table.num_features = sum(
            len(one["texts"]) if "texts" in one else 1 + one["missing"] for one in table.columns.values()
        )
        scale = {"mean": 0.0, "std": 1.0} if classes else table.preprocessing[target]
        table.scale, table.num_classes = (scale["mean"], scale["std"]), len(classes or [1])
        if classes:
            table.classes = classes
        return table

    def raw_items(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of the file that these items are, with all of their columns, for `preview`."""
        rows = self._read(self._path).loc[self._places[indices]]
        return rows.astype(object).fillna("").to_dict("records")

    def _set_format(
        self, id_column: Any, separator: str, decimal: Any, encoding: str, number_columns: Any = (), **_: Any
    ) -> None:
        self.id_column, self.separator = id_column, separator.replace("\\t", "\t")
        self.decimal, self.encoding, self.number_columns = decimal, encoding, list(number_columns)
        if len(self.separator) != 1 and self.separator != r"\s+":
            raise UsageError(f"--separator {separator!r} should be one character, or \\s+ for any white space")

    def _fit(
        self, rows: "pd.DataFrame", learn: Any, path: Path, split: str, dropped: list[str]
    ) -> dict[str, dict[str, Any]]:
        """The statistics of each column in the rows `learn`.

        Raises:
            UsageError: a column is empty, has infinite values, too many texts or two that look alike, or may be one of
                numbers.
        """
        useless, unclear, columns = {}, [], {}
        for name in rows:
            values, unit = _columns.measure(rows[name], self.decimal, told := name in self.number_columns)
            if values.isna().all() and not told:
                values, unit = rows[name], None  # texts such as "*", which mark what is missing only among numbers
            if unit is not None and (wrong := _columns.wrong(rows[name], values, self.decimal)):
                unclear.append(f"{name!r} {wrong}")
                continue
            if values[learn].isna().all():
                useless[name] = "is empty"
                continue
            columns[name] = fitted = _columns.fit(values[learn], unit)
            texts = [text for text in fitted.get("texts", ()) if text != "missing"]
            wrong, reading = "", _columns.reading(rows[name], values, unit, self.decimal)
            if unit is None:
                wrong, reading = _columns.unclear(rows[name], self.decimal)
                numbers = f"--number_columns {shlex.join([*self.number_columns, name])}"
                reading = reading.replace("--number_columns", numbers)
                if not reading and len(texts) <= 100 and (alike := look_alike(texts, fold=True)):
                    reading = f"has {alike}, which differ only in case, width or blanks"
                elif not reading and 20 < len(texts) <= 100 and all(re.search(r"\d", text) for text in texts):
                    reading = f"has texts with digits, such as {texts[0]!r}"
            elif _columns.rounded(rows[name], values.astype(float)):
                reading = (
                    f"has whole numbers beyond 2^53, which are rounded; where they name the rows: --id_column {name}"
                )
            if wrong or (reading and len(texts) > 100):
                unclear.append(f"{name!r} {wrong or reading}")
            elif reading:
                _note(split, f"{path}: {name!r} {f'is read as {len(texts)} categories; it ' if texts else ''}{reading}")
            elif len(texts) > 100:
                useless[name] = f"has {len(texts)} different texts, such as {texts[0]!r}, too many for categories"
        said = [f"{name!r} {why}" for name, why in useless.items()]
        drop = [f": --drop {shlex.join((*dropped, *useless))}"] if useless else []
        if unclear or useless:
            first = [f"in the train split {', '.join(said)}{drop[0]}"] if useless else []
            raise UsageError(f"{path}: {'; '.join([*unclear, *first])}")
        return columns

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once."""
        return self.features[indices], self.targets[indices]

    @property
    def feature_names(self) -> list[str]:
        """Of the F features: NAME=TEXT for each text of a column, and whether a number was missing."""
        names: list[str] = []
        for name, fitted in self.columns.items():
            texts = [f"{name}={text}" for text in fitted.get("texts", ())]
            names += texts or [name, f"{name} is missing"][: 1 + fitted["missing"]]
        return names

    def inverse_transform(self, values: torch.Tensor) -> torch.Tensor:
        """Numbers as the network predicts them, (N, ...) -> in the unit of the file, which scale_target leaves."""
        mean, std = self.scale
        return values.float() * std + mean if self.scale != (0.0, 1.0) else values

    def open_rows(self, path: str) -> tuple[list[str], torch.Tensor]:
        """Names and features (N, F) of another table's rows.

        Raises:
            UsageError: the file or a column is not there or cannot be read, or a value is no number or date, and those
                to learn from were.
        """
        texts = {name: str for name, fitted in self.columns.items() if "texts" in fitted}
        rows = self._read(Path(path), *self.columns, self.id_column, texts=texts, written=(self.id_column,))
        return self._inputs(rows, path, new=True)

    def _inputs(self, rows: "pd.DataFrame", path: str, new: bool = False) -> tuple[list[str], torch.Tensor]:
        names = rows[self.id_column] if self.id_column else rows.index.to_series()
        ids = ["" if missing else str(name) for name, missing in zip(names, names.isna(), strict=True)]
        columns = []
        for name, fitted in self.columns.items():
            if "texts" in fitted:
                columns.append(_columns.has_text(rows[name], fitted["texts"]))
                unknown = rows[name][~columns[-1].any(axis=1)]
                if new and len(unknown):
                    said = f"not learnt in {len(unknown)} of the rows, such as {unknown.iloc[0]!r}"
                    _print(f"{path}: {name!r} has texts that were {said}")
                continue
            cells = _columns.without_booleans(rows[name])
            values, unit = _columns.measure(cells, self.decimal, name in self.number_columns)
            wanted = fitted.get("unit", "")
            if unit is None or (unit != wanted and values.notna().any()):
                said = _columns.expected(rows[name], self.decimal, wanted)
                raise UsageError(f"{path}: column {name!r} is one of {said}")
            if wrong := _columns.wrong(rows[name], values, self.decimal):
                raise UsageError(f"{path}: {name!r} {wrong}")
            if new and (reading := _columns.reading(rows[name], values, unit, self.decimal)):
                _print(f"{path}: {name!r} {reading}")
            if new and not fitted["missing"] and (number := int(values.isna().sum())):
                said = f"{number} of the rows, and was in none to learn from: its median is taken"
                _print(f"{path}: {name!r} is missing in {said}")
            columns.append(_columns.scaled(values, fitted))
        return ids, torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32))

    def _read(
        self, path: Path, *wanted: str | None, texts: Any = None, written: tuple[str | None, ...] = ()
    ) -> "pd.DataFrame":
        """texts: columns whose values are not to be taken for numbers. written: those that are taken as they stand."""
        if not path.is_file():
            raise missing(path, "--data_dir, --table")
        try:
            import pandas as pd

            if path.suffix == ".parquet":
                rows = _read_parquet(path, written)
                head = rows.columns
            else:
                form: dict[str, Any] = {"sep": self.separator, "encoding": self.encoding, "low_memory": False}
                rows = pd.read_csv(path, dtype=texts, decimal=self.decimal or ".", **form)
                head = pd.read_csv(path, header=None, nrows=1, dtype=str, **form).iloc[0].dropna()
                if exact := [name for name in dict.fromkeys(written) if name in rows]:
                    rows[exact] = pd.read_csv(path, usecols=exact, dtype=str, keep_default_na=False, **form)[exact]
        except ImportError:  # pandas, or pyarrow
            raise UsageError(f'{path} needs further packages: pip install -e ".[tables]"') from None
        except (UnicodeError, LookupError) as error:
            raise not_in(path, self.encoding, error) from None
        except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:  # of .gz and .zip too
            raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        if not rows.index.equals(pd.RangeIndex(len(rows))):
            raise UsageError(f"{path} has more fields in its rows than in its head line: another --separator?")
        if (twice := head[head.duplicated()]).size:  # pandas would call the second one x.1
            raise UsageError(f"{path} has several columns {twice.tolist()[0]!r}: give each a name of its own")
        if strange := [name for name in wanted if name is not None and name not in rows]:
            raise no_column(path, strange[0], rows)
        return rows


def _read_parquet(path: Path, written: tuple[str | None, ...]) -> "pd.DataFrame":
    """A Parquet file's rows, with an index that has a name as a column; whole numbers stay whole in `written`."""
    import pandas as pd

    rows = pd.read_parquet(path)
    rows = rows.reset_index(drop=rows.index.names == [None])
    for name in written:
        if name in rows and rows[name].isna().any():  # pandas makes floats of whole numbers with gaps
            rows[name] = pd.read_parquet(path, dtype_backend="numpy_nullable").reset_index()[name].astype(object)
    return rows


def _named(names: tuple[str, ...], rows: "pd.DataFrame", path: Path) -> list[str]:
    """The columns of those names. One with a comma in it comes in pieces: a command line's list is cut there."""
    found, pieces = list[str](), list[str]()
    for piece in names:
        pieces.append(piece)
        if whole := next((one for one in (", ".join(pieces), ",".join(pieces)) if one in rows), None):
            found.append(whole)
            pieces = []
    if pieces:
        raise no_column(path, pieces[0], rows)
    return found


def _counts_rows(name: str, column: "pd.Series") -> bool:
    return re.fullmatch(r"Unnamed: \d+", name) is not None and column.tolist() == list(range(len(column)))


def _note(split: str, text: str) -> None:
    if split == "train":  # once, though each split reads the file
        _print(text)


@rank_zero_only
def _print(text: str) -> None:
    print(text, file=sys.stderr)
