"""Your networks: a file `NAME.py` with a class of the same name is a network for `--model_name NAME`."""

from model.model_interface import MInterface

__all__ = ["MInterface"]
