"""A project that lives on: later versions of the template come to it, and what its user has written stays."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import INNER, commit, git, run
from tests.test_bake import DELETABLE, FILES, GALLERY, files

NET = """
from torch import Tensor, nn


class MyNet(nn.Module):
    def __init__(self, num_classes: int = 10, own_width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(own_width), nn.LazyLinear(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
"""
OWN = """
from pytorch_lightning import Callback


class Own(Callback):
    def on_fit_end(self, trainer, module):
        print("mine was called")
"""
FEATURE = '''"""Says a word at the end of a training."""

from pathlib import Path

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LambdaCallback


def callbacks(folder: Path, model: object, data: object, *, word: str = "hello") -> list[Callback]:
    """word: what it says."""
    return [LambdaCallback(on_fit_end=lambda *_: print(f"the template says {word}"))]
'''
END = "    return callbacks\n"
MINE = f"    from model.own import Own\n\n    callbacks.append(Own())\n{END}"
DELETED = ("data/mnist.py", "engine/features/weight_averaging.py", "engine/commands/tune.py")


def change(path: Path, old: str, new: str) -> None:
    """Puts `new` in the place of the one `old` of a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path}: {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def versions(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A template of its own, to which a test may add versions."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # cookiecutter keeps the answers there
    return Path(shutil.copytree(template, tmp_path / "lightning-template"))


@pytest.fixture
def project(versions: Path) -> Path:
    """A project that cruft has baked, committed as it came out."""
    answers = json.dumps({"project_name": "Cats", "author_name": "Ädä"})
    done = run("cruft", "create", str(versions), "--no-input", "--extra-context", answers, cwd=versions.parent)
    assert done.returncode == 0, done.stderr
    project = versions.parent / "cats"
    assert files(project) == {*FILES, ".cruft.json"}
    git(project, "init", "--quiet", "--initial-branch", "main")
    commit(project)
    return project


def use(project: Path) -> None:
    """Does with a project what its user does, commits it, and leaves a run and data behind."""
    (project / "model/my_net.py").write_text(NET)
    (project / "model/own.py").write_text(OWN)
    (project / "README.zh-CN.md").write_text("own\n")
    change(project / "main.py", END, MINE)
    change(project / "pyproject.toml", "dependencies = [\n", 'dependencies = [\n    "einops>=0.8",\n')
    for path in DELETED:
        (project / path).unlink()
    if (project / ".git").exists():
        commit(project)
    for path in ("lightning_logs/version_7/metrics.csv", "datasets/MNIST/raw/train-labels-idx1-ubyte"):
        (project / path).parent.mkdir(parents=True)
        (project / path).write_text("own\n")


def is_still_used(project: Path) -> None:
    """What `use` did to files of the user's own is as it was."""
    assert (project / "model/my_net.py").read_text() == NET
    for path in (
        "README.zh-CN.md",
        "lightning_logs/version_7/metrics.csv",
        "datasets/MNIST/raw/train-labels-idx1-ubyte",
    ):
        assert (project / path).read_text() == "own\n"


def publish(versions: Path, *, conflict: bool = False) -> None:
    """A later version of the template."""
    inner = versions / INNER.name
    (inner / "engine/features/says.py").write_text(FEATURE)
    change(inner / "main.py", "SEEDS = (1, ", "SEEDS = (2, ")
    change(inner / "engine/errors.py", "\n\ndef nearest(", "\n\n# A later version was here.\ndef nearest(")
    for path in DELETED:
        with (inner / path).open("a") as file:
            file.write("# a later version\n")
    if conflict:
        change(inner / "main.py", END, f"    print('theirs')\n{END}")
    commit(versions)


def test_an_update_brings_what_is_new_and_keeps_what_is_the_users(versions: Path, project: Path) -> None:
    use(project)
    assert run("cruft", "check", cwd=project).returncode == 0
    publish(versions)
    assert run("cruft", "check", cwd=project).returncode == 1
    done = run("cruft", "update", "--skip-apply-ask", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run("cruft", "check", cwd=project).returncode == 0
    is_still_used(project)
    assert not [path for path in DELETED if (project / path).exists()]
    assert not [path for path in files(project) if path.endswith(".rej")]
    text = (project / "main.py").read_text()
    assert MINE in text
    assert "SEEDS = (2, " in text
    assert "# A later version was here." in (project / "engine/errors.py").read_text()
    assert '    "einops>=0.8",\n' in (project / "pyproject.toml").read_text()
    assert "Ädä" in (project / "pyproject.toml").read_text(encoding="utf-8")
    few = "--max_epochs 1 --limit_train_batches 1 --accelerator cpu --no-pictures --word goodbye --own_width 3"
    done = run("python", "main.py", *"--model_name my_net --dataset digits".split(), *few.split(), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "mine was called" in done.stdout
    assert "the template says goodbye" in done.stdout


def test_where_both_changed_the_same_lines_both_are_shown(versions: Path, project: Path) -> None:
    use(project)
    publish(versions, conflict=True)
    done = run("cruft", "update", "--skip-apply-ask", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(project, "diff", "--name-only", "--diff-filter=U").split() == ["main.py"]
    ours, _, theirs = (project / "main.py").read_text().partition("<<<<<<< ours\n")[2].partition("=======\n")
    assert "callbacks.append(Own())" in ours
    assert "print('theirs')" in theirs.partition(">>>>>>> theirs\n")[0]
    is_still_used(project)
    assert (project / "engine/features/says.py").read_text() == FEATURE
    git(project, "checkout", "--ours", "main.py")
    done = run("python", "main.py", "--model_name", "my_net", "--dataset", "digits", "--help", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "--own_width" in done.stdout
    assert "--word" in done.stdout


def test_without_the_first_commit_what_does_not_fit_lies_beside(versions: Path, project: Path) -> None:
    shutil.rmtree(project / ".git")
    use(project)
    publish(versions, conflict=True)
    assert run("cruft", "update", "--skip-apply-ask", cwd=project).returncode == 0
    assert [path for path in files(project) if path.endswith(".rej")] == ["main.py.rej"]
    assert "print('theirs')" in (project / "main.py.rej").read_text()
    text = (project / "main.py").read_text()
    assert MINE in text
    assert "SEEDS = (2, " in text
    is_still_used(project)


def test_the_gallery_comes_later_with_cruft(project: Path) -> None:
    use(project)
    more = json.dumps({"examples": "gallery"})
    done = run("cruft", "update", "--skip-apply-ask", "--variables-to-update", more, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    is_still_used(project)
    assert files(project) >= GALLERY
    assert not [path for path in DELETED if (project / path).exists()]
    assert MINE in (project / "main.py").read_text()
    assert run("cruft", "check", cwd=project).returncode == 0


def test_what_the_core_leaves_out_comes_later_with_cruft(versions: Path) -> None:
    answers = json.dumps({"project_slug": "lean", "engine": "core"})
    done = run("cruft", "create", str(versions), "--no-input", "--extra-context", answers, cwd=versions.parent)
    assert done.returncode == 0, done.stderr
    project = versions.parent / "lean"
    assert files(project) == {*FILES, ".cruft.json"} - DELETABLE
    git(project, "init", "--quiet", "--initial-branch", "main")
    commit(project)
    more = json.dumps({"engine": "full"})
    done = run("cruft", "update", "--skip-apply-ask", "--variables-to-update", more, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path for path in files(project) if not path.startswith(".git/")} == {*FILES, ".cruft.json"}


def test_a_project_of_cookiecutter_is_linked_and_updated(versions: Path, bake) -> None:
    project = bake(project_slug="dogs")
    git(project, "init", "--quiet", "--initial-branch", "main")
    more = json.dumps({"project_slug": "dogs"})
    linked = run("cruft", "link", str(versions), "--no-input", "--extra-context", more, cwd=project)
    assert linked.returncode == 0, linked.stderr
    commit(project)
    use(project)
    publish(versions)
    assert run("cruft", "update", "--skip-apply-ask", cwd=project).returncode == 0
    is_still_used(project)
    assert MINE in (project / "main.py").read_text()
    assert (project / "engine/features/says.py").read_text() == FEATURE


@pytest.mark.parametrize("examples", ["gallery", "minimal", "none"])
def test_baked_again_over_a_used_project(versions: Path, examples: str) -> None:
    command = ["cookiecutter", str(versions), "--no-input", "--overwrite-if-exists"]
    project = versions.parent / "my_project"
    assert run(*command, cwd=versions.parent).returncode == 0
    use(project)
    own = {"model/unet.py": "# my own network of that name\n", "data/streaming.py": "# my own data\n"}
    if examples != "gallery":  # these names are the user's own, whatever the gallery has
        for path, text in own.items():
            (project / path).write_text(text)
    publish(versions)
    again = run(*command, f"examples={examples}", cwd=versions.parent)
    assert again.returncode == 0, again.stderr
    is_still_used(project)
    assert (project / "engine/features/says.py").read_text() == FEATURE
    assert MINE not in (project / "main.py").read_text()  # the template's own files come out fresh
    if examples == "gallery":
        assert files(project) >= set(FILES) | GALLERY
    else:
        assert {path: (project / path).read_text() for path in own} == own
        assert files(project) & GALLERY == own.keys()
    before = files(project)
    replayed = run("cookiecutter", str(versions), "--replay", "--overwrite-if-exists", cwd=versions.parent)
    assert replayed.returncode == 0, replayed.stderr
    assert files(project) == before


def test_one_file_of_the_gallery_is_a_copy(project: Path) -> None:
    shutil.copy(INNER / "model/mlp.py", project / "model/mlp.py")
    done = run("python", "main.py", "--model_name", "mlp", "--dataset", "digits", "--help", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "--hidden_dim" in done.stdout
