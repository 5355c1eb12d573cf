"""The images of the gallery: files on disk, in folders or in pairs, and the networks that see them."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import main
import numpy as np
import pytest
import torch
from data import DInterface
from engine.errors import UsageError
from gallery import QUICK, RUN, exports, goes_on, predicts
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from sklearn.datasets import load_digits, load_sample_image
from torch.nn.functional import interpolate
from torchvision.models import get_model_weights, resnet18

DIGITS = ["--dataset", "image_folder", "--img_size", "16", "--grey", "--no-flip", "--crop_scale", "0.8"]
DIGITS += ["--data_dir", "digits", "--batch_size", "16"]
PAIRS = ["--dataset", "paired_images", "--img_size", "32", "--data_dir", "pairs", "--batch_size", "8"]
MASKS = [*PAIRS, "--target_folder", "masks", "--classes", "nothing", "disc", "square", "--metrics", "acc", "iou"]
UNET = ["--model_name", "unet", "--width", "8", "--depth", "3"]
AVERAGED = ["--precision", "bf16-mixed", "--ema_decay", "0.9"]
# A network each, small enough for a test, and the share of the digits that it tells after so many epochs.
NETWORKS = {
    "mlp": (["--model_name", "mlp", "--hidden_dim", "64"], 8, 0.85),
    "vit_small": (["--model_name", "vit_small", "--patch_size", "4", "--dim", "64", "--depth", "2"], 20, 0.7),
    "resnet": (["--model_name", "resnet", "--lr", "1e-3"], 2, 0.8),
}


def network(name: str) -> list[str]:
    """The flags of a network, where its file is there."""
    pytest.importorskip(f"model.{name}")
    return NETWORKS[name][0]


def write(path: Path, pixels: np.ndarray) -> None:
    """An image file of pixels (H, W) or (H, W, 3), 0..255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_digits(folder: Path, many: int = 400, size: int = 16) -> Path:
    """Handwritten digits in a folder for each."""
    digits = load_digits()
    for number, (image, target) in enumerate(zip(digits.images[:many], digits.target, strict=False)):
        pixels = Image.fromarray((image * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
        write(folder / f"digit {target}" / f"{number:04}.png", np.asarray(pixels))
    return folder


def write_shapes(folder: Path, many: int = 60, size: int = 36) -> Path:
    """A disc or a square on noise, in folders `images` and `masks`: 0 is nothing, 1 a disc, 2 a square."""
    draw = np.random.default_rng(0)
    down, across = np.mgrid[:size, :size]
    for number in range(many):
        kind, radius, (y, x) = 1 + number % 2, draw.integers(5, 9), draw.integers(10, size - 10, 2)
        far = np.hypot(down - y, across - x) if kind == 1 else np.maximum(abs(down - y), abs(across - x))
        image = draw.normal(90, 12, (size, size, 3)) + draw.normal(60, 8, 3) * (far <= radius)[..., None]
        write(folder / "images" / f"{number:03}.png", image.clip(0, 255))
        write(folder / "masks" / f"{number:03}.png", kind * (far <= radius))
    return folder


def write_photographs(folder: Path, size: int = 48) -> Path:
    """Two photographs, cut into tiles."""
    for photograph in ("china.jpg", "flower.jpg"):
        pixels = load_sample_image(photograph)  # (427, 640, 3)
        for down in range(0, pixels.shape[0] - size, size):
            for across in range(0, pixels.shape[1] - size, size):
                name = f"{photograph[:-4]} {down:03} {across:03}.png"
                write(folder / "images" / name, pixels[down : down + size, across : across + size])
    return folder


def folder_of(split: str = "train", **flags: Any) -> Any:
    """The dataset of image folders."""
    return pytest.importorskip("data.image_folder").ImageFolder(split, **{"data_dir": "digits", "img_size": 16} | flags)


def pairs_of(split: str = "train", **flags: Any) -> Any:
    """The dataset of pairs."""
    data = pytest.importorskip("data.paired_images")
    return data.PairedImages(split, **{"data_dir": "pairs", "img_size": 32} | flags)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_tells_digits_in_folders(name: str) -> None:
    pytest.importorskip("data.image_folder")
    _, epochs, share = NETWORKS[name]
    write_digits(Path("digits"))
    metrics = main.main([*QUICK, *DIGITS, *network(name), "--max_epochs", str(epochs)])
    assert metrics["test_acc"] >= share  # by chance 0.1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("argv", [[], AVERAGED])
def test_a_network_goes_on_predicts_and_is_exported(name: str, argv: list[str]) -> None:
    pytest.importorskip("data.image_folder")
    write_digits(Path("digits"), 80)
    few = ["--batch_size", "8", "--limit_train_batches", "2"]  # bfloat16 is slow on a CPU, and of less than these
    size = ["--img_size", "48", *few] if argv else []  # pixels torch's own 3x3 convolution makes NaN
    if name == "resnet":  # whose checkpoints have 134 MB
        size += ["--backbone", "shufflenet_v2_x0_5"] if argv else few
    goes_on(*DIGITS, *network(name), "--dropout", "0.1", *argv, *size)
    assert predicts().shape == (8, 10)
    if not argv:
        assert exports()(torch.zeros(3, 1, 16, 16)).shape == (3, 10)
        said = json.loads((RUN / "labels.json").read_text())
        assert said["classes"][3] == "digit 3"
        assert said["preprocessing"]["mean"] == folder_of(grey=True).preprocessing["mean"]


def test_an_mlp_reads_the_digits_of_the_other_examples() -> None:
    pytest.importorskip("data.digits")
    argv = ["--dataset", "digits", "--max_epochs", "5", "--lr", "3e-3"]
    assert main.main([*QUICK, *network("mlp"), *argv])["test_acc"] > 0.9


def test_files_are_predicted_as_the_test_part_is() -> None:
    pytest.importorskip("data.image_folder")
    write_digits(Path("digits"), 80)
    main.main([*QUICK, *DIGITS, *network("mlp"), "--max_epochs", "1"])
    main.main(["predict", "--ckpt_path", "best"])
    said = {row["id"]: row for row in csv.DictReader((RUN / "predictions.csv").read_text().splitlines())}
    Path("digits").rename("moved")  # the run has all that is needed
    main.main(["predict", "--ckpt_path", "best", "--images", "moved"])
    rows = csv.DictReader((RUN / "predictions_moved.csv").read_text().splitlines())
    again = {row["id"].replace("moved", "digits"): row for row in rows}
    assert len(again) == 80
    assert len(said) == 8
    for path, row in said.items():
        assert row["true_name"] == Path(path).parent.name
        assert [float(again[path][key]) for key in row if key[0] == "p"] == pytest.approx(
            [float(row[key]) for key in row if key[0] == "p"], abs=1e-5
        )


def test_the_parts_of_a_folder_of_classes_are_cut_once() -> None:
    write_digits(Path("digits"), 80)
    parts = [set(folder_of(split, val_fraction=0.2).paths) for split in ("train", "val", "test")]
    assert list(map(len, parts)) == [56, 16, 8]
    assert len(set.union(*parts)) == 80
    assert set(folder_of("test", val_fraction=0.2, seed=1).paths) != parts[2]


def test_folders_of_parts_are_taken_as_they_are_and_what_is_missing_is_cut() -> None:
    for split, many in (("train", 50), ("val", 20)):
        write_digits(Path("digits", split), many)
    Path("digits/val/digit 7/0007.png").rename("digits/val/digit 7/new.png")
    val, test, train = (folder_of(split) for split in ("val", "test", "train"))
    assert all(path.startswith("digits/val/") for path in val.paths)
    assert (len(val), len(test), len(train)) == (20, 5, 45)
    assert val.targets[val.paths.index("digits/val/digit 7/new.png")] == 7
    Path("digits/val/eleven").mkdir()
    with pytest.raises(UsageError, match="no class 'eleven'"):
        folder_of("val")


def test_a_folder_of_a_part_is_no_class() -> None:
    write_digits(Path("digits"), 40)
    write_digits(Path("digits", "test"), 30)
    assert (len(folder_of().classes), len(folder_of()), len(folder_of("test"))) == (10, 36, 30)


def test_a_fraction_of_0_is_no_part() -> None:
    pytest.importorskip("data.image_folder")
    write_digits(Path("digits"), 80)
    metrics = main.main([*QUICK, *DIGITS, *network("mlp"), "--max_epochs", "1", "--val_fraction", "0"])
    assert "val_loss" not in metrics
    assert "test_loss" in metrics


def test_mean_and_deviation_are_of_the_training_images_and_are_kept() -> None:
    for split, values in (("train", (0, 255)), ("val", (100,)), ("test", (100,))):
        for value in values:
            write(Path("digits", split, "a", f"{value}.png"), np.full((20, 30, 3), [value, 51, 0]))
    train, val = folder_of(), folder_of("val")
    known = {"mean": [0.5, 0.2, 0], "std": [0.5, 1e-4, 1e-4]}
    for name, numbers in known.items():
        assert train.preprocessing[name] == val.preprocessing[name] == pytest.approx(numbers, abs=1e-6)
    image, _ = val[0]
    assert image.shape == (3, 16, 16)
    assert image[0].unique().tolist() == pytest.approx([(100 / 255 - 0.5) / 0.5])
    kept = Path("digits/mean_std.json")
    told = {name: {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]} for name in json.loads(kept.read_text())}
    assert len(told) == 1
    kept.write_text(json.dumps(told))
    assert folder_of("test").preprocessing["mean"] == [0.1, 0.2, 0.3]  # not worked out again
    write(Path("digits/train/a/more.png"), np.full((20, 30, 3), 255))  # other images have others
    assert folder_of("test").preprocessing["mean"] == pytest.approx([2 / 3, (0.2 + 0.2 + 1) / 3, 1 / 3], abs=1e-6)


def test_mean_and_deviation_follow_images_of_the_same_names_and_sizes() -> None:
    for first in (0, 100):  # without compression all files have one size, and these a black border at their end
        for at in range(20):
            pixels = np.zeros((16, 16), np.uint8)
            pixels[4:12, 4:12] = first + at
            write(Path("pictures", "ab"[at % 2], f"{at}.bmp"), pixels)
        read = folder_of(data_dir="pictures", img_size=16, grey=True)
        levels = np.array([(first + int(Path(path).stem)) / 255 for path in read.paths])
        assert read.preprocessing["mean"][0] == pytest.approx(levels.mean() / 4)


def test_only_training_images_are_cut_out_at_random() -> None:
    write_digits(Path("digits"), 80)
    train, val = folder_of(crop_scale=0.5), folder_of("val")
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])
    assert torch.equal(val[0][0], train.open_image(val.paths[0]))


