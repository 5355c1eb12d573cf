"""`plan`: estimate memory, communication and time of training on any number of devices."""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from matplotlib.ticker import EngFormatter
from pytorch_lightning import seed_everything

from engine.cli.settings import Settings
from engine.commands.plan import parallel_costs, step_costs
from engine.commands.plan.parallel_costs import ParallelSetup
from engine.errors import UsageError
from engine.training import lr_schedulers, trainer_setup
from engine.training.step_timer import StepTimer

_SHOWN = ("32-true", "bf16-mixed", "bf16-true")


def run(
    settings: Settings,
    build_data: Callable[..., Any],
    build_model: Callable[..., Any],
    *,
    device_memory: str | None = None,
    device_tflops: Annotated[float, "> 0"] | None = None,
    link_gbps: Annotated[float, "> 0"] | None = None,
    measure_steps: Annotated[int, ">= 0"] = 10,
) -> dict[str, float]:
    """Prints the costs for --devices, --num_nodes, --strategy, --precision and --batch_size; writes no files.

    The rates in the help are published: Ethernet; PCIe 4.0 with 16 lanes (PCI-SIG); NVLink, one direction, and dense
    bf16 matrix products from NVIDIA's data sheets of A100 and H100. D. Narayanan et al., "Efficient large-scale
    language model training", 2021, reached 52 % of the latter.

    device_memory: memory of one device, such as 80GB or 40GiB; none takes that of this machine's device.
    device_tflops: TFLOP/s of a device in training, to compute times for one that is not here: at most half of the
        published number (bf16: A100 312, H100 989).
    link_gbps: gigabits per second in one direction of the slowest link between two devices (10 or 100 Ethernet, 250
        PCIe 4.0, 2400 NVLink of an A100, 3600 of an H100).
    measure_steps: steps to run and time on one device of this machine, to compute times from; 0 for none.

    Returns: The printed numbers for the chosen precision and strategy: bytes per device, parameters, items, seconds.
    Raises: UsageError: an unsupported strategy or precision, memory that is no number, a network that cannot be traced.
    """
    flags = settings.arguments["trainer"]
    if flags.get("fast_dev_run"):
        raise UsageError("plan takes no --fast_dev_run: it trains nothing")
    device = parallel_costs.device_type(flags.get("accelerator", "auto"))
    num_devices = parallel_costs.num_devices(flags.get("devices", "auto"), device) * flags.get("num_nodes", 1)
    strategy = parallel_costs.strategy_of(str(flags.get("strategy", "auto")))
    precision = parallel_costs.precision_of(str(flags.get("precision", 32)))
    available = parallel_costs.memory_of(device_memory, device)
    num_batches = flags.get("accumulate_grad_batches", 1)
    seed_everything(settings.arguments["run"]["seed"], verbose=False)
    data = build_data(settings)
    data.num_workers = 0
    build = partial(step_costs.build_meta, settings, data, build_model)
    checked = settings.arguments["callbacks"].get("bad_steps") != "ignore"
    count = partial(step_costs.count, build, device=device, checks_gradients=checked)
    steps = _count(count, data, precision)
    setup = ParallelSetup(steps[precision], precision, strategy, num_devices)
    step = setup.step
    print(f"{settings.network.name}: {step.parameters:,} parameters, {step.trainable:,} of them trained")
    strategies = ("ddp", "fsdp") if num_devices > 1 else ("ddp",)
    setups = [ParallelSetup(one, name, kind, num_devices) for name, one in steps.items() for kind in strategies]
    _print_table(setups, data.batch_size, num_batches, available)
    parts = setup.memory(data.batch_size)
    result = {"parameters": step.parameters, "trainable": step.trainable, **parts, "memory": sum(parts.values())}
    result |= {"communication": setup.communication(num_batches), "largest_batch": setup.largest_batch(available)}
    _print_fit(setup, result["memory"], available)
    measure = partial(_measure, settings, build_data, build_model, measure_steps) if measure_steps else None
    seconds = _batch_seconds(setup, data.batch_size, parallel_costs.local_memory(device), device_tflops, measure)
    if seconds is None:
        return result
    result["batch_seconds"] = seconds
    if num_devices > 1 and link_gbps is None:
        print(f"the times of {num_devices} devices need the speed of their link: --link_gbps")
        return result
    step_seconds = setup.step_seconds(seconds, num_batches, link_gbps or math.inf)
    num_steps = _epoch_steps(data, num_devices * data.batch_size, num_batches)
    return result | _print_times(setup, step_seconds, num_steps, settings.arguments["run"]["max_epochs"] or 0)


def _count(count: Callable[..., step_costs.StepCosts], data: Any, precision: str) -> dict[str, step_costs.StepCosts]:
    """The costs in each precision of the table, the chosen one first."""
    batch = data.sample()
    batch = next(iter(data.train_dataloader())) if batch is None else batch
    steps = {}
    for name in [*dict.fromkeys([precision, *_SHOWN])][:3]:
        try:
            steps[name] = count(batch, name)
        except RuntimeError as error:
            if name == precision:
                raise
            print(f"{name} is left out: {str(error).partition(chr(10))[0]}")
    return steps


