"""Lays aside what a used project has where examples go: a file of the user's own may have the name of one."""

import shutil
from pathlib import Path


def main() -> None:
    for path in [*Path().glob("data/*.py"), *Path().glob("model/*.py"), *Path().glob("tests/*.py"), Path("LICENSE")]:
        if path.is_file() and not (Path(".aside") / path).exists():  # it does where an earlier bake was cut off
            (Path(".aside") / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, Path(".aside") / path)


main()