@pytest.mark.parametrize("wrong", [b"no image", b""])
def test_a_file_that_is_no_image_is_named(wrong: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("digits"), 80)
    Path("digits/digit 4/a.jpg").write_bytes(wrong)
    Path("digits/digit 4/notes.txt").write_bytes(b"not looked at")
    train = folder_of(test_fraction=0, val_fraction=0)
    assert "1 of 81 training images cannot be read, and will end a run: digits/digit 4/a.jpg" in capsys.readouterr().err
    assert not Path("digits/mean_std.json").exists()
    with pytest.raises(ValueError, match=r"digits/digit 4/a\.jpg is no image, or is broken"):
        train[train.paths.index("digits/digit 4/a.jpg")]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_ends_at_a_broken_image_with_one_line(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("digits"), 80)
    Path("digits/digit 4/a.jpg").write_bytes(b"no image")
    flags = ["--test_fraction", "0", "--val_fraction", "0", "--num_workers", workers, "--max_epochs", "1"]
    with pytest.raises(SystemExit, match="2"):
        main.main([*QUICK, *DIGITS, "--model_name", "mlp", *flags])
    line = "main.py: error: digits/digit 4/a.jpg is no image, or is broken (cannot identify image file"
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_a_folder_without_classes_or_images_says_so() -> None:
    with pytest.raises(UsageError, match="gone should have a folder of images for each class"):
        folder_of(data_dir="gone")
    Path("digits/empty").mkdir(parents=True)
    with pytest.raises(UsageError, match="digits has no image in the folders of its classes, empty"):
        folder_of()
    write_digits(Path("digits"), 80)
    with pytest.raises(UsageError, match="digits/empty has no image: each folder in digits is a class"):
        folder_of()
    for wrong in ({"img_size": 0}, {"crop_scale": 2.0}):
        with pytest.raises(UsageError, match="the first should be at least 1, and the second a share"):
            folder_of(**wrong)


