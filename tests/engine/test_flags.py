"""Command lines in, settings or one clear line out; all of it before torch is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import PROJECT, TOYS

NETWORK = '''
from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import List, Literal, Optional, Union

from torch import nn

Size = Union[int, str]


class Mode(Enum):
    FAST = 1


WIDTH = 32


class MyNet(nn.Module):
    def __init__(
        self,
        num_classes: int,
        hidden_dim: int = WIDTH,
        rate: float = 0.1,
        name: str = "net",
        norm: bool = True,
        limit: Optional[int] = None,
        kind: Literal["relu", "gelu"] = "relu",
        size: Size = 3,
        share: int | float = 1.0,
        dims: list[int] = [8, 8],
        names: List[str] | None = None,
        pair: tuple[int, float] = (1, 0.5),
        extra: dict[str, int] | None = None,
        folder: Path = Path("x") / "y",
        untyped=0.5,
        guess=None,
        act: type[nn.Module] = nn.ReLU,
        mode: Mode = Mode.FAST,
    ):
        """Builds it.

        Args:
            hidden_dim: width of the
                hidden layer.
            rate (float): share that is dropped, in 0..1 (100% is too much).
        """
        super().__init__()
'''
DATASET = """
from torch.utils.data import Dataset


class MyData(Dataset):
    num_classes = 10

    def __init__(self, num_items: int = 5, rate: float = 0.1):
        self.items = num_items
