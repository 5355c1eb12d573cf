"""The lock of a run: two processes never train it at the same time. No torch here."""

import os
import time
from contextlib import suppress
from pathlib import Path

from engine.errors import UsageError

_held = set[Path]()  # by this process


def acquire(run: Path, job_id: str) -> None:
    """Claims a run for this process until `release`; a claim of a process that has died does not count.

    The lock is a folder beside the run, `.version_3.lock`, with one empty file, the claim. Its name says host, process,
    when that started, and the cluster's job. The folder is made elsewhere and moved into place, which on every kind of
    disk succeeds for one process alone, and only where no folder is or an empty one. A job that its cluster starts
    again, perhaps on another host, takes over from itself.

    Raises: UsageError: another process trains the run, or may do so on another host.
    """
    lock, host = _lock_of(run), _host()
    claim = f"{host}+{os.getpid()}+{_start_time(os.getpid())}+{job_id}"
    new = lock.with_name(f"{lock.name}.{host}.{os.getpid()}")
    deadline = time.monotonic() + 30
    try:
        new.mkdir(exist_ok=True)
        (new / claim).touch()
        while True:
            for path, fields in _claims(lock).items():
                where, same_job = _alive(fields), bool(job_id) and fields[3:] == [job_id]
                if not where or (same_job and " on " in where):
                    path.unlink(missing_ok=True)
                elif not same_job or time.monotonic() > deadline:
                    hint = f"; if that has died, delete {lock}" if " on " in where else ""
                    raise UsageError(f"{run} is being trained by {where}: wait for its end, or stop it{hint}")
            with suppress(OSError):
                lock.rmdir()  # Windows moves nothing onto an empty folder
            try:
                new.rename(lock)
                return _held.add(lock / claim)
            except OSError:  # another one was faster, or the old process of a job that starts again is about to end
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    finally:
        with suppress(OSError):  # it has been moved
            (new / claim).unlink()
            new.rmdir()


def holder(run: Path) -> str:
    """The other process that trains a run, as `process 12`, or `process 12 on HOST`; "" for none."""
    return next(filter(None, map(_alive, _claims(_lock_of(run)).values())), "")


def release() -> None:
    """Releases the locks of this process."""
    while _held:
        claim = _held.pop()
        with suppress(OSError):  # a claim that cannot be deleted ends with this process
            claim.unlink()
            claim.parent.rmdir()


def _lock_of(run: Path) -> Path:
    return run.with_name(f".{run.name}.lock")


def _host() -> str:
    import socket  # not needed for help

    return socket.gethostname().replace("/", "_").replace("+", "_")


def _claims(lock: Path) -> dict[Path, list[str]]:
    """The claims of a lock: host, process, its start, the job."""
    try:
        return {path: path.name.split("+", 3) for path in lock.iterdir()}
    except FileNotFoundError:
        return {}


def _alive(claim: list[str]) -> str:
    """The process of a claim, as `holder` says it; "" where it has died or is this one."""
    host, pid, started = [*claim, "", ""][:3]  # NFS may have a file of its own there
    here = host == _host()
    if not pid.isdecimal() or (here and (pid == str(os.getpid()) or _start_time(int(pid)) != started)):
        return ""
    return f"process {pid}" if here else f"process {pid} on {host}"


def _start_time(pid: int) -> str:
    """When a process of this host started; "" where it is dead, "alive" where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists() or os.name != "posix":
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
