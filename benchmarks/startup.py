"""CPU time of help and of mistakes over the CPU time of `import torch`, from runs taken in turn.

python benchmarks/startup.py PROJECT [ROUNDS]
"""

import os
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "--help": ["main.py", "--help"],
    "--help with a network and a dataset": ["main.py", "--model_name", "lenet", "--dataset", "digits", "--help"],
    "an unknown flag": ["main.py", "--model_name", "lenet", "--dataset", "digits", "--hidden", "3"],
    "an unknown network": ["main.py", "--model_name", "lenett", "--dataset", "digits"],
}


def cpu_seconds(command: list[str], folder: str) -> float:
    """User and system time of a process and its children."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=folder, env=compiled, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    folder, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, command in COMMANDS.items():
            seconds = cpu_seconds(command, folder)
            if turn:  # the first one fills the caches
                times[name].append(seconds)
    torch = times.pop("import torch")
    print("| command | CPU time over `import torch` (median, range) |\n| --- | --- |")
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(seconds, torch, strict=True)]
        print(f"| {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |")
