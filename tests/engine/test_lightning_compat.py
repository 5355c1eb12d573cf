"""Each private or patched name of Lightning, torch and torchmetrics is still there, and still needed."""

import copy
import ctypes
import functools
import importlib
import inspect
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hosts
import pytest
import torch
from engine import lightning_compat as compat
from engine.errors import UsageError
from paths import PROJECT
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, SumMetric

pytestmark = pytest.mark.filterwarnings("ignore:.*srun. command is available")  # where SLURM is installed


def trainer(*callbacks: Callback, **ends: int) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    ends = {"max_epochs": 1} | ends
    return Trainer(accelerator="cpu", callbacks=[*callbacks], enable_checkpointing=False, **ends, **quiet)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
def test_defer_scipy_signal() -> None:
    """It is still needed; that it works is tried by test_a_start_leaves_scipy_to_those_who_use_it."""

    def load_torchmetrics() -> None:
        for name in [*sys.modules]:
            if name.partition(".")[0] == "torchmetrics" or name.startswith("scipy.signal"):
                del sys.modules[name]
        importlib.import_module("torchmetrics")
        print("scipy.signal._signaltools" in sys.modules)

    assert hosts.ranks(1, load_torchmetrics) == (0, "True\n")


EAGER = """
import sys
import engine, torch
from pytorch_lightning.utilities import compile
layer, ones = torch.nn.Linear(2, 1), torch.ones(1, 2)
optimizer = torch.optim.Adam(layer.parameters(), fused=True)
layer(ones).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert not isinstance(layer, compile.OptimizedModule)
assert "torch._dynamo.eval_frame" not in sys.modules, "it was loaded"
plain = optimizer.zero_grad.__wrapped__
assert plain.__dynamo_disable is plain
"""
COMPILED = """
compiled = torch.compile(layer, backend="eager")
assert (compiled(ones) == layer(ones)).all()
assert isinstance(compiled, compile.OptimizedModule) and not isinstance(layer, compile.OptimizedModule)
for name, module in [*sys.modules.items()]:
    if name.startswith("torch._dynamo"):
        assert module.__spec__.loader is module.__loader__, name
for name in ("config", "utils", "eval_frame"):
    assert getattr(torch._dynamo, name) is sys.modules[f"torch._dynamo.{name}"]
assert torch._dynamo.eval_frame.config is torch._dynamo.config  # not a second copy
assert torch._dynamo.convert_frame.counters is torch._dynamo.utils.counters
optimizer.zero_grad()
assert plain.__dynamo_disable is not plain  # but the compiler's own
"""


DISABLED = """
import engine, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.compiler.disable(torch.nn.Linear(2, 1))
        self.encode = torch.compiler.disable(self.encode)

    def encode(self, values):
        return self.body(values)

@torch.compiler.disable
class Heir(Net):
    def __init__(self):
        super(Heir, self).__init__()

layer = Heir()
assert isinstance(layer, Net) and len([*layer.parameters()]) == 2
assert layer.encode(torch.ones(1, 2)).shape == (1, 1)
"""


def test_what_is_kept_from_the_compiler_stays_what_it_is() -> None:
    """Modules, methods and classes, where the compiler is not loaded yet."""
    subprocess.run([sys.executable, "-c", DISABLED], cwd=PROJECT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "torch._dynamo.reset()", "import torch._dynamo.utils"])
def test_defer_dynamo(first: str) -> None:
    """It is still needed, stands in for the real one, and gives way to it."""
    loaded = "import torch, pytorch_lightning, sys; assert 'torch._dynamo.eval_frame' in sys.modules"
    for words in (EAGER + first + COMPILED, loaded):
        subprocess.run([sys.executable, "-c", words], cwd=PROJECT, check=True)


def test_keep_freed_memory() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc's malloc")
    assert callable(ctypes.CDLL("libc.so.6").mallopt)
    assert compat.keep_freed_memory()


