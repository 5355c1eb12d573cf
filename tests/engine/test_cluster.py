"""torchrun, on one machine and on several: ranks, links and machines that fail, and the same end all the same."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hosts
import main
import pytest
import torch
import toys
from paths import HERE, PROJECT, TOYS, WARM

ARGV = [*TOYS, "--max_epochs", "3", "--batch_size", "8", "--every_n_train_steps", "1", "--devices", "2"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.mark.slow
def test_a_rank_that_dies_under_torchrun_is_replaced_and_the_run_ends_the_same(ranks, warm_python: str) -> None:
    ranks(*ARGV, "--default_root_dir", "whole")
    done = hosts.torchrun(warm_python, "killed", *ARGV, "--dataset", "toys.Deadly", "--default_root_dir", ".")
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path("killed/dead").exists()
    assert [path.name for path in Path("killed/lightning_logs").iterdir()] == ["version_0"]
    whole, killed = (torch.load(folder / LAST, weights_only=True) for folder in (Path("whole"), Path("killed")))
    assert whole["global_step"] == killed["global_step"]
    assert all(torch.equal(whole["state_dict"][name], killed["state_dict"][name]) for name in whole["state_dict"])
    rows = [(Path(folder) / LAST.parents[1] / "metrics.csv").read_text() for folder in ("whole", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("network", ["Line --loss mse_loss", "Spread"])  # Spread has a step of its own
def test_several_processes_measure_what_one_does(network: str, ranks) -> None:
    names = ["--dataset", "toys.Numbers", "--model_name", *f"toys.{network}".split()]
    cut = ["--num_items", "94", "--val_fraction", "0.3", "--test_fraction", "0.3", "--batch_size", "8"]
    main.main([*TOYS, *names, *cut, "--max_epochs", "1"])  # 28 items to validate on, 28 to test: 3 processes add 2
    alone, together = {}, {}
    for action in ("validate", "test"):
        argv = [action, "--ckpt_path", "last", "--batch_size", "8"]
        alone |= main.main(argv)
        ranks(*argv, number=3)
        together |= json.loads(Path("lightning_logs/version_0/metrics.json").read_text())
    assert alone.keys() >= {"val_loss", "test_loss"}
    assert {name: together[name] for name in alone} == pytest.approx(alone, rel=1e-6)


LAID_OUT = [
    ("SLURM_NTASKS=4", "SLURM gave this job 4 tasks and python was started once: srun python main.py ..."),
    (
        "SLURM_NTASKS=3 SLURM_STEP_ID=0 SLURM_STEP_TASKS_PER_NODE=2,1",
        "SLURM put 2,1 tasks on the nodes; give",
    ),
    ("SLURM_NTASKS=1 SLURM_PROCID=0", ""),
]


@pytest.mark.parametrize(("told", "error"), LAID_OUT)
def test_a_job_that_would_wait_for_ever_is_refused(train, monkeypatch, capsys, told: str, error: str) -> None:
    for name in told.split():
        monkeypatch.setenv(*name.split("="))
    if not error:
        assert train("--max_epochs", 1)
        return
    with pytest.raises(SystemExit, match="2"):
        train()
    assert error in capsys.readouterr().err


TORCHRUN = """
torchrun --nnodes=2 --nproc_per_node=1 --rdzv_backend=c10d --rdzv_endpoint=host2:29500 --rdzv_id=one --max_restarts=5
""".strip()
SLOW = [
    *TOYS,
    "--dataset",
    "toys.Slow",
    "--batch_size",
    "8",
    "--max_epochs",
    "12",
    "--every_n_train_steps",
    "1",
]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[hosts.Network]:
    """Two machines, host2 and host3."""
    if why := hosts.missing():
        pytest.skip(f"no two machines here: {why}")
    made = hosts.Network(tmp_path)
    try:
        for number in (1, 2, 3):
            made.add(number)
        yield made
    finally:
        made.die()


def begin(host: hosts.Host) -> subprocess.Popen:
    """Starts this machine's part of the run; its ranks are forks of a python that runs there."""
    warm = tempfile.mkdtemp(dir=Path.cwd())
    command = f"sleep infinity | {sys.executable} {WARM} {warm} & until [ -e {warm}/python ]; do sleep 0.1; done\n"
    command += f"exec {TORCHRUN} {PROJECT}/main.py {' '.join(SLOW)} --hang_minutes 0.3"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{HERE}", "OMP_NUM_THREADS": "1", "PATH": path}
    environment["PYTHON_EXEC"] = f"{warm}/python"
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or no machine may take the place of another
    with Path(f"{host.name}.out").open("ab") as out:
        return host.start("bash", "-c", command, stdout=out, stderr=out, env=environment)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 900
    while not condition():
        if time.monotonic() > end:
            pytest.fail("\n".join(f"--- {path.name}\n{path.read_text()[-6000:]}" for path in Path().glob("*.out")))
        time.sleep(0.1)