def test_files_of_every_kind_are_seen_as_they_are_meant() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    plain = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held to the side
    seen_through = plain.convert("P")
    seen_through.putpalette([level for level in range(256) for _ in range(3)])
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "bytes": (plain, {}),
        "deep": (Image.fromarray(pixels.astype(np.uint16) * 257), {}),
        "palette": (seen_through, {"transparency": bytes(range(256))}),
        "turned": (plain.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
    }
    for name, (image, how) in files.items():
        Path("digits", name).mkdir(parents=True)
        image.save(Path("digits", name, f"{name}.PNG"), **how)
        Path("digits", name, f"._{name}.png").write_bytes(b"the system's own")
    expected = torch.from_numpy(pixels)[None] / 255
    for grey in (True, False):
        data = folder_of(grey=grey, val_fraction=0.0, test_fraction=0.0)
        assert len(data) == 4
        mean, std = (torch.tensor(data.preprocessing[name]).view(-1, 1, 1) for name in ("mean", "std"))
        for path in data.paths:
            image = data.open_image(path) * std + mean
            torch.testing.assert_close(image, expected.expand_as(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pair", [("digit 4", "digit 4 "), ("cafe\u0301", "caf\u00e9")])
def test_folders_that_look_alike_are_refused(pair: tuple[str, str]) -> None:
    for name in (*pair, "other"):
        write(Path("digits", name, "a.png"), np.zeros((8, 8)))
    with pytest.raises(UsageError, match=f"digits has the folders {pair[0]!r} and {pair[1]!r}, which look alike"):
        folder_of()


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_of_several_pages_the_first_is_read_and_that_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (50, 200)]
    Path("digits/some").mkdir(parents=True)
    pages[0].save(f"digits/some/{name}", save_all=True, append_images=pages[1:])
    folder = folder_of(val_fraction=0, test_fraction=0, grey=True)
    assert folder.preprocessing["mean"] == pytest.approx([50 / 255])
    said = f"of {Path(name).suffix} files with several pages or frames the first one is read"
    assert capsys.readouterr().err.count(said) == 1


def test_a_page_whose_successor_is_broken_is_read() -> None:
    write(Path("digits/some/a.tif"), np.full((8, 8), 50))
    content = bytearray(Path("digits/some/a.tif").read_bytes())
    first = int.from_bytes(content[4:8], "little")  # the page's entries, 12 bytes each, and where the next page is
    behind = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[behind : behind + 4] = len(content).to_bytes(4, "little")
    Path("digits/some/a.tif").write_bytes(content + bytes(6))  # a page without entries
    folder = folder_of(val_fraction=0, test_fraction=0, grey=True)
    assert folder.preprocessing["mean"] == pytest.approx([50 / 255])


def test_a_class_may_have_the_name_of_a_split_where_there_are_none() -> None:
    for name in ("Car", "Train"):
        write(Path("digits", name, "a.png"), np.zeros((8, 8)))
    assert folder_of(val_fraction=0, test_fraction=0).classes == ["Car", "Train"]
    write(Path("digits/test/Car/b.png"), np.zeros((8, 8)))
    with pytest.raises(UsageError, match="digits/Train would be no split"):
        folder_of()


@pytest.mark.parametrize("name", ["valid", "Validation", "Val", "training"])
def test_a_folder_that_looks_like_a_split_is_refused(name: str) -> None:
    said = f"/{name} would be no split: call the folders train, val and test"
    for folder in ("train", name):
        write_digits(Path("digits", folder), 40)
        write_shapes(Path("pairs", folder), 10)
    with pytest.raises(UsageError, match=f"digits{said}"):
        folder_of()
    with pytest.raises(UsageError, match=f"pairs{said}"):
        pairs_of()
    Path("digits/train").rename("digits/other")
    with pytest.raises(UsageError, match=f"digits{said}"):
        folder_of()


@pytest.mark.parametrize("double", ["images/001.tif", "masks/001.tif"])
def test_two_files_for_one_place_in_a_pair_are_refused(double: str) -> None:
    write_shapes(Path("pairs"), 20)
    Image.new("L", (36, 36)).save(Path("pairs", double))
    with pytest.raises(UsageError, match=r"001\.\w+ and .*001\.\w+ have one name: which of them belongs to a pair"):
        pairs_of(target_folder="masks", classes=["nothing", "disc", "square"])


def test_files_that_are_left_out_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("digits"), 80)
    write_shapes(Path("pairs"), 20)
    for folder in ("digits/digit 4", "pairs/images/more", "pairs/masks/more"):
        Path(folder).mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(Path(folder, "a.gif"))
        Path(folder, "b.heic").touch()
        Path(folder, ".c.gif").touch()
    for splits, said in ((folder_of, "digits: 2 files"), (pairs_of, "pairs: 4 files")):
        for split in ("train", "val", "test"):
            splits(split, **({"target_folder": "masks"} if splits is pairs_of else {}))
        err = capsys.readouterr().err
        assert err.count(f"{said} (.gif, .heic) are left out; images are .jpg, .jpeg, .png,") == 1
        assert err.count("left out") == 1


