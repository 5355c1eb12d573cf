"""A run outlives its terminal: streams that are closed, that nobody reads, or that a full disk takes."""

import os
import subprocess
import sys
from pathlib import Path

import main
import pytest
from paths import PROJECT, TOYS

RUN = Path("lightning_logs/version_0")
DONE = RUN / "metrics.json"


class Plain:
    """A stream without isatty, as some notebooks have."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def nobody_reads() -> object:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", 1)


def closed() -> object:
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


STREAMS = {
    "none": lambda: None,
    "nobody reads": nobody_reads,
    "full disk": lambda: open("/dev/full", "w", 1),  # noqa: SIM115
    "closed": closed,
    "plain": Plain,
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python's own, at the stream's end
def test_a_run_needs_no_stream(train, monkeypatch, kind: str) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[kind]())
    monkeypatch.setattr(sys, "stdin", None)
    before = sys.stdout, sys.stderr
    assert "test_acc" in train("--max_epochs", 2)
    with pytest.raises(SystemExit, match="2"):
        train("--learning_rate", 1)
    with pytest.raises(SystemExit, match="0"):
        train("--help")
    assert (sys.stdout, sys.stderr) == before
    if isinstance(before[0], Plain):
        assert str(RUN) in before[0].text
        assert "unknown flag --learning_rate" in before[1].text


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["| head -1", "| head -0", ">&- 2>&- <&-", ">/dev/full 2>&1", "2>&- | true"])
def test_a_run_outlives_what_it_prints_to(warm_python: str, redirect: str) -> None:
    python = sys.executable if redirect == "| head -0" else warm_python
    command = " ".join([python, f"'{PROJECT}/main.py'", *TOYS, "--max_epochs", "3"])
    done = subprocess.run(
        ["bash", "-c", f"({command}; echo $? > status) {redirect}"], capture_output=True, text=True, check=False
    )
    assert Path("status").read_text() == "0\n"
    assert DONE.exists()
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.slow
def test_two_processes_outlive_what_they_print_to(warm_python: str) -> None:
    flags = [*TOYS, "--max_epochs", "2", "--devices", "2", "--strategy", "ddp"]
    command = " ".join([warm_python, f"'{PROJECT}/main.py'", *flags])
    subprocess.run(["bash", "-c", f"({command}; echo $? > status) >&- 2>&- <&-"], check=False)
    assert Path("status").read_text() == "0\n"
    assert DONE.exists()


def test_the_streams_are_what_they_were(train, capsys) -> None:
    streams = sys.stdout, sys.stderr
    train("--max_epochs", 1)
    assert (sys.stdout, sys.stderr) == streams
    assert main.parse(["fit", *TOYS]).action == "fit"
