"""`report`: run folders in, a table and files out."""

import base64
import csv
import html
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import main
import pytest
import yaml
from paths import HERE, PROJECT

HEAD = "epoch,step,lr,train_loss_step,val_acc,val_loss\n"
RUNS = {  # what stands in metrics.csv and in config.yaml
    "version_0": (
        "0,0,0.1,2.5,,\n0,4,,,0.5,0.75\n1,8,,,0.25,0.5\n2,8,0.1,1.5,,\n2,9,0.1,1.5,,\n",
        "model_name: a\ndataset: d\nlr: 0.1\nseed: 0\n",
    ),
    "version_10": ("0,0,0.2,1.5,,\n0,4,,,0.125,nan\n", "model_name: b\ndataset: d\nlr: 0.2\nseed: 0\n"),
    "version_2": ("", "model_name: b\ndataset: d\nlr: 0.2\nseed: 0\nhidden_dim: 8\n"),
}


@pytest.fixture
def logs() -> None:
    for name, (rows, flags) in RUNS.items():
        folder = Path("lightning_logs") / name
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(HEAD + rows)
        (folder / "config.yaml").write_text(flags)


def report(*argv: str) -> list[dict[str, str]]:
    with pytest.raises(SystemExit) as ended:
        main.main(["report", *argv])
    assert ended.value.code == 0
    out = Path(argv[argv.index("--out") + 1] if "--out" in argv else "report")
    return list(csv.DictReader((out / "report.csv").read_text().splitlines()))


def test_a_row_a_run_with_what_the_chosen_checkpoint_has_and_the_flags_that_differ(logs, capsys) -> None:
    rows = report()
    assert [row["run"] for row in rows] == ["version_0", "version_2", "version_10"]
    columns = "run network dataset lr epoch val_acc val_loss epochs seconds"  # one alone has a hidden_dim
    assert list(rows[0]) == columns.split()
    # The lowest val_loss is in the second epoch, the highest val_acc in the first.
    assert [row["epoch"] for row in rows] == ["2", "", ""]  # NaN is best of nothing
    assert [row["val_acc"] for row in rows] == ["0.25", "", ""]
    assert [row["val_loss"] for row in rows] == ["0.5", "", ""]
    assert [row["epochs"] for row in rows] == ["2", "0", "1"]
    assert [(row["network"], row["lr"]) for row in rows] == [("a", "0.1"), ("b", "0.2"), ("b", "0.2")]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["run", "network", "dataset"]
    assert printed[-1] == "report"


@pytest.mark.parametrize("name", ["best-epoch1-val_acc=0.500000.ckpt", "best-epoch=0-val_acc=0.500000.ckpt"])  # of 0.1
def test_the_values_are_those_of_the_checkpoint_that_was_kept(logs, name: str) -> None:
    folder = Path("lightning_logs/version_0/checkpoints")
    folder.mkdir()
    (folder / name).touch()
    with Path("lightning_logs/version_0/metrics.csv").open("a") as file:
        file.write("2,12,,,0.5,0.125\n")  # as good, later
    [row] = report("version_0")
    assert (row["epoch"], row["val_acc"], row["val_loss"]) == ("1", "0.5", "0.75")


@pytest.fixture
def two_networks() -> None:
    """Eight runs of two networks, which have ten flags each that the other lacks; in three the runs differ."""
    for number in range(8):
        network, folder = "ab"[number % 2], Path(f"lightning_logs/version_{number}")
        folder.mkdir(parents=True)
        flags = {f"{network}{at}": at for at in range(10)} | ({"a9": number} if network == "a" else {})
        flags |= {"model_name": network, "dataset": "d", "lr": number / 8, "seed": number % 3, "notes": "x" * number}
        (folder / "config.yaml").write_text(yaml.safe_dump(flags))
        (folder / "metrics.csv").write_text(f"epoch,step,train_loss,val_loss\n0,4,0.75,{1 - number / 10}\n")


