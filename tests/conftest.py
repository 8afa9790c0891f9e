"""What several test files share."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import data

HOME = Path(data.__file__).parent

# nohup, or a shell's background, ignores some signals, and the scripts that tests start would ignore them, too
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def has_fashion_mnist():
    raw = HOME / "data" / "FashionMNIST" / "raw"
    return data.DEBIAN.exists() or all((raw / name).exists() for name in data.IDX_FILES)


@pytest.fixture
def started():
    """started(command, **options) -> the Popen of a process group of its own, which does not outlive the test."""
    processes = []

    def start(command, **options):
        processes.append(subprocess.Popen(command, start_new_session=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


needs_data = pytest.mark.skipif(
    not has_fashion_mnist(), reason="Fashion-MNIST is not on this machine (apt-get install dataset-fashion-mnist)")
