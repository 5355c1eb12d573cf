"""Drops what the answers do not ask for, and what a used checkout of the template left lying in its folder."""

import filecmp
import shutil
from pathlib import Path

ANSWERS = {
    "license": "{{ cookiecutter.license }}",
    "examples": "{{ cookiecutter.examples }}",
    "language": "{{ cookiecutter.language }}",
    "template": {{template_dir | tojson}},
}
MINIMAL = ("data/digits.py", "data/mnist.py", "model/lenet.py", "tests/test_examples.py")
GALLERY = (
    *("data/image_folder.py", "data/paired_images.py", "data/csv_table.py", "data/text_lines.py"),
    *("data/video_frames.py", "data/streaming.py", "engine/pixels.py", "engine/tables.py"),
    *("model/mlp.py", "model/resnet.py", "model/vit_small.py", "model/unet.py", "model/super_resolution.py"),
    *("model/lstm.py", "model/vae.py", "model/gan.py", "model/encoder_decoder.py"),
    *("tests/gallery.py", "tests/test_gallery_images.py", "tests/test_gallery_sequences.py"),
    *("tests/test_gallery_tables.py", "tests/test_gallery_generative.py", "tests/test_gallery_streams.py"),
    "tests/test_gallery_ranks.py",
)
ASIDE = Path(".aside")  # where the first hook laid what a used project had
LITTER = ("__pycache__", "*_cache", "*.egg-info", ".venv", "lightning_logs", "datasets", "build", "dist")


def main() -> None:
    if ANSWERS["language"] == "中文":
        Path("README.zh-CN.md").replace("README.md")
    dropped = ("README.zh-CN.md", *{"minimal": GALLERY, "gallery": (), "none": MINIMAL + GALLERY}[ANSWERS["examples"]])
    for path in (*dropped, "LICENSE") if ANSWERS["license"] == "none" else dropped:
        if (ASIDE / path).exists():  # there before: whoever wrote it, it stays as it was
            (ASIDE / path).replace(path)
        else:
            Path(path).unlink(missing_ok=True)
    shutil.rmtree(ASIDE, ignore_errors=True)
    source = next(Path(ANSWERS["template"]).glob("*cookiecutter.project_slug*"))
    for pattern in LITTER:
        for folder in [path for path in Path().rglob(pattern) if path.is_dir()]:
            drop(folder, source)


def drop(folder: Path, source: Path) -> None:
    """Deletes the files in `folder` that were copied from `source`; a project's own runs and data stay."""
    for path in [path for path in folder.rglob("*") if path.is_file() and (source / path).is_file()]:
        if filecmp.cmp(path, source / path, shallow=False):
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


main()
