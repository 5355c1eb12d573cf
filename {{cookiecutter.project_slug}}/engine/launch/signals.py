"""What happens on Ctrl-C and other signals: a flag is set, the ranks agree on it, and the process exits with 128 + n.

LastCheckpoint saves in between. No torch here before ranks agree.
"""

import signal
import time
from typing import Any, NoReturn

from engine.launch import cluster_job

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class SignalListener:
    """Handlers that keep the first signal for later; a second one, or one outside training, ends the process at once.

    received: the signal that any rank got, as of the last `agree`; 0 for none.
    defer: whether a signal waits for `agree`, as it does during training.
    """

    def __init__(self) -> None:
        self.received, self.defer = 0, False
        self._local = 0  # the signal that this rank got
        self._installed = False
        # Those before a Trainer's, which Lightning takes away before `restore`: set again, they would swallow SIGTERM.
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        if handlers.get(hangup := getattr(signal, "SIGHUP", None)) == signal.SIG_IGN:
            del handlers[hangup]  # under nohup, the run outlives its terminal
        self._previous_handlers = handlers
        self._calls, self._calls_between, self._asked_at = 0, 1, time.monotonic()

    def install(self) -> None:
        """Sets the handlers, in the main thread alone: Python allows no other."""
        if not self._installed and _in_main_thread():
            self._installed = True
            for signum in self._previous_handlers:
                signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Sets the handlers that were there before."""
        for signum, handler in self._previous_handlers.items() if self._installed else ():
            signal.signal(signum, handler)
        self._installed = self.defer = False

    def _handle(self, signum: int, frame: Any) -> None:
        if self._local or not self.defer:
            exit_on_signal(signum)
        self._local = signum

    def ask_soon(self) -> None:
        """Makes the next `agree` ask the other ranks: the calls that follow may be far slower than those before."""
        self._calls_between = 1

    def agree(self, trainer: Any, now: bool = False) -> bool:
        """Whether any rank got a signal. Several ranks ask each other about once a second, or `now`.

        That is every so many calls, a number that all ranks know, as all of them have to ask in the same call.
        """
        self.received = self._local
        if trainer.world_size > 1:
            import torch

            self._calls += 1
            if self._calls < self._calls_between and not now:
                self.received = 0
                return False
            time_now = time.monotonic()
            calls_a_second = int(self._calls / max(time_now - self._asked_at, 0.01))
            values = [self._local, max(1, min(calls_a_second, 100))]
            tensor = torch.tensor(values, device=trainer.strategy.root_device)
            self.received, self._calls_between = trainer.strategy.reduce(tensor, reduce_op="max").tolist()
            self._calls, self._asked_at = 0, time_now
        return bool(self.received)


def _in_main_thread() -> bool:
    import threading  # not needed for help

    return threading.current_thread() is threading.main_thread()


def ignore_signals() -> None:
    """Ignores all further signals."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def handle_early_signals() -> None:
    """Requeues a SLURM job whose signal comes while the program is starting and has nothing to save yet."""
    if cluster_job.slurm_job_id() and _in_main_thread():
        for signum in (cluster_job.WARNING, signal.SIGTERM):
            signal.signal(signum, lambda signum, frame: exit_on_signal(signum))


def exit_on_signal(signum: int) -> NoReturn:
    """Ends the process with exit status 128 + signum; a SLURM job that is warned or preempted is requeued first."""
    if cluster_job.slurm_job_id() and signum in (cluster_job.WARNING, signal.SIGTERM):
        cluster_job.requeue_if_due(signum)
    raise SystemExit(128 + signum)
