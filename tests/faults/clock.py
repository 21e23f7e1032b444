"""Workers whose clock is wrong, by as much as a test says, while the machine's stays right."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.deployment import Deployment

SOURCE = Path(__file__).with_name("wrong_clock.c")


class WrongClock:
    """A clock for the processes started within `worn_by`."""

    def __init__(self, folder: Path, name: str, offset_s: int) -> None:
        self.library, self.file = build(folder), folder / f"{name}.clock"
        self.file.touch()
        self.set(offset_s)

    def set(self, offset_s: int) -> None:
        """Jumps: the time of day is off by so much from now on."""
        with self.file.open("r+b") as file:  # the same file, which the processes have mapped
            file.write(offset_s.to_bytes(8, "little", signed=True))

    @contextmanager
    def worn_by(self, deployment: Deployment) -> Iterator[None]:
        """What the deployment starts meanwhile has this clock."""
        right = deployment.environment
        deployment.environment = right | {"LD_PRELOAD": str(self.library), "WRONG_CLOCK": str(self.file)}
        try:
            yield
        finally:
            deployment.environment = right


def build(folder: Path) -> Path:
    """Compiles the library that shifts a process's clock; fails with what to do where that can't be."""
    library = folder / "wrong_clock.so"
    if library.exists():
        return library
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail(
            "no C compiler: install one (Debian: apt-get install gcc), or leave these out: ARGS=\"-k 'not clock'\""
        )
    made = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.fail(
            f"{SOURCE.name} needs Linux with glibc 2.30 or newer; leave these out: ARGS=\"-k 'not clock'\"\n{made.stderr}"
        )
    return library
