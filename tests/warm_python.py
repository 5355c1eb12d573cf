"""A `python` that has torch, Lightning and scikit-learn imported, for tests whose subject is not how a process starts.

    python tests/warm_python.py FOLDER

puts a program `python` into a folder. It runs a script as python does, with the same words, folder, environment,
files, signals and exit status, but in a fork of this process, which stays until its standard input is closed. What is
no script, such as `python -m pytest`, it leaves to the real python. One difference is left: who signals a whole process
group reaches the program, and by it the script, but not what the script has started.
"""

import atexit
import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import sys
import threading
import types
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
words = sys.argv[1:]
if words[:1] == ["-u"]:  # of torchrun
    os.environ["PYTHONUNBUFFERED"] = words.pop(0)
if not words or not words[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *words])
closed = []
for number in (0, 1, 2):
    try:
        os.fstat(number)
    except OSError:
        closed.append(os.open(os.devnull, os.O_RDWR))  # the lowest free number, this one
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
server.connect({address!r})
passed_on = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
ignored = [number for number in passed_on if signal.getsignal(number) == signal.SIG_IGN]
asked = [words, os.getcwd(), dict(os.environ), ignored, closed]
socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
child = int(server.recv(100))
for number in passed_on:  # also those that this process was started to ignore: the script may think otherwise
    signal.signal(number, lambda number, _: os.kill(child, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
status = os.waitstatus_to_exitcode(int(server.recv(100)))
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def serve(folder: Path) -> dict[str, object] | None:
    """Forks a child for each client; returns what a child is to do, in the child."""
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server, selectors.DefaultSelector() as waiting:
        server.bind(address)
        server.listen(64)
        waiting.register(server, selectors.EVENT_READ)
        waiting.register(0, selectors.EVENT_READ)
        program = folder / "python.part"
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        program.rename(folder / "python")
        while True:
            for key, _ in waiting.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is server:
                    client = server.accept()[0]
                    words, files, *_ = socket.recv_fds(client, 1 << 20, 3)
                    if not (child := os.fork()):
                        return {"asked": json.loads(words), "files": files, "program": str(folder / "python")}
                    for file in files:
                        os.close(file)
                    client.send(str(child).encode())
                    end = os.pidfd_open(child)
                    for file in (client, end):
                        waiting.register(file, selectors.EVENT_READ, (child, client, end))
                    continue
                child, client, end = key.data
                with contextlib.suppress(ProcessLookupError):
                    if key.fileobj is client:  # killed, and with it what it ran
                        os.kill(child, signal.SIGKILL)
                        os.killpg(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                with contextlib.suppress(OSError):
                    client.send(str(status).encode())
                for file in (client, end):
                    waiting.unregister(file)
                client.close()
                os.close(end)
                break  # the other one of the two may be in the list as well


def become(asked: list, files: list[int], program: str, added: dict[str, str]) -> Path:
    """Makes this process one that was started with these words: its script."""
    (script, *words), folder, environment, ignored, closed = asked
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    at_once = bool(environment.get("PYTHONUNBUFFERED"))
    for name, file, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        lines = name == "stderr" or os.isatty(file)
        binary = open(file, "wb", buffering=0 if at_once else -1, closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(binary, "utf-8", errors, line_buffering=lines, write_through=at_once)
        setattr(sys, name, stream)
    for number in closed:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(added | environment)
    sys.argv, sys.executable = [script, *words], program
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    own = [str(Path(script).resolve().parent)]
    sys.path[:1] = own + [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    import torch
    from lightning_fabric.utilities.rank_zero import _get_rank
    from pytorch_lightning.utilities import rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    return Path(script)


if __name__ == "__main__":
    before = dict(os.environ)
    for name in ("pytorch_lightning", "torch.utils.tensorboard", "sklearn.datasets", "s3fs"):  # what runs import
        importlib.import_module(name)

    gc.freeze()  # a fork shares what it need not look through
    if (begun := serve(Path(sys.argv[1]))) is not None:
        new = {name: value for name, value in os.environ.items() if before.get(name) != value}
        path = become(begun["asked"], begun["files"], begun["program"], new)
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__dict__.update({"__file__": str(path), "__builtins__": builtins})
        status = 0
        try:
            exec(compile(path.read_bytes(), str(path), "exec"), main.__dict__)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if status and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
            status = 1
        threading._shutdown()  # waits for threads, as the end of a process does
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(status)  # without a second in which the modules of torch are taken apart
