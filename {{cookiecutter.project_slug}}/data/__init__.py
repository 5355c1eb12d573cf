"""Your data: a file `NAME.py` with a class of the same name is a dataset for `--dataset NAME`."""

from data.data_interface import DInterface

__all__ = ["DInterface"]
