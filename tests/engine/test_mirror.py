"""`--mirror` and `--ckpt_path ADDRESS`: a run whose machine is lost goes on on another one, bit for bit."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import fsspec
import main
import pytest
import torch
import toys
from engine.checkpointing.find_checkpoint import find_checkpoint
from fsspec.implementations.local import LocalFileSystem
from paths import PROJECT, TOYS

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


class Server:
    """S3, at a port of this machine, with a bucket named `bucket`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.url = "http://{}:{}".format(*self.server.get_host_and_port())

    def disk(self) -> Any:
        return fsspec.filesystem("s3", endpoint_url=self.url, use_listings_cache=False, skip_instance_cache=True)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the run finds in its environment, as it would find the real one."""
    pytest.importorskip("s3fs", reason="--mirror s3:// needs the extra s3")
    pytest.importorskip("moto.server", reason="moto's server stands in for S3")
    server = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    urlopen(f"{server.url}/moto-api/reset", data=b"").close()  # it remembers earlier servers of this process
    server.disk().mkdir("bucket")
    yield server
    with contextlib.suppress(Exception):
        server.server.stop()


class Breaking(LocalFileSystem):
    """A folder to which no more than so many changes can be made: as if the machine was lost before the next."""

    protocol = "breaking"
    changes = 0
    most = sys.maxsize

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("breaking://"))

    def _change(self) -> None:
        type(self).changes += 1
        if self.changes > self.most:
            raise OSError("the machine is lost")

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        self._change()
        super().put_file(lpath, rpath, *args, **kwargs)

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        self._change()
        super().mv(path1, path2, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._change()
        super().rm_file(path)


class Slow(LocalFileSystem):
    """A folder to which the last checkpoint finds its way slowly."""

    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("slow://"))

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        time.sleep(7 if "last.ckpt" in rpath else 0)  # the launcher looks for processes that have ended every 5 seconds
        super().put_file(lpath, rpath, *args, **kwargs)


class SlowDownload(LocalFileSystem):
    """A folder whose files come slowly; `downloads` counts them."""

    protocol = "slowdownload"
    downloads = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("slowdownload://"))

    def get_file(self, rpath: str, lpath: str, *args: Any, **kwargs: Any) -> None:
        type(self).downloads += 1
        time.sleep(0.1)
        super().get_file(rpath, lpath, *args, **kwargs)


for kind in (Breaking, Slow, SlowDownload):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


class Net(toys.Net):
    """The same, by whose name another process gets these storages too."""


def weights(run: Path) -> dict[str, Any]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {"step": checkpoint["global_step"], **checkpoint["state_dict"]}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(*map(torch.as_tensor, (one[key], other[key]))) for key in one)


def test_a_run_is_copied_whole_and_nothing_more(train, s3: Server) -> None:
    train("--max_epochs", 4, "--save_top_k", 2, "--mirror", "s3://bucket/runs")
    there = {path.removeprefix("bucket/runs/version_0/"): path for path in s3.disk().find("bucket/runs")}
    here = {path.relative_to(RUN).as_posix(): path for path in RUN.rglob("*") if path.is_file()}
    assert there.keys() == here.keys()
    assert {"config.yaml", "metrics.csv", "metrics.json", "checkpoints/last.ckpt"} < there.keys()
    assert len([name for name in there if "best-" in name]) == 2
    for name, path in here.items():
        assert s3.disk().cat_file(there[name]) == path.read_bytes(), name


def test_cut_off_anywhere_a_copy_goes_on_to_the_same_end(train, tmp_path: Path, monkeypatch) -> None:
    argv = ["--max_epochs", "5", "--batch_size", "16", "--every_n_train_steps", "1", "--save_top_k", "2"]
    monkeypatch.setattr(Breaking, "changes", 0)
    told = train(*argv, "--mirror", f"breaking://{tmp_path}/whole", "--default_root_dir", "whole")
    whole, every, went_on = tmp_path / "whole" / RUN, Breaking.changes, 0
    for most in range(20, every - 5, every // 7):
        here = tmp_path / str(most)
        (here / "next").mkdir(parents=True)
        monkeypatch.chdir(here)
        monkeypatch.setattr(Breaking, "changes", 0)
        monkeypatch.setattr(Breaking, "most", most)
        with pytest.raises(SystemExit, match="the machine is lost"):
            train(*argv, "--mirror", f"breaking://{here}/there")
        monkeypatch.setattr(Breaking, "most", sys.maxsize)
        monkeypatch.chdir(here / "next")
        if (here / "there/version_0/checkpoints/last.ckpt").exists():
            went_on += 1
            again = ["--mirror", f"breaking://{here}/there"]
            assert main.main(["--ckpt_path", f"file://{here}/there/version_0", *again]) == told
            for run in (RUN, here / "there/version_0"):
                assert same(weights(run), weights(whole)), most
                assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
                assert sorted(os.listdir(run / "checkpoints")) == sorted(os.listdir(whole / "checkpoints")), most
    assert went_on > 3


@pytest.mark.slow
def test_a_machine_is_lost_and_another_one_goes_on(train, s3: Server, tmp_path: Path, warm_python: str) -> None:
    argv = ["--max_epochs", "5", "--batch_size", "8", "--every_n_train_steps", "1", "--save_top_k", "2"]
    argv += ["--dataset", "toys.Slow"]
    told = train(*argv, "--default_root_dir", "whole")
    Path("slow").touch()
    command = [warm_python, str(PROJECT / "main.py"), *TOYS, *argv, "--mirror", "s3://bucket/runs"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not s3.disk().exists("bucket/runs/version_0/checkpoints/last.ckpt") and run.poll() is None:
            time.sleep(0.01)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    Path("slow").unlink()
    shutil.rmtree("lightning_logs")
    assert main.main(["--ckpt_path", "s3://bucket/runs/version_0"]) == told
    whole = Path("whole", RUN)
    assert same(weights(RUN), weights(whole))
    assert (RUN / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert sorted(os.listdir(RUN / "checkpoints")) == sorted(os.listdir(whole / "checkpoints"))
    there = s3.disk().cat_file("bucket/runs/version_0/checkpoints/last.ckpt")  # named by the address
    assert there == LAST.read_bytes()
    for _ in range(2):  # fetched once
        assert main.main(["test", "--ckpt_path", "s3://bucket/runs/version_0"]).items() <= told.items()
    assert sorted(path.name for path in RUN.parent.glob("[!.]*")) == ["version_0", "version_1"]


@pytest.mark.parametrize("name", ["/{}/written.txt", "../written.txt", "checkpoints//written.ckpt"])
def test_a_key_that_leads_out_of_the_run_is_refused(train, s3: Server, tmp_path: Path, capsys, name: str) -> None:
    train("--max_epochs", 1, "--mirror", "s3://bucket/runs")
    shutil.rmtree("lightning_logs")
    inside = name.format(str(tmp_path).strip("/"))
    s3.disk().call_s3("put_object", Bucket="bucket", Key=f"runs/version_0/{inside}", Body=b"written")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main.main(["test", "--ckpt_path", "s3://bucket/runs/version_0"])
    told = capsys.readouterr().err
    assert f"s3://bucket/runs/version_0: {inside!r} is refused: it leads elsewhere" in told
    assert told.count("\n") == 1
    assert not list(tmp_path.rglob("written.*"))


def test_a_server_that_goes_away_does_not_end_the_training(train, s3: Server, capsys, monkeypatch) -> None:
    def stop(net: toys.Net) -> None:
        if LAST.exists() and s3.server is not None:
            s3.server.stop()
            s3.server = None

    monkeypatch.setattr(toys.Net, "each_forward", stop)
    with pytest.raises(SystemExit, match=r"lacks the newest of lightning_logs/version_0 .*whole here") as ended:
        train("--max_epochs", 4, "--mirror", "s3://bucket/runs")
    assert str(ended.value).endswith("\npython main.py --ckpt_path lightning_logs/version_0 --mirror=s3://bucket/runs")
    assert capsys.readouterr().err.count("--mirror s3://bucket/runs: ") == 1
    assert torch.load(LAST, weights_only=True)["epoch"] == 3
    assert "test_acc" in json.loads((RUN / "metrics.json").read_text())
    assert not list(RUN.rglob("*.part"))


def test_a_bucket_that_is_not_there_is_said_before_training(train, s3: Server, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--mirror", "s3://bukcet/runs")
    told = capsys.readouterr()
    assert told.err == "main.py: error: --mirror s3://bukcet/runs: The specified bucket does not exist\n"
    assert not LAST.exists()


def test_what_was_not_sent_is_sent_by_going_on(train, tmp_path: Path, monkeypatch) -> None:
    there = tmp_path / "there"
    monkeypatch.setattr(toys.Net, "each_forward", lambda net: LAST.exists() and _replace_by_file(there))
    with pytest.raises(SystemExit, match="lacks the newest"):
        train("--max_epochs", 3, "--mirror", there.as_uri())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    there.unlink()
    main.main(["--ckpt_path", str(RUN), "--mirror", there.as_uri()])
    assert (there / "version_0/checkpoints/last.ckpt").read_bytes() == LAST.read_bytes()
    assert "test_acc" in json.loads((there / "version_0/metrics.json").read_text())


def _replace_by_file(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.touch()


def test_a_run_of_the_same_name_from_elsewhere_is_not_written_over(train, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "version_0").mkdir(parents=True)  # copied there by hand
    for lr, machine in ((0.01, "one"), (0.02, "two")):
        train("--max_epochs", 1, "--lr", lr, "--mirror", there.as_uri(), "--default_root_dir", machine)
    assert not any((there / "version_0").iterdir())
    for machine, place in (("one", "version_1"), ("two", "version_2")):
        assert (there / place / "config.yaml").read_text() == Path(machine, RUN, "config.yaml").read_text()


def test_a_machine_that_was_thought_lost_does_not_write_over_the_one_that_went_on(train, tmp_path, monkeypatch) -> None:
    there = tmp_path / "there"
    train("--max_epochs", 1, "--mirror", there.as_uri())
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    main.main(["--ckpt_path", f"{there.as_uri()}/version_0", "--max_epochs", "3"])
    newest = (there / "version_0/checkpoints/last.ckpt").read_bytes()
    assert newest == LAST.read_bytes()
    monkeypatch.chdir(tmp_path)
    main.main(["--ckpt_path", "last", "--max_epochs", "2", "--mirror", there.as_uri()])
    assert (there / "version_0/checkpoints/last.ckpt").read_bytes() == newest
    assert (there / "version_1/checkpoints/last.ckpt").read_bytes() == LAST.read_bytes()


def test_an_address_does_wherever_a_checkpoint_does(train, tmp_path: Path, monkeypatch, capsys) -> None:
    there = tmp_path / "there"
    train("--max_epochs", 2, "--mirror", there.as_uri())
    told = main.main(["test", "--ckpt_path", "version_0"])
    capsys.readouterr()
    for address in ("version_0", "version_0/", "version_0/checkpoints/last.ckpt"):
        assert main.main(["test", "--ckpt_path", f"{there.as_uri()}/{address}"]).keys() == told.keys()
    assert capsys.readouterr().err == f"fetched {there.as_uri()}/version_0 to lightning_logs/version_1\n"  # once
    assert json.loads(Path("lightning_logs/version_1/metrics.json").read_text())["test_loss"] == told["test_loss"]
    shutil.copy(LAST, there / "alone.ckpt")
    train("--init_from", f"{there.as_uri()}/alone.ckpt", "--max_epochs", 1, "--lr", 0)
    assert weights(Path("lightning_logs/version_2")).keys() == weights(RUN).keys()


def test_a_run_that_lies_in_the_mirror_is_not_copied_onto_itself(train, tmp_path: Path, capsys) -> None:
    train("--max_epochs", 1, "--mirror", "there")
    main.main(["--ckpt_path", "there/version_0", "--max_epochs", "2"])
    assert "--mirror there: there/version_0 is in that folder itself and is not copied" in capsys.readouterr().err
    assert os.listdir("there") == ["version_0"]
    assert torch.load("there/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_a_rehearsal_is_not_copied(train, tmp_path: Path) -> None:
    train("--fast_dev_run", "--mirror", (tmp_path / "there").as_uri())
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--mirror", "{}", "--strategy", "model_parallel"], "--mirror copies checkpoints that are files; --strategy"),
        (["--mirror", "nowhere://runs"], "--mirror nowhere://runs: Protocol not known: nowhere"),
        (
            ["--mirror", "s3://bucket/runs"],
            '--mirror s3://bucket/runs: Install s3fs to access S3: pip install -e ".[s3]"',
        ),
        (["--ckpt_path", "s3://bucket/runs/version_0"], 'Install s3fs to access S3: pip install -e ".[s3]"'),
        (["--ckpt_path", "file://{}/version_7"], "version_7: there is no such file or run; file://{} has version_0"),
        (
            ["--default_root_dir", "s3://bucket"],
            "s3://bucket: a run is written to a disk of this machine; --mirror s3://bucket copies it there",
        ),
    ],
)
def test_a_mistake_is_one_line(train, tmp_path: Path, capsys, monkeypatch, argv: list[str], line: str) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it was not installed
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    (tmp_path / "version_0").mkdir()
    with pytest.raises(SystemExit, match="2"):
        train(*(word.format(tmp_path) for word in argv))
    told = capsys.readouterr().err
    assert line.format(tmp_path) in told
    assert told.count("\n") == 1
    assert not LAST.exists()
    assert not Path("s3:").exists()


@pytest.mark.slow
def test_a_signal_to_two_processes_waits_for_the_copy(tmp_path: Path, warm_python: str) -> None:
    there = tmp_path / "there"
    two = ["--devices", "2", "--strategy", "ddp", "--max_epochs", "100000", "--mirror", f"slow://{there}"]
    two += ["--model_name", "test_mirror.Net"]
    command = [warm_python, str(PROJECT / "main.py"), *TOYS, *two]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not list(there.rglob("last.ckpt")) and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=900)
    assert run.returncode == 128 + signal.SIGTERM, err
    assert out.splitlines()[-1] == f"python main.py --ckpt_path {RUN} --mirror=slow://{there}"
    assert (there / "version_0/checkpoints/last.ckpt").read_bytes() == LAST.read_bytes()
    assert not list(there.rglob("*.part"))
    shutil.rmtree("lightning_logs")
    step = torch.load(there / "version_0/checkpoints/last.ckpt", weights_only=True)["global_step"]
    command = [warm_python, str(PROJECT / "main.py"), "--ckpt_path", (there / "version_0").as_uri()]
    command += ["--mirror", "none"]
    done = subprocess.run([*command, "--max_steps", str(step + 3)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in RUN.parent.glob("[!.]*")] == ["version_0"]
    assert torch.load(LAST, weights_only=True)["global_step"] == step + 3


def test_where_copies_go_is_said_again(train, tmp_path: Path, capsys) -> None:
    there = tmp_path / "there"
    train("--max_epochs", 1, "--mirror", there.as_uri())
    (tmp_path / "theirs").mkdir()
    config = RUN / "config.yaml"
    config.write_text(config.read_text().replace("/there", "/theirs"))  # as a stranger may have
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main.main(["--ckpt_path", "last", "--max_epochs", "2"])
    told = capsys.readouterr().err
    assert f"mirror is not taken from a run, as it may be a stranger's: give --mirror file://{tmp_path}/theirs " in told
    assert "test_acc" in main.main(["test", "--ckpt_path", "last"])
    main.main(["--ckpt_path", "last", "--max_epochs", "2", "--mirror", "none"])
    assert not list((tmp_path / "theirs").iterdir())


def test_of_two_that_fetch_a_run_at_the_same_time_one_downloads_it(train, tmp_path: Path) -> None:
    train("--max_epochs", 1)
    shutil.copytree(RUN, tmp_path / "bucket" / "other")
    files = sum(path.is_file() for path in RUN.rglob("*"))
    url, root = f"slowdownload://{tmp_path}/bucket/other", Path("here/lightning_logs")
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda _: find_checkpoint(url, root, resume=True), range(2))]
    assert found == [root / "other" / "checkpoints" / "last.ckpt"] * 2
    assert SlowDownload.downloads <= files
    assert [path.name for path in root.glob("[!.]*")] == ["other"]
