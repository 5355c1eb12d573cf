"""The value of a flag: from the command line, from YAML, from a run or a checkpoint; what a class itself says of it."""

import math
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import main
import pytest
import torch
from engine.cli import annotations, config_file, discovery
from engine.cli.settings import Settings
from engine.cli.type_conversion import OutOfRange, PlainText, convert
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import PROJECT, TOYS

RUN = Path("lightning_logs/version_0")

# The forms of annotations, as Python writes them, each with the values that a flag of it can have.
_numbers = st.one_of(st.integers(-(10**20), 10**20), st.floats())
_leaves = [
    ("bool", st.booleans()),
    ("int", st.integers()),
    ("float", st.floats()),
    ("str", st.text()),
    ("Path", st.text(st.characters(codec="ascii", exclude_characters="~\0")).map(Path)),
]
_choices = st.lists(
    st.one_of(st.booleans(), st.none(), st.integers(-99, 99), st.floats(allow_nan=False), st.text(max_size=5)),
    min_size=1,
    max_size=4,
).map(lambda values: (f"Literal[{', '.join(map(_source, values))}]", st.sampled_from(values)))


def _source(value: Any) -> str:
    return f"1e999 * {math.copysign(1, value)}" if isinstance(value, float) and math.isinf(value) else repr(value)


def _with_containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda one: (f"list[{one[0]}]", st.lists(one[1], max_size=3))),
        inner.map(lambda one: (f"tuple[{one[0]}, ...]", st.lists(one[1], max_size=3).map(tuple))),
        st.tuples(inner, inner).map(lambda two: (f"Tuple[{two[0][0]}, {two[1][0]}]", st.tuples(two[0][1], two[1][1]))),
        inner.map(lambda one: (f"dict[str, {one[0]}]", st.dictionaries(st.text(max_size=5), one[1], max_size=3))),
        inner.map(lambda one: (f"Optional[{one[0]}]", st.none() | one[1])),
    )


_forms = st.recursive(st.sampled_from(_leaves) | _choices, _with_containers, max_leaves=3) | st.sampled_from(
    [
        ("int | str", st.integers() | st.text()),
        ("float | str | None", st.floats() | st.text() | st.none()),
        ("Union[bool, int, str]", st.booleans() | st.integers() | st.text()),
        ("list[int] | int", st.lists(st.integers()) | st.integers()),
        ("list[str] | None", st.lists(st.text()) | st.none()),
        ("Literal['a'] | list[Literal['a', 'b']]", st.lists(st.sampled_from("ab")) | st.just("a")),
        ("Literal['1', 1, 'true', True, 1.0]", st.sampled_from(["1", 1, "true", True, 1.0])),
        ("set[int]", st.sets(st.integers(), max_size=3)),
        ("", st.recursive(st.none() | st.booleans() | _numbers | st.text(), st.lists, max_leaves=3)),
        ("Annotated[float, '>= 0'] | None", st.floats(0, 1e9) | st.none()),
    ]
)


def _same(one: Any, other: Any) -> bool:
    """Equal, of the same types, and NaN is NaN."""
    return repr(one) == repr(other) or (isinstance(one, set) and one == other)


def _is_kept(value: Any, annotation: annotations.Annotation) -> bool:
    plain = annotations.plain(value)
    assert _same(convert(plain, annotation), value), "from a checkpoint"
    path = Path("config.yaml")
    path.write_text(config_file.dump({"flag": plain}), encoding="utf-8")
    for kept in (True, False):
        assert _same(convert(config_file.read(path, kept)["flag"].value, annotation), value), path.read_text("utf-8")
    return True


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_value_comes_back_from_config_yaml_and_from_a_checkpoint_as_it_was(data: st.DataObject) -> None:
    text, values = data.draw(_forms)
    annotation = annotations.from_text(text)
    if "Literal" in text and not annotations.choices(annotation):
        return  # infinity has no literal
    assert _is_kept(data.draw(values), annotation)


