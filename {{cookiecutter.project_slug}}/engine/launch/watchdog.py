"""Watchdog: a process that starts no batch for a while prints its stack."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning import Trainer

from engine.lightning_compat import set_process_group_timeout


@contextmanager
def watch(trainer: Trainer, minutes: float) -> Iterator[None]:
    """Watches a run in the body of a `with` statement.

    minutes: after so long without a new batch, a process prints its stack to standard error; of several processes, all
        that make no progress are then ended, with exit status 1.
    """
    # Of torch's waits the time in which all processes were stopped cannot be told, so _watch alone counts.
    set_process_group_timeout(trainer.strategy, days=7)
    finished = threading.Event()
    threading.Thread(target=_watch, args=(trainer, minutes, finished), daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _watch(trainer: Trainer, minutes: float, finished: threading.Event) -> None:
    before, since, reported = _progress(trainer), time.monotonic(), False
    pause, looked = min(5.0, 6 * minutes), time.monotonic()
    while not finished.wait(pause):
        stopped = max(0.0, time.monotonic() - looked - 2 * pause)  # as by SIGSTOP, which is no hang
        looked, since = time.monotonic(), since + stopped
        idle = (time.monotonic() - since) / minutes / 60
        if (now := _progress(trainer)) != before:
            before, since, reported = now, time.monotonic(), False
        elif not reported and idle > 0.8:
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            stack = "".join(traceback.format_stack(frame)[-8:])
            start = f"rank {trainer.global_rank}: no progress for {idle * minutes:.1f} minutes"
            print(f"{start} (--hang_minutes {minutes:g}); stack:\n{stack}", file=sys.stderr, flush=True)
            if trainer.world_size > 1:
                hint = "it may be waiting for another rank: see their stacks, and whether their machines answer"
                print(f"rank {trainer.global_rank}: {hint}", file=sys.stderr, flush=True)
            reported = True
        elif idle > 1.2 and trainer.world_size > 1:  # a signal would not be handled while the main thread hangs
            os._exit(1)


def _progress(trainer: Trainer) -> tuple[int, ...]:
    """Optimizer steps, and the batches that each loop has started."""
    loops = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop
    loops += trainer.test_loop, trainer.predict_loop  # type: ignore[assignment]
    return trainer.global_step, *(loop.batch_progress.current.ready for loop in loops)
