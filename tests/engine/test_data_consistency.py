"""data.json: the classes and the preprocessing that a run was trained with."""

import json
from pathlib import Path

import main
import pytest
import toys

FACTS = Path("lightning_logs/version_0/data.json")


@pytest.mark.parametrize("action", [["predict"], ["test"], ["export"], ["--max_epochs", "2"]])
def test_data_that_says_something_else_is_refused(train, action: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(toys.Named, "preprocessing", {"mean": 1.5, "words": ["a", "b"]}, raising=False)
    train("--max_epochs", 1, "--dataset", "toys.Named")
    kept = {"dataset": "Named", "classes": ["a", "b", "c"], "mean": 1.5, "words": ["a", "b"]}
    assert json.loads(FACTS.read_text()) == kept
    main.main(["validate", "--ckpt_path", "version_0"])
    monkeypatch.setattr(toys.Named, "preprocessing", {"mean": 1.5, "words": ["b", "a"]})
    with pytest.raises(SystemExit, match="2"):
        main.main([*action, "--ckpt_path", "version_0"])
    assert "Named has other words than when the run was trained" in capsys.readouterr().err
    assert json.loads(FACTS.read_text()) == kept
    main.main(["test", "--ckpt_path", "version_0", "--dataset", "toys.Blobs"])  # other data is no mistake


def test_data_that_says_nothing_leaves_no_file(train) -> None:
    train("--max_epochs", 1)
    assert not FACTS.exists()