@settings(max_examples=400, deadline=None)
@given(
    _forms, st.one_of(st.text(), st.sampled_from("none 1 -1 1e-3 [1,2] (a,b) {a: 1} '' , [ ] true nan ~".split(" ")))
)
@example(("list[str]", None), "['a, b', \"'s\", '']")
@example(("dict[str, int]", None), "{[: 1}")
def test_any_text_gives_a_value_that_is_kept_or_is_refused(form: tuple[str, Any], text: str) -> None:
    annotation = annotations.from_text(form[0])
    try:
        value = convert(PlainText(text), annotation)
    except (ValueError, OutOfRange):
        return
    if "Path" not in form[0] or "~" not in text:
        assert _is_kept(value, annotation)


PARTIAL = partial(torch.nn.Linear, 2)

# Networks and datasets of a user's, in a project of their own.
HEAD = """
import sys
from enum import Enum
from pathlib import Path
from typing import Literal, NewType, Optional

import torch
from torch import nn

from values_elsewhere import Act, Base, Kind, Width

"""
ELSEWHERE = '''
from enum import Enum
from typing import Literal, NewType

from torch import nn

Kind = Literal["relu", "gelu"]
HIDDEN = 7
Width = NewType("Width", int)


class Act(Enum):
    RELU = "r"
    GELU = "g"


class Base(nn.Module):
    """Keeps what it is given."""

    def __init__(self, num_features: int, num_classes: int, width: int = 8, act: str = "relu") -> None:
        super().__init__()
        self.got = {"width": width, "act": act}
        self.layer = nn.Linear(num_features, num_classes)

    def forward(self, points):
        return self.layer(points)
'''
NETWORKS = {
    "keeps": """
class Keeps(Base):
    def __init__(
        self,
        num_features: int,
        num_classes: int,
        act: Optional[str] = "none",
        names: tuple[str, ...] = ("nine, the last",),
        quotes: tuple[str, ...] = ("'s",),
        brackets: list[str] = ["(", ")"],
        empties: list[str] = ["a", ""],
        code: int | str = "001",
        dollar: str = "${x}",
        flagged: Literal[True, False, "auto"] = True,
        axis: Literal["batch", None] = None,
        eps: Literal[1e-5, 1e-3] = 1e-5,
        wrong: int = 0.5,
        nested: dict[str, list[float]] = {"a, b": [1e-5]},
    ):
        super().__init__(num_features, num_classes)
        assert (act, names, quotes, brackets) == ("none", ("nine, the last",), ("'s",), ["(", ")"])
        assert (empties, code, dollar, flagged) == (["a", ""], "001", "${x}", True)
        assert (axis, eps, wrong, nested) == (None, 1e-5, 0.5, {"a, b": [1e-5]})
""",
    "imported": """
class Imported(Base):
    def __init__(self, num_features: int, num_classes: int, act: Act = Act.RELU, kind: Kind = "relu",
                 size: Width = 3, folder: Path = Path("a") / "b", twice: int = 2 * 3):
        super().__init__(num_features, num_classes)
        self.got = (act, kind, size, folder, twice)
        assert act is Act.GELU
""",
    "worked_out": """
HIDDEN = 32
try:
    import no_such_package
except ImportError:
    HIDDEN = 7


class WorkedOut(Base):
    def __init__(self, num_features: int, num_classes: int, hidden: int = HIDDEN):
        super().__init__(num_features, num_classes)
        self.got = {"hidden": hidden}
""",
    "set_elsewhere": """
HIDDEN = 32
SOME = {1}
SOME.add(2)
from values_elsewhere import *


class SetElsewhere(nn.Module):
    def __init__(self, num_features: int, num_classes: int, hidden: int = HIDDEN, some=SOME):
        super().__init__()
        self.got = (hidden, some)
""",
    "few_keys": """
Depth = NewType("Depth", int)


class FewKeys(nn.Module):
    def __init__(self, num_features: int, num_classes: int, weights={(0, 1): 2}, depth: Depth = 3, gaps=[None, 1]):
        super().__init__()
        self.got = (weights, depth, gaps)
""",
    "behind_if": """
class BehindIf(nn.Module):
    if True:
        def __init__(self, num_features: int, num_classes: int, width: int = 4):
            super().__init__()
            self.got = {"width": width}
""",
    "sets_default": """
class SetsDefault(Base):
    def __init__(self, **kwargs):
        kwargs.setdefault("width", 16)
        super().__init__(**kwargs)
""",
    "hands_on": """
class HandsOn(Base):
    def __init__(self, *args, **kwargs):
        super(HandsOn, self).__init__(*args, **kwargs)
""",
    "by_base": """
class ByBase(Base):
    def __init__(self, depth: int = 1, **kwargs):
        Base.__init__(self, **kwargs)
""",
    "one_of_two": """
class Small(Base):
    def __init__(self, num_features: int, num_classes: int, width: int = 2):
        super().__init__(num_features, num_classes, width)


class Large(Base):
    def __init__(self, num_features: int, num_classes: int, depth: int = 5, act: str = "gelu"):
        super().__init__(num_features, num_classes, act=act)
        self.got["depth"] = depth


def build(kind, **kwargs):
    return {"small": Small, "large": Large}[kind](**kwargs)


def choose(kind: str = "large", **kwargs):
    if kind == "small":
        return Small(**kwargs)
    return Large(**kwargs)


class OneOfTwo(Base):
    def __init__(self, num_features: int, num_classes: int, untyped=1, shape=(64, 32), scale=0.5, kind=None):
        super().__init__(num_features, num_classes)
        self.got = (untyped, shape, scale, kind)
""",
    "unusual": """
from enum import Flag
from typing import Sequence


class Parts(Flag):
    X = 1
    Y = 2


class Unusual(Base):
    def __init__(self, num_features: int, num_classes: int, size=2 * 3, act=nn.ReLU, parts: Parts = Parts.X | Parts.Y,
                 dims: Sequence[int] = (1, 2)):
        super().__init__(num_features, num_classes)
        self.got = (size, act, parts.value, dims)
""",
    "loose": """
from typing import Sequence


class Loose(Base):
    def __init__(self, num_features: int, num_classes: int, rate: float = 1, shape: Sequence[float] = (1, 2)):
        super().__init__(num_features, num_classes)
        self.got = (rate, shape)
""",
    "by_place": """
class ByPlace(Base):
    def __init__(self, num_features: int, num_classes: int, /, width: int = 8):
        super().__init__(num_features, num_classes, width)
""",
    "system": """
from model import MInterface


class System(MInterface):
    def __init__(self, num_features: int, num_classes: int, **kwargs):
        kwargs.setdefault("lr", 0.125)
        width = kwargs.pop("width", 3)
        super(System, self).__init__(network=nn.Linear(num_features, num_classes), loss="cross_entropy", **kwargs)
        self.got = (self.lr, width)
""",
}
for _name in (
    "config",
    "model_name",
    "rows",
    "images",
    "format",
    "freeze",
    "strategy",
    "patience",
    "print_config",
    "task",
    "loss",
    "metrics",
    "optimizer",
    "lr_scheduler",
    "class_weights",
    "balanced",
    "precision",
    "mixup",
):
    NETWORKS[f"clash_{_name}"] = f"""
class Clash{_name.title()}(Base):
    def __init__(self, num_features: int, num_classes: int, {_name}: str = "n"):
        super().__init__(num_features, num_classes)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import model

    root = tmp_path / "project"
    (root / "model").mkdir(parents=True)
    for name in ("main.py", "data", "engine"):
        (root / name).symlink_to(PROJECT / name)
    for name, text in NETWORKS.items():
        (root / "model" / f"{name}.py").write_text(HEAD + text, encoding="utf-8")
    (root / "values_elsewhere.py").write_text(ELSEWHERE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(discovery, "ROOT", root)
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(root / "model")])
    yield root
    for name, module in [*sys.modules.items()]:  # another test has a file of that name elsewhere
        if str(getattr(module, "__file__", "")).startswith(str(root / "model")) or "values_else" in name:
            del sys.modules[name]


def line(network: str, *argv: str) -> list[str]:
    return ["--model_name", network, "--dataset", "toys.Blobs", *argv]


def parsed(*argv: str) -> Settings:
    return main.parse([*argv])


def built(*argv: str) -> Any:
    """The network that a run would build."""
    given = parsed(*argv)
    sizes = {"num_features": 2, "num_classes": 3} if "num_features" in given.inferred else {}
    return given.network.load()(**sizes | given.arguments["network"])


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*argv: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main.parse([*argv])
        told = capfd.readouterr()
        assert end.value.code == 2
        assert told.out == ""
        return told.err

    return run


FAST = ["--max_steps", "1", "--limit_val_batches", "1", "--accelerator", "cpu", "--num_workers", "0", "--no-pictures"]


def test_values_of_a_run_come_back_from_its_folder_and_from_its_checkpoint_alone(project: Path) -> None:
    main.main(line("keeps", *FAST))  # the network itself compares what it gets
    main.main(["test", "--ckpt_path", "last"])
    shutil.copy(RUN / "checkpoints" / "last.ckpt", "alone.ckpt")
    main.main(["test", "--ckpt_path", "alone.ckpt"])
    main.main(["--ckpt_path", "last", "--max_steps", "2"])
    assert built("--config", str(RUN / "config.yaml"), "--max_steps", "3")


def test_imported_types_are_asked_of_the_class(project: Path, mistake: Callable[..., str]) -> None:
    import importlib

    elsewhere = importlib.import_module("values_elsewhere")
    chosen = line("imported", "--act", "GELU")
    assert built(*chosen).got == (elsewhere.Act.GELU, "relu", 3, Path("a/b"), 6)
    assert built(*line("imported", "--act", "g", "--kind", "gelu", "--size", "5")).got[:3] == (
        elsewhere.Act.GELU, "gelu", 5)  # fmt: skip
    assert parsed(*chosen).flags["folder"] == str(Path("a/b"))  # what only the code works out is kept too
    assert parsed(*chosen).flags["twice"] == 6
    assert "--act 'GELO' is not one of RELU, GELU; did you mean 'GELU'?" in mistake(*line("imported", "--act", "GELO"))
    assert "--kind 'tanh' is not one of relu, gelu" in mistake(*line("imported", "--kind", "tanh"))
    assert "--size 'x' is not int" in mistake(*line("imported", "--size", "x"))
    main.main([*chosen, *FAST])
    main.main(["test", "--ckpt_path", "last"])
    text = (project / "model" / "imported.py").read_text()  # the defaults change, the run keeps its own
    (project / "model" / "imported.py").write_text(text.replace("2 * 3", "5 * 3"))
    sys.modules.pop("model.imported")
    assert parsed("test", "--ckpt_path", "last").arguments["network"]["twice"] == 6


def test_a_default_is_the_same_object_where_its_text_is_given(project: Path, mistake: Callable[..., str]) -> None:
    for argv in ([], ["--rate", "1", "--shape", "1", "2"], ["--shape", "[1, 2]"]):
        assert repr(built(*line("loose", *argv)).got) == "(1, (1, 2))"
    Path("again.yaml").write_text(config_file.dump(parsed(*line("loose")).flags), encoding="utf-8")
    assert repr(built("--config", "again.yaml").got) == "(1, (1, 2))"
    assert repr(built(*line("loose", "--rate", "1.0", "--shape", "2")).got) == "(1.0, [2.0])"


def test_unusual_types_and_defaults(project: Path, mistake: Callable[..., str]) -> None:
    from torch.nn import ReLU

    for argv, got in (
        ([], (6, ReLU, 3, (1, 2))),
        (["--size", "9", "--act", "gelu", "--parts", "X", "--dims", "3"], (9, "gelu", 1, [3])),
        (["--parts", "X|Y", "--dims", "1", "2"], (6, ReLU, 3, (1, 2))),
    ):
        assert built(*line("unusual", *argv)).got == got
        Path("again.yaml").write_text(config_file.dump(parsed(*line("unusual", *argv)).flags), encoding="utf-8")
        assert built("--config", "again.yaml").got == got
    assert "--parts 'X|Z' is not one of X, Y" in mistake(*line("unusual", "--parts", "X|Z"))
    assert "ByPlace takes num_features by its place" in mistake(*line("by_place"))
    assert "test_values.PARTIAL is a functools.partial: name" in mistake(*line("test_values.PARTIAL"))


@pytest.mark.parametrize(
    ("argv", "got"),
    [
        (["worked_out"], {"hidden": 7}),
        (["worked_out", "--hidden", "9"], {"hidden": 9}),
        (["set_elsewhere"], (7, {1, 2})),
        (["few_keys"], ({(0, 1): 2}, 3, [None, 1])),
        (["few_keys", "--depth", "5", "--weights", "{a: 1}", "--gaps", "none,2"], ({"a": 1}, 5, [None, 2])),
        (["behind_if"], {"width": 4}),
        (["behind_if", "--width", "5"], {"width": 5}),
        (["sets_default"], {"width": 16, "act": "relu"}),
        (["sets_default", "--width", "4"], {"width": 4, "act": "relu"}),
        (["hands_on", "--width", "4"], {"width": 4, "act": "relu"}),
        (["hands_on", "--act", "tanh"], {"width": 8, "act": "tanh"}),
        (["by_base", "--width", "4"], {"width": 4, "act": "relu"}),
        (["model.one_of_two.build", "--kind", "small", "--width", "4"], {"width": 4, "act": "relu"}),
        (["model.one_of_two.build", "--kind", "large", "--depth", "6"], {"width": 8, "act": "gelu", "depth": 6}),
        (["model.one_of_two.choose"], {"width": 8, "act": "gelu", "depth": 5}),
        (["model.one_of_two.choose", "--kind", "small", "--width", "3"], {"width": 3, "act": "relu"}),
        (["one_of_two"], (1, (64, 32), 0.5, None)),
        (["one_of_two", "--untyped", "0.5", "--shape", "(128,", "64)"], (0.5, (128, 64), 0.5, None)),
        (["one_of_two", "--untyped", "2", "--shape", "128", "64", "--kind", "(1, 2)"], (2, (128, 64), 0.5, [1, 2])),
        (["system"], (0.125, 3)),
        (["system", "--lr", "0.5", "--width", "4"], (0.5, 4)),
    ],
)
def test_defaults_are_left_to_python(project: Path, argv: list[str], got: Any) -> None:
    name, *rest = argv
    if "build" in name:
        rest += ["--num_features", "2", "--num_classes", "3"]
    network = built(*line(name, *rest))
    assert network.got == got
    assert list(map(type, network.got)) == list(map(type, got))
    Path("again.yaml").write_text(config_file.dump(parsed(*line(name, *rest)).flags), encoding="utf-8")
    assert built("--config", "again.yaml").got == got


def test_what_a_constructor_works_out_is_kept_as_it_is(project: Path) -> None:
    assert parsed(*line("worked_out")).flags["hidden"] == 7
    assert parsed(*line("set_elsewhere")).flags["hidden"] == 7
    assert parsed(*line("set_elsewhere")).flags["some"] == [1, 2]
    assert not {"width", "act"} & parsed(*line("sets_default")).flags.keys()
    assert "lr" not in parsed(*line("system")).flags


@pytest.mark.parametrize(
    ("name", "argv", "value"),
    [
        ("resnext50_32x4d", [], lambda net: net.layer1[0].conv2.groups == 32),
        ("wide_resnet50_2", [], lambda net: net.layer1[0].conv2.out_channels == 128),
        ("vit_b_32", ["--image_size", "64"], lambda net: (net.patch_size, net.image_size) == (32, 64)),
        ("efficientnet_b0", ["--dropout", "0.5"], lambda net: net.classifier[0].p == 0.5),
        ("efficientnet_b0", [], lambda net: net.classifier[0].p == 0.2),
        ("resnet18", ["--zero_init_residual"], lambda net: net.fc.out_features == 10),
    ],
)
def test_functions_that_take_from_their_kwargs(name: str, argv: list[str], value: Callable[[Any], bool]) -> None:
    argv = ["--model_name", f"torchvision.models.{name}", "--dataset", "digits", "--num_classes", "10", *argv]
    with torch.device("meta"):
        assert value(built(*argv))


PERSONS = """
.defaults: &defaults
  lr: 1e-2
