"""Whole batches of a dataset in memory: `dataset[[3, 1, 4]]` in place of three items, where both are proved the same.

To compare a few items proves nothing of the others. So it is read from the code: `__getitem__` may only take rows of
arrays at its index, convert them number by number, and return them. All other code is left alone, such as what draws
random numbers, counts, opens files, has a branch, or does anything else with the index.
"""

import ast
import inspect
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from engine.datamodule.seeding import resolve_subset, subset_indices

_FLOATS, _INTEGERS = {"float32", "float64"}, {"int8", "int16", "int32", "int64", "uint8", "bool"}
_TO_FLOAT, _TO_INTEGER = {"float", "double", *_FLOATS}, {"long", "int64"}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)  # of a row and a number: the same bits in rows of any shape


class _Unproved(Exception):
    """The code may do something else than take rows."""


class BatchedFetch:
    """Fetches whole batches of a dataset for which `prove` has found that it may."""

    def __init__(self, facts: dict[str, Any]) -> None:
        """facts: what the proof takes for granted of the dataset's attributes, by name."""
        self.facts = facts
        self.of_numpy = all(isinstance(fact, np.dtype) for fact in facts.values() if fact is not None)

    def is_valid(self, dataset: Any) -> bool:
        """Whether the attributes still have these types; a program may have set others."""
        return all(_fact(vars(dataset).get(name)) == fact for name, fact in self.facts.items())

    def fetch(self, dataset: Any, indices: list[int]) -> Any:
        """The batch, as default_collate makes it of the items."""
        return _collated(dataset[np.asarray(indices) if self.of_numpy else torch.as_tensor(indices)], set())


