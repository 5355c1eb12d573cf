"""Several processes, and several machines in one, with networks of their own, which need Linux and root."""

import contextlib
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

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


def ranks(number: int, function: Callable[[], object], *, restarts: int = 0) -> tuple[int, str]:
    """Calls a function in forks of this process that find each other as torchrun's do: the status, and what they print.

    A rank ends with the status with which its function exits, and with 0 where it returns. Once one of them ends with
    another one, the others are killed, a little later unless it was killed itself, and all are started again, so many
    times.
    """
    shared = {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": uuid.uuid4().hex, "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_WORLD_SIZE": "1"}
    with tempfile.TemporaryFile("a+") as out:
        for restart in range(restarts + 1):
            with socket.socket() as free:
                free.bind(("", 0))
                shared |= {"MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_RESTART_COUNT": str(restart)}
            children = {
                _fork(function, shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(n)), out) for n in range(number)
            }
            status, killed = 0, 0.0
            while children:
                child, ended = os.waitpid(-1, os.WNOHANG if status else 0)
                if child in children and ended and not status:
                    status = os.waitstatus_to_exitcode(ended)
                    killed = time.monotonic() + (5 if status > 0 else 0)  # those that fail as well may say so
                children.discard(child)
                if status and time.monotonic() > killed:
                    for other in children:
                        os.kill(other, signal.SIGKILL)
                time.sleep(0.02 if status else 0)
            if not status:
                break
        out.seek(0)
        return status, out.read()


def _fork(function: Callable[[], object], environment: dict[str, str], out: IO[str]) -> int:
    """Calls a function in a fork of this process: its number."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12's, where there are threads: none that it needs
        if child := os.fork():
            return child
    gc.freeze()  # else what this process left behind is collected in the fork too, within whatever runs there
    os.environ |= environment
    rank_zero_only.rank = int(environment["RANK"])  # read from the environment when Lightning was imported
    sys.stdout = sys.stderr = out
    for number in (1, 2):
        os.dup2(out.fileno(), number)
    status = 0
    try:
        function()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    out.flush()
    os._exit(status)


def torchrun(python: str, folder: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of a run, each a process of that python, in a new folder; they are started again when one dies."""
    with socket.socket() as free:  # two tests may run at a time
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "2"]
    command += ["--master_port", port, str(PROJECT / "main.py"), *argv]
    Path(folder).mkdir()
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{HERE}", "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