def test_a_run_that_only_evaluated_has_what_it_measured(logs) -> None:
    for name, metrics in (
        ("version_3", {"test_acc": 0.5, "test_loss": 1.25, "test_f1": math.nan}),
        ("version_4", {"val_loss": 0.375}),
    ):
        Path("lightning_logs", name).mkdir()
        Path("lightning_logs", name, "config.yaml").write_text("model_name: a\ndataset: d\n")
        Path("lightning_logs", name, "metrics.json").write_text(json.dumps(metrics))
    rows = {row["run"]: row for row in report()}
    assert (rows["version_3"]["test_acc"], rows["version_3"]["test_loss"]) == ("0.5", "1.25")
    assert [rows["version_4"][name] for name in ("val_loss", "test_loss", "epochs")] == ["0.375", "", "0"]
    assert rows["version_0"]["val_loss"] == "0.5"


def test_a_table_of_two_networks_fits_the_terminal(two_networks, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = report()
    head, *lines, more, _ = capsys.readouterr().out.splitlines()
    assert head.split() == "run network a9 lr seed epoch val_loss".split()
    assert max(map(len, [head, *lines])) <= 60
    assert lines[7].split() == ["version_7", "b", "0.875", "1", "1", "0.3"]  # a9 is empty
    assert more == "and 5 more: --columns all, or some of dataset, notes, ..."
    assert list(rows[0]) == "run network dataset a9 lr notes seed epoch train_loss val_loss epochs seconds".split()
    report("--columns", "notes,train_loss")
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "notes", "train_loss"]
    report("--columns", "all")
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 60
    assert sum(line.startswith("version_7") for line in printed) > 1  # a block of columns after the other


