"""Reads the cells of a table's column: numbers in some unit, dates or texts. For data/csv_table.py."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.datamodule.class_balance import look_alike

if TYPE_CHECKING:
    import pandas as pd

DAYS = "days since 1970-01-01"
DATE = r"(\d{4})[-/](\d\d?)[-/](\d\d?)(?:[T ](\d\d?)(:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?))?"
OTHER_DATES = r"\d\d?[-/.]\d\d?[-/.]\d{4}.*|\d{4}[.年]\d\d?[.月]\d\d?.*"
CURRENCIES = "$€£¥￥₹₩₽"
SIGNS = f"{CURRENCIES}%‰°℃℉²³㎡㎥"  # a unit that has one of them is no part of a name
MARKED = rf"[+-]?[{CURRENCIES}]?[+-]?[\d.,]*\d\D{{0,8}}"
FLOAT32 = float(np.finfo(np.float32).max)  # targets and their errors are of this type, scaled or not
PLAIN = str.maketrans("０１２３４５６７８９．，％＋－−", "0123456789.,%+--")  # full-width signs; the minus of print
BOOLEANS = {"TRUE": "True", "true": "True", "FALSE": "False", "false": "False"}  # pandas' names, of classes too
# What stands for a missing value in a column of numbers, in small letters.
NO_NUMBER = {"", "na", "n/a", "n.a.", "nan", "null", "none", "<na>", "#n/a", "\\n", "unknown", "missing"}
NO_NUMBER |= {"?", "-", "--", "–", "—", ".", "*", "/", "无", "未知", "暂无"}


def is_number(column: "pd.Series") -> bool:
    """Whether pandas has it as numbers."""
    return column.dtype.kind in "biuf"


def measure(column: "pd.Series", decimal: str | None, told: bool = False) -> tuple["pd.Series", str | None]:
    """A column as numbers and their unit: "" for plain ones, DAYS for dates. A column of texts as it is, and None.

    Numbers may have blanks or apostrophes between thousands, or the mark that an explicit `decimal` leaves for that,
    and all one currency before them or one unit behind them. A cell such as "?" is missing.

    told: the unit may be any word, and every cell that is no number is missing.
    """
    import pandas as pd

    if is_number(column):
        return column, ""
    if column.dtype.kind == "M":
        return _days(column), DAYS
    texts = column.dropna().astype(str)
    swapped = texts.str.translate(str.maketrans(",.", ".,")) if decimal == "," else texts
    if len(texts) and np.isfinite(plain := pd.to_numeric(swapped, errors="coerce")).all():  # the usual case, at once
        return plain.reindex(column.index), ""
    cells = pd.Series(texts.unique(), texts.unique(), dtype=str).str.strip().str.translate(PLAIN)  # each text once
    cells = cells[~cells.str.lower().isin(NO_NUMBER)]
    days = _dates(cells, told)
    if cells.empty or days is not None:
        return texts.map(days).astype(float).reindex(column.index), "" if cells.empty else DAYS
    point, between = re.escape(decimal or "."), " \u00a0\u2009\u202f'’" + {",": ".", ".": ","}.get(decimal or "", "")
    digits = rf"(?:[1-9]\d{{0,2}}(?:[{between}]\d{{3}})+|\d+)(?:{point}\d*)?(?:[eE][+-]?\d+)?|{point}\d+|inf"
    form = rf"([+-]?)([{CURRENCIES}]?)\s*([+-]?(?:{digits}))\s*((?:[^\s\d.,+-]\D{{0,7}})?)$"
    sign, currency, number, unit = (cells.str.extract(f"^{form}")[at] for at in range(4))
    plain = (sign + number).str.replace(f"[{between}]", "", regex=True).str.replace(decimal or ".", ".", regex=False)
    numbers = pd.to_numeric(plain, errors="coerce")
    units = (currency + unit)[numbers.notna()].unique()
    sure = told or (numbers.notna().all() and any(not one or {*one} & {*SIGNS} for one in units))
    return (texts.map(numbers).reindex(column.index), units[0]) if len(units) == 1 and sure else (column, None)


def without_booleans(column: "pd.Series") -> "pd.Series":
    """1 and 0 for a column of truth values, which stay texts for pandas where a cell is empty; others unchanged."""
    texts = column.astype(object).map(str, na_action="ignore").replace(BOOLEANS)
    return texts.map({"True": 1.0, "False": 0.0}) if texts.dropna().isin(["True", "False"]).all() else column


def reading(column: "pd.Series", numbers: "pd.Series", unit: str | None, decimal: str | None) -> str:
    """A note on numbers that `measure` made of texts other than plain numbers or dates, or that may be dates; or ""."""
    import pandas as pd

    if is_number(column):
        known = column.dropna().astype(float)
        dates = known.between(19000101, 21001231) & (known // 100 % 100).between(1, 12) & (known % 100).between(1, 31)
        note = "is read as numbers, and {:.0f} may be a date: written as 2024-05-31 they are read as days"
        return note.format(known.iloc[0]) if len(known) and dates.all() else ""
    if unit is None:
        return ""
    texts = column[column.notna() & (column != "")].astype(str)
    missing = ", ".join(map(repr, texts[numbers[texts.index].isna()].unique()[:5]))
    plain = pd.to_numeric(texts.str.replace(decimal or ".", ".", regex=False), errors="coerce").notna()
    odd = texts.index[~plain & numbers[texts.index].notna()][: unit != DAYS]
    said = [f"{texts[at]!r} is {numbers[at]:g}" for at in odd] + ([f"{missing} is missing"] if missing else [])
    return f"is read as {'dates' if unit == DAYS else 'numbers'}: {', '.join(said)}" if said else ""


def wrong(column: "pd.Series", numbers: "pd.Series", decimal: str | None, most: float = 1e150) -> str:
    """What is wrong with a column that `measure` made numbers of; "" for nothing.

    most: the largest absolute value; that of a column which is scaled has a square in float64.
    """
    if (numbers.abs().astype(float) > most).any():  # float32 has no 1e150
        return "has infinite values, or nearly infinite ones"
    lost = column[numbers.isna()].dropna().astype(str).unique()
    return _marked([text for text in map(str.strip, lost) if re.fullmatch(MARKED, text)], decimal)


def rounded(column: "pd.Series", numbers: "pd.Series") -> bool:
    """Whether different whole numbers of a column have become one, as they do beyond 2^53."""
    return bool(numbers.abs().max() > 2**53) and numbers.nunique() < column.nunique()


def target(column: "pd.Series", decimal: str | None, kind: str | None, typed: bool) -> tuple["pd.Series", str]:
    """The target as numbers, or as texts where one is none, missing where there is none; and what is wrong with it.

    kind: classes, number or None. typed: the file itself says what is a number.
    """
    if typed and is_number(column):
        return column, wrong(column, column, decimal, FLOAT32)
    texts = column.astype(object).map(str, na_action="ignore")
    texts = texts.where(texts.map(str.strip, na_action="ignore") != "")
    if kind != "number" and texts.dropna().isin([*BOOLEANS, *BOOLEANS.values()]).all():
        return texts.replace(BOOLEANS), ""
    numbers, unit = measure(texts, decimal, told=kind == "number")
    names = (numbers.isna().all() and texts.nunique() > 1) or (kind == "classes" and numbers.count() < texts.count())
    if unit is None or ((names or unit == DAYS) and kind != "number"):  # names: classes such as "none" and "unknown"
        mend, said = unclear(texts, decimal)
        if said and kind is None:
            mend = f"{said.partition(': ')[0]}: --target_kind number, or --target_kind classes"
        return texts, mend
    if rounded(texts, numbers):
        return numbers, "has whole numbers beyond 2^53, which are rounded: some would be the same"
    return numbers, wrong(texts, numbers, decimal, FLOAT32)


def unclear(column: "pd.Series", decimal: str | None) -> tuple[str, str]:
    """What is wrong with a column of texts, and what it could be read as instead; "" for nothing."""
    texts = column.dropna().astype(str).unique().tolist()
    known = [text.strip() for text in texts if text.strip().lower() not in NO_NUMBER]
    if all(re.fullmatch(MARKED, text) for text in known) and (marked := _marked(known, decimal)):
        return marked, ""
    if len(texts) <= 100 and (alike := look_alike(texts)):
        return f"has {alike}, which look alike: write them in one way", ""
    if known and all(re.fullmatch(OTHER_DATES, text) for text in known):
        return "", f"has dates, such as {known[0]}: written as 2024-05-31 they are read as days"
    numbers, unit = measure(column, decimal, told=True)
    if unit is None and all(re.fullmatch(MARKED, text) for text in known) and {*"".join(known)} & {*SIGNS}:
        return "", f"has numbers in several units, such as {known[0]} and {known[-1]}: write one"
    found = numbers.dropna()
    if unit is None or len(found) < column.count() / 2 or (found.nunique() <= 20 and (found % 1 == 0).all()):
        return "", ""
    other = column[numbers.isna()].dropna()
    if unit == DAYS:
        return "", f"has dates, such as {known[0]}: --number_columns"
    what = f"among texts such as {other.iloc[0]!r}" if len(other) else f"with a unit, such as {known[0]}"
    return "", f"has numbers {what}: --number_columns"


def joined_rows(rows: "pd.DataFrame", separator: str) -> str:
    """Which cell looks as if it held further rows, as behind a quote that nothing closes; "" for none."""
    for name in (name for name in rows if rows[name].dtype.kind == "O"):
        cells = rows[name].dropna().astype(str)
        cells = cells[cells.str.contains("\n", regex=False)]
        cells = cells[cells.str.count(re.escape(separator)) >= rows.shape[1] - 1]
        if len(cells):
            return (
                f"{name!r} of row {cells.index[0]}, from 0, has several lines: {cells.iloc[0]!r:.60}; is a quote open?"
            )
    return ""


def same(column: "pd.Series", target: "pd.Series", classes: bool) -> bool:
    """Whether a column has the target's values, or one value for each class."""
    known = column.notna()
    if known.mean() < 0.5 or target[known].nunique() < 2:
        return False
    if classes:
        return bool((column[known].factorize()[0] == target[known].factorize()[0]).all())
    return is_number(column) and bool((column[known] == target[known]).all())


