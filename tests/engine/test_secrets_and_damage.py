"""Credentials that stay out of a run, and files that are damaged or made to do harm."""

import io
import os
import zipfile
from itertools import pairwise
from pathlib import Path

import main
import pytest
import torch
from engine.errors import printable
from paths import TOYS
from test_trust import in_a_zip, refused
from toys import Blobs

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


class Locked(Blobs):
    """Blobs that come from a server."""

    def __init__(self, server: str = "", password: str = "", api_token: str = "", num_items: int = 90) -> None:
        super().__init__(num_items)
        assert "<" not in server + password + api_token


SECRETS = {
    "--server": "https://ada:SESAME@host/data?X-Amz-Signature=SESAME&part=1",
    "--password": "SESAME",
    "--api_token": "SESAME",
}
LOCKED = ["--dataset", "test_secrets_and_damage.Locked", *(word for pair in SECRETS.items() for word in pair)]


def test_credentials_are_kept_nowhere_and_asked_for_again(train, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["main.py", *TOYS, *LOCKED, "--password=SESAME"])
    train(*LOCKED, "--max_epochs", 1)
    told = capsys.readouterr()
    assert "SESAME" not in told.out + told.err
    kept = [path for path in RUN.rglob("*") if path.is_file() and b"SESAME" in path.read_bytes()]
    assert not kept
    assert "https://<credentials>@host/data?<credentials>&part=1" in (RUN / "config.yaml").read_text()
    assert "password: '<credentials>'" in (RUN / "config.yaml").read_text()
    for argv in (["--max_epochs", "2"], ["test"], ["validate"]):
        action, flags = (argv[:1], argv[1:]) if argv[0].isalpha() else ([], argv)
        line = refused(capsys, *action, "--ckpt_path", "last", *flags)
        assert "no run keeps credentials: give --" in line
    again = [word for pair in SECRETS.items() for word in pair]
    assert "test_acc" in main.main(["test", "--ckpt_path", "last", *again])
    assert "test_acc" in main.main(["--ckpt_path", "last", "--max_epochs", "2", *again])


@pytest.mark.parametrize(
    "argv",
    [
        ["--mirror", "s3s://key:SES/AME@bucket/runs"],
        ["--init_from", "s3s://key:SES/AME@bucket/runs"],
        ["--ckpt_path", "https://AME:x@127.0.0.1:1/run"],
        ["--max_epochs", "https://a:SES/AME@host"],
        ["--config", "https://a:SES/AME@host"],
        ["--config", "https://AME@host"],
        ["--optimizer", "https://a:SES/AME@host"],
    ],
)
def test_credentials_are_not_in_messages(capsys, argv: list[str]) -> None:
    assert "AME" not in refused(capsys, *TOYS, *argv)


@pytest.mark.parametrize("action", ["test", "fit", "init_from", "export"])
def test_a_hole_in_a_weight_is_refused_by_name(train, capsys, action: str) -> None:
    train("--max_epochs", 1, "--hidden_dim", 5000)
    with zipfile.ZipFile(LAST) as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
    data = bytearray(LAST.read_bytes())
    at = record.header_offset + 8192
    data[at : at + 4096] = bytes(4096)
    LAST.write_bytes(data)
    line = f"{LAST} is refused: {record.filename} in it is damaged, by its check sum"
    if action == "init_from":
        assert line in refused(capsys, *TOYS, "--hidden_dim", "5000", "--init_from", str(LAST))
    else:
        assert line in refused(capsys, action, "--ckpt_path", str(LAST), *(["--max_epochs", "2"] * (action == "fit")))


