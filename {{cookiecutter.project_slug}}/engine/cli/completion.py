"""Shell completion of actions, networks, datasets, flags and their choices, by argcomplete (the extra `completion`).

Once a shell: eval "$(register-python-argcomplete main.py)"; then `./main.py --mo<TAB>` (chmod +x main.py).
"""

import argparse
import os
from itertools import pairwise

import argcomplete

from engine.cli import annotations, discovery, features_and_commands, flag_table
from engine.cli.discovery import FOLDERS


def run() -> None:
    """Answers the shell, whose question stands in environment variables, and ends the program."""
    values = dict(pairwise(os.environ["COMP_LINE"].split()[1:]))
    known = {key: discovery.names(folder) for key, folder in FOLDERS.items()}
    names = {key: values[f"--{key}"] for key in FOLDERS if values.get(f"--{key}") in known[key]}
    classes = {key: discovery.find(FOLDERS[key], name) for key, name in names.items()}
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("action", nargs="?", choices=list(features_and_commands.actions()))
    parser.add_argument("--config")
    for flag in flag_table.collect("", names, classes).flags.values():
        choices = known.get(flag.name) or annotations.choices(flag.annotation)
        parser.add_argument(f"--{flag.name}", choices=choices or None)
    argcomplete.autocomplete(parser)
