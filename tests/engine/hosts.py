"""Several processes, and several machines in one, with networks of their own, which need Linux and root."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from paths import HERE, PROJECT
from pytorch_lightning.utilities import rank_zero_only

NEW = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"]


def missing(*programs: str) -> str:
    """Why there can be no such machines here, or ""."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root can make network namespaces"
    for program in ("setpriv", "unshare", "nsenter", "ip", *programs):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run([*NEW, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


class Host:
    """A machine.

    It and all that runs in it end with `die`, or when the process that made it ends.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.started: list[subprocess.Popen] = []
        self.holder = subprocess.Popen(
            [*NEW, "--mount-proc", "sh", "-c", "hostname $0; ip link set lo up; echo; exec sleep infinity", name],
            stdout=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if key != "STARTED_BY_TEST"},  # outlives the test
        )
        assert self.holder.stdout
        self.holder.stdout.readline()
        self.holder.stdout.close()
        pid = self.holder.pid
        self.pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Starts a process there."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid", "--wdns=" + os.getcwd()]
        self.started.append(subprocess.Popen([*enter, *command], **options))
        return self.started[-1]

    def run(self, command: str) -> str:
        """What a command line that must succeed prints there."""
        done = self.start("bash", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = done.communicate(timeout=300)
        finally:
            done.kill()
        assert done.returncode == 0, f"{self.name}: {command}\n{out}{err}"
        return out.strip()

    def die(self) -> None:
        """The end of the machine: of each process at once, and of its links."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        for process in (self.holder, *self.started):
            process.kill()
            process.wait()


class Network:
    """Machines joined by a switch, which stands in the first one, at 10.77.0.1. They have one disk and no way out."""

    def __init__(self, folder: Path) -> None:
        self.hosts: dict[str, Host] = {}
        self.names = folder / "hosts"
        self.names.write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{n} host{n}\n" for n in range(1, 10)))

    def add(self, number: int) -> Host:
        """The machine host1, host2, ...; 1 comes first. An earlier one of that number has died."""
        host = Host(f"host{number}", f"10.77.0.{number}")
        self.hosts[host.name] = host
        host.run(f"mount --bind {self.names} /etc/hosts")
        if number == 1:
            host.run("ip link add switch type bridge && ip addr add 10.77.0.1/24 dev switch && ip link set switch up")
        else:
            first, port = self.hosts["host1"], f"to{number}"
            link = f"ip link del {port} 2>/dev/null; ip link add {port} type veth peer name eth0 netns {host.pid}"
            # The namespace is named by a process number, which the switch's machine, with numbers of its own, lacks.
            subprocess.run(["nsenter", "--target", str(first.pid), "--net", "bash", "-c", link], check=True)
            first.run(f"ip link set {port} master switch up")
            host.run(f"ip addr add {host.address}/24 dev eth0 && ip link set eth0 up")
        return host

    def die(self) -> None:
        """The end of all of them."""
        for host in self.hosts.values():
            host.die()


def ranks(number: int, function: Callable[[], int]) -> tuple[int, str]:
    """Calls a function in forks of this process that find each other as torchrun's do: its result, and what it prints.

    Once one of them returns anything but 0, the others are killed.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port, "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_WORLD_SIZE": "1"}
    children, status = set[int](), 0
    with tempfile.TemporaryFile("a+") as out:
        for rank in map(str, range(number)):
            if not (child := os.fork()):
                os.environ |= shared | {"RANK": rank, "LOCAL_RANK": rank}
                rank_zero_only.rank = int(rank)  # read from the environment when Lightning was imported
                sys.stdout = sys.stderr = out
                try:
                    ended = function()
                except BaseException:
                    traceback.print_exc()
                    ended = 1
                out.flush()
                os._exit(ended)
            children.add(child)
        while children:
            child, ended = os.wait()
            children.discard(child)
            if ended and not status:
                status = os.waitstatus_to_exitcode(ended)
                for other in children:
                    os.kill(other, signal.SIGKILL)
        out.seek(0)
        return status, out.read()


def torchrun(folder: str, *argv: str, program: Path = PROJECT / "main.py") -> subprocess.CompletedProcess[str]:
    """Two ranks of a program, in a new folder, that are started again when one dies."""
    with socket.socket() as free:  # two tests may run at a time
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "2"]
    command += ["--master_port", port, str(program), *argv]
    Path(folder).mkdir()
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{HERE}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
