"""What comes out of the oven."""

import ast
import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter
from packaging.requirements import Requirement

from tests.conftest import INNER, ROOT, copy, git, run

QUESTIONS = json.loads((ROOT / "cookiecutter.json").read_text())
FILES = """
.devcontainer/devcontainer.json .editorconfig .github/workflows/ci.yml .gitignore .pre-commit-config.yaml
.vscode/launch.json AGENTS.md LICENSE README.md constraints.txt data/__init__.py data/data_interface.py data/digits.py
data/lightning_data_interface.py data/mnist.py engine/__init__.py engine/checkpointing/__init__.py
engine/checkpointing/atomic_write.py engine/checkpointing/checkpoint_callbacks.py
engine/checkpointing/checkpoint_flags.py engine/checkpointing/checkpoint_io.py engine/checkpointing/data_record.py
engine/checkpointing/find_checkpoint.py engine/checkpointing/monitor_mode.py engine/checkpointing/run_folder.py
engine/checkpointing/run_lock.py engine/checkpointing/run_records.py engine/checkpointing/safe_file_names.py
engine/checkpointing/trusted_imports.py engine/cli/__init__.py engine/cli/annotations.py engine/cli/completion.py
engine/cli/config_file.py engine/cli/credentials.py engine/cli/discovery.py engine/cli/features_and_commands.py
engine/cli/flag_table.py engine/cli/help.py engine/cli/parser.py engine/cli/settings.py
engine/cli/signatures_from_import.py engine/cli/signatures_from_source.py engine/cli/signatures_of_torch.py
engine/cli/type_conversion.py engine/cli/value_ranges.py engine/commands/__init__.py engine/commands/consolidate.py
engine/commands/export.py engine/commands/new.py engine/commands/plan/__init__.py
engine/commands/plan/parallel_costs.py engine/commands/plan/step_costs.py engine/commands/predict/__init__.py
engine/commands/predict/explain.py engine/commands/predict/layer_output.py engine/commands/predict/prediction_files.py
engine/commands/predict/prediction_inputs.py engine/commands/preview/__init__.py engine/commands/preview/findings.py
engine/commands/preview/pictures.py engine/commands/preview/split_statistics.py engine/commands/report.py
engine/commands/runs.py engine/commands/tune.py engine/datamodule/__init__.py engine/datamodule/batched_fetch.py
engine/datamodule/class_balance.py engine/datamodule/combined_loader.py engine/datamodule/item_fields.py
engine/datamodule/resumable_loader.py engine/datamodule/seeding.py engine/datamodule/split_datamodule.py
engine/datamodule/splits.py engine/errors.py engine/features/__init__.py engine/features/activation_checkpointing.py
engine/features/compile.py engine/features/cross_validation.py engine/features/data_change_check.py
engine/features/device_stats.py engine/features/environment_info.py engine/features/freeze.py
engine/features/initialization.py engine/features/l1_penalty.py engine/features/log_grad_norm.py
engine/features/mirror/__init__.py engine/features/mirror/download.py engine/features/mirror/storage.py
engine/features/mixup.py
engine/features/model_parallel/__init__.py engine/features/model_parallel/sharded_checkpoint.py
engine/features/model_parallel/strategy.py engine/features/model_summary.py engine/features/pictures/__init__.py
engine/features/pictures/metric_curves.py engine/features/pictures/prediction_samples.py engine/features/throughput.py
engine/features/weight_averaging.py engine/features/weight_histograms.py engine/launch/__init__.py
engine/launch/cluster_job.py engine/launch/data_parallel_rank.py engine/launch/safe_stdio.py engine/launch/signals.py
engine/launch/watchdog.py engine/lightning_compat.py engine/logging/__init__.py engine/logging/figures.py
engine/logging/html_page.py engine/logging/loggers.py engine/logging/plots.py engine/logging/progress.py
engine/training/__init__.py engine/training/early_stopping.py engine/training/gradient_guard.py
engine/training/loaded_run.py engine/training/losses.py engine/training/lr_schedulers.py
engine/training/metric_logging.py engine/training/metrics.py engine/training/module_modes.py engine/training/muon.py
engine/training/name_patterns.py engine/training/optimizers.py engine/training/output_spec.py
engine/training/run_action.py engine/training/step_timer.py engine/training/trainer_setup.py
engine/training/training_check.py main.py model/__init__.py model/lenet.py model/model_interface.py pyproject.toml
ray_train.py scripts/train.sbatch sweep.py tests/test_project.py
""".split()
MINIMAL = {"data/digits.py", "data/mnist.py", "model/lenet.py"}
GALLERY = set(
    """
data/_columns.py data/_images.py data/_file_errors.py data/csv_table.py data/image_folder.py data/paired_images.py
data/streaming.py data/text_lines.py data/video_frames.py model/encoder_decoder.py model/gan.py model/lstm.py
model/mlp.py model/resnet.py model/super_resolution.py model/unet.py model/vae.py model/vit_small.py
""".split()
)
KEPT = {"engine/features/__init__.py", "engine/commands/__init__.py"}  # in a project with the core alone
FOLDERS = ("engine/features/", "engine/commands/", "scripts/")
DELETABLE = {file for file in FILES if file.startswith(FOLDERS)} - KEPT | {"sweep.py", "ray_train.py"}
LITTER = {
    "lightning_logs/version_0/metrics.csv": b"epoch,step\n0,0\n",
    "lightning_logs/version_0/checkpoints/last.ckpt": b"PK\x03\x04 \xff\x00",
    "lightning_logs/version_0/events.out.tfevents.1.host": b"\xff\x00",
    "datasets/MNIST/raw/train-images-idx3-ubyte": b"\xff\x00",
    "engine/cli/__pycache__/flags.cpython-311.pyc": b"\xff\x00",
    ".mypy_cache/3.11/cache.db": b"\xff\x00",
    "x.egg-info/PKG-INFO": b"Name: x\n",
}


