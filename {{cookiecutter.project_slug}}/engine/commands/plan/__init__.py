"""`plan`: what training will cost in memory, communication and time on any number of devices, before it is paid.

It goes with plan_network.py, plan_memory.py, plan_costs.py and tests/test_plan.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from pytorch_lightning import seed_everything

from engine.cli.settings import Settings
from engine.commands.plan import costs, meta_network
from engine.commands.plan.costs import long, short
from engine.commands.plan.memory import Account, count
from engine.errors import UsageError

_SHOWN = ("32-true", "bf16-mixed", "bf16-true")


def run(
    settings: Settings,
    build_data: Callable[..., Any],
    build_model: Callable[..., Any],
    *,
    device_memory: str | None = None,
    device_tflops: float | None = None,
    link_gbps: float | None = None,
    measure_steps: int = 10,
) -> dict[str, float]:
    """Prints the account for --devices, --num_nodes, --strategy, --precision and --batch_size, and keeps nothing.

    The rates in the help are published: of Ethernet; of PCIe 4.0 with 16 lanes (PCI-SIG); of NVLink and of products of
    dense bf16 matrices in NVIDIA's data sheets of A100 and H100, NVLink halved, for they add both directions up. Of
    the products 52 % were reached in D. Narayanan et al., "Efficient large-scale language model training", 2021.

    Args:
        device_memory: of one device, such as 80GB or 40GiB; none asks the device found here.
        device_tflops: 10^12 operations a second that a device does in training, to tell the times of one that is not
            here: at most half of what is published (bf16: A100 312, H100 989).
        link_gbps: gigabits a second that a device sends over the slowest link between two (10 or 100 Ethernet, 250 PCIe
            4.0, 2400 NVLink of an A100, 3600 of an H100).
        measure_steps: real steps to time on one device here, from which the times are told; 0 for none.

    Returns:
        What was printed of the precision and strategy chosen: bytes a device, parameters, items, seconds.

    Raises:
        UsageError: another strategy or precision, memory that is no number, a network that cannot be followed.
    """
    given = settings.arguments["trainer"]
    if given.get("fast_dev_run"):
        raise UsageError("plan takes no --fast_dev_run: it trains nothing")
    kind = costs.kind(given.get("accelerator", "auto"))
    many = costs.devices(given.get("devices", "auto"), kind) * given.get("num_nodes", 1)
    strategy = costs.strategy_of(str(given.get("strategy", "auto")))
    precision = costs.precision_of(str(given.get("precision", 32)))
    room = costs.room(device_memory, kind)
    each = given.get("accumulate_grad_batches", 1)
    seed_everything(settings.arguments["run"]["seed"], verbose=False)
    data = build_data(settings)
    data.num_workers = 0
    rows, size = _rows(partial(meta_network.build, settings, data, build_model), data, precision, kind), data.batch_size
    own = rows[precision]
    print(f"{settings.network.name}: {own.parameters:,} parameters, {own.trainable:,} of them trained")
    _print_table(rows, many, size, each, room)
    parts = costs.memory(own, precision, strategy, many, size)
    told = {"parameters": own.parameters, "trainable": own.trainable, **parts, "memory": sum(parts.values())}
    told["communication"] = costs.communication(own, precision, strategy, many, each)
    told["largest_batch"] = costs.largest(own, precision, strategy, many, room)
    _print_fit(own, precision, strategy, many, told["memory"], room)
    seconds = _batch_seconds(
        partial(costs.measure, settings, build_data, build_model),
        own,
        precision,
        size,
        kind,
        device_tflops,
        measure_steps,
    )
    if seconds is not None:
        told |= {"batch_seconds": seconds}
        told |= _times(told, strategy, many, each, size, costs.items(data.split("train")), settings, link_gbps)
    return told


def _rows(build: Callable[[], Any], data: Any, precision: str, kind: str) -> dict[str, Account]:
    """An account for each precision of the table, the chosen one first."""
    batch = data.sample()
    batch = next(iter(data.train_dataloader())) if batch is None else batch
    rows = {}
    for name in [*dict.fromkeys([precision, *_SHOWN])][:3]:
        try:
            rows[name] = count(build, batch, name, kind)
        except RuntimeError as error:
            if name == precision:
                raise
            print(f"{name} is left out: {str(error).partition(chr(10))[0]}")
    return rows


def _print_table(rows: dict[str, Account], many: int, size: int, each: int, room: float) -> None:
    """A column for each precision and strategy, within 80 characters."""
    kinds = ("ddp", "fsdp") if many > 1 else ("ddp",)
    lines: dict[str, list[str]] = {}
    for name, one in rows.items():
        for kind in kinds:
            parts = costs.memory(one, name, kind, many, size)
            most = costs.largest(one, name, kind, many, room)
            between = parts.get("buckets", parts.get("gathered_layer", 0))
            column = {
                f"each of {many} devices" if many > 1 else "on one device": name if kind == "ddp" else "",
                f"--batch_size {size}": kind if many > 1 else "",
                "weights": short(parts["weights"]),
                "gradients": short(parts["gradients"]),
                "optimiser state": short(parts["optimizer_state"]),
                "activations": short(parts.get("activations")),
                "workspace": short(parts.get("workspace")),
                **({"buckets, or a layer": short(between)} if many > 1 else {}),
                "in all": short(sum(parts.values())),
                "largest batch": "?" if one.why else f"{most:,}" if most < 1e6 else short(most)[:-1],
                **({"sends a step": short(costs.communication(one, name, kind, many, each))} if many > 1 else {}),
            }
            for label, cell in column.items():
                lines.setdefault(label, []).append(cell)
    print()
    for label, texts in lines.items():
        cells = "".join(f"{text:>10}" if many > 1 else f"{text:>12}" for text in texts)
        print(f"{label:<20}{cells}".rstrip())
    print()


def _print_fit(own: Account, precision: str, strategy: str, many: int, memory: float, room: float) -> None:
    fits = "fits" if memory <= (1 - costs.FREE) * room else "does not fit"
    how = precision if many == 1 else f"{precision} with {strategy}"
    print(f"{how} {fits}: {short(memory)} of {short(room)} a device, a tenth left free")
    if own.why:
        print(f"but the activations are not in it: {own.why}")
    if strategy == "fsdp" and many > 1:
        whole = short(costs.gathered(own.parameters, precision))
        print(f"fsdp gathers a layer at a time, {own.layer} at the most,")
        print(f"where an auto_wrap_policy wraps each; without one, all weights: {whole}")


def _batch_seconds(
    measure: Callable[[int], float],
    own: Account,
    precision: str,
    size: int,
    kind: str,
    tflops: float | None,
    steps: int,
) -> float | None:
    """What a batch takes on one device: by its operations, or by real steps. None where neither can be."""
    passes = 3 * own.flops * size  # the backward pass is twice the forward pass
    needed, here = sum(costs.memory(own, precision, "ddp", 1, size).values()), costs.here(kind)
    if tflops and passes:
        seconds = passes / (tflops * 1e12)
        print(f"a batch takes {long(seconds)} at {tflops:g} TFLOP/s, once it is loaded")
        return seconds
    if tflops:
        print("no time is told: the operations could not be counted")
    elif steps and needed > here:
        print(f"no step was timed: {short(needed)} are needed and {short(here)} are here")
    elif steps:
        seconds = measure(steps)
        does = f" at {short(passes / seconds)[:-1]}FLOP/s" if passes else ""
        print(f"a batch takes {long(seconds)} on one device here{does}, its loading included")
        return seconds
    return None


def _times(
    told: dict[str, float],
    strategy: str,
    many: int,
    each: int,
    size: int,
    items: int | None,
    settings: Settings,
    link: float | None,
) -> dict[str, float]:
    """Prints what a step, an epoch and all epochs take, from what a batch takes on one device."""
    if many > 1 and link is None:
        print(f"for the times of {many} devices say how fast they send: --link_gbps")
        return {}
    least, most = costs.step_seconds(told["batch_seconds"], each, told["communication"], strategy, link or math.inf)
    found = {"step_seconds": least, "step_seconds_no_overlap": most}
    words = {"a step": 1}
    if items is not None:
        steps = math.ceil(math.ceil(items / (size * many)) / each)
        found |= {"steps": steps, "epoch_seconds": steps * least, "epoch_seconds_no_overlap": steps * most}
        words[f"an epoch of {steps:,} step{'s' * (steps != 1)}"] = steps
        if (epochs := settings.arguments["run"]["max_epochs"] or 0) > 1:
            words[f"{epochs} epochs"] = steps * epochs
    for word, times in words.items():
        low, high = long(times * least), long(times * most)
        print(f"{word}: {low}" + (f", or {high} where nothing overlaps" if high != low else ""))
    if many > 1:
        behind = "backward pass, two thirds of a batch" if strategy == "ddp" else "forward and backward passes"
        print(f"the first hides communication behind the {behind};")
        print("both take for granted that each device is kept fed")
    return found
