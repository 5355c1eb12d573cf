"""Every private or patched name of Lightning, torch and torchmetrics, one function each; nothing else uses any.

Each says what it does, why, what breaks without it, and the upstream thread, where one is known. torch is not imported
before a function is called. A test for each fails when upstream changes.
"""

import functools
import importlib
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

from engine.errors import UsageError

_STEP_HOOKS = "on_train_batch_start on_before_zero_grad on_before_backward on_after_backward".split()
_STEP_HOOKS += ["on_before_optimizer_step", "on_train_batch_end"]
_EVALUATION_HOOKS = [f"on_{stage}_batch_{at}" for stage in ("validation", "test", "predict") for at in ("start", "end")]
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # as glibc's malloc.h numbers them


class _LazyScipySignal(types.ModuleType):
    """A stand-in for scipy.signal that loads the real one when it is used."""

    @staticmethod
    def hamming(*args: Any, **kwargs: Any) -> Any:
        """The window, as torchmetrics would have put it there."""
        return importlib.import_module("scipy.signal.windows").hamming(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # for the import of a submodule
            return [f"{folder}/signal" for folder in importlib.import_module("scipy").__path__]
        if name.startswith("__"):  # such as __file__, when a tool inspects all loaded modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _IdleModule(types.ModuleType):
    """A module of torch._dynamo, the compiler, before it is loaded: what others ask of it where nothing is compiled."""

    real_loader: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # such as __wrapped__, when a tool inspects all loaded modules
            raise AttributeError(name)
        self.load()
        return getattr(self, name)

    def load(self) -> None:
        """Becomes the real module, which others may hold already."""
        package = sys.modules["torch._dynamo"]
        if isinstance(package, _IdleDynamo) and package is not self:
            package.load()
        if isinstance(self, _IdleModule):  # the package may have loaded it
            loader = vars(self).pop("real_loader")
            self.__spec__.loader = self.__loader__ = loader  # type: ignore[union-attr]
            idle, self.__class__ = type(self), types.ModuleType  # type: ignore[assignment]
            try:
                loader.exec_module(self)
            except BaseException:  # the next import tries again, as Python's own does
                self.__class__, self.real_loader = idle, loader  # type: ignore[assignment]
                raise


class _IdleDynamo(_IdleModule):
    """What optimizers and Lightning ask of torch._dynamo."""

    OptimizedModule = type("OptimizedModule", (), {})  # what torch.compile returns: there is none yet

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.functions = list[Any]()  # that are not disabled

    def graph_break(self) -> None:
        """Nothing, for there is no graph."""

    def disable(self, fn: Any = None, recursive: bool = True, *, reason: Any = None, wrapping: bool = True) -> Any:
        """The function itself for torch, which keeps it as an attribute; for others one that asks when it is called."""
        if wrapping and isinstance(fn, types.FunctionType):
            return sys.modules["torch"]._disable_dynamo(fn, recursive)  # type: ignore[attr-defined]
        if wrapping:  # a module, a class, a method
            self.load()
            return self.disable(fn, recursive, reason=reason)
        self.functions.append(fn)
        return fn

    def load(self) -> None:
        for function in vars(self).pop("functions"):
            vars(function).pop("__dynamo_disable", None)  # to be asked for again
        super().load()
        for name in ("lightning_fabric.wrappers", "pytorch_lightning.utilities.compile"):
            if name in sys.modules:
                sys.modules[name].OptimizedModule = self.OptimizedModule  # type: ignore[attr-defined]


class _IdleUtils(_IdleModule):
    """What torchvision asks of torch._dynamo.utils."""

    def is_compile_supported(self, device_type: Any) -> Any:
        """The real one's answer."""
        if isinstance(self, _IdleModule):
            self.load()
        return self.is_compile_supported(device_type)


class _DynamoFinder:
    """Imports torch._dynamo as an _IdleDynamo, which is loaded before any other module in it is imported."""

    idle = {"torch._dynamo": _IdleDynamo, "torch._dynamo.utils": _IdleUtils}
    loader: Any = None  # the real one of the module that is being imported

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """How to import a module; None where that is left to Python."""
        if not name.startswith("torch._dynamo"):
            return None
        import importlib.machinery  # not needed for help

        spec, package = None, sys.modules.get("torch._dynamo")
        if package is None or (isinstance(package, _IdleDynamo) and name in self.idle):
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        elif isinstance(package, _IdleDynamo):
            package.load()
            spec = getattr(sys.modules.get(name), "__spec__", None)  # imported meanwhile, as most are
        if spec is not None:
            self.loader, spec.loader = spec.loader, self  # type: ignore[assignment]
        return spec

    def create_module(self, spec: Any) -> types.ModuleType:
        """The module that there is already, or an idle one."""
        if spec.name in sys.modules:
            return sys.modules[spec.name]
        module = self.idle[spec.name](spec.name)
        module.real_loader = self.loader
        return module

    def exec_module(self, module: Any) -> None:
        """Nothing: it has been executed already, or is executed when it is loaded."""
        if not isinstance(module, _IdleModule):
            module.__spec__.loader = self.loader


def defer_scipy_signal() -> None:
    """Delays the import of scipy.signal until it is used.

    torchmetrics' `__init__` imports it to check for `hamming`, which one old package needs.
    Without this, a start takes a fifth longer. Upstream: Lightning-AI/torchmetrics#3459.
    """
    sys.modules.setdefault("scipy.signal", _LazyScipySignal("scipy.signal"))


def defer_dynamo() -> None:
    """Delays the import of torch._dynamo, the compiler, until something is compiled.

    torchvision and Lightning import it for a name each, and optimizers to say where a graph ends. Without this, a start
    takes a third longer. Upstream: pytorch/pytorch#162595 has other parts of torch do without it.
    """
    if "torch._dynamo" not in sys.modules:
        sys.meta_path.insert(0, _DynamoFinder())  # type: ignore[arg-type]


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory for the next step; returns whether that worked (Linux with glibc).

    Without it, glibc returns the memory to the system at each step and asks for it again: some 1,000 page faults.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**29, _TOP_PAD: 2**26}
    return all(mallopt(option, size) for option, size in wanted.items())