<<: *defaults
kind: no
nested: {a: 1e-3, b: ~, c: "1e-3", d: no}
scale: 1e-3
untyped: 2
max_time: 00:12:00:00
init_from: none
shape:
  - 1
  - 2
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_yaml_that_a_person_writes(project: Path, encoding: str) -> None:
    text = NETWORKS["one_of_two"].replace("kind=None)", "kind=None, nested=None)")
    (project / "model" / "one_of_two.py").write_text(HEAD + text)
    Path("a.yaml").write_text(PERSONS, encoding=encoding)
    flags = parsed(*line("one_of_two", "--config", "a.yaml")).flags
    assert flags["lr"] == 0.01
    assert flags["kind"] is False
    assert flags["nested"] == {"a": 1e-3, "b": None, "c": "1e-3", "d": False}
    assert (flags["scale"], flags["untyped"], flags["shape"]) == (1e-3, 2, [1, 2])
    assert (flags["max_time"], flags["init_from"]) == ("00:12:00:00", None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [*a]\n", "a.yaml:1: this value is too large for a flag"),
        ("? [1, 2]\n: 3\n", "a.yaml:1: a line should begin with the name of a flag"),
        ("kind: {[1]: 2}\n", "a.yaml:1: kind: "),
        ("<<: 3\n", "a.yaml"),
        ("kind: " + "[" * 5000 + "\n", "a.yaml"),
        ("kind: \0\n", "a.yaml is no YAML"),
        ("scale: 2020-01-01\n", "a.yaml:1: scale '2020-01-01' is not float"),
        ("model_name: [1]\n", "model/ has no '[1]'"),
        ("kind: !Foo 3\n", "a.yaml:1: kind asks for a Python object"),
        ("kind: {a: 1, b: {c: 1, c: 2}}\n", "a.yaml:1: kind: 'c' is given a second time"),
        ("run_name:\nnotes: null\ndata_dir: ~\n", "a.yaml:3: data_dir 'none' is not str"),
    ],
)
def test_yaml_that_is_wrong(project: Path, mistake: Callable[..., str], text: str, told: str) -> None:
    Path("a.yaml").write_text(text)
    named = [] if "model_name" in text else ["--model_name", "one_of_two"]
    error = mistake(*named, "--dataset", "toys.Blobs", "--config", "a.yaml")
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--shape", "-1", "2"], "shape", [-1, 2]),
        (["--shape", "-1,2"], "shape", [-1, 2]),
        (["--shape", "[-1,", "2]"], "shape", [-1, 2]),
        (["--scale", "-inf"], "scale", -math.inf),
        (["--scale=-inf"], "scale", -math.inf),
        (["--scale", "-.5"], "scale", -0.5),
        (["--kind", "'none'"], "kind", "'none'"),
    ],
)
def test_values_that_begin_with_a_dash(project: Path, argv: list[str], name: str, value: Any) -> None:
    assert parsed(*line("one_of_two", *argv)).flags[name] == value


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("clash_")])
@pytest.mark.parametrize("more", [[], ["--help"]])
def test_an_argument_with_the_name_of_a_flag(
    project: Path, mistake: Callable[..., str], name: str, more: list[str]
) -> None:
    argument = name.removeprefix("clash_")
    told = mistake(*line(name, *more))
    assert f"--{argument}: the argument {argument} of Clash" in told
    assert "rename it, or write a class around it" in told