def test_only_files_of_the_pairs_are_said_to_be_left_out_once_for_all_processes(capsys, monkeypatch) -> None:
    write_shapes(Path("pairs"), 20)
    for folder in ("pairs/images/v1.0", "pairs/images/images", "pairs/other/images", "elsewhere"):
        Path(folder).mkdir(parents=True)
    for file in ("pairs/images/images/a.gif", "pairs/other/images/b.gif", "elsewhere/c.gif"):
        Path(file).touch()
    pairs_of()
    assert "pairs: 1 files (.gif) are left out" in capsys.readouterr().err
    for mask in Path("pairs/masks").iterdir():
        shutil.copy(mask, "elsewhere")
    beside = pairs_of(target_folder=str(Path("elsewhere").absolute()), classes=["nothing", "disc", "square"])
    assert len(beside) == 16
    assert "pairs: 2 files (.gif) are left out" in capsys.readouterr().err
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    pairs_of()
    assert capsys.readouterr().err == ""


TUNED = ["--freeze", "backbone", "--unfreeze_epoch", "1", "--lr_scale", "backbone=0.1"]


def resnet_file(path: str) -> dict[str, torch.Tensor]:
    """Weights as torchvision offers them, in a file, without those of its last layer."""
    pytest.importorskip("model.resnet")
    weights = resnet18().state_dict()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    return {name: one for name, one in weights.items() if not name.startswith("fc.")}


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_frozen_backbone_learns_from_its_epoch_on(epochs: int) -> None:
    pytest.importorskip("data.image_folder")
    weights = resnet_file("resnet18.pth")
    write_digits(Path("digits"), 80)
    main.main(
        [*QUICK, *DIGITS, *network("resnet"), "--weights_file", "resnet18.pth", *TUNED, "--max_epochs", str(epochs)]
    )
    state = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    same = [torch.equal(state[f"network.backbone.{name}"], one) for name, one in weights.items()]
    assert all(same) == (epochs == 1)
    Path("resnet18.pth").unlink()  # a checkpoint has weights of its own
    assert "test_acc" in main.main(["test", "--ckpt_path", "version_0"])


