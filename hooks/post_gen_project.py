"""Drops what the answers do not ask for, and what a used checkout of the template left lying in its folder."""

import filecmp
import shutil
from pathlib import Path

ANSWERS = {
    "license": "{{ cookiecutter.license }}",
    "examples": "{{ cookiecutter.examples }}",
    "engine": "{{ cookiecutter.engine }}",
    "language": "{{ cookiecutter.language }}",
    "template": {{template_dir | tojson}},
}
MINIMAL = ("data/digits.py", "data/mnist.py", "model/lenet.py")
GALLERY = (
    *("data/image_folder.py", "data/paired_images.py", "data/csv_table.py", "data/text_lines.py"),
    *("data/video_frames.py", "data/streaming.py", "data/_images.py", "data/_file_errors.py", "data/_columns.py"),
    *("model/mlp.py", "model/resnet.py", "model/vit_small.py", "model/unet.py", "model/super_resolution.py"),
    *("model/lstm.py", "model/vae.py", "model/gan.py", "model/encoder_decoder.py"),
)
# What `engine: core` leaves out, but for the two __init__.py that say what belongs there.
DELETABLE = ("engine/features/*", "engine/features/*/*", "engine/commands/*", "engine/commands/*/*", "scripts/*")
KEPT = ("engine/features/__init__.py", "engine/commands/__init__.py")
ASIDE = Path(".aside")  # where the first hook laid what a used project had
LITTER = ("__pycache__", "*_cache", "*.egg-info", ".venv", "lightning_logs", "datasets", "build", "dist")


def main() -> None:
    if ANSWERS["language"] == "中文":
        Path("README.zh-CN.md").replace("README.md")
    source = next(Path(ANSWERS["template"]).glob("*cookiecutter.project_slug*"))
    dropped = ["README.zh-CN.md", *{"minimal": GALLERY, "gallery": (), "none": MINIMAL + GALLERY}[ANSWERS["examples"]]]
    if ANSWERS["license"] == "none":
        dropped.append("LICENSE")
    if ANSWERS["engine"] == "core":
        found = [path for pattern in DELETABLE for path in source.glob(pattern) if path.is_file()]
        inside = [path.relative_to(source).as_posix() for path in found if "__pycache__" not in path.parts]
        dropped += [path for path in inside if path not in KEPT]
        dropped += ["sweep.py", "ray_train.py"]
    for path in dropped:
        if (ASIDE / path).exists():  # there before: whoever wrote it, it stays as it was
            (ASIDE / path).replace(path)
        else:
            Path(path).unlink(missing_ok=True)
    shutil.rmtree(ASIDE, ignore_errors=True)
    for folder in sorted({Path(path).parent for path in dropped}, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for pattern in LITTER:
        for folder in [path.relative_to(source) for path in source.rglob(pattern) if path.is_dir()]:
            drop(folder, source)


def drop(folder: Path, source: Path) -> None:
    """Deletes what was copied from a folder of `source`; a project's own runs, data, links and folders stay."""
    copied = [path.relative_to(source) for path in (source / folder).rglob("*")]
    for path in sorted([folder, *copied], reverse=True):
        if any(one.is_symlink() for one in (path, *path.parents)):
            continue
        if path.is_file() and filecmp.cmp(path, source / path, shallow=False):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


main()