def _run_with(flags: str, project: Path) -> Path:
    """A run of one step whose config.yaml, and checkpoint, have further flags."""
    main.main(line("hands_on", *FAST))
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("model_name: hands_on\n", f"model_name: hands_on\n{flags}"))
    return config


def test_a_flag_that_is_gone(project: Path, mistake: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    text = NETWORKS["keeps"].split("act: Opt")[0].replace("Keeps", "Shrinks")
    body = "super().__init__(num_features, num_classes)\n"
    path = project / "model" / "shrinks.py"
    path.write_text(f"{HEAD}{text}dropout: float = 0.2, depth: int = 3):\n        {body}")
    main.main(line("shrinks", "--depth", "4", *FAST))
    shutil.copy(RUN / "checkpoints" / "last.ckpt", "alone.ckpt")
    path.write_text(f"{HEAD}{text}depth: int = 3):\n        {body}")
    sys.modules.pop("model.shrinks")
    capfd.readouterr()
    main.main(["test", "--ckpt_path", "last"])
    assert "dropout is left out: the project has no such flag any more" in capfd.readouterr().err
    path.write_text(f"{HEAD}{text}other: int = 3):\n        {body}")
    sys.modules.pop("model.shrinks")
    told = mistake("test", "--ckpt_path", "last")
    assert "depth 4: the project has no such flag any more: bring back what has it, or add --no-depth to go on" in told
    checkpoint = torch.load("alone.ckpt", weights_only=True)
    del checkpoint["default_flags"]
    torch.save(checkpoint, "of_0_1.ckpt")
    assert "add --no-dropout" in mistake("test", "--ckpt_path", "of_0_1.ckpt", "--no-depth")
    main.main(["test", "--ckpt_path", "of_0_1.ckpt", "--no-depth", "--no-dropout"])
    main.main(["test", "--ckpt_path", "last", "--no-depth"])
    capfd.readouterr()
    main.main(["test", "--ckpt_path", "alone.ckpt", "--no-depth"])
    assert "alone.ckpt: dropout is left out: the project has no such flag any more" in capfd.readouterr().err


def test_a_network_that_is_called_otherwise_now(project: Path, mistake: Callable[..., str]) -> None:
    main.main(line("hands_on", "--width", "5", *FAST))
    shutil.copy(RUN / "checkpoints" / "last.ckpt", "alone.ckpt")
    path = project / "model" / "hands_on.py"
    (project / "model" / "renamed.py").write_text(path.read_text().replace("HandsOn", "Renamed"))
    assert "which cannot change" in mistake("test", "--ckpt_path", "last", "--model_name", "renamed")
    path.unlink()
    sys.modules.pop("model.hands_on")
    for checkpoint in ("last", "alone.ckpt"):
        assert "no 'hands_on' any more: give its new name by --model_name" in mistake("test", "--ckpt_path", checkpoint)
        main.main(["test", "--ckpt_path", checkpoint, "--model_name", "renamed"])
    main.main(["--ckpt_path", "last", "--model_name", "renamed", "--max_steps", "2"])
    assert "model_name: renamed" in (RUN / "config.yaml").read_text()
    assert parsed("test", "--ckpt_path", "last").arguments["network"] == {"width": 5}


RANGES = [
    ("--l1 -1", "--l1 -1 should be at least 0"),
    ("--dropout nan", "--dropout nan should be at least 0"),
    ("--dropout 1.5", "--dropout 1.5 should be at most 1"),
    ("--l1 nan", "--l1 nan should be at least 0"),
    ("--lr inf", "--lr inf should be finite"),
    ("--lr_end -5", "--lr_end -5 should be at least 0"),
    ("--lr_every -1", "--lr_every -1 should be more than 0"),
    ("--lr_every 0", "--lr_every 0 should be more than 0"),
    ("--lr_gamma -1", "--lr_gamma -1 should be more than 0"),
    ("--lr_milestones 1 -2", "--lr_milestones [1, -2] should be at least 0"),
    ("--lr_restart_factor 0.5", "--lr_restart_factor 0.5 should be at least 1"),
    ("--mixup inf", "--mixup inf should be finite"),
    ("--cutmix 0", "--cutmix 0 should be more than 0"),
    ("--ema_decay -1", "--ema_decay -1 should be at least 0"),
    ("--ema_decay 1", "--ema_decay 1 should be less than 1"),
    ("--swa_epoch 0", "--swa_epoch 0 should be at least 1"),
    ("--num_folds 1", "--num_folds 1 should be at least 2"),
    ("--patience -1", "--patience -1 should be at least 0"),
    ("--hang_minutes 0", "--hang_minutes 0 should be at least 0.01"),
    ("--tensor_parallel_size 0", "--tensor_parallel_size 0 should be at least 1"),
    ("--optimizer SGD --momentum -1", "--momentum -1 should be at least 0"),
    ("--betas 0.9,1.5", "--betas 0.9,1.5 should be less than 1"),
    ("--betas 0.9,x", "--betas '0.9,x' is not float,float"),
    ("--label_smoothing 2", "--label_smoothing 2 should be at most 1"),
    ("--accumulate_grad_batches 0", "--accumulate_grad_batches 0 should be at least 1"),
    ("--devices 1.5x", "--devices 1.5x should be a number of devices, their numbers, or auto"),
    ("--devices -2", "--devices -2 should be a number of devices, their numbers, or auto"),
    ("--deterministic maybe", "--deterministic maybe is not one of true, false, warn"),
    ("--seed 4294967296", "--seed 4294967296 should be at most 4294967295"),
    ("--max_time 00:00:00:00", "--max_time 00:00:00:00 should be DD:HH:MM:SS and more than 0"),
    ("--epochs 3", "unknown flag --epochs; it is called --max_epochs here"),
    ("--learning_rate 3", "unknown flag --learning_rate; it is called --lr here"),
    ("--accumulate_grad_batches 99999999999999999999", "99999999999999999999 should be at most 1000000000"),
    ("--devices 99999999999999999999", "99999999999999999999 should be a number of devices"),
    ("--num_threads 2000", "--num_threads 2000 should be at most 1024"),
    ("--gpus 2", "unknown flag --gpus; it is called --devices here"),
]


@pytest.mark.parametrize(("argv", "told"), RANGES)
def test_ranges_and_hints(mistake: Callable[..., str], argv: str, told: str) -> None:
    assert told in mistake("--model_name", "lenet", "--dataset", "digits", *argv.split())


def test_merged_keys_may_be_given_anew_and_twice_read(project: Path) -> None:
    lines = [".base: &base {a: 1, b: 2}", ".kind: &kind {<<: *base, b: 3}", "kind: [*kind, *kind]"]
    Path("a.yaml").write_text("\n".join(lines))
    flags = parsed(*line("one_of_two", "--config", "a.yaml")).flags
    assert flags["kind"] == [{"a": 1, "b": 3}] * 2


@pytest.mark.parametrize("declared", ["dropout: int = 20", "dropout: float = 20.0", "dropout: float"])
def test_a_dropout_may_be_counted_in_per_cent(project: Path, declared: str) -> None:
    text = NETWORKS["keeps"].split("act: Opt")[0].replace("Keeps", "Shrinks")
    path = project / "model" / "shrinks.py"
    path.write_text(f"{HEAD}{text}*, {declared}):\n        super().__init__(num_features, num_classes)\n")
    assert built(*line("shrinks", "--dropout", "30")) is not None
    assert parsed(*line("shrinks", "--dropout", "30")).arguments["network"]["dropout"] == 30


def test_a_run_whose_value_is_out_of_range_can_still_be_measured(project: Path, mistake: Callable[..., str]) -> None:
    _run_with("l1: -1.0\n", project)
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("l1: 0.0\n", ""))
    assert "l1 -1.0 should be at least 0" in mistake("test", "--ckpt_path", "last")
    assert main.main(["test", "--ckpt_path", "last", "--l1", "0"])