def test_weights_that_were_downloaded_once_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ResNet = pytest.importorskip("model.resnet").ResNet
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = get_model_weights("resnet18").DEFAULT.url.rpartition("/")[2]
    weights = resnet_file(f"{tmp_path}/hub/checkpoints/{name}")
    network = ResNet(num_classes=4, pretrained=True)
    network.fetch_weights()
    assert all(torch.equal(network.backbone.state_dict()[name], one) for name, one in weights.items())


def test_without_a_connection_there_is_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ResNet = pytest.importorskip("model.resnet").ResNet
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(RuntimeError, match=r"resnet18-.*pth.*Ways out: .*--weights_file"):
        ResNet(num_classes=4, pretrained=True).fetch_weights()
    Path("page.pth").write_text("<html>")
    with pytest.raises(RuntimeError, match=r"from page\.pth.*Ways out"):
        ResNet(num_classes=4, weights_file="page.pth").fetch_weights()
    with pytest.raises(UsageError, match="resnet51 for 3 channels: for 1 or 3 channels there are alexnet"):
        ResNet(num_classes=4, backbone="resnet51")


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "densenet121", "vit_b_32"])
def test_other_backbones_get_a_head_too(backbone: str) -> None:
    network = pytest.importorskip("model.resnet").ResNet(num_classes=4, in_channels=1, backbone=backbone).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 224, 224)).shape == (1, 4)


