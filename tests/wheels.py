"""A wheel, built as a user would."""

import subprocess
import sys
from pathlib import Path


def built(source: Path, folder: Path) -> Path:
    """The wheel of a project, in a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))
