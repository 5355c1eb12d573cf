"""`main.load` and `main.main` as a notebook uses them."""

import csv
import subprocess
import sys
from pathlib import Path

import main
import nbformat
import numpy as np
import pytest
import torch
from engine.errors import UsageError
from paths import HERE, PROJECT, TOYS
from PIL import Image

RUN = Path("lightning_logs/version_0")


def answers(path: Path) -> tuple[list[str], list[int], np.ndarray]:
    """The names, the classes and the probabilities in predictions.csv."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    shares = [[float(row[f"p{number}"]) for number in range(10)] for row in rows]
    return [row.get("id", "") for row in rows], [int(row["class"]) for row in rows], np.array(shares)


def test_a_loaded_run_answers_as_predict_does(tmp_path: Path) -> None:
    few = ["--max_epochs", "2", "--accelerator", "cpu", "--no-pictures", "--run_name", "first", "--num_workers", "0"]
    main.main(["--model_name", "lenet", "--dataset", "digits", "--dropout", "0.5", *few])
    Path("drawn").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30 + number), np.uint8)
        Image.fromarray(pixels).save(f"drawn/{number}.png")
    main.main(["predict", "--ckpt_path", "first"])
    main.main(["predict", "--ckpt_path", "first", "--images", "drawn"])

    run = main.load("first", "--batch_size", "100")
    assert (run.config["model_name"], run.config["dropout"], run.config["run_name"]) == ("lenet", 0.5, "first")
    assert [len(run.data.split(name)) for name in ("train", "val", "test")] == [1437, 180, 180]
    assert not run.network.training
    _, classes, shares = answers(RUN / "predictions.csv")
    inputs = torch.stack([run.data.split("test")[index][0] for index in range(180)])
    with torch.no_grad():
        torch.testing.assert_close(run.predict(inputs), run.network(inputs).softmax(1))
    np.testing.assert_allclose(run.predict(inputs).numpy(), shares, atol=1e-5)
    assert run.predict(inputs).argmax(1).tolist() == classes
    names, _, shares = answers(RUN / "predictions_drawn.csv")  # prepared as the dataset does
    np.testing.assert_allclose(run.predict(names).numpy(), shares, atol=1e-5)
    np.testing.assert_allclose(run.predict(Path(names[0])).numpy(), shares[:1], atol=1e-5)


def test_numbers_come_in_their_unit_and_a_file_that_nobody_opens_is_refused(tmp_path: Path) -> None:
    flags = ["--model_name", "toys.Line", "--dataset", "toys.Sums", "--loss", "mse_loss", "--accelerator", "cpu"]
    main.main([*flags, "--max_epochs", "1", "--no-pictures"])
    run = main.load("last")
    inputs = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(run.predict(inputs), run.network(inputs).detach())
    Path("a.png").touch()
    said = {"a.png": "Sums opens no files", "b.png": "predict: there is no file b.png", 3: "names of files, and no int"}
    for wrong, line in said.items():
        with pytest.raises(UsageError, match=line) as caught:
            run.predict(wrong)
        [shown] = caught.value._render_traceback_()  # by IPython
        assert line in shown


def test_from_another_folder_runs_and_data_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own").mkdir()
    Path("own/items.txt").write_text("".join(f"item{number} {number % 3}\n" for number in range(60)))
    main.main([*TOYS, "--dataset", "toys.FromFile", "--data_dir", "own", "--max_epochs", "1"])
    wanted = [main.load("best").data.split("test")[index] for index in range(6)]
    Path("notebooks").mkdir()
    monkeypatch.chdir("notebooks")
    for where in (tmp_path / RUN, Path("..", RUN)):
        found = [main.load(str(where)).data.split("test")[index] for index in range(6)]
        assert [target for _, target in found] == [target for _, target in wanted]


def test_what_is_no_run_or_has_other_data_is_refused(train, capsys) -> None:
    train("--max_epochs", 1)
    with pytest.raises(SystemExit, match="2"):
        main.load("version_7")
    assert "--ckpt_path version_7: there is no such file or run folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main.load("best", "--num_items", "60")
    assert "cannot change" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("widgets", [True, False])
def test_a_progress_bar_in_a_notebook(widgets: bool, tmp_path: Path) -> None:
    argv = [*TOYS, "--max_epochs", "2", "--batch_size", "2"]
    setup = f"import sys\nsys.path[:0] = [{str(PROJECT)!r}, {str(HERE)!r}]\n"
    setup += "" if widgets else "sys.modules['ipywidgets'] = None\n"
    cells = [nbformat.v4.new_code_cell(code) for code in (setup, f"from main import main\nmain({argv})\nmain({argv})")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), "used.ipynb")
    command = [str(Path(sys.executable).with_name("jupyter-execute")), "--inplace", "used.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read("used.ipynb", 4).cells[1].outputs
    assert not [one for one in outputs if one.get("name") == "stderr" and "IProgress" not in one["text"]]
    text = "".join(one["text"] for one in outputs if one.get("name") == "stdout")
    shown = [line.rpartition("\r")[2] for line in text.split("\n")]  # a line begins anew at a carriage return
    assert "\x1b" not in text  # no way back to the line above, in a notebook
    assert [line.split()[0] for line in shown if line.startswith("fit ")] == ["fit"] * 2
    bars = [one for one in outputs if "application/vnd.jupyter.widget-view+json" in one.get("data", {})]
    assert bool(bars) == widgets
    if not widgets:
        assert [line.partition(":")[0] for line in shown if "it/s" in line].count("epoch 2/2") == 2
        assert not [line for line in shown if line.startswith("epoch 1/2")]


def test_the_runs_of_a_program_show_no_bar_where_nobody_looks(train, capsys) -> None:
    train("--max_epochs", 1)
    assert "it/s" not in capsys.readouterr().out