def _print_table(setups: list[ParallelSetup], batch_size: int, num_batches: int, available: float) -> None:
    """A column for each setup, within 80 characters."""
    rows: dict[str, list[str]] = {}
    for setup in setups:
        parts, largest, several = setup.memory(batch_size), setup.largest_batch(available), setup.num_devices > 1
        between = parts.get("buckets", parts.get("gathered_layer", 0))
        head = setup.precision if setup.strategy == "ddp" else ""  # once for both strategies
        column = {
            f"each of {setup.num_devices} devices" if several else "on one device": head,
            f"--batch_size {batch_size}": setup.strategy if several else "",
            "weights": _bytes(parts["weights"]),
            "gradients": _bytes(parts["gradients"]),
            "optimiser state": _bytes(parts["optimizer_state"]),
            "activations": _bytes(parts.get("activations")),
            "workspace": _bytes(parts.get("workspace")),
            "buckets, or a layer": _bytes(between),
            "in all": _bytes(sum(parts.values())),
            "largest batch": "?" if setup.step.unknown else f"{largest:,}" if largest < 1e6 else f"{largest:.2g}",
            "sends a step": _bytes(setup.communication(num_batches)),
        }
        for label, cell in column.items():
            if several or label not in ("buckets, or a layer", "sends a step"):
                rows.setdefault(label, []).append(cell)
    print()
    for label, cells in rows.items():
        print(f"{label:<20}{''.join(f'{cell:>{60 // max(len(cells), 5)}}' for cell in cells)}".rstrip())
    print()


def _print_fit(setup: ParallelSetup, needed: float, available: float) -> None:
    fits = "fits" if needed <= (1 - parallel_costs.FREE) * available else "does not fit"
    name = setup.precision if setup.num_devices == 1 else f"{setup.precision} with {setup.strategy}"
    print(f"{name} {fits}: {_bytes(needed)} of {_bytes(available)} a device, a tenth left free")
    if setup.step.unknown:
        print(f"but the activations are not in it: {setup.step.unknown}")
    if setup.strategy == "fsdp" and setup.num_devices > 1:
        print(f"fsdp gathers a layer at a time, {setup.step.layer} at the most, where an auto_wrap_policy")
        print(f"wraps each; without one, all weights: {_bytes(setup.gathered(setup.step.parameters))}")


def _batch_seconds(
    setup: ParallelSetup, batch_size: int, available: float, tflops: float | None, measure: Callable[[], float] | None
) -> float | None:
    """Seconds of a batch on one device: by its operations, or by real steps; None where neither can be had."""
    flops = 3 * setup.step.flops * batch_size  # the backward pass is twice the forward pass
    needed = sum(setup._replace(strategy="ddp", num_devices=1).memory(batch_size).values())
    if tflops and flops:
        seconds = flops / (tflops * 1e12)
        print(f"a batch takes {_duration(seconds)} at {tflops:g} TFLOP/s, once it is loaded")
        return seconds
    if tflops:
        print("no time is computed: the operations could not be counted")
    elif measure and needed > available:
        print(f"no step was timed: {_bytes(needed)} are needed and {_bytes(available)} are here")
    elif measure:
        seconds = measure()
        rate = f" at {_quantity(flops / seconds, 'FLOP/s')}" if flops else ""
        print(f"a batch takes {_duration(seconds)} on one device here{rate}, its loading included")
        return seconds
    return None


def _epoch_steps(data: Any, global_batch_size: int, num_batches: int) -> int | None:
    """Optimiser steps of an epoch, None for a stream that does not say its length."""
    try:
        return math.ceil(math.ceil(len(data.split("train")) / global_batch_size) / num_batches)
    except TypeError:
        return None


def _print_times(
    setup: ParallelSetup, seconds: tuple[float, float], num_steps: int | None, epochs: int
) -> dict[str, float]:
    """Prints and returns the times of a step, an epoch and all epochs, with overlap and without."""
    result: dict[str, float] = {"step_seconds": seconds[0], "step_seconds_no_overlap": seconds[1]}
    counts = {"a step": 1}
    if num_steps is not None:
        low, high = (num_steps * each for each in seconds)
        result |= {"steps": num_steps, "epoch_seconds": low, "epoch_seconds_no_overlap": high}
        counts[f"an epoch of {num_steps:,} step{'s' * (num_steps != 1)}"] = num_steps
        if epochs > 1:
            counts[f"{epochs} epochs"] = num_steps * epochs
    for name, count in counts.items():
        least, most = (_duration(count * each) for each in seconds)
        print(f"{name}: {least}" + (f", or {most} where nothing overlaps" if most != least else ""))
    if setup.num_devices > 1:
        passes = "backward pass, two thirds of a batch" if setup.strategy == "ddp" else "forward and backward passes"
        print(f"the first hides communication behind the {passes};\nboth suppose that loading keeps up")
    return result


def _measure(settings: Settings, build_data: Callable[..., Any], build_model: Callable[..., Any], steps: int) -> float:
    """Median seconds of a batch, of real ones on one device."""
    data = build_data(settings)
    model = build_model(settings, data)
    lr_schedulers.keep_constant(model, "plan")
    timer = StepTimer()
    trainer_setup.make_trial_trainer(settings, model, data, timer, max_epochs=-1, max_steps=steps + 2).fit(model, data)
    return statistics.median(timer.step_seconds())


def _quantity(number: float, unit: str) -> str:
    """1.234e9 as "1.23 GB"."""
    return EngFormatter(unit)(float(f"{number:.3g}"))


def _bytes(number: float | None) -> str:
    return "?" if number is None else _quantity(number, "B")


def _duration(seconds: float) -> str:
    """90 as "1.5 min"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
