"""The watchdog: each process prints its stack when no batch has begun for a while."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from pytorch_lightning import Trainer

from engine.lightning_compat import set_process_group_timeout


@contextmanager
def watch(trainer: Trainer, minutes: float) -> Iterator[None]:
    """Watches a run while it lasts.

    minutes: after so long without a batch each process prints its stack on standard error; where there are several,
        those that wait for another one give up, and then the stuck one is ended too, with exit status 1.
    """
    set_process_group_timeout(trainer.strategy, timedelta(minutes=minutes))
    over = threading.Event()
    threading.Thread(target=_watch, args=(trainer, minutes, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(trainer: Trainer, minutes: float, over: threading.Event) -> None:
    before, since, reported = _progress(trainer), time.monotonic(), False
    while not over.wait(min(5.0, 6 * minutes)):
        still = (time.monotonic() - since) / minutes / 60
        if (now := _progress(trainer)) != before:
            before, since, reported = now, time.monotonic(), False
        elif not reported and still > 0.8:  # before the others give up and end the run
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            stack = "".join(traceback.format_stack(frame)[-8:])
            start = f"rank {trainer.global_rank}: nothing has moved for {still * minutes:.1f} minutes"
            print(f"{start} (--hang_minutes {minutes:g}); it stands here:\n{stack}", file=sys.stderr, flush=True)
            if trainer.world_size > 1:
                others = "Is it waiting for another one? See what the others say, and whether their machines answer."
                print(f"rank {trainer.global_rank}: {others}", file=sys.stderr, flush=True)
            reported = True
        elif still > 1.2 and trainer.world_size > 1:  # it hears no signal where it stands
            os._exit(1)


def _progress(trainer: Trainer) -> tuple[int, ...]:
    """The batches begun so far, in every loop."""
    loops = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop
    loops += trainer.test_loop, trainer.predict_loop  # type: ignore[assignment]
    return trainer.global_step, *(loop.batch_progress.current.ready for loop in loops)