def fit(column: "pd.Series", unit: str | None) -> dict[str, Any]:
    """The statistics of a column in the train split."""
    if unit is None:
        return {"texts": sorted(set(_texts(column)))}
    full = column.astype(float).fillna(median := float(column.median()))
    std = float(full.std(ddof=0))
    fitted = {"median": median, "mean": float(full.mean()), "std": std or 1.0, "missing": bool(column.isna().any())}
    return fitted | ({"unit": unit} if unit else {})


def has_text(column: "pd.Series", texts: list[str]) -> np.ndarray:
    """Whether the cells are each of the texts, (N, texts)."""
    found = _texts(column)
    if {*texts} <= {"True", "False", "missing"}:
        found = found.replace(BOOLEANS)  # read as texts, they are as they were written
    return found.to_numpy(dtype=object)[:, None] == np.array(texts, dtype=object)


def scaled(numbers: "pd.Series", fitted: dict[str, Any]) -> np.ndarray:
    """(x - mean) / std, (N, 1); with a further 0 or 1 for a missing one, (N, 2)."""
    values = numbers.astype(float).fillna(fitted["median"]).to_numpy()[:, None]
    values = (values - fitted["mean"]) / fitted["std"]
    return np.concatenate([values, numbers.isna().to_numpy()[:, None]], axis=1) if fitted["missing"] else values


