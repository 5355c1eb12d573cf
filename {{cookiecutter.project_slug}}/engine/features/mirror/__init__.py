"""`--mirror s3://bucket/runs`: uploads the run folder after each checkpoint, so that another machine can resume it."""

import contextlib
import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import ModelParallelStrategy

from engine.checkpointing.checkpoint_callbacks import LastCheckpoint
from engine.checkpointing.checkpoint_io import DurableCheckpointIO
from engine.checkpointing.run_folder import resume_command
from engine.checkpointing.safe_file_names import unsafe_reason
from engine.cli.credentials import hide
from engine.errors import UsageError
from engine.features.mirror import download, storage

NOT_KEPT = ("mirror",)  # else a stranger's run could upload files of this machine to his bucket
fetch = download.fetch  # for find_checkpoint, which asks the features for it
_active: list["Mirror"] = []  # of this process: one for each run that it trains


def callbacks(run_dir: Path, *, mirror: str | None = None) -> list[Callback]:
    """mirror: upload the run after each checkpoint, such as to s3://bucket/runs; --ckpt_path s3://... resumes it."""
    if mirror == "":  # such as `--mirror=$BUCKET` of a shell that has no BUCKET
        raise UsageError("--mirror: expected an address or a folder, or none")
    return [Mirror(run_dir, mirror)] if mirror else []


def finish() -> None:
    """Uploads what was written after the last checkpoint.

    Raises: SystemExit: an upload failed; the exit status is 1, so that no script deletes the machine.
    """
    failed = [mirror for mirror in _active if not mirror.finish()]
    _active.clear()
    if failed:
        raise SystemExit("\n".join(mirror.failure_message() for mirror in failed))


