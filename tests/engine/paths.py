"""Where the project lies, and the flags with which most tests train."""

from pathlib import Path

import main

PROJECT = Path(main.__file__).parent
HERE = Path(__file__).parent  # a process that a test starts finds `toys` by PYTHONPATH
WARM = HERE.parent / "warm_python.py"
TOYS = ["--model_name", "toys.Net", "--dataset", "toys.Blobs", "--accelerator", "cpu", "--num_workers", "0"]
if (PROJECT / "engine/features/pictures").exists():
    TOYS += ["--no-pictures"]  # drawing takes two thirds of such a run
