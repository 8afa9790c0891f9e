"""What several test files share."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

import data

HOME = Path(data.__file__).parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background; the scripts that tests start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


needs_data = pytest.mark.skipif(not has_fashion_mnist(), reason="Fashion-MNIST is not on this machine (apt-get install dataset-fashion-mnist)")