def test_skip_driver_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_fabric.accelerators.cuda as cuda

    assert "PYTORCH_NVML_BASED_CUDA_CHECK" in inspect.getsource(cuda) + inspect.getsource(
        sys.modules["lightning_fabric"]
    )
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    assert torch.cuda._nvml_based_avail()
    compat.skip_driver_lookup()
    assert not torch.cuda._nvml_based_avail()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


class Validating(Module):
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None: ...


def test_lean_epoch_loop_says_nothing_of_sigterm() -> None:
    made = trainer()
    loop = type(made.fit_loop.epoch_loop)
    assert "_broadcast_sigterm_tensor()" in inspect.getsource(loop.on_advance_end) + inspect.getsource(loop.advance)
    assert compat.lean_epoch_loop(made)._broadcast_sigterm_tensor() is None


class Every(Callback):
    """Notes each hook that is called, of callbacks and the module, with the batch's number and all counters."""

    def __init__(self, module: LightningModule) -> None:
        self.seen: list[Any] = []
        hooks = [name for name in dir(Callback) if name.startswith("on_") and "checkpoint" not in name]
        of_module = [*hooks, "training_step", "optimizer_step", "lr_scheduler_step", "transfer_batch_to_device"]
        for one, names in ((self, hooks), (module, of_module)):
            for name in names:
                if (hook := getattr(one, name, None)) is not None:
                    object.__setattr__(one, name, self.noting(type(one).__name__, name, hook, module))

    def noting(self, owner: str, name: str, hook: Any, module: LightningModule) -> Any:
        @functools.wraps(hook)
        def note(*args: Any, **kwargs: Any) -> Any:
            made = module.trainer
            called = None if name == "transfer_batch_to_device" else module._current_fx_name  # self.log refuses both
            counters = {key: repr(state) for key, state in made.fit_loop.state_dict().items()}
            metrics = {key: float(value) for key, value in made._logger_connector._callback_metrics.items()}
            numbers = made.global_step, made.is_last_batch, [one for one in args if type(one) is int]
            self.seen.append((owner, name, called, numbers, counters, metrics))
            output = hook(*args, **kwargs)
            self.seen.append((name, None if called is None else module._current_fx_name))
            return output

        return note


class Scheduled(Validating):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        kinds = [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]
        ways = [{"interval": "step", "frequency": 2}, {"interval": "epoch", "monitor": "loss"}]
        return [optimizer], [way | {"scheduler": kind} for kind, way in zip(kinds, ways, strict=True)]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.log("loss", loss := super().training_step(batch, batch_idx))
        return {"loss": loss, "more": batch_idx}