def prove(split: Any) -> BatchedFetch | None:
    """How to fetch whole batches of a dataset, or of a (nested) Subset of one; None where nothing proves it."""
    try:
        dataset, indices = subset_indices(split)
        _require(resolve_subset(split, [])[0] is dataset)
        whole = BatchedFetch(_Reader(dataset).facts)
        some = indices[[0, len(indices) // 2, -1]].tolist()
        items = default_collate([dataset[index] for index in some])
        # The values are proved; this is for the types, in which the versions of NumPy and torch have a say.
        _require(_are_same(whole.fetch(dataset, some), items))
    except Exception:  # a mistake of the dataset's own is raised when its items are fetched
        return None
    return whole


class _Reader:
    """The `facts` under which the `__getitem__` of a dataset takes rows and does nothing else.

    Raises: _Unproved: it may do something else.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.facts = dataset, dict[str, Any]()
        self.is_float = dict[str, bool]()  # of the local variables, which are rows
        kind: Any = type(dataset)
        if kind.__getitem__ is TensorDataset.__getitem__:
            self.facts["tensors"] = [self._usable(_fact(one)) for one in dataset.tensors]
            return
        _require(kind.__getattribute__ is object.__getattribute__)
        definition, self.namespace = _definition(kind.__getitem__), kind.__getitem__.__globals__
        self.own, self.index = (one.arg for one in definition.args.posonlyargs + definition.args.args)
        *statements, last = definition.body
        for statement in statements:
            self._statement(statement)
        _require(isinstance(last, ast.Return))
        self._returned(last.value)  # type: ignore[attr-defined]

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            sides = node.targets[0], node.value
            names, values = ([*one.elts] if isinstance(one, ast.Tuple) else [one] for one in sides)
            _require(len(names) == len(values) and all(isinstance(one, ast.Name) for one in names))
            found = {ast.unparse(name): self._row(value) for name, value in zip(names, values, strict=True)}
            _require(not found.keys() & {self.own, self.index})
            self.is_float |= found
        elif isinstance(node, ast.If) and not node.orelse:  # `if self.transform:`, of one that is None
            test = node.test
            if isinstance(test, ast.Compare) and ast.unparse(test).endswith(" is not None"):
                test = test.left
            _require(self._attribute(test) is None)
        else:
            _require(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))  # the docstring

    def _returned(self, node: ast.expr | None) -> None:
        """A row, or a tuple, list or dict of such."""
        if isinstance(node, ast.Dict):
            _require(all(isinstance(key, ast.Constant) for key in node.keys))
        parts = node.values if isinstance(node, ast.Dict) else getattr(node, "elts", None)
        for part in [node] if parts is None else parts:
            self._row(part) if parts is None else self._returned(part)

    def _row(self, node: Any) -> bool:
        """Whether an expression that is a row of an array, or made of its numbers one by one, is of floats."""
        if isinstance(node, ast.Name):
            _require(node.id in self.is_float)
            return self.is_float[node.id]
        if isinstance(node, ast.Subscript):
            _require(isinstance(node.slice, ast.Name) and node.slice.id == self.index)
            fact = self._usable(self._attribute(node.value))
            return str(fact).removeprefix("torch.") in _FLOATS
        if isinstance(node, ast.BinOp):
            row, number = (node.right, node.left) if isinstance(node.left, ast.Constant) else (node.left, node.right)
            _require(isinstance(number, ast.Constant) and type(number.value) in (int, float))
            _require(isinstance(node.op, _OPERATORS))
            return self._row(row) or isinstance(node.op, ast.Div) or isinstance(number.value, float)  # type: ignore[attr-defined]
        _require(isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
        if node.func.attr in ("tensor", "as_tensor", "from_numpy"):
            _require(self._is_torch(node.func.value) and len(node.args) == 1)
            row, dtypes = node.args[0], [word.value for word in node.keywords if word.arg == "dtype"]
            _require(len(dtypes) == len(node.keywords))
            _require(all(isinstance(one, ast.Attribute) and self._is_torch(one.value) for one in dtypes))
            names = [one.attr for one in dtypes]
        else:
            _require(not node.args and not node.keywords)
            row, names = node.func.value, [node.func.attr]
        is_float = self._row(row)
        for name in names:  # a float that is out of an integer's range becomes any number
            _require(name in _TO_FLOAT or (name in _TO_INTEGER and not is_float))
            is_float = name in _TO_FLOAT
        return is_float

    def _attribute(self, node: ast.expr) -> Any:
        """The fact of an attribute of the dataset, which is its own and no property."""
        _require(isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.own)
        name = node.attr  # type: ignore[attr-defined]
        _require(name in vars(self.dataset) and not hasattr(type(self.dataset), name))
        self.facts[name] = _fact(vars(self.dataset)[name])
        return self.facts[name]

    def _is_torch(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id not in self.is_float and self.namespace.get(node.id) is torch

    def _usable(self, fact: Any) -> Any:
        _require(isinstance(fact, (torch.dtype, np.dtype)) and str(fact).removeprefix("torch.") in _FLOATS | _INTEGERS)
        return fact


def _require(condition: Any) -> None:
    if not condition:
        raise _Unproved


def _fact(value: Any) -> Any:
    """The dtype of an array whose rows lie one after another, the facts of a tuple, None of None; else a type."""
    if type(value) is Tensor and value.layout is torch.strided and not value.requires_grad and value.is_contiguous():
        return value.dtype
    if type(value) in (np.ndarray, np.memmap) and value.flags.c_contiguous:
        return value.dtype
    return [*map(_fact, value)] if isinstance(value, tuple) else None if value is None else type(value)


def _definition(function: FunctionType) -> ast.FunctionDef:
    """The syntax tree of a method (self, index), if its file still holds what was imported."""
    code, source = function.__code__, "".join(inspect.findsource(function)[0])
    found: list[Any] = [compile(source, "", "exec")]
    for one in found:
        found += [part for part in one.co_consts if hasattr(part, "co_consts")]
    _require(code in found and code.co_argcount == 2 and not code.co_kwonlyargcount)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    definition = next(node for node in nodes if (node.name, node.lineno) == (code.co_name, code.co_firstlineno))
    _require(not definition.decorator_list)
    return definition


def _collated(rows: Any, seen: set[int]) -> Any:
    """As default_collate returns it: lists, dicts and tensors, no two in the same memory."""
    if isinstance(rows, (tuple, list)):
        return [_collated(one, seen) for one in rows]
    if isinstance(rows, dict):
        return {key: _collated(one, seen) for key, one in rows.items()}
    rows = torch.as_tensor(rows)
    rows = rows.clone() if rows.data_ptr() in seen else rows
    seen.add(rows.data_ptr())
    return rows


def _are_same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same; torch.testing would import sympy to tell, a tenth of a start."""
    if isinstance(one, Tensor):
        kinds = [(tensor.dtype, tensor.shape, tensor.stride()) for tensor in (one, other)]
        return kinds[0] == kinds[1] and bool(((one == other) | ((one != one) & (other != other))).all())  # NaN too
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_same(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(map(_are_same, one, other))