def test_masks_are_learnt_drawn_and_predicted() -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.unet")
    write_shapes(Path("pairs"))
    metrics = main.main(
        ["--accelerator", "cpu", "--num_workers", "0", *MASKS, *UNET, "--max_epochs", "20", "--lr", "0.005"]
    )
    data = pairs_of("test", target_folder="masks", classes=["nothing", "disc", "square"])
    masks = torch.stack([mask for _, mask in data])
    nothing = float((masks == 0).float().mean()) / 3  # the mean over classes where all is said to be nothing
    assert nothing < 0.35
    assert metrics["test_iou"] > 0.8
    shares = predicts()
    assert shares.shape == (6, 3, 32, 32)
    assert (shares.argmax(1) == masks.numpy()).mean() == pytest.approx(metrics["test_acc"])
    assert (RUN / "masks.png").exists()


def test_what_a_mask_leaves_open_does_not_count() -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.unet")
    folder = write_shapes(Path("pairs"), 40)
    for path in (folder / "masks").iterdir():
        numbers = np.asarray(Image.open(path)) * 100
        numbers[:, :18] = 255
        write(path, numbers)
    how: dict[str, Any] = {"target_folder": "masks", "classes": ["nothing", "disc", "square"]}
    how |= {"mask_values": (0, 100, 200), "ignore_index": 255}
    masks = torch.stack([mask for _, mask in pairs_of("test", **how)])
    assert masks.unique().tolist() == [-100, 0, 1, 2]
    assert torch.equal(masks == -100, (torch.arange(32) < 16).expand_as(masks))  # two columns are cut off
    flags = [*TASKS["unet"], "--mask_values", "0", "100", "200", "--ignore_index", "255", "--class_weights", "balanced"]
    metrics = main.main([*QUICK[:4], *flags, "--max_epochs", "2"])
    found = predicts().argmax(1)
    known = (masks >= 0).numpy()
    assert metrics["test_acc"] == pytest.approx((found == masks.numpy())[known].mean())
    assert (RUN / "masks.png").exists()


def test_noise_is_taken_away() -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.unet")
    write_photographs(Path("pairs"))
    how = [*PAIRS, "--noise", "0.1", "--loss", "mse_loss", "--metrics", "psnr", "--lr", "0.003"]
    metrics = main.main([*QUICK, *how, *UNET, "--residual", "--max_epochs", "8"])
    assert metrics["test_psnr"] > 23  # of the input: -20 log10(0.1) = 20


def test_super_resolution_is_better_than_bicubic() -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.super_resolution")
    write_photographs(Path("pairs"))
    how = [*PAIRS, "--scale", "2", "--loss", "mse_loss", "--metrics", "psnr", "--lr", "0.003"]
    metrics = main.main([*QUICK, *how, "--model_name", "super_resolution", "--width", "32", "--max_epochs", "12"])
    inputs, targets = (torch.stack(some) for some in zip(*pairs_of("test", scale=2), strict=True))
    enlarged = interpolate(inputs, scale_factor=2, mode="bicubic")
    bicubic = -10 * float((enlarged - targets).square().mean().log10())
    assert metrics["test_psnr"] > bicubic + 0.3


