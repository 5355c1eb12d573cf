"""`--mirror` and `--ckpt_path ADDRESS`: a run whose machine is lost goes on on another one, bit for bit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

fsspec = pytest.importorskip("fsspec")
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


class Server:
    """S3, at a port of this machine, with a bucket named `bucket`."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.url = "http://{}:{}".format(*self.server.get_host_and_port())

    def make_bucket(self) -> None:
        self.disk().mkdir("bucket")

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
    server.make_bucket()
    yield server
    with contextlib.suppress(Exception):
        server.server.stop()


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
