"""`plan`: what training will cost in memory, communication and time on any number of devices, before it is paid."""

import math
from typing import Any

import torch
from pytorch_lightning import seed_everything

from engine import accounts, costs, hardware, machine
from engine.discovery import UsageError
from engine.settings import Settings

_SHOWN = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")


def run(
    settings: Settings, *, device_memory: str | None = None, link_gbps: float | None = None, measure_steps: int = 10
) -> dict[str, float]:
    """Prints the account for --devices, --num_nodes, --strategy, --precision and --batch_size, and keeps nothing.

    Args:
        device_memory: of one device, such as 80GB or 40GiB; none asks the device found here.
        link_gbps: what a device sends in gigabits a second, over the slowest link between two.
        measure_steps: real steps to time on one device here, from which the times are told; 0 for none.

    Returns:
        What was printed of the precision and strategy chosen: bytes a device, parameters, items, seconds.

    Raises:
        UsageError: another strategy or precision, memory that is no number, a network that cannot be followed.
    """
    from data import DInterface

    machine.hush()
    given = settings.arguments["trainer"]
    if given.get("fast_dev_run"):
        raise UsageError("plan takes no --fast_dev_run: it trains nothing")
    many = hardware.devices(given.get("devices", "auto")) * given.get("num_nodes", 1)
    strategy, precision = _strategy(str(given.get("strategy", "auto"))), _precision(str(given.get("precision", 32)))
    here = given.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    kind = "cuda" if here else "cpu"
    there = hardware.memory(kind)
    room = hardware.stated(device_memory) if device_memory else there
    seed_everything(settings.arguments["run"]["seed"], verbose=False)
    data = DInterface.of(settings)
    data.num_workers = 0
    batch = data.sample()
    batch = next(iter(data.train_dataloader())) if batch is None else batch
    rows = _rows(settings, data, batch, precision, kind)
    own, size = rows[precision], data.batch_size
    counted = f"{own.parameters:,} parameters, {own.trainable:,} of them trained"
    print(f"{settings.network.name}: {counted}; the largest layer is {own.layer}")
    _print_table(rows, many, size, room)
    parts = costs.memory(own, precision, strategy, many, size)
    sent = costs.communication(own, precision, strategy, many)
    told = {"parameters": own.parameters, "trainable": own.trainable, **parts, "memory": sum(parts.values())}
    told |= {"communication": sent, "largest_batch": costs.largest(own, precision, strategy, many, room)}
    listed = ", ".join(f"{name.replace('_', ' ')} {costs.short(value)}" for name, value in parts.items())
    print(f"a device of {many} with {strategy}, {precision}: {costs.short(told['memory'])} ({listed})")
    print(f"it sends {costs.short(sent)} a step")
    if strategy == "fsdp":
        whole = costs.short(costs.gathered(own.parameters, precision))
        print(f"so it is where an auto_wrap_policy wraps each layer; without one, all weights are gathered: {whole}")
    if own.why:
        print(f"the activations are not in it: {own.why}")
    if measure_steps and (needed := sum(costs.memory(own, precision, "ddp", 1, size).values())) > there:
        print(f"no step was timed: {costs.short(needed)} are needed and {costs.short(there)} are here")
    elif measure_steps:
        items = hardware.items(data.part("train"))
        told |= _times(hardware.measure(settings, measure_steps), sent, strategy, many, size, items, given, link_gbps)
    return told


def _rows(settings: Settings, data: Any, batch: Any, precision: str, kind: str) -> dict[str, accounts.Account]:
    rows = {}
    for name in dict.fromkeys([*_SHOWN[:3], precision]):
        try:
            rows[name] = accounts.count(settings, data, batch, name, kind)
        except RuntimeError as error:
            if name == precision:
                raise
            print(f"{name} is left out: {str(error).partition(chr(10))[0]}")
    return rows | ({_SHOWN[3]: rows[_SHOWN[1]]} if _SHOWN[1] in rows else {})  # as many bits


def _print_table(rows: dict[str, accounts.Account], many: int, size: int, room: float) -> None:
    kinds = ("ddp", "fsdp") if many > 1 else ("ddp",)
    print(f"\n--batch_size {size}: memory, and the largest batch that {costs.short(room)} hold, 10 % of it left free")
    heads = [f"{kind} x {many}" if many > 1 else "in all" for kind in kinds]
    words = ["weights", "gradients", "optimiser", "activations", *(word for one in heads for word in (one, "batch"))]
    print(f"{'':<12}" + "".join(f"{word:>13}" for word in words))
    for name, one in rows.items():
        alone = costs.memory(one, name, "ddp", 1, size)
        cells = [*alone.values()]
        texts = [costs.short(cell) for cell in cells[:3]] + [costs.short(alone.get("activations"))]
        for kind in kinds:
            texts.append(costs.short(sum(costs.memory(one, name, kind, many, size).values())))
            texts.append(f"{costs.largest(one, name, kind, many, room):,}")
        print(f"{name:<12}" + "".join(f"{text:>13}" for text in texts))
    print()


def _times(
    seconds: float,
    sent: float,
    strategy: str,
    many: int,
    size: int,
    items: int | None,
    given: dict[str, Any],
    link: Any,
) -> dict[str, float]:
    """Prints what a step and an epoch take, from what a batch takes on one device here."""
    each = given.get("accumulate_grad_batches", 1)
    print(f"a batch takes {seconds:.3g} s on one device here, loading, forward and backward pass and step")
    if many > 1 and link is None:
        print(f"for the times of {many} devices say how fast they send: --link_gbps")
        return {"batch_seconds": seconds}
    least, most = costs.step_seconds(seconds, each, sent, strategy, link or math.inf)
    told = {"batch_seconds": seconds, "step_seconds": least, "step_seconds_no_overlap": most}
    words = {"a step": (least, most)}
    if items is not None:
        steps = math.ceil(math.ceil(items / (size * many)) / each)
        told |= {"steps": steps, "epoch_seconds": steps * least, "epoch_seconds_no_overlap": steps * most}
        words[f"an epoch of {steps:,} steps"] = (steps * least, steps * most)
    for word, (low, high) in words.items():
        print(f"{word}: {low:.3g} s" + (f", or {high:.3g} s where nothing overlaps" if high > low else ""))
    if many > 1:
        behind = "backward pass, two thirds of a batch" if strategy == "ddp" else "forward and backward pass"
        print(f"the first overlaps communication with the {behind}; both take devices like this one, kept fed")
    return told


def _strategy(given: str) -> str:
    if given == "auto" or given.startswith("ddp"):
        return "ddp"
    if given == "fsdp":
        return given
    raise UsageError(f"--strategy {given}: plan can account for ddp and fsdp")


def _precision(given: str) -> str:
    """As Lightning names it: 32 is 32-true, bf16 is bf16-mixed."""
    bits, _, how = given.partition("-")
    name = f"{bits}-{how or ('mixed' if '16' in bits else 'true')}"
    if bits not in accounts.DTYPES:
        raise UsageError(f"--precision {given}: plan can account for {', '.join(_SHOWN)}, 16-true and 64-true")
    return name