def skip_driver_lookup() -> None:
    """Stops every optimizer step from searching for NVIDIA's driver on a machine without a GPU (120 to 200 us).

    lightning_fabric sets this variable to 1 when it is imported. Upstream: Lightning-AI/pytorch-lightning#15110.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def lean_epoch_loop(trainer: Any) -> Any:
    """Lightning's loop over the batches of an epoch, with less to look up at each and no broadcast of SIGTERM.

    What is rare is left to Lightning: the first batch after a resume, a step that takes the iterator, a profiler, a
    strategy that moves batches in a way of its own. Hooks that are set on a callback within an epoch, and those of the
    move to a device, count from the next epoch on. LastCheckpoint asks the ranks for signals once a second. Without
    this loop, a step takes 0.1 to 0.3 ms longer, and one of several processes a tenth.
    Upstream: Lightning-AI/pytorch-lightning#20825, #21487.
    """
    from pytorch_lightning.loops.fetchers import _PrefetchDataFetcher
    from pytorch_lightning.loops.optimization.automatic import ClosureResult
    from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
    from pytorch_lightning.strategies import Strategy
    from pytorch_lightning.trainer import call
    from torch import Tensor

    class StepResult(ClosureResult):
        @classmethod
        def from_training_step_output(cls, output: Any, normalize: int = 1) -> Any:
            is_ready = normalize == 1 and isinstance(output, Tensor)  # to divide by 1 is an operation, and another back
            return cls(output) if is_ready else super().from_training_step_output(output, normalize)

    class TrainingEpochLoop(_TrainingEpochLoop):
        is_lean = False

        def _broadcast_sigterm_tensor(self) -> None:
            """Nothing."""

        def on_run_start(self, data_fetcher: Any) -> None:
            super().on_run_start(data_fetcher)
            trainer: Any = self.trainer
            takes_batches = isinstance(data_fetcher, _PrefetchDataFetcher)
            moves_as_usual = type(trainer.strategy).batch_to_device is Strategy.batch_to_device
            self.is_lean = takes_batches and moves_as_usual and trainer.step_hooks is not None
            if self.is_lean:
                trainer.step_hooks.clear()
                data_fetcher._start_profiler = data_fetcher._stop_profiler = lambda: None
                owners = trainer._data_connector._datahook_selector
                names = "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"
                self.batch_hooks = [getattr(owners.get_instance(name), name) for name in names]

        def advance(self, data_fetcher: Any) -> None:
            trainer, progress, results = self.trainer, self.batch_progress, self._results
            if self._restarting or not self.is_lean:
                return super().advance(data_fetcher)
            connector = trainer._logger_connector
            batch, _, _ = next(data_fetcher)
            batch_idx = progress.current.ready
            progress.is_last_batch = data_fetcher.done
            before_transfer, transfer, after_transfer = self.batch_hooks
            batch = before_transfer(trainer.precision_plugin.convert_input(batch), 0)
            batch = after_transfer(transfer(batch, trainer.strategy.root_device, 0), 0)
            progress.increment_ready()
            connector._first_loop_iter = connector._first_loop_iter is None
            results.batch, results.batch_size, results.dataloader_idx = batch, None, None
            outputs, skips_epoch = None, False
            if batch is None:
                self._warning_cache.warn("train_dataloader yielded None: this batch is left out")
            else:
                call._call_callback_hooks(trainer, "on_train_batch_start", batch, batch_idx)
                response = call._call_lightning_module_hook(trainer, "on_train_batch_start", batch, batch_idx)
                call._call_strategy_hook(trainer, "on_train_batch_start", batch, batch_idx)
                if skips_epoch := response == -1:
                    progress.increment_by(0, is_last_batch=True)
                else:
                    progress.increment_started()
                    kwargs = self._build_kwargs(OrderedDict(), batch, batch_idx)
                    if trainer.lightning_module.automatic_optimization:
                        outputs = self.automatic_optimization.run(trainer.optimizers[0], batch_idx, kwargs)
                    else:
                        outputs = self.manual_optimization.run(kwargs)
            progress.increment_processed()
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            if skips_epoch:
                raise StopIteration
            call._call_callback_hooks(trainer, "on_train_batch_end", outputs, batch, batch_idx)
            call._call_lightning_module_hook(trainer, "on_train_batch_end", outputs, batch, batch_idx)
            if results:  # self.log was called
                connector.on_batch_end()
            results.batch = results.batch_size = None
            progress.increment_completed()
            connector.update_train_step_metrics()

        def on_advance_end(self, data_fetcher: Any) -> None:
            stops = self.trainer.should_stop or self.trainer.received_sigterm
            if stops or self._skip_next_val or self._should_check_val_fx(data_fetcher):
                return super().on_advance_end(data_fetcher)
            self.update_lr_schedulers("step", update_plateau_schedulers=True)
            if not self._should_accumulate():
                self._batches_that_stepped += 1
            self._save_loggers_on_train_batch_end()

        def _should_check_val_fx(self, data_fetcher: Any) -> bool:
            trainer: Any = self.trainer
            by_time = trainer._val_check_time_interval is not None
            if by_time or trainer.should_stop or not isinstance(trainer.val_check_batch, int):
                return super()._should_check_val_fx(data_fetcher)
            done = 1 + (self.batch_idx if trainer.check_val_every_n_epoch else self.total_batch_idx)
            return done % trainer.val_check_batch == 0 and self._should_check_val_epoch()

        def _num_ready_batches_reached(self) -> bool:
            progress = self.batch_progress
            return progress.is_last_batch or progress.current.ready == self.trainer.fit_loop.max_batches

        def _should_accumulate(self) -> bool:
            return self.trainer.accumulate_grad_batches != 1 and super()._should_accumulate()

        def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
            for one in self.trainer.lr_scheduler_configs:
                if one.interval == interval and one.reduce_on_plateau == update_plateau_schedulers:
                    return super().update_lr_schedulers(interval, update_plateau_schedulers)

    loop = trainer.fit_loop.epoch_loop
    lean = TrainingEpochLoop(trainer, loop.min_steps, loop.max_steps)
    lean.automatic_optimization.output_result_cls = StepResult
    return lean


def count_epochs(trainer: Any) -> None:
    """Has a run with `max_steps` resume as one without: at the end of an epoch, the next one begins.

    Without it, Lightning ends that epoch a second time: the next one is left out, and its items with it.
    """
    assert callable(trainer.fit_loop._iteration_based_training)
    trainer.fit_loop._iteration_based_training = lambda: False


def skip_unused_hooks(trainer: Any, module: Any) -> None:
    """Sets the hooks of a step that a callback or module does not define to None: these are not called.

    Without it, Lightning calls six empty hooks of every callback at each step, two at one of evaluation.
    Upstream: discussed in Lightning-AI/pytorch-lightning#10575.
    """
    from pytorch_lightning import Callback, LightningModule

    for one, base in [*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)]:
        for name in _STEP_HOOKS + (_EVALUATION_HOOKS if base is Callback else []):  # it looks at a module's
            if getattr(getattr(one, name), "__func__", None) is getattr(base, name):
                object.__setattr__(one, name, None)


def cache_step_parameters() -> None:
    """Has Lightning look once, not at every batch, which parameters a step has.

    Without it, each batch takes some 20 us longer.
    """
    import weakref

    from pytorch_lightning.loops import evaluation_loop, training_epoch_loop

    original = training_epoch_loop.is_param_in_hook_signature
    if hasattr(original, "__wrapped__"):
        return  # it does already
    known: Any = weakref.WeakKeyDictionary()  # by function; an entry of a network would keep it in memory

    @functools.wraps(original)
    def has_parameter(step: Any, *asked: Any, **options: Any) -> bool:
        answers = known.setdefault(getattr(step, "__func__", step), {})
        key = asked, *options.items()
        if key not in answers:
            answers[key] = original(step, *asked, **options)
        return bool(answers[key])

    for loop in (training_epoch_loop, evaluation_loop):
        loop.is_param_in_hook_signature = has_parameter  # type: ignore[attr-defined]


def call_hooks_directly(trainer: Any) -> None:
    """Has Lightning call the hooks of a step without naming each for a profiler and the debug log, if there is none.

    Without it, a tenth of a short step is spent on calling hooks. The callbacks that have a hook are looked up in each
    epoch, and when `trainer.callbacks` changes.
    """
    from pytorch_lightning.profilers import PassThroughProfiler
    from pytorch_lightning.trainer import call

    trainer.step_hooks = {} if isinstance(trainer.profiler, PassThroughProfiler) else None
    if hasattr(of_callbacks := call._call_callback_hooks, "__wrapped__"):
        return  # it does already
    names = {*_STEP_HOOKS, *_EVALUATION_HOOKS}

    @functools.wraps(of_callbacks)
    def call_callbacks(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> None:
        known = getattr(trainer, "step_hooks", None)
        if known is None or hook_name not in names:
            return of_callbacks(trainer, hook_name, *args, **kwargs)
        if known.get("") != trainer.callbacks:
            known.clear()
            known[""] = [*trainer.callbacks]
        if (hooks := known.get(hook_name)) is None:
            hooks = known[hook_name] = [hook for one in trainer.callbacks if callable(hook := getattr(one, hook_name))]
        module = trainer.strategy._lightning_module
        attributes = vars(module)
        before, attributes["_current_fx_name"] = attributes["_current_fx_name"], hook_name
        for hook in hooks:
            hook(trainer, module, *args, **kwargs)
        attributes["_current_fx_name"] = before

    def directly(original: Any, of_strategy: bool) -> Any:
        @functools.wraps(original)
        def call_hook(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> Any:
            module = trainer.strategy._lightning_module
            if module is None or "pl_module" in kwargs or getattr(trainer, "step_hooks", None) is None:
                return original(trainer, hook_name, *args, **kwargs)
            hook = getattr(trainer.strategy if of_strategy else module, hook_name)
            if not callable(hook):
                return None
            attributes = vars(module)
            before, attributes["_current_fx_name"] = attributes["_current_fx_name"], hook_name
            output = hook(*args, **kwargs)
            attributes["_current_fx_name"] = before
            return output

        return call_hook

    call._call_callback_hooks = call_callbacks
    call._call_lightning_module_hook = directly(call._call_lightning_module_hook, of_strategy=False)
    call._call_strategy_hook = directly(call._call_strategy_hook, of_strategy=True)


def set_process_group_timeout(strategy: Any, days: float) -> None:
    """Sets how long a rank waits for the others; a strategy given by its name has no argument for it.

    Without it, ranks wait 30 minutes for one that hangs.
    """
    import datetime

    if hasattr(strategy, "_timeout"):
        strategy._timeout = datetime.timedelta(days)


def summary_writer(folder: Path, event_writer: Any) -> Any:
    """A SummaryWriter that hands its events to `event_writer`, also again after it is closed.

    Its own opens a file and starts a thread, which ends the run at the first write that fails; no argument takes
    another.
    """
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class Files(FileWriter):
        def __init__(self) -> None:
            self.event_writer = event_writer

        def get_logdir(self) -> str:
            return str(folder)

    class Writer(SummaryWriter):
        def _get_file_writer(self) -> Any:
            if self.file_writer is None:
                self.file_writer = Files()  # type: ignore[assignment]
                self.all_writers = {self.get_logdir(): self.file_writer}  # type: ignore[assignment]
            return self.file_writer

    return Writer(str(folder))


def shut_down_workers(loader: Any) -> None:
    """Ends a DataLoader's persistent workers at once; left to the garbage collector, each takes seconds to go.

    Upstream: pytorch/pytorch#64766, #71383.
    """
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()


def mark_as_updated(metric: Any) -> None:
    """Marks a metric as updated whose state was set from outside, and forgets its cached result.

    Without it, `compute` warns, and returns an old result. Upstream, on reading alone: Lightning-AI/torchmetrics#1363.
    """
    vars(metric).update(_update_count=1, _computed=None)  # nn.Module's own way takes ten times as long


def keep_dtype(module: Any) -> None:
    """Has a metric, or a module of metrics, move to devices with the one it is in, but keep its dtype.

    torchmetrics ignores `half()` and the like, not `to(dtype)`, by which Lightning's bf16-true and 16-true cast a
    network. Without it, sums over an epoch are in 16 bits: of 60,000 items every count above 256 is wrong.
    """

    def apply(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        return type(self)._apply(self, lambda one: one.to(function(one.new_empty(0)).device), *args, **kwargs)

    module._apply = types.MethodType(apply, module)


def restore_metric(name: str, metric: Any, states: list[dict[str, Any]]) -> None:
    """Sets the state of a metric (`metric_state`), merged where fewer processes go on than there were.

    How states merge (sum, mean, maximum ...) a metric keeps to itself. Without it, what is no sum would be wrong after
    a change of devices.

    Raises: UsageError: the metric of that name has no way to merge its state.
    """
    import torch

    for key in states[0]:
        values, merge = [state[key] for state in states], metric._reductions[key]
        if isinstance(values[0], list):
            setattr(metric, key, [one.to(metric.device) for value in values for one in value])
        elif len(values) > 1 and merge is None:
            raise UsageError(f"{name} of this epoch is on {len(values)} devices: go on with these until its end")
        else:
            merged = merge(torch.stack(values)) if len(values) > 1 else values[0]
            setattr(metric, key, merged.to(metric.device))
    mark_as_updated(metric)


def logged_state(trainer: Any) -> dict[str, dict[str, Any]]:
    """What `self.log` has collected in the training epoch so far, in plain values and tensors.

    Lightning keeps none of it in a checkpoint: after a kill, the epoch's mean would be one of the batches since.
    Upstream: Lightning-AI/pytorch-lightning#20288, on reading alone.
    """
    states = {}
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        if not result.has_reset:
            meta, sync = vars(result.meta).copy(), result.meta.sync
            meta |= {"_sync": None, "reduce_fx": meta["reduce_fx"].__name__}
            state = {"meta": meta, "sync": [sync.should, sync.rank_zero_only], "cache": result._forward_cache}
            states[key] = state | {"state": dict(result.metric_state) if result.is_tensor else None}
    return states


def restore_latest(trainer: Any, latest: dict[str, Any]) -> None:
    """Adds the values of an earlier process to `trainer.callback_metrics`, where there are no newer ones."""
    import torch

    values = {name: torch.as_tensor(value) for name, value in latest.items()}
    trainer._logger_connector._callback_metrics = values | trainer._logger_connector._callback_metrics


def restore_logged(trainer: Any, states: list[dict[str, dict[str, Any]]]) -> None:
    """Sets what `self.log` has collected in an epoch. states: `logged_state` of one or several processes."""
    from pytorch_lightning.trainer.connectors.logger_connector import result as lightning

    results, device = trainer.fit_loop.epoch_loop._results, trainer.strategy.root_device
    for key in {key: None for state in states for key in state}:
        own = [state[key] for state in states if key in state]
        meta, (should, rank_zero_only) = own[0]["meta"].copy(), own[0]["sync"]
        del meta["_sync"]
        metadata = lightning._Metadata(**meta)
        metadata.sync = lightning._Sync(fn=trainer.strategy.reduce, _should=should, rank_zero_only=rank_zero_only)
        results[key] = made = lightning._ResultMetric(metadata, is_tensor=own[0]["state"] is not None).to(device)
        if made.is_tensor:
            restore_metric(key, made, [one["state"] for one in own])
        else:
            made.value = trainer.lightning_module.get_submodule(metadata.metric_attribute)
            mark_as_updated(made)
        cache = own[0]["cache"]
        made._forward_cache = cache if cache is None else cache.to(device)
    if results:
        trainer._logger_connector._first_loop_iter = False  # else the next batch would be taken for the epoch's first


def reset_logged_metrics(trainer: Any) -> None:
    """Resets the torchmetrics objects that `self.log` was given in the running validation or test.

    Lightning does so behind the last of several loaders alone: the metric of the second would be one of both.
    """
    for result in trainer._results.values():
        if not result.is_tensor and not result.has_reset:
            result.value.reset()


def call_after_logging(trainer: Any, after_batch: Any, after_epoch: Any) -> None:
    """Has functions called when all hooks of a training batch, or of an epoch, have run and `self.log` is written out.

    A checkpoint that is saved in a callback's hook misses what the module's own hook of that name changes, the rows
    that Lightning logs thereafter, and the step of ReduceLROnPlateau. While they are called, Lightning's counters
    stand where they stood in on_train_batch_end and on_train_epoch_end, which is where it knows how to go on.
    Upstream: Lightning-AI/pytorch-lightning#20919.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    log_batch, log_epoch = connector.update_train_step_metrics, connector.update_train_epoch_metrics

    def batch() -> None:
        log_batch()
        for progress in (loop.batch_progress.total, loop.batch_progress.current):
            progress.completed -= 1
        after_batch()
        for progress in (loop.batch_progress.total, loop.batch_progress.current):
            progress.completed += 1

    def epoch() -> None:
        # Lightning leaves it out, having no metrics.
        if trainer.fit_loop.restarting and loop._num_ready_batches_reached():
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        log_epoch()
        loop._batches_that_stepped += 1
        after_epoch()
        loop._batches_that_stepped -= 1

    connector.update_train_step_metrics, connector.update_train_epoch_metrics = batch, epoch


