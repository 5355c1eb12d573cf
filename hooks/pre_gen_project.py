"""Lays aside what a used project has where files may be dropped: one of the user's own may have the name of one."""

import shutil
from pathlib import Path

PLACES = ("data/*.py", "model/*.py", "engine/features/**/*.py", "engine/commands/**/*.py", "scripts/*")
FILES = ("sweep.py", "ray_train.py", "LICENSE", "README.zh-CN.md")


def main() -> None:
    found = [path for pattern in (*PLACES, *FILES) for path in Path().glob(pattern) if path.is_file()]
    for path in found:
        if not (Path(".aside") / path).exists():  # it does where an earlier bake was cut off
            (Path(".aside") / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, Path(".aside") / path)


main()
