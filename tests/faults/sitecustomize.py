"""Found by every Python process that a test starts with this folder on PYTHONPATH: lets its trainings go wrong.

PROSEG_TEST_FAULTS names a folder. A file `raise`, `memory`, `hang` or `disk` in it makes the next training step do
that, once; `slow` holds seconds that every step takes longer.
"""

import errno
import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path

FOLDER = os.environ.get("PROSEG_TEST_FAULTS")


def once(name: str) -> bool:
    """Is there such a file? It is gone then, for all processes."""
    try:
        os.unlink(Path(str(FOLDER)) / name)
    except FileNotFoundError:
        return False
    return True


def fail() -> None:
    import torch

    slow = Path(str(FOLDER)) / "slow"
    if slow.exists():
        time.sleep(float(slow.read_text()))
    if once("raise"):
        raise ValueError("a bug that a test put there")
    if once("memory"):
        raise torch.OutOfMemoryError("CUDA out of memory, says a test")
    if once("hang"):
        time.sleep(10_000)
    if once("disk"):
        raise OSError(errno.ENOSPC, "No space left on device")


class Faulty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads proseg.train and puts `fail` before its training step."""

    def find_spec(self, name, path=None, target=None):
        if name != "proseg.train":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        self.real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        self.real.exec_module(module)
        step = module.train_step

        def train_step(*arguments):
            fail()
            return step(*arguments)

        module.train_step = train_step


if FOLDER:
    sys.meta_path.insert(0, Faulty())
