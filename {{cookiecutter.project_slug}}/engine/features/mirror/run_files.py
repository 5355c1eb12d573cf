"""Which of the files at an address belong to a run, and where in its folder they go."""

import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

from engine.checkpointing.file_names import unsafe

# What a run folder holds; all else is left where it is. Of wandb/ not its settings, which say where the keys go.
_HELD = re.compile(
    r"(config|hparams)\.yaml|metrics\.csv|(metrics|data|environment|folds?|labels)\.json|mirror\.txt|mlflow-run|[^/]+\.png"
    r"|events\.[^/]+|(slurm|torchrun)-[^/]+|checkpoints/[^/]+\.ckpt(/[^/]+)?|network\.[^/]+|predictions\.[^/]+"
    r"|predictions/.+\.png|bad_step_\d+\.pt|[^/]*profile[^/]*\.(txt|json)|mlruns/.+|wandb/[^/]*run-[^/]+-[^/]+/.+"
)


def wanted(listing: dict[str, dict[str, Any]], run: str, local: bool) -> dict[str, str]:
    """The files of a run that are fetched, by their place in its folder, and each one's address in the listing.

    local: they lie on a disk of this machine, where links may lead out of the folder; none is followed.

    Raises:
        ValueError: a name leads out of the folder, or is not one everywhere.
    """
    names, alike, left = dict[str, str](), dict[str, str](), []
    for path, info in listing.items():
        name = path.removeprefix(f"{run}/")
        if name.endswith("/") and not info.get("size"):
            continue  # what some stores keep of a folder
        wrong = unsafe(name) if path != name or not run else "it leads elsewhere"
        for number in range(1, name.count("/") + 2):
            start = "/".join(name.split("/")[:number])
            other = alike.setdefault(unicodedata.normalize("NFC", start).casefold(), start)
            wrong = wrong or (f"there is {other!r} too" if other != start else "")
        links = local and Path(path).resolve() != Path(run).resolve() / name
        if links and not Path(path).resolve().is_relative_to(Path(run).resolve()) and not name.startswith("wandb/"):
            wrong = wrong or "it is a link that leads elsewhere"
        if wrong:
            raise ValueError(f"{name!r} is refused: {wrong}")
        if links or info.get("islink") or info.get("type", "file") != "file" or not _HELD.fullmatch(name):
            left.append(name)
        elif not name.endswith(".part"):
            names[name] = path
    left = [name for name in left if not name.endswith(".part") and name != "fetched.txt"]
    if left:
        print(f"left out, for a run has no such files: {', '.join(left[:3])} ({len(left)} in all)", file=sys.stderr)
    return names
