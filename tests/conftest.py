"""What several test files share."""

from pathlib import Path

import pytest

import data

HOME = Path(data.__file__).parent


def has_fashion_mnist():
    raw = HOME / "data" / "FashionMNIST" / "raw"
    return data.DEBIAN.exists() or all((raw / name).exists() for name in data.IDX_FILES)


needs_data = pytest.mark.skipif(not has_fashion_mnist(), reason="Fashion-MNIST is not on this machine (apt-get install dataset-fashion-mnist)")
