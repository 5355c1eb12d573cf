"""Random command lines, config files, checkpoints and listings: one line and status 2, or it works; nothing else.

FUZZ=1 makes it a long run (`make faults`): 2,000 command lines, 500 config files, 500 checkpoints, 200 listings.
"""

import contextlib
import io
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import main
import pytest
import test_trust
import torch
from engine.checkpointing import checkpoint_io
from engine.errors import UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import TOYS

LONG = bool(os.environ.get("FUZZ"))
RUN = Path("lightning_logs/version_0")
ACTIONS = ["", *"fit test validate predict export plan consolidate tune report fti".split(), "\x1b[2J"]
NASTY = [
    *("", "none", "true", "-1", "0", "-0", "1e-3", "1e400", "nan", "-inf", "0x10", "1_000", "٣", "²", "9" * 5000),
    *("[", "[]", "[1, 2", "1,", "{", "{}", "{a: 1}", "{a: {b: [1]}}", "{[a]: 1}", "'", '"', "a\nb", "\x1b[31m"),
    *("💥", "\udcff", "\0", "[" * 3000, "{a: " * 3000, "((((", "${HOME}", "../..", "/", "~", "!!python/object:os.x"),
    *("&a [*a]", "{a: 2001-99-99}", "00:12:00:00", ".", "..", ".x", "x.", "a..b", "toys.Net", "toys.", "os.path"),
    *("x.y", "lenet", "digits", "last", "best", "version_0", "file:///x", "nowhere://x", "listing://runs/version_0"),
    *("memory://x::y://", "://", "--", "-", "-5", "--lr", "auto", "cpu", "ddp", "torch.nn.Linear", "sgd", "/dev/null"),
    "a=b",
]
text = st.one_of(st.sampled_from(NASTY), st.text(max_size=20))


def budget(count: int) -> Any:
    """So many examples in the long run, a few of them otherwise; none may take ten seconds."""
    return settings(
        max_examples=count if LONG else count // 20,
        deadline=timedelta(seconds=10),
        derandomize=not LONG,
        database=None,
        suppress_health_check=[*HealthCheck],
    )


def parse(argv: list[str]) -> Any:
    """The settings of a command line; None where it ended with one line and status 2, or with help."""
    out, err, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return main.parse(argv)
        except SystemExit as ended:
            status = ended.code
    assert status in (0, 2)
    if status == 2:
        *before, line, rest = err.getvalue().split("\n")
        assert line.startswith("main.py: error: ")
        assert rest == ""
        assert len(line) > len("main.py: error: ")
        assert all(one.startswith(("skipped", "fetched", "report:")) for one in before), before
    return None


@pytest.fixture(scope="module")
def flags() -> list[str]:
    other = """ckpt_path config devices strategy precision max_time max_steps accelerator gradient_clip_val trust
    profiler init_from seed_index print_config no-pictures help help_all format images rows frobnicate optimizer loss"""
    return [*main.parse(TOYS).flags, *other.split(), "", "=", "a b"]


@budget(2000)
@given(data=st.data())
def test_command_lines(flags: list[str], data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(ACTIONS))
    argv = [word] if word else []
    argv += data.draw(st.sampled_from([TOYS, TOYS[:2], [], ["--model_name", "lenet", "--dataset", "digits"]]))
    for _ in range(data.draw(st.integers(0, 4))):
        flag, words = data.draw(st.sampled_from(flags)), data.draw(st.lists(text, max_size=2))
        joined = words and data.draw(st.booleans())
        argv += [f"--{flag}={words[0]}"] if joined else [f"--{flag}", *words]
    before = sorted(Path().rglob("*"))
    parse(argv)
    assert sorted(Path().rglob("*")) == before


@budget(500)
@given(data=st.data())
def test_config_files(flags: list[str], data: st.DataObject) -> None:
    line = st.builds("{}: {}".format, st.one_of(st.sampled_from(flags), text), text)
    raw = st.one_of(
        st.lists(line, max_size=5).map("\n".join).map(lambda one: one.encode("utf-8", "surrogateescape")),
        st.binary(max_size=200),
        st.text(":[]{}&*!-?|>'\"%@`,# \n\tab1<", max_size=60).map(str.encode),
    )
    Path("fuzz.yaml").write_bytes(data.draw(raw))
    parse([*TOYS, "--config", "fuzz.yaml"])
    RUN.mkdir(parents=True, exist_ok=True)
    os.replace("fuzz.yaml", RUN / "config.yaml")  # as one that a run has kept
    (RUN / "checkpoints").mkdir(exist_ok=True)
    (RUN / "checkpoints" / "x.ckpt").touch()
    parse(["test", "--ckpt_path", str(RUN / "checkpoints" / "x.ckpt")])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("whole"))
    main.main([*TOYS, "--max_epochs", "1"])
    data = (RUN / "checkpoints" / "last.ckpt").read_bytes()
    os.chdir(here)
    return data


@budget(500)
@given(data=st.data())
def test_damaged_checkpoints(whole: bytes, data: st.DataObject) -> None:
    """None is read with other numbers than were written."""
    damaged, size = bytearray(whole), len(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at, length = data.draw(st.integers(0, size)), data.draw(st.sampled_from([1, 2, 16, 512, 4096]))
        match data.draw(st.sampled_from(["zero", "flip", "cut", "insert", "copy", "end"])):
            case "zero":
                damaged[at : at + length] = bytes(len(damaged[at : at + length]))
            case "flip":
                damaged[at : at + 1] = bytes(one ^ data.draw(st.integers(1, 255)) for one in damaged[at : at + 1])
            case "cut":
                del damaged[at : at + length]
            case "insert":
                damaged[at:at] = data.draw(st.binary(max_size=16))
            case "copy":
                damaged[at : at + length] = damaged[: len(damaged[at : at + length])]
            case "end":
                del damaged[at:]
    Path("damaged.ckpt").write_bytes(damaged)
    parse(["test", "--ckpt_path", "damaged.ckpt"])
    try:
        found = checkpoint_io.load(Path("damaged.ckpt"))
    except UsageError:
        return
    assert repr(found) == repr(torch.load(io.BytesIO(whole), weights_only=True))


PIECES = [
    *("..", ".", "", "/", "\\", "C:", "c:x", "con", "NUL.txt", "a", "A", "checkpoints", "last.ckpt", "best-x.ckpt"),
    *("config.yaml", "events.1", "predictions", "x.png", "\x1b", "\n", "x" * 300, "é", "e\u0301", " ", "a.", "\udcff"),
]


@budget(200)
@given(data=st.data())
def test_hostile_listings(tmp_path: Path, data: st.DataObject) -> None:
    """Files lie below the logs of the folder that was named, and nowhere else."""
    names = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("/".join)
    files = dict.fromkeys(data.draw(st.lists(st.one_of(names, st.text(max_size=12)), max_size=6)), b"x")
    files |= {"config.yaml": data.draw(st.sampled_from([b"model_name: lenet\ndataset: digits\n", b"\xff", b""]))}
    files |= {"checkpoints/last.ckpt": b"x"} if data.draw(st.booleans()) else {}
    root = tmp_path / "here" / "deep"
    root.mkdir(parents=True, exist_ok=True)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(root / "lightning_logs")}
    address = test_trust.in_a_listing(files)
    parse(["test", "--ckpt_path", address, "--default_root_dir", str(root)])
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(root / "lightning_logs")}
    assert after <= before | {root / "lightning_logs"}