def files(project: Path) -> set[str]:
    return {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}


def test_exactly_these_files(bake) -> None:
    assert files(bake()) == set(FILES)


@pytest.mark.parametrize("licence", QUESTIONS["license"])
@pytest.mark.parametrize("examples", QUESTIONS["examples"])
def test_every_answer(bake, licence: str, examples: str) -> None:
    project = bake(license=licence, examples=examples, author_name="Ada")
    missing = ({"LICENSE"} if licence == "none" else set()) | (MINIMAL if examples == "none" else set())
    assert files(project) == (set(FILES) | (GALLERY if examples == "gallery" else set())) - missing
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    if licence == "none":
        assert metadata["license"] == "LicenseRef-Proprietary"
    else:
        first = {"MIT": "MIT License", "Apache-2.0": "Apache License", "BSD-3-Clause": "BSD 3-Clause License"}[licence]
        text = (project / "LICENSE").read_text()
        assert text.split("\n")[0].strip() == first or first in text.split("\n")[1]
        assert "Ada" in text
        assert metadata["license"] == licence


@pytest.mark.parametrize("examples", QUESTIONS["examples"])
def test_the_core_alone(bake, examples: str) -> None:
    missing = MINIMAL if examples == "none" else set()
    project = bake(engine="core", examples=examples)
    assert files(project) == (set(FILES) | (GALLERY if examples == "gallery" else set())) - missing - DELETABLE
    assert not (project / "scripts").exists()


def test_what_the_core_leaves_out_comes_back_as_a_copy_or_by_a_later_bake(tmp_path: Path) -> None:
    command = ["cookiecutter", str(ROOT), "--no-input", "--overwrite-if-exists", "-o", str(tmp_path / "out")]
    project, home = tmp_path / "out" / "my_project", str(tmp_path / "home")
    assert run(*command, "engine=core", cwd=tmp_path, HOME=home).returncode == 0
    copied, own = "engine/features/freeze.py", "engine/features/mine.py"
    for path in (copied, own):
        shutil.copy(INNER / copied, project / path)
    assert run(*command, "engine=core", cwd=tmp_path, HOME=home).returncode == 0
    assert files(project) == set(FILES) - DELETABLE | {copied, own}
    (project / own).unlink()
    shown = run(sys.executable, "main.py", "--model_name", "lenet", "--dataset", "digits", "--help", cwd=project)
    assert "--freeze" in shown.stdout
    assert "--ema_decay" not in shown.stdout
    assert run(*command, "engine=full", cwd=tmp_path, HOME=home).returncode == 0
    assert files(project) == set(FILES)


