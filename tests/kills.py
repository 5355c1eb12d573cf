"""Kills training runs with SIGKILL at random moments, goes on with each, and compares with the run never killed.

    python tests/kills.py PROJECT 100 200

goes on with 100 killed runs, and then with 200 that are cut off and get other flags: these are compared with a plain
PyTorch loop (engine/plain_loop.py). The moments of the kills are drawn anew each day; a further number draws those of
another one.

Half of the kills wait for a checkpoint that is just being written. A trial is a fork of this process, which has run
once and imported all that it takes: what dies is a real process, and what is left on the disk is all that the next one
gets.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

KINDS = {
    "plain": [],
    "accumulation": ["--accumulate_grad_batches", "2"],
    "validation within the epoch": ["--val_check_interval", "0.5"],
    "plateau": ["--lr_scheduler", "plateau"],
    "two workers": ["--num_workers", "2"],
    "early stopping": ["--patience", "2"],
    "averaged weights": ["--ema_decay", "0.9"],
}
FLAGS = "--model_name toys.Net --dataset toys.Blobs --accelerator cpu --num_threads 1".split()
FLAGS += "--num_workers 0 --max_epochs 6 --batch_size 16 --every_n_train_steps 1 --seed 3 --no-pictures".split()


def fork(folder: Path, *argv: str) -> int:
    """Starts a run in a folder, in a process of its own, and returns its number."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    os.chdir(folder)
    with (folder / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 1
    try:
        import main

        main.main([*argv])
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def kill_at_random(child: int, folder: Path, pick: random.Random, seconds: float) -> str:
    """Kills a run that takes some seconds, with all its processes, and says at what moment."""
    saving = pick.random() < 0.5
    wait, began = pick.random() * 0.9 * seconds, time.monotonic()
    part = folder / "lightning_logs" / "version_0" / "checkpoints"
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - began < wait or not (part / "last.ckpt").exists():
            time.sleep(0.0005)
        elif not saving or list(part.glob("*.part")):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "killed while saving" if list(part.glob("*.part")) else "killed between saves"
    return "finished before the kill"


def result(folder: Path) -> tuple[object, ...]:
    """What a finished run left: weights and optimiser state as bytes, every logged row, the names of its files."""
    import torch

    run = folder / "lightning_logs" / "version_0"
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    tensors = [last["state_dict"], *(state["state"] for state in last["optimizer_states"])]
    numbers = [value.numpy().tobytes() for value in flat(tensors) if isinstance(value, torch.Tensor)]
    return numbers, (run / "metrics.csv").read_text(), sorted(path.name for path in (run / "checkpoints").iterdir())


def flat(tree: object) -> list[object]:
    """The leaves of dicts and lists."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in flat(tree[key])]
    return [leaf for one in tree for leaf in flat(one)] if isinstance(tree, list) else [tree]


def trials(number: int, seed: int, scratch: Path) -> Counter[str]:
    """Runs the trials and counts what became of them."""
    pick, counts, wanted, seconds = random.Random(seed), Counter[str](), {}, {}
    for kind, extra in KINDS.items():
        (scratch / kind).mkdir()
        began = time.monotonic()
        os.waitpid(fork(scratch / kind, *FLAGS, *extra), 0)
        seconds[kind] = time.monotonic() - began
        wanted[kind] = result(scratch / kind)
    for trial in range(number):
        kind = list(KINDS)[trial % len(KINDS)]
        folder = scratch / f"trial{trial}"
        folder.mkdir()
        moment = kill_at_random(fork(folder, *FLAGS, *KINDS[kind]), folder, pick, seconds[kind])
        counts[moment] += 1
        _, status = os.waitpid(fork(folder, "--ckpt_path", "last"), 0)
        if status:
            counts["LOST"] += 1
            print(f"trial {trial}, {kind}, killed {moment}: lost\n{(folder / 'log').read_text()[-2000:]}")
        elif result(folder) != wanted[kind]:
            counts["DIFFERENT"] += 1
            print(f"trial {trial}, {kind}, killed {moment}: ends differently")
        else:
            counts["went on to the same end"] += 1
    return counts


def changes(number: int, scratch: Path) -> Counter[str]:
    """Goes on with runs whose flags change, and counts what became of them."""
    import plain_loop

    os.chdir(scratch)
    counts, weights = Counter[str](), plain_loop.first_weights()
    for case in range(number):
        (scratch / f"change{case}").mkdir()
        os.chdir(scratch / f"change{case}")
        found = plain_loop.check(case, weights)
        if found not in ("same", "refused", "nothing saved"):
            print(found)
            found = "DIFFERENT"
        counts[f"other flags: {found}"] += 1
    return counts


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork has not the other threads
    sys.path[:0] = [str(Path(sys.argv[1]).resolve()), str(Path(__file__).resolve().parent / "engine")]
    import main
    import torch

    torch.set_num_threads(1)
    numbers = [int(word) for word in sys.argv[2:]]
    seed = numbers[2] if len(numbers) > 2 else date.today().toordinal()
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        main.main([*FLAGS, "--default_root_dir", f"{scratch}/once"])
        found = trials(numbers[0], seed, Path(scratch)) + changes(numbers[1], Path(scratch))
    print(", ".join(f"{what} {count}" for what, count in found.items()))
    sys.exit(any(what.endswith(("LOST", "DIFFERENT")) for what in found))
