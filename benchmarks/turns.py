"""Measurements in processes of their own, taken in turn, printed as ratios: what all of these scripts share."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def measure(script: str, project: Path, *arguments: object, number: int = 1) -> list[float]:
    """The numbers that a script prints behind NUMBERS when it is run with --once, in a process of its own."""
    folder = Path(__file__).resolve().parent
    command = [sys.executable, str(folder / script), str(project.resolve()), "--once", *map(str, arguments)]
    path = f"{project.resolve()}{os.pathsep}{folder}"
    environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    found = done.stdout.rpartition("NUMBERS")[2].split()
    if done.returncode or len(found) < number:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return [float(one) for one in found[:number]]


def peak_memory() -> float:
    """The most memory that this process has held, in MiB. (ru_maxrss would count the process that started it.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def in_turn(rounds: int, ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each way measures, round after round, so that a busy minute meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


def over(some: list[float], others: list[float]) -> str:
    """Median and range of the ratios of two measurements, as two cells of a table."""
    ratios = [one / other for one, other in zip(some, others, strict=True)]
    return f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"


def table(head: str, found: dict[str, list[float]], names: dict[str, str], base: str) -> None:
    """Prints each way over the way `base`."""
    print(f"\n| {head} | median | range |\n| --- | --- | --- |")
    for name, words in names.items():
        print(f"| {words} | {over(found[name], found[base])} |", flush=True)


def arguments_of(description: str) -> tuple[argparse.Namespace, list[str]]:
    """PROJECT, ROUNDS and the rest of a benchmark's command line."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path, help="folder of the project")
    parser.add_argument("rounds", nargs="?", type=int, default=5, help="how often each thing is measured")
    parser.add_argument("--long", action="store_true", help="the slow measurements too")
    parser.add_argument("--only", nargs="+", default=[], help="some of the measurements")
    parser.add_argument("--once", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_known_args()
