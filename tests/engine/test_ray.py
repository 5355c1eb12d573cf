"""ray_train.py on a Ray that nothing outside can reach: the same end as without Ray, whatever dies on the way."""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import paths
import pytest
import torch
from paths import PROJECT, TOYS

ray_train = pytest.importorskip("ray_train")

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
ARGV = [*TOYS, "--max_epochs", "3", "--batch_size", "8", "--every_n_train_steps", "1"]
# These stand on a page that tells of Ray.
HERE = "python ray_train.py --num_ray_workers 2 --"
THERE = "python ray_train.py --address auto --num_ray_workers 2 --"
HEAD = "ray start --head --include-dashboard=false"
OTHER = "ray start --address=host2:6379"
SECRET = "ray get-auth-token --generate"
SEARCH = """
import os
import sys
import ray
import sweep


@ray.remote(num_cpus=1)  # and num_gpus=1 where there are any
def search(argv, folder):
    os.chdir(folder)
    sweep.main(argv)


ray.init()
ray.get([search.remote(sys.argv[1:], os.getcwd()) for _ in range(4)])
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Network]:
    """A switch for machines, which have /mnt for a disk; Ray asks for outside addresses where it can."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if why := hosts.missing("mount"):
        pytest.skip(f"no network of its own for Ray here: {why}")
    made = hosts.Network(tmp_path_factory.mktemp("network"))
    try:
        made.add(1)
        yield made
    finally:
        made.die()


@pytest.fixture
def machine(network: hosts.Network) -> Iterator[hosts.Host]:
    """A machine on which no Ray runs yet."""
    host = add(network, 4)
    yield host
    host.die()


@pytest.fixture(scope="module")
def cluster(network: hosts.Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables with which host2 and host3 are one cluster, of a core each."""
    variables = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path_factory.mktemp("home"))}
    variables["STARTED_BY_TEST"] = ""  # or it ended with the test that replaces a machine
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(variables["HOME"])
        host2, host3 = add(network, 2), add(network, 3)
        end(start(host2, SECRET, **variables))
        end(start(host2, f"{HEAD} --num-cpus=1", **variables))
        end(start(host3, f"{OTHER} --num-cpus=1", **variables))
    return variables


def add(network: hosts.Network, number: int) -> hosts.Host:
    host = network.add(number)
    host.run("mount -t tmpfs none /mnt")  # Ray's sockets want a short path
    return host


def start(host: hosts.Host, command: str, *argv: str, folder: str = ".", **variables: str) -> subprocess.Popen[str]:
    """Starts a command there; its process number goes to the file `pid`."""
    Path(folder).mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {
        "PYTHONPATH": f"{PROJECT}:{paths.HERE}",
        "OMP_NUM_THREADS": "1",
        "PATH": path,
        "RAY_TMPDIR": "/mnt",
        "RAY_ADDRESS": "",
    }
    ours |= {"HOME": str(Path.cwd()), "RAY_USAGE_STATS_ENABLED": "0"}
    ours |= {"RAY_worker_niceness": "0"}  # else its workers give way to all that other tests do
    program, *words = [*shlex.split(command), *argv]
    words = [str(PROJECT / word) if word == "ray_train.py" else word for word in words]
    line = f"cd {folder}; echo $$ > pid; exec {shlex.join([program, *words])}"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    heard = ["env", "--default-signal=INT"]  # who runs the tests in the background has it ignored
    return host.start(*heard, "sh", "-c", line, env=os.environ | ours | variables, **pipes)


def end(process: subprocess.Popen[str], status: int = 0) -> str:
    """What it said, when it has ended."""
    said, _ = process.communicate(timeout=900)
    assert process.returncode == status, said
    return said


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / LAST, weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def by_ddp(ranks) -> dict[str, torch.Tensor]:
    """The weights as two processes train them without Ray."""
    ranks(*ARGV, "--default_root_dir", "ddp")
    return weights("ddp")


@pytest.mark.slow
def test_workers_train_as_ranks_of_ddp_do_and_one_that_dies_changes_nothing(machine: hosts.Host, by_ddp) -> None:
    said = end(start(machine, HERE, *ARGV, "--dataset=toys.Deadly", folder="killed"))
    assert said.count("a worker died") == 1
    assert [path.name for path in Path("killed/lightning_logs").iterdir()] == ["version_0"]
    assert same(weights("killed"), by_ddp)
    assert Path("killed/dead").exists()
    rows = [(Path(folder) / LAST.parents[1] / "metrics.csv").read_text() for folder in ("ddp", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_machine_of_a_cluster_that_dies_changes_nothing(network: hosts.Network, cluster, by_ddp) -> None:
    Path("slow").touch()
    job = start(network.hosts["host2"], THERE, *ARGV, "--dataset=toys.Slow", **cluster)
    until(lambda: LAST.exists() or job.poll() is not None)
    network.hosts["host3"].die()
    end(start(add(network, 3), f"{OTHER} --num-cpus=1", **cluster))
    Path("slow").unlink()
    assert end(job).count("a worker died") == 1
    assert same(weights("."), by_ddp)


@pytest.mark.slow
def test_an_exception_of_ones_own_ends_the_run_at_once(network: hosts.Network, cluster) -> None:
    said = end(start(network.hosts["host2"], THERE, *ARGV, "--broken_item", "3", **cluster), status=1)
    assert "ValueError: item 3 is broken" in said
    assert "a worker died" not in said


@pytest.mark.slow
def test_ctrl_c_ends_all(machine: hosts.Host) -> None:
    job = start(machine, HERE, *ARGV, "--max_epochs=-1", "--lr_scheduler=constant")
    until(lambda: LAST.exists() or job.poll() is not None)
    assert "raylet" in machine.run("ps -e")
    machine.run("kill -INT $(cat pid)")
    assert "ray_train.py: interrupted; to resume, add --ckpt_path last behind --" in end(job, status=130)
    until(lambda: {*machine.run("ps -eo comm=").split()} <= {"sh", "bash", "sleep", "ps"})


@pytest.mark.slow
def test_more_workers_than_the_machine_has_cores_are_refused_and_not_waited_for(machine: hosts.Host) -> None:
    command = HERE.replace("2", "1000")
    said = end(start(machine, command, *TOYS), status=2)
    assert "ray_train.py: error: 1000 workers with 1 CPU each: there are " in said


@pytest.mark.slow
def test_processes_of_ray_share_a_search(network: hosts.Network, cluster) -> None:
    optuna = pytest.importorskip("optuna")
    Path("ray_sweep.py").write_text(SEARCH)
    Path("space.yaml").write_text("lr: {low: 1e-3, high: 1e-1, log: true}\n")
    command = "python ray_sweep.py space.yaml --trials 4 --"
    end(start(network.hosts["host2"], command, *TOYS, "--max_epochs=1", **cluster))
    storage = optuna.storages.RDBStorage("sqlite:///sweep.db")
    study = optuna.load_study(study_name="space", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    storage.remove_session()
    storage.engine.dispose()
    assert len(list(Path("lightning_logs").iterdir())) == 4


def test_a_mistake_is_told_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ray_train.main(["--", *TOYS, "--max_epoch", "1"])
    assert "max_epochs" in capsys.readouterr().err


def test_it_says_how_ray_is_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match="2"):
        ray_train.main(["--address", "auto", "--", *TOYS])
    said = 'ray_train.py: error: Ray is not installed: pip install -e ".[ray]"\n'
    assert capsys.readouterr().err == said