TASKS = {
    "unet": [*MASKS, "--model_name", "unet", "--width", "4", "--depth", "2"],
    "super_resolution": [*PAIRS, "--scale", "2", "--noise", "0.1", "--loss", "l1_loss", "--width", "8"],
}


@pytest.mark.parametrize("argv", [[], AVERAGED])
@pytest.mark.parametrize("name", TASKS)
def test_a_network_of_pairs_goes_on_predicts_and_is_exported(name: str, argv: list[str]) -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip(f"model.{name}")
    write_shapes(Path("pairs"), 40)
    goes_on(*TASKS[name], "--model_name", name, *argv)
    assert predicts().shape == (4, 3, 32, 32)
    side = 72 if name == "super_resolution" else 36  # of whole files, not of what is cut out
    assert predicts("--images", "pairs/images").shape == (40, 3, side, side)
    if not argv:
        size = 16 if name == "super_resolution" else 32
        assert exports()(torch.zeros(3, 3, size, size)).shape == (3, 3, 32, 32)


def test_what_comes_out_is_written_as_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.unet")
    write_shapes(Path("pairs"), 20)
    for path in Path("pairs/masks").iterdir():
        write(path, np.asarray(Image.open(path)) * 100)
    main.main([*QUICK, *TASKS["unet"], "--mask_values", "0", "100", "200", "--max_epochs", "1"])
    best = predicts("--images", "pairs/images").argmax(1)
    shutil.copytree("pairs/images", "new")
    write(Path("new/wide/020.png"), np.zeros((40, 50, 3)))
    Path("new/broken.png").write_bytes(b"no image")
    as_pictures = ["predict", "--ckpt_path", "version_0", "--format", "png", "--images", "new"]
    with pytest.raises(SystemExit, match="2"):
        main.main(as_pictures)
    assert "they are of different sizes, so each is a batch: --batch_size 1" in capsys.readouterr().err
    main.main([*as_pictures, "--batch_size", "1"])
    said = capsys.readouterr()
    assert f"{RUN}/predictions_new: 21 files; 1 that cannot be read left out" in said.out
    assert "left out: new/broken.png is no image, or is broken" in said.err
    for number, mask in enumerate(best):
        with Image.open(RUN / "predictions_new" / f"{number:03}.png") as written:
            assert written.mode == "P"  # the numbers of the masks, and colours for who looks
            np.testing.assert_array_equal(np.asarray(written), 100 * mask)
    with Image.open(RUN / "predictions_new/wide/020.png") as written:
        assert written.size == (50, 40)


def test_a_pair_is_cut_at_the_same_place() -> None:
    write_shapes(Path("pairs"))
    for image, mask in pairs_of(target_folder="masks", classes=["nothing", "disc", "square"]):
        assert image.shape == (3, 32, 32)
        assert (image.mean(0)[mask > 0].mean() - image.mean(0)[mask == 0].mean()) > 0.15  # 60 of 255, less its spread
        assert mask.max() in (1, 2)
    for image, target in pairs_of(target_folder="images"):
        assert torch.equal(image, target)
    image, target = pairs_of("val", target_folder="images", noise=0.1)[0]
    assert float((image - target).std()) == pytest.approx(0.1, rel=0.1)