@pytest.mark.parametrize(("engine", "most"), [("full", 16885), ("core", 10959)])
def test_it_grows_only_on_purpose(bake, engine: str, most: int) -> None:
    code = [path for path in bake(engine=engine).rglob("*.py") if "tests" not in path.parts]
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in code) <= most


def test_main_is_short(bake) -> None:
    assert len((bake() / "main.py").read_text(encoding="utf-8").splitlines()) < 180


def test_the_engine_has_a_room_for_each_thing(bake) -> None:
    rooms = {path.name for path in (bake() / "engine").iterdir()} - {"__init__.py"}
    assert len(rooms) <= 10


def test_no_python_file_is_changed_and_no_curly_is_left(bake) -> None:
    project = bake(examples="gallery", language="中文")
    for path in INNER.rglob("*.py"):
        if "__pycache__" not in path.parts:
            ast.parse(path.read_text(encoding="utf-8"))
            assert (project / path.relative_to(INNER)).read_bytes() == path.read_bytes()
    for path in project.rglob("*"):
        if path.is_file() and path.suffix != ".py":
            assert "cookiecutter" not in path.read_text(encoding="utf-8"), path
            assert "{%" not in path.read_text(encoding="utf-8"), path
    assert "添加自己的网络" in (project / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load((project / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]


TEXTS = ["O'Connor", 'quo"ted', "back\\slash", "{x} %s", "研究项目", "rocket 🚀", "<b>&amp;</b>", "tab and # hash"]


@pytest.mark.parametrize("text", TEXTS)
def test_free_text_comes_out_as_it_went_in(bake, text: str) -> None:
    project = bake(project_name=text, project_slug="slug", description=text, author_name=text)
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["description"] == text
    assert metadata["authors"][0]["name"] == text
    assert (project / "README.md").read_text(encoding="utf-8").startswith(f"# {text}\n\n{text}\n")
    assert f" {text}\n" in (project / "LICENSE").read_text(encoding="utf-8")


def test_there_is_little_to_answer_and_to_look_at(bake) -> None:
    assert len([name for name in QUESTIONS if not name.startswith("_")]) <= 9
    project = bake(examples="none")
    assert len([path for path in project.iterdir() if path.name[0] != "."]) <= 13
    assert {path.name for path in (project / "model").iterdir()} == {"__init__.py", "model_interface.py"}
    data = {"__init__.py", "data_interface.py", "lightning_data_interface.py"}
    assert {path.name for path in (project / "data").iterdir()} == data


def test_a_slug_is_made_of_any_name(bake) -> None:
    assert bake(project_name="Tiny Träume 3D").name == "tiny_traume_3d"
    assert bake(project_name="研究").name.isascii()


SLUGS = [
    "",
    ".",
    "..",
    "../out",
    "/tmp/out",
    "a/b",
    "a\\b",
    "-x",
    ".x",
    "a b",
    "é",
    "研究",
    "3d",
    "class",
    "match",
    "con",
]
SLUGS += ["torch", "data", "test", "json", "yaml", "engine", "x" * 51, "x" * 5000, "a\nb", "$(touch x)"]
BAD = [("project_slug", slug) for slug in SLUGS]
BAD += [("description", "two\nlines"), ("author_name", "x" * 201), ("author_email", "nobody"), ("project_name", " ")]


@pytest.mark.parametrize(("name", "answer"), BAD)
def test_bad_answers_leave_nothing_behind(bake, tmp_path: Path, name: str, answer: str) -> None:
    with pytest.raises(FailedHookException, match=f"Error: {name}: ") as caught:
        bake(**{"project_slug": "fine", name: answer})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    done = run("cookiecutter", str(ROOT), "--no-input", "project_slug=torch", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


@pytest.mark.parametrize("way", ["the command line", "a replay file"])
def test_no_answer_switches_the_check_off(tmp_path: Path, way: str) -> None:
    hostile = {"project_slug": "../evil", "__answers": "x"}
    words = [f"{name}={answer}" for name, answer in hostile.items()]
    if way == "a replay file":
        plain = {name: one[0] if isinstance(one, list) else one for name, one in QUESTIONS.items() if name[0] != "_"}
        (tmp_path / "answers.json").write_text(json.dumps({"cookiecutter": plain | hostile}))
        words = ["--replay-file", str(tmp_path / "answers.json")]
    else:
        words.append("--no-input")
    words += ["-o", "out"]
    done = run("cookiecutter", str(ROOT), *words, cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    assert "Error: project_slug: '../evil' cannot be the folder's name" in done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "answers.json"}


def test_a_bake_over_a_project_leaves_its_links_and_empty_folders_alone(tmp_path: Path) -> None:
    used = copy(tmp_path / "used")
    path = used / INNER.name / "datasets/MNIST/raw/train-images-idx3-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    command = ["cookiecutter", str(used), "--no-input", "--overwrite-if-exists", "-o", "out"]
    project, disk = tmp_path / "out" / "my_project", tmp_path / "disk"
    assert run(*command, cwd=tmp_path, HOME=str(tmp_path / "home")).returncode == 0
    (disk / "empty/deep").mkdir(parents=True)
    (project / "datasets").symlink_to(disk)
    for own in ("lightning_logs/version_0/checkpoints", ".venv/share"):
        (project / own).mkdir(parents=True)
    assert run(*command, cwd=tmp_path, HOME=str(tmp_path / "home")).returncode == 0
    for kept in ("datasets/empty/deep", "lightning_logs/version_0/checkpoints", ".venv/share"):
        assert (project / kept).is_dir()
    assert (project / "datasets").is_symlink()


def test_a_used_checkout_bakes_clean_and_an_own_run_is_kept(tmp_path: Path) -> None:
    used = copy(tmp_path / "used")
    for name, content in LITTER.items():
        path = used / INNER.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = ["cookiecutter", str(used), "--no-input", "--overwrite-if-exists", "-o", "out"]
    project = tmp_path / "out" / "my_project"
    assert run(*command, cwd=tmp_path, HOME=str(tmp_path / "home")).returncode == 0
    assert files(project) == set(FILES)
    own = project / "lightning_logs" / "version_5" / "metrics.csv"
    own.parent.mkdir(parents=True)
    own.write_text("epoch,step\n")
    assert run(*command, cwd=tmp_path, HOME=str(tmp_path / "home")).returncode == 0
    assert files(project) == {*FILES, "lightning_logs/version_5/metrics.csv"}


def test_the_newest_change_is_that_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert headings[0].startswith(f"## {version} (")


def test_it_bakes_from_a_bare_repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # cookiecutter clones to there
    git(tmp_path, "clone", "--quiet", "--bare", str(template), "bare.git")
    address = f"git+file://{tmp_path}/bare.git"  # what gh:org/template becomes, without the host
    project = Path(cookiecutter(address, no_input=True, output_dir=str(tmp_path / "out")))
    found = [path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(FILES)


def test_the_versions_that_were_tried_are_ones_that_the_project_allows(bake, tmp_path: Path) -> None:
    project = bake()
    lines = (project / "constraints.txt").read_text().splitlines()[1:]
    tried = {one.name: one for one in map(Requirement, lines)}
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in metadata["dependencies"] + metadata["optional-dependencies"]["dev"]:
        needed = Requirement(text)
        [version] = [one.version for one in tried[needed.name].specifier]
        assert version in needed.specifier, text
    command = ["uv", "pip", "compile", "--quiet", "--all-extras", "--constraints", "constraints.txt", "pyproject.toml"]
    done = run(*command, "--python", sys.executable, cwd=project)
    assert done.returncode == 0, done.stderr
    assert f"torch{tried['torch'].specifier}\n" in done.stdout


def test_the_container_installs_what_the_readme_says(bake) -> None:
    project = bake()
    container = json.loads((project / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["name"] == "my_project"
    assert container["postCreateCommand"].replace("'", '"') in (project / "README.md").read_text(encoding="utf-8")