def expected(column: "pd.Series", decimal: str | None, unit: str) -> str:
    """What a column should hold, and a cell of it that is something else."""
    if unit == DAYS:
        return "dates, such as 2024-05-31"
    texts, numbers = column.dropna().astype(str), measure(column, decimal, told=True)[0]
    other = texts[numbers[texts.index].isna()]
    return f"numbers{unit and f' with the unit {unit}'}, not {(other if len(other) else texts).iloc[0]!r}"


def _marked(numbers: list[str], decimal: str | None) -> str:
    """What to do about a mark in numbers that may begin a fraction or part thousands; "" where none has one."""
    mark = {None: ",", ",": "."}.get(decimal)
    example = next((text for text in numbers if mark and mark in text), None)
    how = "--decimal , where they begin a fraction, --decimal . where they part thousands, or to keep texts"
    how = how if decimal is None else "take these out"
    return f"has numbers with a {mark!r}, such as {example}: {how}" if example else ""


def _texts(column: "pd.Series") -> "pd.Series":
    return column.astype(object).where(column.notna(), "missing").astype(str)


def _dates(texts: "pd.Series", told: bool) -> "pd.Series | None":
    """Days since 1970-01-01; None where a text is no date, such as 2024-02-30. With `told`: None where none is one."""
    import pandas as pd

    alike = texts.str.fullmatch(DATE)
    iso = texts.str.replace(DATE, _iso, regex=True)
    days = pd.to_datetime(iso.where(alike), utc=True, format="ISO8601", errors="coerce")
    return _days(days) if days.notna().all() or (told and days.notna().any()) else None


def _days(dates: "pd.Series") -> "pd.Series":
    import pandas as pd

    return (pd.to_datetime(dates, utc=True) - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)


def _iso(date: re.Match[str]) -> str:
    year, month, day, hour, rest = date.groups()
    return f"{year}-{int(month):02}-{int(day):02}" + (f"T{int(hour):02}{rest}" if hour else "")
