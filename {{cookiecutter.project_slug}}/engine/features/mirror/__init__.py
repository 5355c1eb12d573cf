"""`--mirror s3://bucket/runs`: a copy of the run folder elsewhere, from which another machine can go on."""

import contextlib
import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import ModelParallelStrategy

from engine.checkpointing.checkpoint_io import DurableCheckpointIO
from engine.checkpointing.file_names import unsafe
from engine.errors import UsageError
from engine.features.mirror import storage

_open: list["Mirror"] = []  # of this process; more than one where it trains several runs


def callbacks(folder: Path, model: Any, data: Any, *, mirror: str | None = None) -> list[Callback]:
    """mirror: copy the run there after each checkpoint, such as s3://bucket/runs; --ckpt_path takes such an address."""
    return [Mirror(folder, mirror)] if mirror else []


def fetch(address: str, root: Path, flag: str) -> Path:
    """A run, or a file, at an address such as s3://bucket/runs/version_3, on this machine. flag: which named it."""
    return storage.fetch(address, root, flag)


def finish() -> None:
    """Sends what came after the last checkpoint, when all is done.

    Raises:
        SystemExit: some run could not be sent; the exit status is 1, so that no script throws the machine away.
    """
    behind = [one for one in _open if not one.finish()]
    _open.clear()
    if behind:
        raise SystemExit("\n".join(one.complaint() for one in behind))


class Mirror(Callback):
    """Copies the run folder in a thread of its own, one copy at a time; of those that wait the newest is made.

    What is copied is a checkpoint and all that it counts on: checkpoints are held by hard links while they are sent,
    the rest (metrics.csv and so on) is at least as new, and last.ckpt goes last. A copy that fails is said once, and
    made after the next checkpoint.

    folder: of the run, which training needs alone. url: the folder of the run folders there.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.place, self.wrong = folder, url, "", ""
        self.files: Any = None
        self._sent: dict[str, tuple[int, ...]] = {}
        self._pool = ThreadPoolExecutor(1, "mirror")
        self._copies: list[tuple[Future[None], dict[str, Path]]] = []
        self.active, self._count = False, 0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.active or getattr(trainer, "fast_dev_run", False):
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UsageError("--mirror copies checkpoints that are files; --strategy model_parallel writes folders")
        self.active, wrong = True, ""
        if trainer.is_global_zero:
            try:
                self._connect()
            except UsageError as error:
                wrong = str(error)
        if wrong := trainer.strategy.broadcast(wrong):  # all end, instead of waiting for the first
            raise UsageError(wrong)
        if self.place:
            trainer.strategy.checkpoint_io = _Telling(self)
            _open.append(self)

    def _connect(self) -> None:
        self.files, base = storage.connect(self.url, "mirror")
        if storage.is_folder(self.files, f"{base}/{self.folder.name}", self.folder):
            print(f"--mirror {self.url}: {self.folder} lies there itself and is not copied", file=sys.stderr)
            return
        with storage.one_line(f"--mirror {self.url}"):
            self.place = storage.claim(self.files, base, self.folder)
            there = self.files.find(self.place)
        names = (path.removeprefix(f"{self.place}/") for path in there)
        self._sent = dict.fromkeys((name for name in names if not unsafe(name)), ())

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self in _open:
            _open.remove(self)
            if not self.finish():
                print(self.complaint(), file=sys.stderr, flush=True)
        stopped = any(getattr(one, "received", 0) for one in trainer.checkpoint_callbacks)
        if self.active and stopped and isinstance(exception, SystemExit):
            trainer.strategy.barrier()  # what started the processes ends the first one too as soon as one is gone

    def checkpoint_saved(self) -> None:
        """Has the folder copied as it is now; what training does with it from now on does not matter."""
        self._count += 1
        links: dict[str, Path] = {}
        for waiting, held in self._copies:
            if waiting.cancel():
                _remove(held)
        try:
            for path in sorted(self.folder.glob("checkpoints/*.ckpt")):
                links[f"checkpoints/{path.name}"] = link = path.with_name(f".{self._count}-{path.name}.part")
                _hold(path, link)
        except OSError as error:
            _remove(links)
            return self._fail(error)
        self._copies = [copy for copy in self._copies if not copy[0].done()]
        self._copies.append((self._pool.submit(self._copy, links), links))

    def finish(self) -> bool:
        """Copies the folder as it is now that nothing changes in it any more, and returns whether that worked."""
        for future, links in self._copies:
            if not future.cancel():
                future.result()
            _remove(links)
        self._copies = []
        self._copy({}, last=True)
        return not self.wrong

    def complaint(self) -> str:
        """What the end of a run says whose copy is not whole."""
        return (
            f"--mirror: {self.url} lacks the newest of {self.folder} ({self.wrong}), which is whole here; "
            f"this sends it:\npython main.py --ckpt_path {self.folder}"
        )

    def _copy(self, links: dict[str, Path], last: bool = False) -> None:
        try:
            if not storage.holds(self.files, self.place, self.folder):
                raise OSError(f"{self.place} was deleted, or another machine has gone on with it")
            self._send(links)
            self.wrong = ""
        except Exception as error:  # each storage has its own; none of them may end a training
            self._fail(error, last)
        finally:
            _remove(links)

    def _fail(self, error: Exception, last: bool = False) -> None:
        if not self.wrong and not last:  # of the last one the end of the run tells
            said = f"--mirror {self.url}: {storage.reason(error)}; training goes on, and it is tried again"
            print(said, file=sys.stderr, flush=True)
        self.wrong = storage.reason(error)

    def _send(self, links: dict[str, Path]) -> None:
        """Sends what is new and drops the checkpoints that are no more, before a last.ckpt that does not know them."""
        now = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if _counts(path)}
        if links:
            now = {name: path for name, path in now.items() if not name.endswith(".ckpt")} | links
        last = [name for name in now if name == "checkpoints/last.ckpt"]
        for name in sorted(now.keys() - set(last)):
            self._put(name, now[name])
        for name in [name for name in self._sent if name.startswith("checkpoints/") and name not in now]:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(f"{self.place}/{name}")
            del self._sent[name]
        for name in last:
            self._put(name, now[name])

    def _put(self, name: str, path: Path) -> None:
        """Sends a file that is new, under its own name only when it is there whole."""
        try:
            told = path.stat()
            stamp = (told.st_ino, told.st_size, told.st_mtime_ns)
            if self._sent.get(name) == stamp:
                return
            to = f"{self.place}/{name}"
            if storage.is_object_store(self.files):
                self.files.put_file(str(path), to)
            else:
                self.files.makedirs(to.rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(path), f"{to}.part")
                self.files.mv(f"{to}.part", to)
            self._sent[name] = stamp
        except FileNotFoundError:
            if path.exists():  # else it is gone since it was listed, as temporary files are
                raise


class _Telling(DurableCheckpointIO):
    """Tells the mirror of each checkpoint."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__()
        self.mirror = mirror

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.mirror.checkpoint_saved()


def _counts(path: Path) -> bool:
    return path.suffix != ".part" and path.is_file() and not path.is_symlink()


def _hold(path: Path, link: Path) -> None:
    """A second name for a file, which keeps it as it is when another takes over the first."""
    try:
        os.link(path, link)
    except OSError:  # a disk without links
        shutil.copyfile(path, link)


def _remove(links: dict[str, Path]) -> None:
    for link in links.values():
        link.unlink(missing_ok=True)
