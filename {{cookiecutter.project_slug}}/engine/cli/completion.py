"""Shell completion of actions, networks, datasets, flags and their choices, by argcomplete (the extra `completion`).

Once a shell: eval "$(register-python-argcomplete main.py)"; then `./main.py --mo<TAB>` (chmod +x main.py).
"""

import argparse
import os
from itertools import pairwise

import argcomplete

from engine.cli import conversion, discovery, flags, plugins
from engine.cli.command_line import NAMES


def run() -> None:
    """Answers the shell, which has asked by environment variables, and ends the program."""
    words = os.environ["COMP_LINE"].split()[1:]
    chosen = dict(pairwise(words))
    found = {}
    for key, folder in NAMES.items():
        if chosen.get(f"--{key}") in discovery.names(folder):
            found[key] = discovery.find(folder, chosen[f"--{key}"])
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("action", nargs="?", choices=list(plugins.actions()))
    parser.add_argument("--config")
    for flag in flags.flags_of(flags.groups_of(found)).values():
        choices = [str(one) for one in conversion.choices(flag.annotation)]
        if flag.name in NAMES:
            choices = discovery.names(NAMES[flag.name])
        parser.add_argument(f"--{flag.name}", choices=choices or None)
    argcomplete.autocomplete(parser)
