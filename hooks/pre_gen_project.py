"""Lays aside what a used project has where examples go: a file of the user's own may have the name of one."""

import shutil
from pathlib import Path


def main() -> None:
    examples = [path for folder in ("data", "model", "tests") for path in Path(folder).glob("*.py")]
    for path in [*examples, Path("LICENSE"), Path("README.zh-CN.md")]:
        if path.is_file() and not (Path(".aside") / path).exists():  # it does where an earlier bake was cut off
            (Path(".aside") / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, Path(".aside") / path)


main()
