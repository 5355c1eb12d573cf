"""Your data: a file `NAME.py` with a class of the same name is a dataset for `--dataset NAME`."""

from data.data_interface import DInterface
from data.lightning_data_interface import build_data

__all__ = ["DInterface", "build_data"]
