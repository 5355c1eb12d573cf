"""The checkpoint that a command line resumes or evaluates (also a restarted cluster job), and the flags of its run."""

from pathlib import Path

from engine.checkpointing import run_folder, trusted_imports
from engine.checkpointing.find_checkpoint import find_checkpoint
from engine.cli import config_file
from engine.cli.config_file import RawValue
from engine.cli.parser import Restored, takes_no_checkpoint
from engine.errors import UsageError
from engine.launch import cluster_job


def restore(action: str, argv: list[str], given: dict[str, str]) -> Restored:
    """The checkpoint and the flags that the command line resumes from.

    argv: the words after the action.
    given: the text of --ckpt_path, --init_from and the like, of the names of classes, and of all in --config files.

    Raises: UsageError: there is no such checkpoint, it names what may not be imported, or the action takes none.
    """
    ckpt_path, init_from = given.get("ckpt_path"), given.get("init_from")
    root = run_folder.logs_root(given.get("default_root_dir"))
    job_id = cluster_job.job_id(argv) if action == "fit" else ""
    restarted = cluster_job.restarted_run(root, job_id)
    ckpt_path = restarted or ckpt_path
    if ckpt_path and takes_no_checkpoint(action):
        raise UsageError(f"{action} begins with fresh weights and takes no --ckpt_path")
    path, flags = None, {}
    if ckpt_path and ckpt_path.lower() not in ("none", "null"):
        path = find_checkpoint(ckpt_path, root, resume=action == "fit")
        flags = _flags_of(path)
        flags.pop("trust", None)  # only who is at the command line says so
        if given.get("trust", "").lower() not in ("true", "yes", "on", "1"):
            trusted_imports.check({key: raw for key, raw in flags.items() if key not in given}, path)
    if init_from and init_from.lower() in ("none", "null"):
        init_from = None
    if init_from:
        if path and not restarted:
            raise UsageError("--init_from begins a new run and --ckpt_path goes on with one: give one of them")
        init_from = str(find_checkpoint(init_from, root, resume=False, flag="init_from"))
    return Restored(path, flags, init_from, job_id, bool(ckpt_path))


def find_config(name: str) -> Path:
    """The file that --config means; `last` is that of the run below the working directory that was begun last."""
    root = run_folder.logs_root(None)
    runs = run_folder.run_folders(root) if name == "last" and not Path(name).exists() else []
    return runs[-1] / "config.yaml" if runs else Path(name)


def _flags_of(ckpt_path: Path) -> dict[str, RawValue]:
    """The flags of the run that wrote a checkpoint: from its run folder, or else from the checkpoint itself."""
    if run := run_folder.run_of(ckpt_path):
        return config_file.read(run / "config.yaml", kept=True)
    from engine.checkpointing import checkpoint_io  # a checkpoint that was moved can only be asked with torch

    return checkpoint_io.flags_of(ckpt_path)