def test_a_compressed_checkpoint_is_refused(train, capsys) -> None:
    train("--max_epochs", 1)
    with zipfile.ZipFile(LAST) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(LAST, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    told = refused(capsys, "test", "--ckpt_path", str(LAST))
    assert "last.ckpt is refused: it is compressed, as no checkpoint is, and could fill the memory" in told


def test_a_file_of_an_old_torch_is_read() -> None:
    from engine.checkpointing.checkpoint_io import load

    torch.save({"weight": torch.ones(3)}, "old.pt", _use_new_zipfile_serialization=False)
    assert load(Path("old.pt"))["state_dict"]["weight"].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_hole_in_a_sharded_checkpoint_is_refused_by_name() -> None:
    from engine.errors import UsageError
    from engine.features.model_parallel import sharded_checkpoint
    from torch.distributed import checkpoint as dcp

    dcp.save({"state_dict": {"weight": torch.ones(5000), "bias": torch.ones(2)}}, checkpoint_id="s.ckpt", no_dist=True)
    torch.save({}, "s.ckpt/meta.pt")
    sharded_checkpoint.check_shards(Path("s.ckpt"))
    path = Path("s.ckpt/__0_0.distcp")
    data = bytearray(path.read_bytes())
    data[8192:12288] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"s.ckpt is refused: in __0_0.distcp, .* is damaged, by its check sum"):
        sharded_checkpoint.check_shards(Path("s.ckpt"))


def test_a_checkpoint_knows_no_path_of_this_machine(train, tmp_path: Path) -> None:
    train("--max_epochs", 2, "--save_top_k", 2, "--patience", 5, "--ema_decay", 0.9)
    for path in RUN.glob("checkpoints/*.ckpt"):
        data = path.read_bytes()
        assert str(tmp_path).encode() not in data
        assert str(Path(main.__file__).parent).encode() not in data
    moved = RUN.rename("lightning_logs/version_7")
    main.main(["--ckpt_path", str(moved), "--max_epochs", "4", "--save_top_k", "2"])
    assert len(list(moved.glob("checkpoints/best-*"))) == 2


BOMBS = {
    "aliases": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in pairwise("abcdefghi")),
    "itself": "lr: &a [*a]\n",
    "deep": "lr: " + "[" * 100_000,
    "long": "lr: " + "1" * 2**21,
    "key": "? [a, b]\n: 1\n",
    "date": "extra: {a: 2001-99-99}\n",
    "merge": "<<: {a: 1}\n",
    "bytes": "\xff\xff\n",
    "nothing": "\0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_config_that_would_fill_the_memory_is_one_line(capsys, name: str) -> None:
    Path("bomb.yaml").write_bytes(BOMBS[name].encode("latin-1"))
    assert len(refused(capsys, *TOYS, "--config", "bomb.yaml")) < 500


def test_a_file_that_unpacks_to_much_more_is_refused(capsys) -> None:
    with zipfile.ZipFile("runs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("runs/version_0/config.yaml", "model_name: lenet\ndataset: digits\n")
        archive.writestr("runs/version_0/checkpoints/last.ckpt", bytes(2**27 + 1))
    address = f"zip://runs/version_0::file://{Path.cwd()}/runs.zip"
    told = refused(capsys, "test", "--ckpt_path", address)
    assert "checkpoints/last.ckpt is refused" in told
    assert "bytes would become 134217729 (a decompression bomb)" in told
    assert not list(Path().rglob("last.ckpt"))


def test_names_cannot_move_the_cursor(capsys) -> None:
    nasty = "a\x1b[2J\r\nb\u202e.yaml"
    for argv in (["--config", nasty], ["--ckpt_path", nasty], ["--ckpt_path", nasty, "--init_from", nasty]):
        told = refused(capsys, *TOYS, *argv)
        assert "\x1b" not in told
        assert "\u202e" not in told
        assert r"a\x1b[2J\r\nb\u202e.yaml" in told
    files = {f"{nasty}.txt": b"x", "config.yaml": b"model_name: lenet\ndataset: digits\n"}
    assert "\x1b" not in refused(capsys, "test", "--ckpt_path", in_a_zip(files))
    assert printable("Grüße, 世界 ok") == "Grüße, 世界 ok"


def test_a_stream_that_takes_no_letter_of_a_name(monkeypatch, train) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", newline="\n")
    monkeypatch.setattr("sys.stdout", stream)
    assert "test_acc" in train("--max_epochs", 1, "--default_root_dir", "Grüße")
    stream.flush()
    assert rb"Gr\xfc\xdfe" in stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert os.path.isdir("Grüße")