class Mirror(Callback):
    """Uploads the run folder in a background thread, one upload at a time; checkpoints during an upload start none.

    An upload is consistent: hard links keep the checkpoints as they were, all other files (metrics.csv ...) are at
    least as new, and last.ckpt is uploaded last. A failed upload is reported once and retried at the next checkpoint.
    """

    def __init__(self, run_dir: Path, url: str) -> None:
        self.run_dir, self.url, self.shown = run_dir, url, hide(url)
        self.remote_dir = self.error = ""
        self.fs: Any = None
        self.active = False
        self._uploaded: dict[str, tuple[int, ...]] = {}  # relative path -> inode, size and time when it was uploaded
        self._pool = ThreadPoolExecutor(1, "mirror")
        self._upload_in_progress: Future[None] | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.active or getattr(trainer, "fast_dev_run", False):
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UsageError("--mirror copies checkpoints that are files; --strategy model_parallel writes folders")
        self.active, error = True, ""
        if trainer.is_global_zero:
            try:
                self._connect()
            except UsageError as usage_error:
                error = str(usage_error)
        if error := trainer.strategy.broadcast(error):  # all ranks end
            raise UsageError(error)
        if self.remote_dir:
            trainer.strategy.checkpoint_io = MirroringCheckpointIO(self)
            _active.append(self)

    def _connect(self) -> None:
        self.fs, base = storage.connect(self.url, "mirror")
        there = Path(base, self.run_dir.name)
        if storage.is_local(self.fs) and there.resolve() == self.run_dir.resolve():
            print(f"--mirror {self.shown}: {self.run_dir} is in that folder itself and is not copied", file=sys.stderr)
            return
        with storage.one_line_errors(f"--mirror {self.url}"):
            self.remote_dir = storage.claim(self.fs, base, self.run_dir)
            names = [path.removeprefix(f"{self.remote_dir}/") for path in self.fs.find(self.remote_dir)]
        self._uploaded = {name: () for name in names if not unsafe_reason(name)}

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self in _active:
            _active.remove(self)
            if not self.finish():
                print(self.failure_message(), file=sys.stderr, flush=True)
        stopped = any(one.signals.received for one in trainer.checkpoint_callbacks if isinstance(one, LastCheckpoint))
        if self.active and stopped and isinstance(exception, SystemExit):
            trainer.strategy.barrier()  # when one process ends, the launcher ends the first one too, amid its upload

    def start_upload(self) -> None:
        """Uploads the run folder as it is now, in the background, unless the last upload is still in progress."""
        if self._upload_in_progress and not self._upload_in_progress.done():
            return
        links = {}
        try:
            for path in sorted(self.run_dir.glob("checkpoints/*.ckpt")):
                links[f"checkpoints/{path.name}"] = link = path.with_name(f".{path.name}.part")
                _link_or_copy(path, link)
        except OSError as error:
            _remove(links)
            self._report(error)
            return
        self._upload_in_progress = self._pool.submit(self._upload, links)

    def finish(self) -> bool:
        """Waits for the upload, uploads the final run folder, and returns whether that succeeded."""
        if self._upload_in_progress:
            self._upload_in_progress.result()
        self._upload({}, final=True)
        return not self.error

    def failure_message(self) -> str:
        """What to print at the end of a run whose upload failed."""
        lacks = f"{self.shown} lacks the newest of {self.run_dir} ({self.error}), which is whole here"
        return f"--mirror: {lacks}; to upload it:\n{resume_command(self.run_dir)}"

    def _upload(self, links: dict[str, Path], final: bool = False) -> None:
        try:
            if not storage.is_owner(self.fs, self.remote_dir, self.run_dir):
                raise OSError(f"{self.remote_dir} was deleted, or another machine has resumed from it")
            self._sync(links)
            self.error = ""
        except Exception as error:  # each storage has its own; none may end the training
            self._report(error, final)
        finally:
            _remove(links)

    def _report(self, error: Exception, final: bool = False) -> None:
        if not self.error and not final:  # failure_message follows the final upload
            line = f"--mirror {self.shown}: {storage.one_line(error)}; training continues and will retry"
            print(line, file=sys.stderr, flush=True)
        self.error = storage.one_line(error)

    def _sync(self, links: dict[str, Path]) -> None:
        """Uploads new files and deletes removed checkpoints, and then last.ckpt, which does not refer to these.

        links: the checkpoints to upload under their relative paths; empty for those in the run folder.
        """
        files = {}
        for path in self.run_dir.rglob("*"):
            if path.suffix != ".part" and path.is_file() and not path.is_symlink():
                files[path.relative_to(self.run_dir).as_posix()] = path
        if links:
            files = {name: path for name, path in files.items() if not name.endswith(".ckpt")} | links
        last = files.pop("checkpoints/last.ckpt", None)
        for name in sorted(files):
            self._put(name, files[name])
        kept = {*files, "checkpoints/last.ckpt"} if last else {*files}
        for name in [name for name in self._uploaded if name.startswith("checkpoints/") and name not in kept]:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.remote_dir}/{name}")
            del self._uploaded[name]
        if last:
            self._put("checkpoints/last.ckpt", last)

    def _put(self, name: str, path: Path) -> None:
        """Uploads a file that has changed; it gets its remote name when the upload is complete."""
        try:
            stat = path.stat()
            version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._uploaded.get(name) == version:
                return
            remote = f"{self.remote_dir}/{name}"
            if storage.is_object_store(self.fs):
                self.fs.put_file(str(path), remote)
            else:
                self.fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(path), f"{remote}.part")
                self.fs.mv(f"{remote}.part", remote)
            self._uploaded[name] = version
        except FileNotFoundError:
            if path.exists():  # else a temporary file was removed after it was listed
                raise


class MirroringCheckpointIO(DurableCheckpointIO):
    """Starts an upload after each checkpoint."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__()
        self.mirror = mirror

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.mirror.start_upload()


def _link_or_copy(path: Path, link: Path) -> None:
    """Keeps a file under a second name, which stays when the first is replaced."""
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, link)


def _remove(links: dict[str, Path]) -> None:
    for link in links.values():
        link.unlink(missing_ok=True)
