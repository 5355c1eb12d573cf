"""A dataset may be asked for its splits by `split`, `mode`, `phase`, `partition` or `image_set`."""

from typing import Any, Literal

import main
import pytest
import toys
from data import DInterface

BUILT: list[str] = []


class Moded(toys.Blobs):
    def __init__(self, num_items: int = 30, mode: str = "train") -> None:
        super().__init__(num_items)
        BUILT.append(mode)


class Phased(toys.Blobs):
    def __init__(self, phase: Literal["training", "validation", "testing"], num_items: int = 30) -> None:
        super().__init__(num_items)
        BUILT.append(phase)


class Asserted(toys.Blobs):
    def __init__(self, partition: str, num_items: int = 30) -> None:
        assert partition in ("train", "dev", "test"), partition
        super().__init__(num_items)
        BUILT.append(partition)


class WithoutVal(toys.Blobs):
    def __init__(self, image_set: Literal["train", "test"] = "train", num_items: int = 30) -> None:
        super().__init__(num_items)
        BUILT.append(image_set)


class OtherMode(toys.Blobs):
    def __init__(self, mode: str = "bilinear", num_items: int = 30) -> None:
        super().__init__(num_items)
        BUILT.append(mode)


CASES = {
    "Moded": ["train", "val", "test"],
    "Phased": ["training", "validation", "testing"],
    "Asserted": ["train", "dev", "test"],
    "WithoutVal": ["train", "test"],
    "OtherMode": ["bilinear"],
}


@pytest.mark.parametrize("name", CASES)
def test_each_split_is_asked_for_in_the_words_of_the_dataset(train: Any, name: str) -> None:
    BUILT.clear()
    train("--dataset", f"{__name__}.{name}", "--max_epochs", 1)
    assert sorted(BUILT) == sorted(CASES[name])


def test_what_it_does_not_tell_apart_is_cut_from_train() -> None:
    data = DInterface(WithoutVal, val_fraction=0.2)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [24, 6, 30]


def test_such_a_flag_is_refused_and_another_mode_is_a_flag(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train("--dataset", f"{__name__}.Moded", "--mode", "val", "--max_epochs", 1)
    assert "Moded is built with it once a split: train, val, test" in capsys.readouterr().err
    assert main.parse([*toys_flags("OtherMode"), "--mode", "nearest"]).arguments["dataset"]["mode"] == "nearest"


def toys_flags(name: str) -> list[str]:
    return ["--model_name", "toys.Net", "--dataset", f"{__name__}.{name}"]