class Leaving(Module):
    """Leaves out a step, and the rest of the epoch."""

    def training_step(self, batch: torch.Tensor) -> torch.Tensor | None:
        return super().training_step(batch, 0) if batch[0, 0] != 2 else None

    def on_train_batch_start(self, batch: torch.Tensor, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


class ByHand(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


class Turning(Module):
    """Steps by itself in every second batch."""

    def on_train_batch_start(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.automatic_optimization = batch_idx % 2 == 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor | None:
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        return None


class Changing(Module):
    """Sets a hook on a callback, and brings another callback, within the run."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.callbacks[0].on_before_zero_grad = lambda *_: self.layer.bias.data.add_(1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == (1, 3):
            self.trainer.callbacks.insert(1, Adding())


class Adding(Callback):
    def on_before_backward(self, made: Trainer, module: LightningModule, loss: torch.Tensor) -> None:
        module.layer.bias.data.add_(2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Module, {}),
        (Validating, {"val_check_interval": 2}),
        (Validating, {"val_check_interval": 4, "check_val_every_n_epoch": None}),
        (Validating, {"check_val_every_n_epoch": 2, "max_steps": 7}),
        (Scheduled, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
        (Scheduled, {"precision": "bf16-mixed", "log_every_n_steps": 2}),
        (Leaving, {}),
        (ByHand, {}),
        (Turning, {}),
        (Changing, {}),
    ],
)
def test_lean_epoch_loop_calls_what_lightning_calls(
    tmp_path: Path, kind: Any, options: dict[str, Any], resumed: bool
) -> None:
    """The same hooks in the same order, with the same counters, metrics and weights, as Lightning's own loop."""

    def collate(items: list[torch.Tensor]) -> torch.Tensor | None:
        return None if items[0][0] == 4 else torch.stack(items)  # Lightning leaves such a batch out

    def fit(is_lean: bool, path: str | None, *callbacks: Callback) -> tuple[list[Any], dict[str, Any]]:
        torch.manual_seed(0)
        module, loader = kind(), DataLoader(torch.arange(12.0).view(6, 2), collate_fn=collate)
        made = trainer(noted := Every(module), *callbacks, **{"max_epochs": 3} | options)
        if is_lean:
            made.fit_loop.epoch_loop = compat.lean_epoch_loop(made)
            compat.call_hooks_directly(made)
        made.fit(module, loader, loader, ckpt_path=path, weights_only=True)
        assert not is_lean or made.fit_loop.epoch_loop.is_lean
        return noted.seen, module.state_dict()

    class Saved(Callback):
        def on_train_batch_end(self, made: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (made.current_epoch, batch_idx) == (0, 2):
                made.save_checkpoint(tmp_path / "third.ckpt")

    path = None
    if resumed:
        fit(False, None, Saved())
        path = str(tmp_path / "third.ckpt")
    (noted, weights), (lean_noted, lean_weights) = fit(False, path), fit(True, path)
    assert len(noted) > 50
    for one, other in zip(noted, lean_noted, strict=True):
        assert one == other
    assert all(torch.equal(weights[name], lean_weights[name]) for name in weights)


@pytest.mark.filterwarnings("ignore")
def test_lean_epoch_loop_asks_a_strategy_that_moves_batches() -> None:
    class Moving(SingleDeviceStrategy):
        def batch_to_device(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().batch_to_device(batch, *args, **kwargs) + 1

    class Kept(Module):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.batch = batch
            return super().training_step(batch, batch_idx)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    made, module = Trainer(strategy=Moving("cpu"), max_epochs=1, enable_model_summary=False, **quiet), Kept()
    made.fit_loop.epoch_loop = compat.lean_epoch_loop(made)
    compat.call_hooks_directly(made)
    made.fit(module, DataLoader(torch.zeros(2, 2)))
    assert module.batch.tolist() == [[1, 1]]


def test_count_epochs(tmp_path: Path) -> None:
    """Three epochs of two batches, from the end of the first one on."""

    class Saved(Callback):
        def on_train_epoch_end(self, made: Trainer, module: LightningModule) -> None:
            made.save_checkpoint(tmp_path / f"{made.current_epoch}.ckpt")

    loader, steps = DataLoader(torch.zeros(2, 2)), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(Saved(), max_epochs=1, max_steps=100).fit(Module(), loader)
        for mended in (False, True):
            made = trainer(max_epochs=3, max_steps=100)
            if mended:
                compat.count_epochs(made)
            made.fit(Module(), loader, ckpt_path=str(tmp_path / "0.ckpt"), weights_only=True)
            steps.append(made.global_step)
    assert steps[0] < steps[1] == 6


def test_keep_dtype() -> None:
    from torchmetrics import MeanMetric

    cast, kept = torch.nn.ModuleDict({"mean": MeanMetric()}), torch.nn.ModuleDict({"mean": MeanMetric()})
    compat.keep_dtype(kept)
    copied = copy.deepcopy(kept)
    for one in (cast, kept, copied):
        torch.nn.ModuleList([one]).to(dtype=torch.bfloat16)
    assert [one["mean"].mean_value.dtype for one in (cast, kept, copied)] == [torch.bfloat16, *[torch.float32] * 2]
    assert kept.to("meta")["mean"].mean_value.device.type == "meta"
    assert copied["mean"].mean_value.device.type == "cpu"


def test_restore_metric_merges_each_state_in_its_own_way() -> None:
    from torchmetrics import MaxMetric, MeanMetric, PearsonCorrCoef
    from torchmetrics.image import PeakSignalNoiseRatio

    def restored(metric: Metric, name: str, *ranks: float) -> torch.Tensor:
        compat.restore_metric("val_it", metric, [{name: torch.tensor(one)} for one in ranks])
        return getattr(metric, name)

    assert restored(MeanMetric(), "mean_value", 1.0, 3.0) == 4
    assert restored(MaxMetric(), "max_value", 1.0, 3.0) == 3
    assert restored(PeakSignalNoiseRatio(data_range=1.0), "data_range", 1.0, 1.0) == 1
    assert restored(PearsonCorrCoef(), "mean_x", 1.0) == 1
    with pytest.raises(UsageError, match="val_it of this epoch is on 2 devices"):
        restored(PearsonCorrCoef(), "mean_x", 1.0, 3.0)


@pytest.mark.parametrize("hook", ["on_before_backward", "on_validation_batch_start", "on_validation_batch_end"])
def test_skip_unused_hooks(monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Callback, hook, lambda *_: calls.append("called"))
    loader = DataLoader(torch.zeros(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = Callback()
        trainer(plain).fit(Validating(), loader, loader)
        assert calls  # without it
        calls.clear()
        made, module = trainer(plain), Validating()
        compat.skip_unused_hooks(made, module)
        made.fit(module, loader, loader)
    assert not calls


class Numbered(Module):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen = [*getattr(self, "seen", []), batch_idx]
        return self.layer(batch).mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.validated = getattr(self, "validated", 0) + 1


@pytest.mark.filterwarnings("ignore")
def test_cache_step_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.loops import evaluation_loop, training_epoch_loop
    from pytorch_lightning.utilities import signature_utils

    asked, plain = [], signature_utils.is_param_in_hook_signature
    for loop in (evaluation_loop, training_epoch_loop):
        count = lambda step, *words, **more: asked.append(step.__name__) or plain(step, *words, **more)  # noqa: E731
        monkeypatch.setattr(loop, "is_param_in_hook_signature", count)
    counts = []
    for cache in (lambda: None, compat.cache_step_parameters, compat.cache_step_parameters):
        cache()
        asked.clear()
        module, loader = Numbered(), DataLoader(torch.zeros(4, 2))
        made = trainer()
        made.num_sanity_val_steps = 0
        made.fit(module, loader, loader)
        assert (module.seen, module.validated) == ([0, 1, 2, 3], 4)
        counts.append([asked.count(name) for name in ("training_step", "validation_step")])
    assert counts == [[4, 4], [1, 1], [0, 0]]


def test_idle_threads_soon_sleep() -> None:
    assert "OMP_WAIT_POLICY" in os.environ or os.environ["GOMP_SPINCOUNT"] == "10000"


class Logging(Module):
    """Logs a mean and a maximum."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("mean", float(batch_idx), on_step=True, on_epoch=True, batch_size=1 + batch_idx)
        self.log("most", float(batch_idx), reduce_fx="max", on_step=False, on_epoch=True, batch_size=1)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_: object) -> None:
        self.batches = getattr(self, "batches", 0) + 1


def test_call_after_logging_and_the_state_of_self_log() -> None:
    seen: list[tuple[str, int, int]] = []
    kept: dict[str, object] = {}
    made, module = trainer(), Logging()
    progress = made.fit_loop.epoch_loop.batch_progress.current

    def after_batch() -> None:
        seen.append(("batch", module.batches, progress.processed - progress.completed))
        if module.batches == 2:
            kept.update(compat.logged_state(made))

    compat.call_after_logging(
        made, after_batch, lambda: seen.append(("epoch", module.batches, len(made.callback_metrics)))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(module, DataLoader(torch.zeros(3, 2)))
    assert seen == [("batch", 1, 1), ("batch", 2, 1), ("batch", 3, 1), ("epoch", 3, 4)]
    assert made.callback_metrics["mean"] == pytest.approx((1 * 0 + 2 * 1 + 3 * 2) / 6)
    assert made.callback_metrics["most"] == 2

    again = trainer()
    compat.restore_latest(again, {"val_loss": 0.5})
    assert again.callback_metrics == {"val_loss": 0.5}
    again.strategy.connect(module)
    compat.restore_logged(again, [kept, kept])  # of two processes
    results = again.fit_loop.epoch_loop._results
    assert float(results["training_step.mean"].compute()) == pytest.approx(2 / 3)
    assert int(results["training_step.mean"].cumulated_batch_size) == 6
    assert float(results["training_step.most"].value) == 2 or float(results["training_step.most"].value) == 1


class TwoLoaders(Module):
    """Logs the sum of each of two validation loaders by one metric."""

    def __init__(self, resets: bool) -> None:
        super().__init__()
        self.resets, self.sum = resets, SumMetric()

    def validation_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.resets and dataloader_idx and not batch_idx:
            compat.reset_logged_metrics(self.trainer)
        self.sum.update(batch)
        self.log("sum", self.sum)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # torch's, from within Lightning
@pytest.mark.parametrize(("resets", "second"), [(False, 11), (True, 8)])
def test_reset_logged_metrics(resets: bool, second: int) -> None:
    loaders = [DataLoader(torch.ones(3, 1)), DataLoader(torch.full((4, 1), 2.0))]
    told = trainer().validate(TwoLoaders(resets), loaders, verbose=False)
    assert [one[f"sum/dataloader_idx_{at}"] for at, one in enumerate(told)] == [3, second]


def test_restore_metric() -> None:
    first, second = SumMetric(), SumMetric()
    first.update(2)
    second.update(3)
    compat.restore_metric("sum", third := SumMetric(), [first.metric_state, second.metric_state])
    assert third.update_called
    assert third.compute() == 5


def test_set_process_group_timeout() -> None:
    strategy = DDPStrategy()
    assert strategy._timeout == timedelta(minutes=30)
    compat.set_process_group_timeout(strategy, days=2)
    assert strategy._timeout == timedelta(days=2)
    assert "self._timeout" in inspect.getsource(DDPStrategy.setup_distributed)
    assert hasattr(ModelParallelStrategy(), "_timeout")


def test_shut_down_workers() -> None:
    loader = DataLoader(torch.zeros(2), num_workers=1, persistent_workers=True)
    list(loader)
    [worker] = loader._iterator._workers
    assert worker.is_alive()
    compat.shut_down_workers(loader)
    assert not worker.is_alive()
    assert not hasattr(loader, "close")
    assert loader._iterator is None


def test_mark_as_updated() -> None:
    metric = SumMetric()
    metric.sum_value = torch.tensor(3.0)
    assert not metric.update_called
    compat.mark_as_updated(metric)
    assert metric.update_called
    assert metric.compute() == 3
    metric.sum_value = torch.tensor(4.0)
    assert metric.compute() == 3  # a cached result
    compat.mark_as_updated(metric)
    assert metric.compute() == 4


def test_all_finite() -> None:
    assert callable(torch._amp_foreach_non_finite_check_and_unscale_)
    assert compat.all_finite([torch.ones(2), torch.ones(3)])
    assert compat.all_finite([])
    for wrong in (float("nan"), float("inf")):
        gradients = [torch.ones(2), torch.tensor([1.0, wrong])]
        assert not compat.all_finite(gradients)
        assert gradients[0].tolist() == [1, 1]
    assert not compat.all_finite([torch.ones(1), torch.tensor([float("inf")], dtype=torch.float64)])


def test_skip_unless_finite() -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    assert compat.skip_unless_finite(torch.optim.Adam([weight], fused=True), [weight.grad]) is None  # on the CPU
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad):
        optimizer = kind([weight], lr=0.1, fused=True)
        assert optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
        for found in (1.0, 0.0):
            optimizer.grad_scale, optimizer.found_inf, before = None, torch.tensor(found), weight.detach().clone()  # type: ignore[attr-defined]
            optimizer.step()
            assert torch.equal(weight, before) == bool(found)
    norms = torch.stack(torch._foreach_norm([torch.ones(2), torch.tensor([1.0, torch.nan])], torch.inf))
    assert norms.isfinite().tolist() == [True, False]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_load_sharded_checkpoint(tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp

    dcp.save({"state_dict": {"weight": torch.ones(2)}}, checkpoint_id=tmp_path / "s", no_dist=True)
    torch.save({"epoch": 3}, tmp_path / "s" / "meta.pt")
    loaded = compat.load_sharded_checkpoint(tmp_path / "s")
    assert loaded["epoch"] == 3
    assert loaded["state_dict"]["weight"].tolist() == [1, 1]


def test_mark_validation_as_interrupted() -> None:
    made = trainer()
    made.strategy.connect(Module())
    state = {"loops": {"fit_loop": made.fit_loop.state_dict()}}
    loop = made.fit_loop.epoch_loop.val_loop
    made.fit_loop.load_state_dict(state["loops"]["fit_loop"])
    loop.restarting = True
    loop.update_restart_stage()
    assert not loop.restarted_mid_evaluation  # without it
    compat.mark_validation_as_interrupted(state)
    made.fit_loop.load_state_dict(state["loops"]["fit_loop"])
    loop.restarting = True
    loop.update_restart_stage()
    assert loop.restarted_mid_evaluation


def test_averaged_model() -> None:
    callback, module = WeightAveraging(), Module()
    assert compat.averaged_model(callback) is None
    callback.setup(SimpleNamespace(strategy=SimpleNamespace(root_device="cpu")), module, "fit")  # type: ignore[arg-type]
    compat.averaged_model(callback).update_parameters(module)
    assert compat.averaged_model(callback).n_averaged == 1


def test_non_persistent_buffers() -> None:
    module = nn.Module()
    module.register_buffer("kept", torch.zeros(1))
    module.register_buffer("lost", torch.zeros(1), persistent=False)
    assert compat.non_persistent_buffers(module) == {"lost"}


def test_batch_norm_class() -> None:
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.LazyBatchNorm3d):
        assert issubclass(norm, compat.batch_norm_class())
    assert not issubclass(nn.LayerNorm, compat.batch_norm_class())


def test_set_data_parallel_size() -> None:
    strategy = ModelParallelStrategy(tensor_parallel_size=2)
    assert strategy._data_parallel_size == "auto"
    compat.set_data_parallel_size(strategy, 3)
    assert strategy._data_parallel_size == 3
    assert "self._data_parallel_size" in inspect.getsource(ModelParallelStrategy.setup_environment)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")  # Lightning's own call
def test_combined_mode() -> None:
    from pytorch_lightning.utilities import CombinedLoader

    for mode in ("max_size_cycle", "max_size", "min_size", "sequential"):
        assert compat.combined_mode(CombinedLoader([range(2), range(3)], mode)) == mode


def test_fake_tensors_have_shapes_and_no_values() -> None:
    mode, errors = compat.fake_tensors()
    with mode():
        tensor = torch.zeros(2, 3)
        assert tensor.shape == (2, 3)
        with pytest.raises(errors):
            bool(tensor.sum() > 0)


def test_dispatch_mode_sees_the_operations_of_the_backward_pass() -> None:
    seen = []

    class Record(compat.dispatch_mode()):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    weight = torch.ones(2, requires_grad=True)
    loss = (weight**2).sum()
    with Record():
        loss.backward()
    assert any("mul" in name for name in seen)


def test_export_error() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(2, 1)

    with pytest.raises(compat.export_error()):
        torch.export.export(Fixed(), (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def test_summary_writer(tmp_path: Path) -> None:
    """No argument takes another event writer; ours is used for all that is logged, after a close too."""
    written: list[Any] = []

    class Events:
        add_event = staticmethod(written.append)
        flush = close = staticmethod(lambda: None)

    writer = compat.summary_writer(tmp_path, Events())
    for step in range(2):
        writer.add_scalar("loss", 1.0, step)
        writer.flush()
        writer.close()
    assert [event.step for event in written] == [0, 1]
    assert not list(tmp_path.iterdir())