def test_what_does_not_pair_is_named() -> None:
    folder = write_shapes(Path("pairs"), 10)
    masks = {"target_folder": "masks", "classes": ["nothing", "disc"], "val_fraction": 0, "test_fraction": 0}
    with pytest.raises(ValueError, match=r"masks/001\.png has the number 2: a mask has one of 0, 1 a pixel; see"):
        pairs_of(**masks)[1]
    for wrong in ((0, 1, 2), (1, 1), (-1, 0)):
        with pytest.raises(UsageError, match="each of the 2 --classes has a number of its own"):
            pairs_of(**masks, mask_values=wrong)
    write(folder / "masks" / "000.png", np.zeros((36, 30)))
    with pytest.raises(ValueError, match=r"images/000\.png is 36x36, and .*masks/000\.png is 30x36"):
        pairs_of(**masks)[0]
    write(folder / "masks" / "000.png", np.zeros((36, 36, 3)))
    with pytest.raises(ValueError, match=r"masks/000\.png has colours"):
        pairs_of(**masks)[0]
    with pytest.raises(ValueError, match=r"images/002\.png is 36x36, less than 64x64: see --img_size"):
        pairs_of(**masks, img_size=64)[2]
    (folder / "images" / "003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"images/003\.png is no image, or is broken"):
        pairs_of(**masks)[3]
    (folder / "masks" / "004.png").unlink()
    with pytest.raises(UsageError, match=r"images/004\.png has no file of the same name in .*masks \(1 in all\)"):
        pairs_of(**masks)
    with pytest.raises(UsageError, match="img_size 32 should be a multiple of --scale 3"):
        pairs_of(scale=3)
    with pytest.raises(UsageError, match="--classes goes with masks"):
        pairs_of(classes=["a", "b"])


def test_what_suits_no_masks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.unet")
    write_shapes(Path("pairs"), 20)
    for argv, why in ((["--mixup", "0.2"], "not a mask"), (["--balanced"], "an item of PairedImages has several")):
        with pytest.raises(SystemExit, match="2"):
            main.main([*QUICK, *TASKS["unet"], "--max_epochs", "1", *argv])
        assert why in capsys.readouterr().err
    wrong = {"the targets are numbers": [], "--loss mse_loss: the network gives (2, 3, 16, 16)": ["--loss", "mse_loss"]}
    for said, argv in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            main.main([*QUICK, *PAIRS, *UNET, "--scale", "2", "--max_epochs", "1", *argv])
        assert said in capsys.readouterr().err


def test_weights_of_classes_are_of_pixels() -> None:
    pytest.importorskip("data.paired_images")
    pytest.importorskip("model.unet")
    write_shapes(Path("pairs"), 20)
    data = pairs_of(target_folder="masks", classes=["nothing", "disc", "square"])
    pixels = sum(mask.flatten().bincount(minlength=3) for _, mask in data)
    counts = DInterface(
        type(data), {"target_folder": "masks", "classes": data.classes, "img_size": 32}, data_dir="pairs"
    )
    assert counts.class_counts().sum() == pixels.sum()
    assert counts.class_counts() / pixels.sum() == pytest.approx(pixels / pixels.sum(), abs=0.02)
    assert "test_acc" in main.main([*QUICK, *TASKS["unet"], "--max_epochs", "1", "--class_weights", "balanced"])


def test_decoded_images_are_kept_and_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(Path("digits"), 60)
    argv = [*QUICK, *DIGITS, *network("mlp"), "--max_epochs", "2"]
    plain = main.main(argv)
    assert main.main([*argv, "--cache_dir", "kept"]) == plain
    kept = sorted(Path("kept").rglob("*.pixels"))
    assert len(kept) == 60
    assert main.main([*argv, "--cache_dir", "kept"]) == plain
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # a write that was cut off
    assert (
        main.main(["--ckpt_path", "last", "--cache_dir", "none", "--max_epochs", "3"])["train_loss"]
        < plain["train_loss"]
    )
    changed = sorted(Path("digits").rglob("*.png"))[0]
    write(changed, np.full((16, 16), 99))
    assert main.main([*argv, "--cache_dir", "kept"]) == main.main(argv) != plain
    Path("file").write_text("no folder")
    assert main.main([*argv, "--cache_dir", "file"]) == main.main(argv)
    assert capsys.readouterr().err.count("--cache_dir file: Not a directory: images are decoded anew each time") == 1


def test_a_full_disk_keeps_no_part_of_a_decoded_image(capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource")
    plain = folder_of(data_dir=str(write_digits(Path("digits"), 80, size=64)), img_size=64, flip=False)
    cached = folder_of(data_dir="digits", img_size=64, flip=False, cache_dir="kept")
    shutil.rmtree("kept", ignore_errors=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a file may have 1000 bytes, less than an image
    try:
        assert cached[0][0].shape == plain[0][0].shape
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in Path("kept").rglob("*") if path.is_file()] == []
    assert "--cache_dir kept: File too large: images are decoded anew each time" in capsys.readouterr().err