def all_finite(gradients: list[Any]) -> bool:
    """Whether all numbers are finite, in a third of the time of `torch.nn.utils.get_total_norm`.

    It uses the kernel of torch's gradient scaler, with the scale 1.
    """
    import torch

    gradients = [one.to_local() if hasattr(one, "to_local") else one for one in gradients]
    if not gradients:
        return True
    found = torch.zeros((), device=gradients[0].device)
    try:
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.ones_like(found))
        return not found.item()
    except RuntimeError:  # on several devices, or of several types
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def skip_unless_finite(optimizer: Any, gradients: list[Any]) -> Any:
    """Has the next step of a fused optimizer on a GPU change nothing where a gradient is NaN or infinite.

    Returns which gradients are, (n,), on the GPU; None for other optimizers. It is how torch's gradient scaler skips a
    step. Without it, each step waits until the GPU has the gradients, and the GPU then for the next operations.
    """
    import torch

    kinds = {(one.device, one.dtype) for one in gradients}
    if not getattr(optimizer, "_step_supports_amp_scaling", False) or len(kinds) != 1 or not gradients[0].is_cuda:
        vars(optimizer).pop("found_inf", None)  # of an earlier step
        return None
    is_bad = ~torch.stack(torch._foreach_norm(gradients, torch.inf)).isfinite()
    optimizer.grad_scale, optimizer.found_inf = None, is_bad.any().float()
    return is_bad