"""
FILES = {
    "model/my_net.py": NETWORK,
    "model/other_net.py": NETWORK.replace("MyNet", "OtherNet").replace("hidden_dim", "storeys"),
    "model/two_rates.py": NETWORK.replace("MyNet", "TwoRates").replace("rate: float = 0.1", "rate: float = 0.2"),
    "model/needs_code.py": NETWORK.replace("MyNet", "NeedsCode").replace(
        "act: type[nn.Module] = nn.ReLU,", "*, act: type[nn.Module],"
    ),
    "model/broken.py": "class Broken(:\n",
    "model/misnamed.py": "class Somebody:\n    pass\n",
    "model/heir.py": "from model.my_net import MyNet\n\n\nclass Heir(MyNet):\n    pass\n",
    "model/passes_on.py": NETWORK.split("class MyNet")[0]
    + "from model.my_net import MyNet\n\n\nclass PassesOn(MyNet):\n"
    "    def __init__(self, own: int = 1, **kwargs):\n        super().__init__(name='fixed', **kwargs)\n",
    "data/my_data.py": DATASET,
    "data/no_classes.py": DATASET.replace("MyData", "NoClasses").replace("num_classes = 10", "other = 10"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with files that a user might have written."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("engine", "data", "model"):
        shutil.copytree(PROJECT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "main.py", copy)
    for path, text in FILES.items():
        (copy / path).write_text(text)
    return copy


CHOSEN = ["--model_name", "my_net", "--dataset", "my_data"]
VALUES = [
    ("--hidden_dim 64", "hidden_dim", 64),
    ("--hidden_dim=64", "hidden_dim", 64),
    ("", "hidden_dim", 32),
    ("--rate 1e-3", "rate", 1e-3),
    ("--rate -1e-3", "rate", -1e-3),
    ("--name 007", "name", "007"),
    ("--norm false", "norm", False),
    ("--no-norm", "norm", False),
    ("--norm", "norm", True),
    ("--limit 3", "limit", 3),
    ("--limit none", "limit", None),
    ("--kind gelu", "kind", "gelu"),
    ("--size 5", "size", 5),
    ("--size big", "size", "big"),
    ("--share 1", "share", 1),
    ("--share 1.0", "share", 1.0),
    ("--dims 1,2,3", "dims", [1, 2, 3]),
    ("--dims [4]", "dims", [4]),
    ("--dims 4", "dims", [4]),
    ("--dims 4 5", "dims", [4, 5]),
    ("--names a,b", "names", ["a", "b"]),
    ("--names none", "names", None),
    ("--pair 2,0.25", "pair", [2, 0.25]),
    ("--extra {a:\\ 1}", "extra", {"a": 1}),
    ("--folder a/b", "folder", "a/b"),
    ("--untyped 2", "untyped", 2.0),
    ("--guess 2", "guess", 2),
    ("--guess two", "guess", "two"),
    ("--mode FAST", "mode", "FAST"),
    ("--devices 2", "devices", 2),
    ("--devices 0,1", "devices", [0, 1]),
    ("--devices auto", "devices", "auto"),
    ("--limit_train_batches 10", "limit_train_batches", 10),
    ("--limit_train_batches 0.25", "limit_train_batches", 0.25),
    ("--precision bf16-mixed", "precision", "bf16-mixed"),
    ("--max_time 00:12:00:00", "max_time", "00:12:00:00"),
    ("--deterministic warn", "deterministic", "warn"),
    ("--deterministic", "deterministic", True),
    ("--fast_dev_run", "fast_dev_run", True),
    ("--fast_dev_run 3", "fast_dev_run", 3),
    ("--logger csv", "logger", ["csv"]),
    ("--logger tensorboard csv", "logger", ["tensorboard", "csv"]),
    ("--logger []", "logger", []),
    ("--lr 1 --lr 2", "lr", 2.0),
    ("--model_name heir --hidden_dim 5", "hidden_dim", 5),
    ("--model_name passes_on --own 2 --hidden_dim 5", "hidden_dim", 5),
    ("--model_name torchvision.models.resnet18 --zero_init_residual", "zero_init_residual", True),
]


@pytest.mark.parametrize(("argv", "name", "value"), VALUES)
def test_values(shell, warm_python: str, project: Path, argv: str, name: str, value: object) -> None:
    import shlex

    done = shell(*CHOSEN, *shlex.split(argv), "--print_config", project=project, python=warm_python)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)[name]
    assert found == value
    assert type(found) is type(value)


MISTAKES = [
    ("--hidden_dims 3", "unknown flag --hidden_dims; did you mean 'hidden_dim'?"),
    ("--zzz 3", "unknown flag --zzz"),
    ("--early_stopping 3", "unknown flag --early_stopping; it is called --patience here"),
    ("--storeys 3", "--storeys is a flag of other_net, and --model_name is my_net"),
    ("--hidden_dim 3.5", "--hidden_dim '3.5' is not int"),
    ("--hidden_dim", "--hidden_dim: expected one argument"),
    ("--norm maybe", "--norm 'maybe' is not true/false"),
    ("--kind gelo", "--kind 'gelo' is not one of relu, gelu; did you mean 'gelu'?"),
    ("--logger tensorbord", "'tensorbord' is not any of tensorboard, csv"),
    ("--pair 1", "--pair '1' is not int,float"),
    ("--num_classes 3", "--num_classes 3: MyData says that it is 10"),
    ("--model_name my_nett", "model/ has no 'my_nett'; did you mean 'my_net'?"),
    ("--dataset zzz", "data/ has no 'zzz'. It has: "),
    ("--model_name misnamed", "model/misnamed.py should define class Misnamed; it defines Somebody"),
    ("--model_name torchvision.models.resnet19", "has no 'resnet19'; did you mean 'resnet18'?"),
    ("--model_name nowhere.Net", "there is no module 'nowhere'"),
    ("--dataset no_classes", "MyNet needs --num_classes (int)"),
    (
        "--model_name two_rates",
        "--rate (float) must be given, for its defaults differ: TwoRates has 0.2, MyData has 0.1",
    ),
    ("--act x", "--act of MyNet is of a type that a command line cannot give"),
    ("--model_name needs_code", "NeedsCode needs act, which a command line cannot give: give it a default"),
    ("--callbacks x", "unknown flag --callbacks"),
    ("5", "'5' is no flag"),
    ("--lr -1", "--lr -1 should be at least 0"),
    ("--lr nan", "--lr nan should be at least 0"),
    ("--batch_size 0", "--batch_size 0 should be at least 1"),
    ("--val_fraction 1", "--val_fraction 1 should be less than 1"),
    ("--limit_train_batches 2.5", "should be a share up to 1.0"),
    ("--accelerator gpuu", "--accelerator gpuu is not one of auto, cpu, gpu"),
    ("--precision fp16", "--precision fp16 is not one of"),
    ("--devices 0", "--devices 0 should be a number of devices"),
    ("--max_time 5", "--max_time 5 should be DD:HH:MM:SS"),
    ("--strategy ddp_spawn", "--strategy ddp_spawn would lose what its processes measure; ddp "),
    ("rate 0.1", "'rate' is no flag; did you mean --rate?"),
    ("--rate 0.1 0.2", "'0.2' is no flag"),
    ("--raet 0.1 0.2", "unknown flag --raet; did you mean 'rate'?"),
    ("-rate 0.1", "'-rate': a flag begins with two dashes"),
    ("--model_name MyNet", "model/ has no 'MyNet'; did you mean 'my_net'?"),
    ("--model_name my_net.py", "model/ has no 'my_net.py'; did you mean 'my_net'?"),
    ("--model_name torchvision.models", "torchvision.models is no class or function but a module"),
    ("--config nowhere.yaml", "--config nowhere.yaml: No such file or directory"),
    ("--ckpt_path last", "--ckpt_path last: no last checkpoint in lightning_logs/ yet"),
    ("--init_from version_7", "--init_from version_7: there is no such file or run folder"),
    ("--ckpt_path version_7", "--ckpt_path version_7: there is no such file or run folder"),
]


@pytest.mark.parametrize(("argv", "line"), MISTAKES)
def test_mistakes(shell, warm_python: str, project: Path, argv: str, line: str) -> None:
    done = shell(*CHOSEN, *argv.split(), project=project, python=warm_python)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("main.py: error: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_mistakes_before_anything_is_chosen(shell, project: Path) -> None:
    assert "there is no action 'tset'; did you mean 'test'?" in shell("tset", project=project).stderr
    assert "test needs a checkpoint" in shell("test", project=project).stderr
    assert "--model_name missing. model/ has: " in shell("--dataset", "my_data", project=project).stderr
    told = shell("--dataset", "my_data", "--model", "my_net", project=project).stderr
    assert "--model_name missing. --model; did you mean 'model_name'? model/ has: " in told


def test_a_syntax_error_shows_its_own_line(shell, project: Path) -> None:
    done = shell("--model_name", "broken", "--dataset", "my_data", project=project)
    assert done.returncode == 2
    assert "broken.py" in done.stderr
    assert "class Broken(:" in done.stderr
    assert "^" in done.stderr


CONFIGS = [
    ({"a.yaml": "rate: 0.5\nhidden_dim: 7\n"}, "", {"rate": 0.5, "hidden_dim": 7}),
    ({"a.yaml": "rate: 0.5\n", "b.yaml": "rate: 1e-4\n"}, "", {"rate": 1e-4}),
    ({"a.yaml": "rate: 0.5\n"}, "--rate 0.7", {"rate": 0.7}),
    ({"a.yaml": "limit: null\nnorm: off\nmax_time: 00:12:00:00\n"}, "", {"norm": False, "max_time": "00:12:00:00"}),
    ({"a.yaml": "dims: [1, 2]\nextra: {a: 1}\nname: ${HOME_OF_DATA}/x\n"}, "", {"dims": [1, 2], "name": "/d/x"}),
]


@pytest.mark.parametrize(("files", "argv", "values"), CONFIGS)
def test_config_files(shell, project: Path, files: dict[str, str], argv: str, values: dict[str, object]) -> None:
    configs = []
    for name, text in files.items():
        Path(name).write_text(text)
        configs += ["--config", name]
    done = shell(*CHOSEN, *configs, *argv.split(), "--print_config", project=project, HOME_OF_DATA="/d")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert {name: found[name] for name in values} == values


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rate: 0.5\nhiden_dim: 7\n", "a.yaml:2: unknown flag --hiden_dim; did you mean 'hidden_dim'?"),
        ("\nrate: much\n", "a.yaml:2: rate 'much' is not float"),
        ("rate: ${NOT_SET_ANYWHERE}\n", "a.yaml:1: the environment has no variable NOT_SET_ANYWHERE"),
        ("rate: 1\nrate: 2\n", "a.yaml:2: rate is given a second time"),
        ("- rate\n", "should hold lines like"),
        ("rate: [\n", "is no YAML"),
        ("name: !!python/object/apply:os.system [touch pwned]\n", "a.yaml:1: name asks for a Python"),
    ],
)
def test_config_mistakes(shell, project: Path, text: str, line: str) -> None:
    Path("a.yaml").write_text(text)
    done = shell(*CHOSEN, "--config", "a.yaml", "--print_config", project=project)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("pwned").exists()


def test_a_printed_config_is_a_config(shell, project: Path) -> None:
    first = shell(*CHOSEN, "--pair", "3,0.5", "--names", "a", "b", "--print_config", project=project)
    Path("a.yaml").write_text(first.stdout)
    assert shell("--config", "a.yaml", "--print_config", project=project).stdout == first.stdout


def test_help(shell, project: Path) -> None:
    first = shell("--help", project=project).stdout
    assert all(word in first for word in ("fit", "export", "my_net", "my_data", "--config"))
    assert "--format" not in first
    assert "--format" in shell("predict", "--help", project=project).stdout
    for action, left_out in (("preview", True), ("tune", False)):  # a preview needs no network
        shown = shell(action, *CHOSEN, "--help", project=project).stdout
        assert ("[--model_name NAME]" in shown, "may be left out)" in shown) == (left_out, left_out)
    chosen = shell(*CHOSEN, "--help", project=project, COLUMNS="80").stdout
    assert "width of the hidden layer (int; default 32)" in chosen
    assert "share that is dropped, in 0..1 (100% is too much)" in " ".join(chosen.split())
    assert "known from the data" in chosen
    assert "none shows one in a terminal (true/false or none; default none)" in " ".join(chosen.split())
    assert "or one of" not in chosen
    assert max(map(len, chosen.splitlines())) <= 80
    assert "--detect_anomaly" not in chosen
    assert "--detect_anomaly" in shell(*CHOSEN, "--help_all", project=project).stdout


@pytest.mark.parametrize("argv", ["--help", "--hidden_dims 3", "--print_config", "--model_name nobody"])
def test_torch_waits(project: Path, argv: str) -> None:
    code = (
        "import sys; sys.argv = ['main.py', *sys.argv[1:]]\nimport main\n"
        "try:\n    main.main()\nexcept SystemExit:\n"
        "    print(sorted({'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *CHOSEN, *argv.split()], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


COMPLETIONS = [
    ("t", {"test", "tune"}),
    ("--model_name my", {"my_net"}),
    ("--model_name my_net --dataset my_data --hid", {"--hidden_dim"}),
    ("--model_name my_net --kind ", {"relu", "gelu"}),
]


@pytest.mark.parametrize(("line", "answers"), COMPLETIONS)
def test_the_shell_completes(shell, project: Path, line: str, answers: set[str]) -> None:
    line = f"main.py {line}"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    shell(project=project, **asked, _ARGCOMPLETE_STDOUT_FILENAME="told")
    assert {word.strip() for word in Path("told").read_text().split("\n")} - {""} == answers


@pytest.mark.parametrize(
    ("path", "name", "line"),
    [
        ("engine/features/l1_penalty.py", "callbacks", "it should define callbacks(*, FLAGS)"),
        ("engine/commands/consolidate.py", "run", "it should define run(...) or main(argv), and has neither"),
    ],
)
@pytest.mark.parametrize("argv", [[*CHOSEN, "--print_config"], [*CHOSEN, "--help"], ["--help"]])
def test_a_feature_or_command_that_lacks_its_function(
    shell, project: Path, tmp_path: Path, path: str, name: str, line: str, argv: list[str]
) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))
    text = (copy / path).read_text()
    assert f"\ndef {name}(" in text
    (copy / path).write_text(text.replace(f"\ndef {name}(", f"\ndef other_{name}("))
    done = shell(*argv, project=copy)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"main.py: error: {path} is no {path.split('/')[1][:-1]}: {line}\n"


@pytest.mark.parametrize("form", ["NOT_KEPT: tuple[str, ...] = (", "NOT_KEPT = [", "NOT_KEPT = (\n    "])
def test_a_feature_that_lists_its_flags_in_another_form(shell, project: Path, tmp_path: Path, form: str) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))
    feature, last = copy / "engine/features/mirror/__init__.py", tmp_path / "run/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    (tmp_path / "run/config.yaml").write_text(shell(*CHOSEN, "--print_config", project=copy).stdout)
    close = "]" if form.endswith("[") else ")"
    feature.write_text(feature.read_text().replace('NOT_KEPT = ("mirror",)', f'{form}"mirror",{close}'))
    done = shell("--ckpt_path", str(last), "--print_config", project=copy)
    line = 'engine/features/mirror/__init__.py: write NOT_KEPT = ("flag", "other_flag"), in one line'
    assert (done.returncode, done.stderr) == (2, f"main.py: error: {line}\n")


@pytest.mark.slow
def test_a_feature_asks_by_name_for_what_it_needs(shell, warm_python: str, project: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))
    feature, head = copy / "engine/features/tells.py", '"""Tells."""\n\n\n'
    body = "    print(tells, type(data).__name__)\n    return []\n"
    feature.write_text(f"{head}def callbacks(data, *, tells: str = ''):\n{body}")
    done = shell(*TOYS, "--fast_dev_run", "--tells", "it is a", project=copy, python=warm_python)
    assert "it is a DInterface" in done.stdout
    for names, line in (("dat", "asks for dat; there are run_dir, model, data"), ("folder, net, data", "")):
        feature.write_text(f"{head}def callbacks({names}, *, tells: str = ''):\n    return []\n")
        done = shell(*TOYS, "--fast_dev_run", project=copy, python=warm_python)
        assert line in done.stderr
        assert done.returncode == (2 if line else 0)