@pytest.mark.slow
def test_a_link_that_fails_and_a_machine_that_is_replaced_change_nothing_at_the_end(
    network: hosts.Network, ranks
) -> None:
    told = [Path("host2.out"), Path("host3.out")]

    def read() -> str:
        return "".join(path.read_text() for path in told)

    Path("slow").touch()
    agents = [begin(network.hosts["host2"]), begin(network.hosts["host3"])]
    until(LAST.exists)
    network.hosts["host1"].run("ip link set to3 down")
    until(lambda: "failed (exitcode: 1)" in told[0].read_text())  # ended by the watchdog, as the other one, which
    time.sleep(5)  # looks every two seconds, and whose agent waits for the link meanwhile
    network.hosts["host1"].run("ip link set to3 up")
    for rank in (0, 1):
        assert f"rank {rank}: no progress for 0.2 minutes (--hang_minutes 0.3); stack:" in read()
        assert f"rank {rank}: it may be waiting for another rank" in read()
    until(lambda: read().count("from lightning_logs/version_0/checkpoints/last.ckpt") == 1)
    network.hosts["host3"].die()
    agents[1] = begin(network.add(3))
    until(lambda: read().count("from lightning_logs/version_0/checkpoints/last.ckpt") == 2)
    Path("slow").unlink()
    for agent in agents:
        until(lambda agent=agent: agent.poll() is not None)
    assert [agent.returncode for agent in agents] == [0, 0]
    ranks(*SLOW, "--default_root_dir", "whole")
    whole, mended = (torch.load(folder / LAST, weights_only=True) for folder in (Path("whole"), Path()))
    assert all(torch.equal(whole["state_dict"][name], mended["state_dict"][name]) for name in whole["state_dict"])
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


@pytest.fixture
def as_torchrun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Starts a process for each number of epochs, one after the other, all by one parent, as torchrun would."""
    names = "RANK=0 LOCAL_RANK=0 GROUP_RANK=0 TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_RUN_ID=one WORLD_SIZE=1"
    for name in f"{names} LOCAL_WORLD_SIZE=1 GROUP_WORLD_SIZE=1 MASTER_ADDR=localhost MASTER_PORT=29500".split():
        monkeypatch.setenv(*name.split("="))
    fork = multiprocessing.get_context("fork")

    def start(*max_epochs: int) -> None:
        def parent() -> None:
            for number in max_epochs:
                child = fork.Process(target=main.main, args=([*TOYS, "--max_epochs", str(number)],))
                child.start()
                child.join()

        (started := fork.Process(target=parent)).start()
        started.join()

    return start


def runs() -> dict[str, int]:
    """The epochs that each run has trained."""
    found = {}
    for run in sorted(Path("lightning_logs").glob("version_*")):
        last = run / "checkpoints" / "last.ckpt"
        found[run.name] = torch.load(last, weights_only=True)["epoch"] + 1 if last.exists() else 0
    return found


def test_the_command_of_a_run_that_was_cut_off_goes_on_and_that_of_one_that_ended_begins_anew(as_torchrun) -> None:
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(toys.Net, "each_forward", lambda self: 1 / (not LAST.exists()))
        as_torchrun(2)
    as_torchrun(1)  # another one by the same name
    assert runs() == {"version_0": 1, "version_1": 1}
    as_torchrun(2)
    assert runs() == {"version_0": 2, "version_1": 1}
    as_torchrun(2)
    assert runs() == {"version_0": 2, "version_1": 1, "version_2": 2}


@pytest.mark.parametrize("count", ["0", "1"])  # a machine does not count the restarts of which another is the cause
def test_a_process_that_is_started_again_stays_with_the_run_of_its_torchrun(as_torchrun, monkeypatch, count) -> None:
    as_torchrun(2, 2)  # as where another rank has failed at the very end
    assert runs() == {"version_0": 2}
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(toys.Net, "each_forward", lambda self: 1 / Path("broken").exists())
        as_torchrun(2, 2)  # they fail before they have saved
    assert runs() == {"version_0": 2}
    as_torchrun(2)
    assert runs() == {"version_0": 2, "version_1": 2}