def load_sharded_checkpoint(path: Any) -> dict[str, Any]:
    """A checkpoint of ModelParallelStrategy, which is a folder, on the CPU. Lightning has no public way to read one."""
    from lightning_fabric.utilities.load import _load_distributed_checkpoint

    return _load_distributed_checkpoint(path)


def combined_mode(loader: Any) -> str:
    """The mode of Lightning's CombinedLoader, which it does not tell; without it, an epoch could not be repeated."""
    return str(loader._mode)


def mark_validation_as_interrupted(checkpoint: dict[str, Any]) -> None:
    """Marks the validation in a checkpoint as started but not finished: a resumed run repeats it, and then continues.

    Lightning writes the same when it saves during a validation. Without it, that validation would be left out.
    Upstream: Lightning-AI/pytorch-lightning#19549, #20288.
    """
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    progress |= {"total": begun, "current": dict.fromkeys(begun, 0)}


def averaged_model(callback: Any) -> Any:
    """The torch.optim.swa_utils.AveragedModel of Lightning's WeightAveraging, None before its setup.

    The callback has no public name for it; without it, a subclass cannot decide when to update the average.
    """
    return callback._average_model


def non_persistent_buffers(module: Any) -> set[str]:
    """The names of a module's own buffers that its state_dict leaves out, which torch does not tell."""
    return module._non_persistent_buffers_set  # type: ignore[no-any-return]


def batch_norm_class() -> Any:
    """The base class of all batch norms, which has no public name; a list would miss the lazy and synced ones."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return _BatchNorm


def set_data_parallel_size(strategy: Any, size: int) -> None:
    """Sets how many data-parallel ranks a ModelParallelStrategy has.

    The number is known once the processes are, after the strategy is built. Without it, "auto" means one a node.
    """
    strategy._data_parallel_size = size


def fake_tensors() -> tuple[Any, tuple[type[Exception], ...]]:
    """FakeTensorMode, whose tensors have a shape but no values, and the errors of code that asks them for values."""
    from torch._subclasses import fake_tensor as fake

    errors = (fake.DataDependentOutputException, fake.DynamicOutputShapeException, fake.UnsupportedOperatorException)
    return fake.FakeTensorMode, errors


def dispatch_mode() -> Any:
    """TorchDispatchMode, the class of a context that sees every operation, those of the backward pass too.

    Without it, `plan` does not know the memory of results that no graph keeps.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def export_error() -> type[Exception]:
    """What torch.export raises where it cannot follow a network with a batch of any size."""
    from torch._dynamo.exc import UserError

    return UserError
