"""LoadedRun: the trained network of a run, with its data and its flags, for a notebook or a program of one's own."""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import default_collate

from engine.checkpointing import checkpoint_io, run_folder
from engine.cli.discovery import ROOT
from engine.cli.features_and_commands import load_features
from engine.cli.settings import Settings
from engine.datamodule.item_fields import ItemFields
from engine.errors import UsageError
from engine.training.name_patterns import find_network
from engine.training.output_spec import OutputSpec, main_output
from engine.training.trainer_setup import silence_warnings

_HOOKS = (
    "on_predict_start on_predict_epoch_start on_predict_batch_start on_predict_batch_end on_predict_epoch_end "
    "on_predict_end on_predict_model_eval on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer"
).split()
_TRAINER_LOCK = threading.Lock()


class LoadedRun:
    """The network and data of a checkpoint, on the CPU and in evaluation mode.

    network: the nn.Module, or the MInterface of a system without one. data: the DInterface; data.split("train"), "val"
    and "test" are its datasets. config: every flag.

    Raises: UsageError: the weights are not the network's.
    """

    def __init__(self, model: Any, data: Any, config: dict[str, Any], ckpt_path: Path) -> None:
        checkpoint = checkpoint_io.load(ckpt_path)
        if hasattr(model, "restore_answer"):
            model.restore_answer(checkpoint)
        checkpoint_io.check_weights_fit(model, weights := checkpoint["state_dict"])
        model.load_state_dict(weights)
        self._model, self.data, self.config = model.eval(), data, config
        own = [] if hasattr(model, "arguments") else ["setup", "predict_step"]  # which may ask for the Trainer
        self._trainer: Trainer | None = None
        if any(is_overridden(name, model) for name in [*_HOOKS, *own]):
            off: Any = {f"enable_{one}": False for one in ("checkpointing", "progress_bar", "model_summary")}
            self._trainer = Trainer(accelerator="cpu", devices=1, logger=False, inference_mode=False, **off)
        if not (hasattr(model, "arguments") or is_overridden("predict_step", model)):
            model.predict_step = self._forward
        self.network = find_network(model)

    def predict(self, inputs: Any) -> Any:
        """What `predict` writes: probabilities of classes (N, C) or of yes (N, ...), or values in their unit (N, ...).

        inputs: a tensor (N, ...) as the items of the data are, or a tuple or dict of several for a network of several
            inputs; or a file, or a list of such, which the dataset opens by open_file, open_image or open_rows.

        Threads may call it; where the model has hooks of a prediction, one after another.

        Returns: a tensor; of a network of several outputs, a dict of these, and of a tuple the first.
        Raises: UsageError: there is no such file, or the dataset opens none.
        """
        batches = self._batches(inputs)
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):  # of a LightningDataModule
            if is_overridden(hook, self.data):
                batches = [getattr(self.data, hook)(batch, 0) for batch in batches]
        if self._trainer:
            with _TRAINER_LOCK:
                outputs: Any = self._trainer.predict(self._model, iter(batches))
        else:
            with torch.no_grad():
                outputs = [self._model.predict_step(batch, number) for number, batch in enumerate(batches)]
        answers: Any = [self._answer(one) for one in outputs]
        if isinstance(answers[0], dict):
            return {name: torch.cat([one[name] for one in answers]) for name in answers[0]}
        return torch.cat(answers)

    def _batches(self, inputs: Any) -> list[Any]:
        """The batches of `inputs`, as the loaders make them, with a 0 for each target."""
        size = self.data.batch_size
        if isinstance(inputs, Mapping):
            parts = zip(*(one.split(size) for one in inputs.values()), strict=True)
            return [dict(zip(inputs, part, strict=True)) for part in parts]
        if isinstance(inputs, Tensor) or (isinstance(inputs, tuple) and all(isinstance(one, Tensor) for one in inputs)):
            columns = (inputs,) if isinstance(inputs, Tensor) else inputs
            return [*zip(*(one.split(size) for one in (*columns, torch.zeros(len(columns[0])))), strict=True)]
        paths = [inputs] if isinstance(inputs, (str, Path)) else [*inputs] if isinstance(inputs, Iterable) else []
        if not paths or not all(isinstance(path, (str, Path)) for path in paths):
            raise UsageError(f"predict takes tensors or names of files, and no {type(inputs).__name__}")
        if missing := [path for path in paths if not Path(path).is_file()]:
            raise UsageError(f"predict: there is no file {missing[0]}")
        if (open_file := self.data.attribute("open_file")) is not None:
            items = [open_file(str(path)) for path in paths]
            items = [(one, 0) if isinstance(one, (Tensor, np.ndarray)) else one for one in items]
            collate = self.data.collate_of() or default_collate
            return [collate(items[at : at + size]) for at in range(0, len(items), size)]
        if (open_image := self.data.image_opener()) is not None:
            return self._batches(torch.stack([open_image(str(path)) for path in paths]))
        if (open_rows := self.data.attribute("open_rows")) is not None:
            return [batch for path in paths for batch in self._batches(open_rows(str(path))[1])]
        ways = "open_file, open_image nor open_rows"
        raise UsageError(f"{self.data.dataset_class.__name__} opens no files: it has neither {ways}")

    def _forward(self, batch: Any, batch_idx: int) -> Any:
        fields = ItemFields(self._model.forward).split(batch)
        return self._model(*fields.args, **fields.kwargs)

    def _answer(self, outputs: Any) -> Any:
        if heads := getattr(self._model, "heads", {}):
            return {name: head.spec.probabilities(outputs[name]) for name, head in heads.items()}
        if isinstance(outputs, Mapping) and main_output(outputs) is None:
            return {name: one.detach() for name, one in outputs.items() if isinstance(one, Tensor) and one.dim()}
        answer = getattr(self._model, "predicts", OutputSpec("other"))
        values = answer.probabilities(main_output(outputs)).detach()
        return values if answer.task == "multiclass" else self.data.in_unit(values)


def load(
    ckpt_path: str, argv: tuple[str, ...], parse: Callable[..., Settings], build_data: Any, build_model: Any
) -> LoadedRun:
    """The run of a checkpoint: see `load` of main.py."""
    silence_warnings()
    settings = _settings_from_anywhere(parse, ["test", "--ckpt_path", ckpt_path, *argv])
    seed_everything(settings.arguments["run"]["seed"], verbose=False)  # a dataset may draw its items
    data = build_data(settings)
    model = build_model(settings, data)
    assert settings.ckpt_path
    run_dir = run_folder.run_of(settings.ckpt_path) or Path()
    load_features(run_dir, model, data, settings.arguments)  # one of them checks the data
    return LoadedRun(model, data, settings.flags, settings.ckpt_path)


def _settings_from_anywhere(parse: Callable[..., Settings], argv: list[str]) -> Settings:
    """The settings of a command line, with runs and data of the project or of the run where there are none here."""
    if not (Path(run_folder.FOLDER).exists() or any(word.startswith("--default_root_dir") for word in argv)):
        argv = [*argv, "--default_root_dir", str(ROOT)]
    settings = parse(argv)
    if settings.ckpt_path and (data_dir := settings.flags.get("data_dir")) and not Path(data_dir).exists():
        places = [*settings.ckpt_path.absolute().parents[3:4], ROOT]  # lightning_logs/version_N/checkpoints/FILE
        found = [place / data_dir for place in places if (place / data_dir).exists()]
        settings = parse([*argv, "--data_dir", str(found[0])]) if found else settings
    return settings
