"""LoadedRun: the trained network of a run, with its data and its flags, for a notebook or a program of one's own."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from engine.checkpointing import checkpoint_io, run_folder
from engine.cli.discovery import ROOT
from engine.cli.features_and_commands import load_features
from engine.cli.settings import Settings
from engine.errors import UsageError
from engine.training.output_spec import OutputSpec, main_output


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
        self.network = getattr(model, "network", None) or model

    def predict(self, inputs: Any) -> Any:
        """What `predict` writes: probabilities of classes (N, C) or of yes (N, ...), or values in their unit (N, ...).

        inputs: a tensor (N, ...) as the items of the data are, or a tuple or dict of several for a network of several
            inputs; an image file, or a list of such, which the dataset opens; or a file of rows, where it opens such.

        Returns: a tensor; of a network of several outputs, a dict of these.
        Raises: UsageError: there is no such file, or the dataset opens none.
        """
        names = [*inputs] if isinstance(inputs, Mapping) else None
        tensors = self._open(tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs)
        batches: Any = zip(*(one.split(self.data.batch_size) for one in tensors), strict=True)
        if names:
            batches = (dict(zip(names, batch, strict=True)) for batch in batches)
        with torch.no_grad():
            self._model.on_predict_start()
            self._model.on_predict_epoch_start()
            answers = [self._answer(batch) for batch in batches]
        if isinstance(answers[0], dict):
            return {name: torch.cat([one[name] for one in answers]) for name in answers[0]}
        return torch.cat(answers)

    def _open(self, inputs: Any) -> tuple[Tensor, ...]:
        if isinstance(inputs, Tensor):
            return (inputs,)
        if isinstance(inputs, tuple) and all(isinstance(one, Tensor) for one in inputs):
            return inputs
        paths = [inputs] if isinstance(inputs, (str, Path)) else [*inputs] if isinstance(inputs, Iterable) else []
        if not paths or not all(isinstance(path, (str, Path)) for path in paths):
            raise UsageError(f"predict takes tensors or names of files, and no {type(inputs).__name__}")
        if missing := [path for path in paths if not Path(path).is_file()]:
            raise UsageError(f"predict: there is no file {missing[0]}")
        if (open_image := self.data.image_opener()) is not None:
            return (torch.stack([open_image(str(path)) for path in paths]),)
        if (open_rows := self.data.attribute("open_rows")) is not None:
            return (torch.cat([torch.as_tensor(open_rows(str(path))[1]) for path in paths]),)
        raise UsageError(f"{self.data.dataset_class.__name__} opens no files: it has neither open_image nor open_rows")

    def _answer(self, batch: tuple[Tensor, ...] | dict[str, Tensor]) -> Any:
        if hasattr(self._model, "arguments") or is_overridden("predict_step", self._model):
            whole = batch if isinstance(batch, dict) else (*batch, torch.zeros(len(batch[0])))  # a 0 for the target
            outputs = self._model.predict_step(whole, 0)
        else:
            outputs = self._model(**batch) if isinstance(batch, dict) else self._model(*batch)
        if heads := getattr(self._model, "heads", {}):
            return {name: head.spec.probabilities(outputs[name]) for name, head in heads.items()}
        if isinstance(outputs, Mapping) and main_output(outputs) is None:
            return {name: one.detach() for name, one in outputs.items() if isinstance(one, Tensor) and one.dim()}
        answer = getattr(self._model, "predicts", OutputSpec("other"))
        values = answer.probabilities(main_output(outputs)).detach()
        invert = None if answer.task == "multiclass" else self.data.attribute("inverse_transform")
        return values if invert is None else invert(values)


def load(
    ckpt_path: str, argv: tuple[str, ...], parse: Callable[..., Settings], build_data: Any, build_model: Any
) -> LoadedRun:
    """The run of a checkpoint: see `load` of main.py."""
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
