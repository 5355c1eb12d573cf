"""Reading and writing checkpoint files: writes are atomic, reads execute no code."""

import io
import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.serialization import get_unsafe_globals_in_checkpoint

from engine.cli import features_and_commands
from engine.cli.config_file import RawValue
from engine.errors import UsageError


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes to NAME.part, syncs it to disk, and then renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves; at every moment `path` is the old file or the new one, whole.

        Raises: UsageError: a value is of a type that `load` refuses.
        """
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if get_unsafe_globals_in_checkpoint(part):
                part.unlink()
                what = f"{_refused_value(checkpoint)} is put in, by on_save_checkpoint or save_hyperparameters perhaps"
                raise UsageError(f"no checkpoint can hold it: {what}; list(queue) or torch.as_tensor(array) would do")
            replace(part, path)
        except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
            with suppress(OSError):  # a disk that has become read-only
                part.unlink(missing_ok=True)
            raise cannot_save(path, error) from None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Loads plain values and tensors; a file that holds anything else is refused."""
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a file, or the folder of a sharded checkpoint."""
        remove(Path(path))


def _refused_value(value: Any, key: str = "") -> str:
    """Key and type of the first value that `load` refuses, or ""."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next((found for name, one in items if (found := _refused_value(one, f"{key}.{name}"))), "")
    torch.save(value, file := io.BytesIO())
    file.seek(0)
    return f"{key[1:]} ({type(value).__name__})" if get_unsafe_globals_in_checkpoint(file) else ""


def replace(part: Path, path: Path) -> None:
    """Renames a finished save. A folder cannot be written over: it is renamed to NAME.before.ckpt meanwhile."""
    if not path.is_dir() and not part.is_dir():
        os.replace(part, path)
        return
    before = path.with_suffix(".before.ckpt")
    if path.exists():
        remove(before)
        os.replace(path, before)
    os.replace(part, path)
    remove(before)


def remove(path: Path) -> None:
    """Removes a checkpoint, if it is there. A folder loses its name first, so that a half of one is never found."""
    if path.is_dir():
        part = path.with_name(path.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        os.replace(path, part)
        shutil.rmtree(part)
    else:
        path.unlink(missing_ok=True)


def cannot_save(path: Path, error: BaseException) -> SystemExit:
    """The exit of a run that could not save: the reason, the free space, and the checkpoints that are left."""
    why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
    free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
    safe = ", ".join(sorted(one.name for one in path.parent.glob("*.ckpt"))) or "nothing yet"
    return SystemExit(f"cannot save {path}: {why}; {free:.0f} MiB are free there; still safe: {safe}")


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's plain values and tensors, on the CPU; of a file of nothing but weights, these as its state_dict.

    Raises: UsageError: the file holds anything else, which could be code, or is no checkpoint.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # it would win over weights_only
    if path.is_dir():
        for load_folder in features_and_commands.hooks("load_checkpoint_folder").values():
            return load_folder(path)
        raise UsageError(f"{path} is a sharded checkpoint, and no feature in engine/features reads one")
    try:
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError as error:
        raise UsageError(f"{path} is refused: {error}") from None
    except FileNotFoundError:
        raise UsageError(f"{path} is gone: a run that trains has put another in its place; try again") from None
    except Exception as error:  # a damaged pickle may raise anything; no code of the user's is run
        raise refused(path, error) from None
    if isinstance(checkpoint, dict) and checkpoint and all(map(torch.is_tensor, checkpoint.values())):
        return {"state_dict": checkpoint}  # of torch.save(network.state_dict(), path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UsageError(f"{path} is refused: it has no state_dict, as Lightning's checkpoints have")
    return checkpoint


def check_sums(file: Path | BinaryIO) -> None:
    """Raises UsageError: a record of a file of torch.save is not the one whose check sum stands beside it.

    torch does not look at the sums: bytes that a disk has lost would be weights.
    """
    if not zipfile.is_zipfile(file):
        return  # torch's own format, from before version 1.6
    with zipfile.ZipFile(file) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise UsageError("it is compressed, as no checkpoint is, and could fill the memory")
        if damaged := archive.testzip():
            raise UsageError(f"{damaged} in it is damaged, by its check sum")


def refused(path: Path, error: BaseException) -> UsageError:
    """The error for a checkpoint that torch cannot read, or refuses to."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    why = f"it holds {found[1]}, and could run code" if found else "it is cut short or no checkpoint"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        why = "it does not fit into the memory"
    return UsageError(f"{path} is refused: {why}")


def flags_of(path: Path) -> dict[str, RawValue]:
    """The flags of the run that wrote a checkpoint; version 0.1 did not say which of them nobody gave."""
    checkpoint = load(path)
    flags, defaults = checkpoint.get("hyper_parameters", {}), checkpoint.get("default_flags", [])
    if "model_name" not in flags:
        raise UsageError(f"{path} names no network: of weights alone give --init_from, --model_name and --dataset")
    return {name: RawValue(value, f"{path}: ", name in defaults) for name, value in flags.items()}


def init_weights(module: Any, path: Path, partial: bool, evaluates: bool) -> None:
    """Loads the initial weights of a LightningModule from a checkpoint, or from a file of the network's state_dict.

    partial: skip the weights that do not fit, and print them. evaluates: what its training found the output to mean
    holds too.

    Raises: UsageError: a weight does not fit, and not `partial`; or the file is no checkpoint.
    """
    checkpoint = load(path)
    if evaluates and hasattr(module, "restore_answer"):
        module.restore_answer(checkpoint)
    weights, own = checkpoint["state_dict"], module.state_dict()
    alone = {f"network.{name}": one for name, one in weights.items()}
    if alone.keys() & own.keys():  # of the network; constants of the loss, such as class weights, are its constructor's
        constants = {name: one for name, one in module.named_buffers() if name.startswith(("loss.", "head_losses."))}
        weights = constants | alone
    wrong = mismatched_weights(module, weights)
    if wrong and not partial:
        raise UsageError(f"--init_from {path}: {wrong[0]} ({len(wrong)} in all; --init_partial leaves them alone)")
    for one in wrong:
        print(f"--init_from: {one}")
    module.load_state_dict(own | {name: one for name, one in weights.items() if _fits(own, name, one)})


def check_weights_fit(module: LightningModule, weights: dict[str, torch.Tensor]) -> None:
    """Raises UsageError: weights are not a module's."""
    if wrong := mismatched_weights(module, weights):
        raise UsageError(f"the checkpoint does not fit this network: {'; '.join(wrong[:3])} ({len(wrong)} in all)")


def mismatched_weights(module: LightningModule, weights: dict[str, torch.Tensor]) -> list[str]:
    """The weights whose name or shape a module does not have, and those that it misses, a line each."""
    own = module.state_dict()
    wrong = [f"{name} is {tuple(own[name].shape)} here and {tuple(one.shape)} there" for name, one in weights.items()
             if name in own and not _fits(own, name, one)]  # fmt: skip
    wrong += [f"{name} is not there" for name in own.keys() - weights.keys()]
    return sorted(wrong) + [f"{name} is not here" for name in sorted(weights.keys() - own.keys())]


def _fits(own: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> bool:
    return name in own and own[name].shape == weight.shape
