"""scripts/train.sbatch on a real SLURM: a controller and two nodes, each a machine of its own as far as it can tell."""

import os
import re
import shlex
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
import yaml
from paths import PROJECT, TOYS, WARM

NEEDS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "munged")
WHY_NOT = hosts.missing(*NEEDS)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no SLURM here: {WHY_NOT}"),
]

CONFIG = """
ClusterName=test
SlurmctldHost=host1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
KillWait=8
NodeName=host[2-3] CPUs=16 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
ARGV = [
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
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


class Slurm:
    """A running SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network = folder, hosts.Network(folder)
        for name in ("state", "spool-host2", "spool-host3"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.warm = folder / "warm"  # each node has one of its own there: a job's processes need not import torch
        self.warm.mkdir()
        path = f"{self.warm}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        drop = ("SLURM_", "SBATCH_", "PYTEST_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
        self.head = self.network.add(1)
        files = [f"--{what}-file={folder}/munge.{what}" for what in ("key", "pid", "log", "seed")]
        self.daemon(self.head, "munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *files)
        self.until(lambda: (folder / "munge.socket").exists())
        self.daemon(self.head, "slurmctld", "-D")
        for number in (2, 3):
            self.node(number)

    def daemon(self, host: hosts.Host, *command: str) -> None:
        """Starts a part of SLURM on a machine, with which it ends."""
        with (self.folder / f"{command[0]}-{host.name}.out").open("ab") as out:
            host.start(*command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment)

    def node(self, number: int) -> None:
        """Starts a node, again where it has died, and waits until it takes part."""
        host, own = self.network.add(number), Path(tempfile.mkdtemp(dir=self.folder))
        host.run(f"mount --bind {own} {self.warm}")
        self.daemon(host, "slurmd", "-D")
        self.daemon(host, "sh", "-c", f"sleep infinity | {sys.executable} {WARM} {self.warm}")
        self.until(lambda: re.search(rf"^host{number} (idle|mix|alloc)", self.ask("sinfo", "-hNo", "%N %t"), re.M))
        self.until((own / "python").exists)

    def ask(self, *command: str) -> str:
        """What a command of SLURM's, given on the controller's machine, prints; "" while it cannot be answered."""
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": self.environment}
        with self.head.start("timeout", "10", *command, **told) as done:
            answer = done.communicate()[0].strip()
        return answer if done.returncode == 0 else ""

    def submit(self, *command: str) -> str:
        """Gives a job in: its number."""
        return re.findall(r"Submitted batch job (\d+)", self.ask(*command))[0]

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.ask("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Waits; when in vain, what SLURM and the jobs have said is shown."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                said = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *Path().glob("*.out")]
                pytest.fail("\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in said))
            time.sleep(0.2)

    def ends(self, number: str, state: str = "COMPLETED") -> None:
        """Waits for the end of a job."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.job(number).get("JobState") in (state, *over))
        assert self.job(number)["JobState"] == state, Path(f"slurm-{number}.out").read_text()[-5000:]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    made = Slurm.__new__(Slurm)
    try:
        made.__init__(tmp_path_factory.mktemp("slurm"))
        yield made
    finally:
        made.network.die()


@pytest.fixture(autouse=True)
def _project() -> None:
    for name in ("main.py", "scripts"):
        Path(name).symlink_to(PROJECT / name)
    Path("slow").touch()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the same run without SLURM, from its beginning to its end on one machine."""
    folder = tmp_path_factory.mktemp("whole")
    argv = [*ARGV, "--devices", "2", "--strategy", "ddp", "--default_root_dir", str(folder)]
    status, said = hosts.ranks(2, lambda: (os.chdir(folder), main.main(argv)))
    assert status == 0, said
    return torch.load(folder / LAST, weights_only=True)["state_dict"]


def said(job: str) -> str:
    return Path(f"slurm-{job}.out").read_text()


def same(whole: dict[str, torch.Tensor]) -> bool:
    last = torch.load(LAST, weights_only=True)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert last["epoch"] == 11
    return all(torch.equal(whole[name], last["state_dict"][name]) for name in whole)


OWN = ["--ntasks=2", "--requeue", "--open-mode=append", "--wrap=" + shlex.join(["srun", "python", "main.py", *ARGV])]


@pytest.mark.parametrize("script", [["scripts/train.sbatch", *ARGV], OWN], ids=["warned", "by SIGTERM"])
def test_a_job_that_has_to_give_way_goes_on_to_the_same_end(
    slurm: Slurm, whole: dict[str, torch.Tensor], script
) -> None:
    job = slurm.submit("sbatch", "--nodes=2", *script)
    slurm.until(LAST.exists)
    other = slurm.submit("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    slurm.ends(other)
    Path("slow").unlink()
    begun = torch.load(LAST, weights_only=True)
    assert begun["epoch"] < 11
    assert "stopped by a signal and saved; this goes on:\npython main.py --ckpt_path lightning_logs/ver" in said(job)
    slurm.ends(job)
    assert slurm.job(job)["Restarts"] == "1"
    assert "from lightning_logs/version_0/checkpoints/last.ckpt: lightning_logs/version_0 (cpu" in said(job)
    assert same(whole)


def test_a_job_whose_node_dies_goes_on_to_the_same_end(slurm: Slurm, whole: dict[str, torch.Tensor]) -> None:
    job = slurm.submit("sbatch", "--nodes=2", "scripts/train.sbatch", *ARGV)
    slurm.until(LAST.exists)
    slurm.network.hosts["host3"].die()
    slurm.until(lambda: (now := slurm.job(job)).get("Restarts") == "1" and now["JobState"] == "PENDING")
    assert torch.load(LAST, weights_only=True)["epoch"] < 11
    Path("slow").unlink()
    slurm.ask("scontrol", "hold", job)
    slurm.node(3)
    time.sleep(3)  # what a node that has come back may still be told of the job's first time is told by the second
    slurm.ask("scontrol", "release", job)
    slurm.ends(job)
    assert same(whole)


def test_a_cancelled_job_is_saved_and_says_how_to_go_on(slurm: Slurm, whole: dict[str, torch.Tensor], ranks) -> None:
    job = slurm.submit("sbatch", "--nodes=2", "scripts/train.sbatch", *ARGV)
    slurm.until(LAST.exists)
    slurm.ask("scancel", job)
    slurm.ends(job, "CANCELLED")
    slurm.until(lambda: "stopped by" in said(job))
    assert "saved; this goes on:\npython main.py --ckpt_path lightning_logs/version_0\n" in said(job)
    assert torch.load(LAST, weights_only=True)["epoch"] < 11
    Path("slow").unlink()
    ranks("--ckpt_path", str(RUN))
    assert same(whole)


def test_an_array_trains_a_seed_a_task_and_a_warning_before_the_first_step_loses_none(slurm: Slurm) -> None:
    job = slurm.submit(
        "sbatch",
        "--array=1-3",
        "scripts/train.sbatch",
        *TOYS,
        "--dataset",
        "toys.Late",
        "--max_epochs",
        "1",
    )
    slurm.until(lambda: len([*Path().glob("late-*")]) == 3)
    slurm.ask("scancel", "--signal=USR1", job)
    for task in (1, 2, 3):
        slurm.ends(f"{job}_{task}")
        assert slurm.job(f"{job}_{task}")["Restarts"] == "1"
    configs = [yaml.safe_load(path.read_text()) for path in Path("lightning_logs").glob("version_*/config.yaml")]
    assert sorted(config["seed"] for config in configs) == list(main.SEEDS[:3])


@pytest.mark.parametrize("line", re.findall(r"^# +(sbatch .*)$", (PROJECT / "scripts/train.sbatch").read_text(), re.M))
def test_slurm_understands_the_commands_of_the_script_as_they_stand_there(slurm: Slurm, line: str) -> None:
    here = line.replace("sbatch", "sbatch --test-only", 1).replace(" --gpus-per-node=4", "")  # there are none
    assert "to start at" in slurm.ask(*shlex.split(here))