def test_one_page_has_all_and_needs_no_other_file(logs) -> None:
    Path("lightning_logs/version_0/curves.png").write_bytes(b"\x89PNG")
    with Path("lightning_logs/version_2/config.yaml").open("a") as file:
        file.write("notes: </pre><script>alert(1)</script>\n")
    report("--html")
    page = Path("report/report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.count["table"] == 1
    assert tags.count["details"] == 3
    assert not [one for one in tags.addresses if not one.startswith("data:image/png;base64,")]
    assert tags.addresses == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    assert "<script>alert(1)" not in page
    assert "model_name a, lr 0.1" in page  # what differs
    titles = re.findall(r'"title":\{"text":"(?!epoch|step)(\w+)"', page)
    assert titles == ["val_loss", "val_acc", "lr", "train_loss_step"]  # a figure a metric


SWITCH_OFF = """<script>addEventListener("load", () => {
    const plot = document.querySelectorAll(".plotly-graph-div")[1];
    for (const kind of ["mousedown", "mouseup"])
        plot.querySelector(".legendtoggle").dispatchEvent(new MouseEvent(kind, {bubbles: true}));
    setTimeout(() => {
        const seen = (what) => [...plot.querySelectorAll(what)].map((one) => one.textContent);
        const shown = plot.data.map((one) => String(one.visible ?? true));
        document.title = JSON.stringify([seen(".gtitle"), seen(".xtitle"), seen(".legendtext"), shown]);
    }, 1500);
});</script>"""


@pytest.mark.slow
def test_a_browser_draws_the_page_and_switches_curves_off(logs) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no chromium and no google-chrome is installed")
    report("--html")
    page = Path("report/report.html")
    page.write_text(page.read_text(encoding="utf-8") + SWITCH_OFF, encoding="utf-8")
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--user-data-dir=profile"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", *offline]
    done = subprocess.run(
        [*command, "--dump-dom", page.absolute().as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    tags = Tags()
    tags.feed(done.stdout)
    assert tags.count["svg"] >= 4  # drawn
    assert not [one for one in tags.addresses if not one.startswith("data:")]
    wanted = [["val_acc"], ["epoch"], ["model_name a, lr 0.1", "version_10"]]  # version_2 has no point
    assert json.loads(html.unescape(done.stdout.partition("<title>")[2].partition("</title>")[0])) == [
        *wanted,
        ["legendonly", "true", "true"],
    ]


def test_legends_say_what_most_runs_have_otherwise(logs) -> None:
    for number, flags in enumerate(
        ["lr: 0.1\nseed: 0\nwidth: 2", "lr: 0.1\nseed: 1", "lr: 0.1\nseed: 0\nwidth: 3", "lr: 0.5\nseed: 2"]
    ):
        folder = Path(f"lightning_logs/version_{30 + number}")
        folder.mkdir()
        (folder / "config.yaml").write_text(f"model_name: a\ndataset: d\n{flags}\n")
        (folder / "metrics.csv").write_text("epoch,step,val_loss\n0,1,0.5\n1,2,0.25\n")
    report("--html", *(f"version_{30 + number}" for number in range(4)))
    page = Path("report/report.html").read_text(encoding="utf-8")
    names = re.findall(r'"name":"((?:seed|lr) [^"]*)"', page)
    assert names[:4] == ["seed 0, width 2", "seed 1", "seed 0, width 3", "lr 0.5, seed 2"]
    assert '"text":"epoch"' in page


class Tags(HTMLParser):
    """Counts the tags of a page and notes what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.addresses = Counter[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]


def test_only_the_runs_that_are_asked_for(logs, capsys) -> None:
    assert [row["run"] for row in report("--where", "lr<0.15")] == ["version_0"]
    assert [row["run"] for row in report("--where", "lr>=0.2", "--where", "hidden_dim=8")] == ["version_2"]
    with pytest.raises(SystemExit, match="2"):
        main.main(["report", "--where", "lrr<1"])
    assert "no run has a flag or metric 'lrr'; did you mean 'lr'?" in capsys.readouterr().err


def test_spreadsheet_arrays_and_picture_hold_the_curves(logs) -> None:
    pandas = pytest.importorskip("pandas")
    io = pytest.importorskip("scipy.io")
    report("version_0", "lightning_logs/version_10", "--out", "there")
    sheets = pandas.read_excel("there/report.xlsx", sheet_name=None, index_col=0)
    assert set(sheets) == {"runs", "lr", "train_loss_step", "val_acc", "val_loss"}
    assert list(sheets["val_acc"].columns) == ["version_0", "version_10"]
    assert sheets["val_acc"]["version_0"].to_dict() == {4: 0.5, 8: 0.25}
    assert sheets["val_acc"]["version_10"].dropna().to_dict() == {4: 0.125}
    arrays = io.loadmat("there/report.mat", simplify_cells=True)
    assert list(arrays["runs"]) == ["version_0", "version_10"]
    assert arrays["val_acc"]["step"].tolist() == [4, 8]
    assert arrays["val_acc"]["value"][0].tolist() == [0.5, 0.125]
    assert Path("there/curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_csv_every_point_comes_from_tensorboard(train) -> None:
    train("--max_epochs", 2, "--log_every_n_steps", 1, "--batch_size", 4)
    shutil.copytree("lightning_logs/version_0", "copy")
    Path("copy/metrics.csv").unlink()
    one, other = report("version_0", "copy")
    assert other.pop("run") == "copy"
    assert one.pop("run") == "version_0"
    assert {key: value for key, value in one.items() if "(" not in key} == {
        key: value for key, value in other.items() if "(" not in key
    }
    for key in one.keys() - {"network", "dataset"}:
        assert float(one[key]) == pytest.approx(float(other[key]))
    assert one["epochs"] == "2"
    assert 0 < float(one["seconds"]) < 60
    sheet = pytest.importorskip("pandas").read_excel("report/report.xlsx", sheet_name="train_loss_step", index_col=0)
    assert len(sheet) == 36
    assert sheet["version_0"].tolist() == pytest.approx(sheet["copy"].tolist())


def test_of_tensorboard_by_epochs_alone_the_steps_and_values_are_those_of_the_csv(train) -> None:
    flags = ("--max_epochs", 3, "--batch_size", 4, "--log_every_n_steps", 2, "--val_check_interval", 0.5)
    train(*flags)
    train(*flags, "--logger", "tensorboard", "--x_axis", "epoch")
    rows = report()
    assert {row["epochs"] for row in rows} == {"3"}
    assert rows[0]["val_loss"] == pytest.approx(rows[1]["val_loss"])
    for metric in ("train_loss", "val_loss", "train_loss_step"):
        sheet = pytest.importorskip("pandas").read_excel("report/report.xlsx", sheet_name=metric, index_col=0)
        assert len(sheet) == {"train_loss": 3, "val_loss": 6, "train_loss_step": 27}[metric]  # 18 steps an epoch
        assert sheet["version_1"].tolist() == pytest.approx(sheet["version_0"].tolist())


def test_a_long_curve_loses_no_point() -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter("long") as writer:
        for step in range(10_050):  # TensorBoard itself would show 10,000 of them
            writer.add_scalar("train_loss_step", step / 2, step)
    report("long")
    sheet = pytest.importorskip("pandas").read_excel("report/report.xlsx", sheet_name="train_loss_step", index_col=0)
    assert sheet["long"].tolist() == [step / 2 for step in range(10_050)]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["version_7"],
            "there is no run 'version_7'; lightning_logs/ has version_0, version_2, version_10; all: python",
        ),
        (["--default_root_dir", "other"], "there is no run in other/lightning_logs/ yet"),
        (["--ou", "x"], "unknown flag --ou"),
        (
            ["--columns", "val_los"],
            "there are run, network, dataset, lr, epoch, val_acc, val_loss, epochs, seconds; did",
        ),
        (["--out"], "--out: expected one argument"),
        (["--out", "lightning_logs/version_0/config.yaml"], "File exists"),
    ],
)
def test_a_mistake_is_one_line(logs, argv: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["report", *argv])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_missing_package_names_the_extra(logs, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SystemExit, match="2"):
        main.main(["report"])
    assert 'report needs openpyxl too: pip install -e ".[report]"' in capsys.readouterr().err
    assert Path("report/report.csv").is_file()  # what needs no extra is there


@pytest.mark.slow
def test_it_needs_no_torch(logs) -> None:
    code = "import sys, main\ntry: main.main(['report'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{PROJECT}:{HERE}"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stderr == ""


BROKEN_RUNS = {
    "line": ("metrics.csv", b"0,x,0.2,1.5,,\n", "lightning_logs/version_2/metrics.csv: left out 1 of its lines"),
    "letter": ("metrics.csv", b"0,4,,,\xff.5,\n", "left out 1 of"),
    "long line": ("metrics.csv", b"0,4,0.1,0.1,0.1,0.1,7,7,7\n", "left out 1 of"),
    "number": ("metrics.csv", b"0,%s,,,0.5,\n" % (b"9" * 40), "left out 1 of"),
    "zeros": ("metrics.csv", b"\0" * 4096, "lightning_logs/version_2"),
    "config": ("config.yaml", b"\xff\xff", "the flags of version_2 are left out: lightning_logs/version_2/config.yaml"),
    "yaml": ("config.yaml", b"a: [", "the flags of version_2 are left out: lightning_logs/version_2/config.yaml"),
    "folder": ("metrics.csv", None, "lightning_logs/version_2"),
}


@pytest.mark.parametrize("kind", BROKEN_RUNS)
def test_a_broken_run_is_named_and_the_others_are_reported(logs, capsys, kind: str) -> None:
    name, content, line = BROKEN_RUNS[kind]
    path = Path("lightning_logs/version_2") / name
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes((HEAD.encode() if name == "metrics.csv" else b"") + content)
    rows = report()
    assert line in capsys.readouterr().err or kind == "folder"
    assert {"version_0", "version_10"} <= {row["run"] for row in rows}
    assert rows[0]["val_acc"] == "0.25"


def test_no_cell_is_a_formula(logs) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    evil = ["=cmd|'/C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "-1e-3", "\x1b[2J"]
    for number, text in enumerate(evil):
        folder = Path(f"lightning_logs/version_{20 + number}")
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"model_name": text, "dataset": "d", "=flag": number}))
        (folder / "metrics.csv").write_text("epoch,step,val_loss,val_$x$,=1+1\n0,1,0.5,0.5,0.5\n")
    rows = report()
    cells = [text for row in rows for text in (*row, *row.values())]
    assert "'=cmd|'/C calc'!A0" in cells
    assert "-1e-3" in cells  # a number
    assert not [text for text in cells if text[:1] in "=+@" and text]
    assert not [text for text in cells if text.startswith("-1+")]
    for sheet in openpyxl.load_workbook("report/report.xlsx"):
        assert not [cell for line in sheet.iter_rows() for cell in line if cell.data_type == "f"]