@pytest.mark.parametrize("factor", [1, 1.5, 2, 7])
def test_cosine_restarts_against_a_loop(factor: float) -> None:
    from engine.training.lr_schedulers import lr_factor as rate

    for tenth in range(900):
        epochs, length = tenth / 10, 3.0
        since = epochs
        while since + 1e-9 >= length:
            since, length = since - length, length * factor
        expected = 0.5 * (1 + math.cos(math.pi * max(0.0, since) / length))
        options = {"lr_scheduler": "cosine_restarts", "lr_every": 3.0, "lr_restart_factor": float(factor)}
        assert rate(tenth, epochs, 90, 0, 10, **options) == pytest.approx(expected, abs=1e-6)


WANTS_A_VALUE = "ckpt_path init_from default_root_dir model_name dataset loss optimizer config".split()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        *((f"--{name}=", f"--{name}: expected one argument") for name in WANTS_A_VALUE),
        ("--mirror=", "--mirror: expected an address or a folder, or none"),
        ("--trust=", "--trust '' is not true/false"),
        ("--batch_size=", "--batch_size '' is not int >= 1"),
        ("--channels_last=", "--channels_last '' is not true/false"),
        ("--no-metrics", "--no-metrics: --metrics is not turned on or off: give it a value, such as []"),
        ("--no-patience", "--no-patience: --patience is not turned on or off: give it a value, such as none"),
        ("--no-channels_last=", "unknown flag --no-channels_last"),
        ("--print_config=", "--print_config takes no value: ''"),
        ("--print_config=false", "--print_config takes no value: 'false'"),
        ("--=1", "'--=1' is no flag"),
        ("--", "'--' is no flag"),
    ],
)
def test_a_flag_with_nothing_behind_it_is_no_flag_left_out(argv: str, line: str, capsys) -> None:
    """As `--ckpt_path=$RUN` of a shell that has no RUN: not a run from the beginning."""
    with pytest.raises(SystemExit, match="2"):
        main.main([*TOYS, argv])
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"main.py: error: {line}")
    assert not list(Path().glob("lightning_logs/version_*"))
