"""LightningDataInterface: a LightningDataModule of one's own, with batches that a resumed run repeats."""

from functools import partial
from typing import Any, cast

from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import CombinedLoader, rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from data.data_interface import DInterface
from engine.checkpointing import data_record
from engine.cli.settings import Settings
from engine.datamodule.combined_loader import CombinedResumableLoader
from engine.datamodule.resumable_loader import ResumableLoader
from engine.errors import UsageError
from engine.lightning_compat import combined_mode

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "on_exception")
_note = rank_zero_only(partial(print, flush=True))


def build_data(settings: Settings) -> DInterface:
    """The data of a command line, not read yet: of a dataset class, or of a LightningDataModule."""
    dataset_class = settings.dataset.load()
    if not (isinstance(dataset_class, type) and issubclass(dataset_class, LightningDataModule)):
        return DInterface.from_settings(settings)
    if settings.arguments.get("cross_validation", {}).get("num_folds"):
        raise UsageError(f"--num_folds: {settings.dataset.name} has loaders of its own")
    data = LightningDataInterface(dataset_class(**settings.arguments["dataset"]), settings.arguments["run"]["seed"])
    data.use_record(data_record.read(settings.ckpt_path), settings.action)
    return data


class LightningDataInterface(DInterface):
    """Calls the hooks of a LightningDataModule, and loads its datasets as DInterface does.

    A DataLoader with torch's own samplers keeps its dataset, batch size, collate_fn and workers; the order of a
    shuffled one follows from the seed and the epoch, and each of several processes sees its share of the items. So do
    several at once, in a list, a dict or a CombinedLoader. Any other loader is taken as it is, which a line says. All
    other attributes are those of the LightningDataModule.
    """

    def __init__(self, module: LightningDataModule, seed: int) -> None:
        """module: the LightningDataModule. seed: of the order of the items."""
        super().__init__(type(module), seed=seed, num_workers=0)  # type: ignore[arg-type]
        self.module = module
        self._stages_set_up: set[str] = set()
        self._set_names: dict[str, list[str]] = {}
        self._collate_fns: dict[str, Any] = {}
        for hook in _HOOKS:
            if is_overridden(hook, module):
                setattr(self, hook, getattr(module, hook))

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # not there yet
            raise AttributeError(name)
        return getattr(self.module, name)

    @property
    def batch_size(self) -> int:
        """Of the training loader."""
        loader = self._train_loader if self._train_loader is not None else self.train_dataloader()
        if isinstance(loader, ResumableLoader):
            return loader.global_batch_size // loader.world_size
        return getattr(loader, "batch_size", None) or 1

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        if "module" in self.__dict__ and size != self.batch_size:
            raise UsageError(f"{type(self.module).__name__} sets the batch size itself")

    def batched_fetch(self, dataset: Any) -> None:
        """None: its loaders fetch as they are."""

    def _checked_split(self, name: str) -> Any:
        """The dataset of a loader, of the first one where there are several; None where there is no such loader."""
        if not is_overridden(f"{name}_dataloader", self.module):
            return None
        if name not in self._splits:
            first = self._own_loaders(name)
            self._set_names[name] = _names(name, first)
            if name == "train" and not isinstance(first, DataLoader):
                where = f"{type(self.module).__name__}.train_dataloader"
                _note(f"{where}: what the items are, such as their classes, is read from the first of its loaders")
            while isinstance(first, (list, tuple, dict, CombinedLoader)):
                first = first.flattened if isinstance(first, CombinedLoader) else first
                first = next(iter(first.values() if isinstance(first, dict) else first), None)
            self._splits[name] = getattr(first, "dataset", first)
            collate: Any = getattr(first, "collate_fn", None)
            is_whole = isinstance(first, DataLoader) and first.batch_sampler is None  # its items are batches
            self._collate_fns[name] = (lambda items: collate(items[0])) if is_whole else collate
        return self._splits[name]

    def collate_of(self, dataset: Any = None) -> Any:
        """The collate_fn of a split's loader; None where it is torch's."""
        dataset = self._any_split() if dataset is None else dataset
        found = next((self._collate_fns[name] for name, one in self._splits.items() if one is dataset), None)
        return None if found is default_collate else found

    def set_names(self, stage: str) -> list[str]:
        """ "val", and of several loaders "val_1" ... or, of a dict of loaders, "val_KEY" of each."""
        return self._set_names[stage] if self.split(stage) is not None else []

    def attribute(self, name: str) -> Any:
        """An attribute of the LightningDataModule, or else of its training dataset."""
        self._any_split()
        known = getattr(self.module, name, None)
        return super().attribute(name) if known is None else known

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._set_up(stage)

    def train_dataloader(self) -> Any:
        trainer = cast(Any, self.trainer)
        epoch = (lambda: trainer.fit_loop.epoch_progress.current.processed) if trainer is not None else (lambda: 0)
        accumulate = trainer.accumulate_grad_batches if trainer is not None else 1
        loaders = self._resumable("train", current_epoch=epoch, accumulate=accumulate)
        if isinstance(loaders, (ResumableLoader, CombinedResumableLoader)):
            self._train_loader = loaders
            loaders.load_state_dict(self._resume_from)
        return loaders

    def val_dataloader(self) -> Any:
        return self._resumable("val")

    def test_dataloader(self) -> Any:
        return self._resumable("test")

    def predict_dataloader(self) -> Any:
        if self.predict_dataset is not None:
            collate: Any = getattr(self.predict_dataset, "collate_fn", default_collate)
            options = {"seed": self.seed, "collate_fn": collate, **self._rank()}
            return ResumableLoader(self.predict_dataset, self.batch_size, **options)
        return self._resumable("predict" if is_overridden("predict_dataloader", self.module) else "test")

    def state_dict(self) -> dict[str, Any]:
        """The position in the training epoch, and the LightningDataModule's own state."""
        return {"loader": super().state_dict(), "module": self.module.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["loader"])
        self.module.load_state_dict(state_dict["module"])

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self.module.teardown(stage)

    def _set_up(self, stage: str) -> None:
        """Calls prepare_data once, one process a machine at a time, and setup once a stage."""
        self.module.trainer = self.trainer
        if not self._stages_set_up and is_overridden("prepare_data", self.module):
            with self.prepare_lock():
                self.module.prepare_data()
        if stage not in self._stages_set_up:
            self._stages_set_up.add(stage)
            self.module.setup(stage)

    def _own_loaders(self, name: str) -> Any:
        self._set_up({"train": "fit", "val": "fit"}.get(name, name))
        return getattr(self.module, f"{name}_dataloader")()

    def _resumable(self, name: str, **options: Any) -> Any:
        """The loaders of a split, the plain ones replaced by ResumableLoaders."""
        loaders = self._own_loaders(name)
        where = f"{type(self.module).__name__}.{name}_dataloader"
        options["pad"] = name in ("train", "predict")
        in_order = name == "train" and bool(getattr(self.trainer, "overfit_batches", 0))  # the same batches each epoch

        def replace(loader: DataLoader[Any]) -> Any:
            if not _is_plain(loader):
                _note(f"{where} has a sampler or workers of its own: its order is not repeated within a resumed epoch, "
                      "and it must give each of several processes its share itself")  # fmt: skip
                return loader
            made = ResumableLoader(
                loader.dataset,
                loader.batch_size or 1,
                seed=self.seed,
                shuffle=isinstance(loader.sampler, RandomSampler) and not in_order,
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                drop_last=loader.drop_last,
                **self._rank(),
                **options,
            )
            self._loaders.append(made)
            return made

        if isinstance(loaders, DataLoader):
            return replace(loaders)
        several = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "max_size_cycle")
        several.flattened = [replace(one) if isinstance(one, DataLoader) else one for one in several.flattened]
        if name != "train" or several.iterables in several.flattened:  # a single one
            return loaders if several is loaders else several.iterables
        if all(isinstance(one, ResumableLoader) and not one.iterable for one in several.flattened):
            return CombinedResumableLoader(several.iterables, combined_mode(several), options["current_epoch"])
        _note(f"{where} has several loaders, not all of them plain: a run resumed within an epoch begins each anew")
        return several


def _names(stage: str, loaders: Any) -> list[str]:
    if isinstance(loaders, dict):
        return [stage if key == stage else f"{stage}_{key}" for key in loaders]
    several = range(len(loaders)) if isinstance(loaders, (list, tuple)) else [0]
    return [f"{stage}_{index}" if index else stage for index in several]


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether a DataLoader does nothing that its dataset, batch size, collate_fn and shuffle do not say."""
    sampler = loader.sampler
    in_order = isinstance(sampler, SequentialSampler)
    if type(sampler) is RandomSampler and not sampler.replacement:
        in_order = sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return in_order and type(loader.batch_sampler) is BatchSampler and loader.worker_init_fn is None
