"""A checkpoint, a run folder or a listing of somebody else's: no code of theirs is run, no file leaves its folder."""

import io
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import main
import pytest
import torch
import yaml
from engine.checkpointing import trusted_imports
from engine.cli import config_file
from engine.cli.config_file import RawValue
from engine.errors import UsageError
from paths import TOYS

RUN = Path("lightning_logs/version_0")
POPEN = {"model_name": "subprocess.Popen", "dataset": "digits", "args": "echo > pwned", "shell": True}
EVIL = "from pathlib import Path\nfrom torch import nn\nPath('pwned').touch()\nclass Net(nn.Module): pass\n"


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command line ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main.main([*argv])
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert not list(Path().rglob("pwned"))
    return told


@pytest.mark.parametrize("action", ["test", "validate", "predict", "export", "fit", "--help"])
def test_a_checkpoint_starts_no_program(capsys, action: str) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": POPEN}, "s.ckpt")
    told = refused(capsys, *(["fit", action] if action == "--help" else [action]), "--ckpt_path", "s.ckpt")
    assert "s.ckpt: model_name 'subprocess.Popen' is refused: it is of Python's own library; " in told
    assert "type --model_name 'subprocess.Popen' as well, or --trust" in told


def test_code_in_a_run_folder_stays_there(capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(".")
    for folder in ("lightning_logs/version_77", "lightning_logs", "datasets/theirs", "datasets"):
        Path(folder, "checkpoints").mkdir(parents=True, exist_ok=True)
        Path(folder, "evil.py").write_text(EVIL)
    torch.save({"state_dict": {}}, "lightning_logs/version_77/checkpoints/last.ckpt")
    for named in ("lightning_logs.version_77.evil.Net", "lightning_logs.evil.Net", "datasets.theirs.evil.Net"):
        flags = {"model_name": named, "dataset": "digits"}
        Path("lightning_logs/version_77/config.yaml").write_text(yaml.safe_dump(flags))
        assert "config.yaml:2: model_name" in refused(capsys, "test", "--ckpt_path", "version_77")
        for inside in ("lightning_logs/version_77", "lightning_logs", "datasets/theirs", "datasets"):
            Path(inside, "__init__.py").touch()
        told = refused(capsys, "test", "--ckpt_path", "version_77")
        assert "lies among the" in told, told
        for inside in ("lightning_logs/version_77", "lightning_logs", "datasets/theirs", "datasets"):
            Path(inside, "__init__.py").unlink()
    flags = {"model_name": "lenet", "dataset": "digits", "head_losses": ["a=lightning_logs.version_77.evil.Net*0.1"]}
    Path("lightning_logs/version_77/config.yaml").write_text(yaml.safe_dump(flags))
    told = refused(capsys, "test", "--ckpt_path", "version_77")
    assert "head_losses 'lightning_logs.version_77.evil.Net' is refused" in told


def test_code_that_came_along_with_a_checkpoint_is_not_the_projects(capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(".")
    Path("theirs/inner").mkdir(parents=True)
    Path("theirs/evil.py").write_text(EVIL)
    Path("theirs/__init__.py").touch()
    flags = {"model_name": "theirs.evil.Net", "dataset": "digits"}
    torch.save({"state_dict": {}, "hyper_parameters": flags}, "theirs/inner/s.ckpt")
    assert "came with the checkpoint" in refused(capsys, "test", "--ckpt_path", "theirs/inner/s.ckpt")


REFUSED = {
    "model_name": "os.system builtins.exec torch.load torch.hub.load torch.utils.cpp_extension.load torch.save "
    "torchvision.datasets.utils.download_url torch.optim.SGD subprocess.Popen runpy.run_path code.interact "
    "torchvision.models.get_model torchvision.models._api.get_weight torchvision.models.list_models "
    "torch.nn.functional.relu toys.twice toys.Blobs main.main engine.checkpointing.run_folder.open_run "
    "hosts.torchrun "
    "yaml.unsafe_load yaml.Loader fsspec.open engine.launch.watchdog.os torch.serialization.os pathlib.Path ..evil.Net "
    "data.nowhere.Net a/b.c torch.utils.model_dump.__main__.main [subprocess.Popen]",
    "dataset": "subprocess.Popen torch.load toys.Net torchvision.models.resnet18 torch.utils.data.random_split "
    "torchvision.datasets.utils.download_and_extract_archive torch.utils.data.DataLoader",
    "optimizer": "subprocess.Popen torch.load toys.Net torch.optim.swa_utils.update_bn shutil.rmtree",
    "metrics": "[acc,os.system] [os.system] 'os.system' toys.Net toys.trapezoid torchmetrics.functional.accuracy",
    "lr_scheduler": "os.system torch.load toys.trapezoid toys.DefectRecall math.sin main.main",
    "loss": "os.system torch.load torch.save toys.twice main.main engine.checkpointing.run_folder.create "
    "torchvision.io.write_file "
    "torch.hub.download_url_to_file torch.nn.functional.has_torch_function sweep.draw",
}
TAKEN = {
    "model_name": "torchvision.models.resnet18 torchvision.models.ResNet torchvision.models.video.r3d_18 "
    "torch.nn.Linear torchvision.models.quantization.resnet18 toys.Net toys.Tally model.lenet.LeNet",
    "dataset": "torchvision.datasets.FakeData torchvision.datasets.MNIST toys.Blobs toys.Stream",
    "metrics": "[acc,toys.DefectRecall] torchmetrics.classification.MulticlassRecall toys.DefectRecall,f1",
    "lr_scheduler": "cosine",
    "optimizer": "torch.optim.SGD torch.optim.adamw.AdamW own_steps.Steps",
    "loss": "torch.nn.functional.huber_loss torchvision.ops.sigmoid_focal_loss torch.nn.MSELoss",
}


@pytest.mark.parametrize(("key", "path"), [(key, path) for key, paths in REFUSED.items() for path in paths.split()])
def test_what_is_something_else_is_refused(key: str, path: str) -> None:
    before = set(sys.modules)
    with pytest.raises(UsageError, match=r"^s.ckpt: .* is refused: .*; type --.* as well, or --trust"):
        trusted_imports.check({key: RawValue(path, "s.ckpt: ")}, Path("s.ckpt"))
    assert not {"this", "runpy", "code"} & (set(sys.modules) - before)


@pytest.mark.parametrize(("key", "path"), [(key, path) for key, paths in TAKEN.items() for path in paths.split()])
def test_what_a_run_needs_is_taken(key: str, path: str, monkeypatch) -> None:
    Path("own_steps.py").write_text("import torch\nclass Steps(torch.optim.SGD): pass\n")
    monkeypatch.syspath_prepend(".")  # an entry of sys.path that the person made
    trusted_imports.check({key: RawValue(path)}, Path("s.ckpt"))
    monkeypatch.delitem(sys.modules, "own_steps", raising=False)


def test_nothing_is_imported_to_look(monkeypatch) -> None:
    monkeypatch.syspath_prepend(".")
    Path("pack").mkdir()
    Path("pack/__init__.py").write_text("from pathlib import Path\nPath('pwned').touch()\n")
    Path("pack/net.py").write_text("Net = print\n")
    Path("spread").mkdir()
    Path("spread/evil.py").write_text(EVIL)
    for path in ("pack.net.Net", "pack.net.deeper.Net", "pack.gone.Net", "spread.evil.Net", "pack.Net"):
        with pytest.raises(UsageError, match="is refused"):
            trusted_imports.check({"model_name": RawValue(path)}, Path("s.ckpt"))
    assert not Path("pwned").exists()


def test_a_loss_of_the_projects_own_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(trusted_imports, "ROOT", Path.cwd())
    monkeypatch.syspath_prepend(".")
    Path("own_losses.py").write_text("from os import system\ndef twice(output, target): return output\n")
    trusted_imports.check({"loss": RawValue("own_losses.twice")}, Path("s.ckpt"))
    trusted_imports.check({"lr_scheduler": RawValue("own_losses.twice")}, Path("s.ckpt"))
    for key, path in (
        *(("loss", "own_losses.system"), ("model_name", "own_losses.twice")),
        *(("lr_scheduler", "own_losses.system"), ("metrics", "own_losses.twice")),
    ):
        with pytest.raises(UsageError, match="is refused"):
            trusted_imports.check({key: RawValue(path)}, Path("s.ckpt"))
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)


def test_typed_again_or_trusted_it_is_taken(train, capsys) -> None:
    train("--loss", "toys.twice", "--max_epochs", 1)
    assert "loss 'toys.twice' is refused" in refused(capsys, "test", "--ckpt_path", "version_0")
    Path("loss.yaml").write_text("loss: toys.twice\n")
    for said in (["--loss", "toys.twice"], ["--trust"], ["--trust", "true"], ["--config", "loss.yaml"]):
        assert "test_loss" in main.main(["test", "--ckpt_path", "version_0", *said])
    assert "is refused" in refused(capsys, "test", "--ckpt_path", "version_0", "--no-trust")
    main.main(["--ckpt_path", "version_0", "--max_epochs", "2", "--trust"])
    kept = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert "trust" not in (RUN / "config.yaml").read_text()
    assert "trust" not in kept
    with (RUN / "config.yaml").open("a") as file:
        file.write("trust: true\n")
    assert "is refused" in refused(capsys, "test", "--ckpt_path", "version_0")


def test_a_kept_config_asks_for_no_variable(train, monkeypatch) -> None:
    train("--max_epochs", 1)
    monkeypatch.setenv("SECRET_OF_MINE", "sesame")
    text = (RUN / "config.yaml").read_text()
    (RUN / "config.yaml").write_text(text.replace("data_dir: datasets", "data_dir: ${SECRET_OF_MINE}"))
    assert config_file.read(RUN / "config.yaml", kept=True)["data_dir"].text == "${SECRET_OF_MINE}"
    assert config_file.read(RUN / "config.yaml")["data_dir"].text == "sesame"
    seen: list[Any] = []
    monkeypatch.setattr(main, "run", lambda settings, *_, **flags: seen.append(settings.arguments["data"]) or {})
    main.main(["test", "--ckpt_path", "version_0"])
    assert seen[0]["data_dir"] == "${SECRET_OF_MINE}"


HOSTILE = {
    "upwards": "../../escaped.txt",
    "upwards within": "checkpoints/../../../escaped.txt",
    "absolute": "/{}/escaped.txt",
    "doubled": "checkpoints//escaped.txt",
    "drive": "C:/escaped.txt",
    "drive within": "checkpoints/c:escaped.ckpt",
    "backslash": "checkpoints\\..\\escaped.txt",
    "control": "checkpoints/a\x1b[2Jb.ckpt",
    "line": "checkpoints/a\nb.ckpt",
    "device": "con",
    "device with an ending": "checkpoints/NUL.ckpt",
    "point": "checkpoints/last.ckpt.",
    "space": "checkpoints/last.ckpt ",
    "case": "Config.yaml",
    "case of a folder": "Checkpoints/other.ckpt",
    "long": f"checkpoints/{'x' * 300}.ckpt",
}


class Listing(fsspec.AbstractFileSystem):
    """A storage that lists what it likes, and gives more than it told of where a name says so."""

    protocol = "listing"
    cachable = False
    names: dict[str, bytes] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("listing://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self.names:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": len(self.names[path]) - ("grows" in path)}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return [self.info(name) for name in self.names] if detail else [*self.names]

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        found = {name: self.info(name) for name in self.names if name.startswith(f"{path}/")}
        return found if detail else [*found]

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(self.names[rpath])


fsspec.register_implementation("listing", Listing, clobber=True)


def in_a_listing(files: dict[str, bytes]) -> str:
    Listing.names = {f"runs/version_0/{name}": content for name, content in files.items()}
    return "listing://runs/version_0"


def in_a_zip(files: dict[str, bytes]) -> str:
    with zipfile.ZipFile("runs.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"runs/version_0/{name}"), content)
    return f"zip://runs/version_0::file://{Path.cwd()}/runs.zip"


def in_a_tar(files: dict[str, bytes]) -> str:
    with tarfile.open("runs.tar", "w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(f"runs/version_0/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return f"tar://runs/version_0::file://{Path.cwd()}/runs.tar"


def a_run(train: Callable[..., Any]) -> dict[str, bytes]:
    """The files of a run by their names; the run itself is gone."""
    train("--max_epochs", 1, "--default_root_dir", "elsewhere")
    folder = "elsewhere" / RUN
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("put", [in_a_listing, in_a_zip, in_a_tar])
def test_a_run_is_fetched_from_anywhere(train, capsys, put) -> None:
    files = a_run(train)
    address = put(files | {"evil.py": b"x", "wandb/settings": b"base_url"})
    capsys.readouterr()
    assert "test_loss" in main.main(["test", "--ckpt_path", address])
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "skipped, not files of a run: evil.py, wandb/settings (2 in all)"
    assert {path.relative_to(RUN).as_posix() for path in _files(RUN)} == files.keys() | {"fetched.txt", "metrics.json"}


@pytest.mark.parametrize("put", [in_a_listing, in_a_zip, in_a_tar])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused(capsys, tmp_path: Path, put, what: str) -> None:
    name = HOSTILE[what].format(str(tmp_path).strip("/"))
    if put is in_a_tar and what in ("doubled", "absolute"):
        pytest.skip("fsspec's tar:// makes one slash of two")
    files = {"config.yaml": b"model_name: lenet\ndataset: digits\n"}
    files |= {"checkpoints/last.ckpt": b"", "checkpoints/other.ckpt": b""}
    address = put(files | {name: b"escaped"})
    runs = tmp_path / "here/deep/lightning_logs"
    runs.parent.mkdir(parents=True)
    before = _files(tmp_path)
    told = refused(capsys, "test", "--ckpt_path", address, "--default_root_dir", "here/deep")
    assert "is refused" in told
    assert not [path for path in _files(tmp_path) if path not in before and not path.is_relative_to(runs)]
    assert not [path for path in _files(runs) if path.read_bytes() == b"escaped"]
    assert not list(runs.glob("version_*"))


def test_links_of_a_folder_are_not_followed(train, capsys, tmp_path: Path) -> None:
    a_run(train)
    there = tmp_path / "elsewhere" / RUN
    (tmp_path / "secret.png").write_text("secret")
    (there / "images.png").symlink_to(tmp_path / "secret.png")
    told = refused(capsys, "test", "--ckpt_path", there.as_uri())
    assert "'images.png' is refused: it is a link that leads elsewhere" in told
    (there / "images.png").unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/events.1").write_text("secret")
    (there / "predictions").symlink_to(tmp_path / "folder")
    assert "is a link that leads elsewhere" in refused(capsys, "test", "--ckpt_path", there.as_uri())
    (there / "predictions").unlink()
    (there / "wandb").mkdir()
    (there / "wandb/debug.log").symlink_to(tmp_path / "secret.png")  # as wandb itself does
    assert "test_loss" in main.main(["test", "--ckpt_path", there.as_uri()])
    assert not (RUN / "wandb").exists()


def test_no_more_is_taken_than_was_told(train, capsys) -> None:
    address = in_a_listing(a_run(train) | {"grows.png": b"grown"})
    assert "grows.png is refused: 4 bytes were listed, and 5 came" in refused(capsys, "test", "--ckpt_path", address)
    assert not list(Path("lightning_logs").rglob("grows.png"))
    Listing.names = {"grows.ckpt": b"x", "a\\b.ckpt": b"x"}
    for flag in ("--init_from", "--ckpt_path"):
        for name in Listing.names:
            assert "is refused" in refused(capsys, *TOYS, flag, f"listing://{name}")
    assert not list(Path("lightning_logs/fetched").glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_sharded_checkpoint_points_at_its_own_files(tmp_path: Path) -> None:
    from engine.features.model_parallel import sharded_checkpoint
    from torch.distributed import checkpoint as dcp

    dcp.save({"state_dict": {"weight": torch.ones(2)}}, checkpoint_id="s.ckpt", no_dist=True)
    torch.save({}, "s.ckpt/meta.pt")
    assert sharded_checkpoint.read_metadata(Path("s.ckpt")).storage_data
    found = Path("s.ckpt/__0_0.distcp").rename("elsewhere.distcp")
    Path("s.ckpt/__0_0.distcp").symlink_to(found.absolute())
    with pytest.raises(UsageError, match="is refused"):
        sharded_checkpoint.read_metadata(Path("s.ckpt"))
