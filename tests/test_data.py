"""data.py: the mapping to [-1, 1] is exact, any images load as uint8 (N, C, H, W), and a user's mistake is one line."""

import gzip
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HOME, needs_data
from PIL import Image
from torchvision import datasets

import data
import sample
from cli import BadInput

HERE = HOME


# The mapping to [-1, 1]

def test_normalize_round_trips_every_grey_level():
    grey = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    x = data.normalize(grey)
    assert x.dtype == torch.float32 and x.shape == grey.shape
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(data.to_uint8(x), grey)
    assert torch.equal(data.to_uint8(x.double()), grey)


def test_to_uint8_rounds_to_the_nearest_level_and_clamps():
    levels = torch.tensor([-7.0, -0.4, 0.4, 0.6, 127.4, 254.6, 255.4, 1e30])  # in units of a grey level
    assert data.to_uint8(levels / 127.5 - 1).tolist() == [0, 0, 0, 1, 127, 255, 255, 255]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_image_does_not_become_a_grey_one(bad):
    with pytest.raises(ValueError, match="NaN or inf"):
        data.to_uint8(torch.tensor([0.0, bad]))


def test_mapping_twice_is_an_error():
    with pytest.raises(TypeError, match="float32"):
        data.normalize(torch.zeros(2))
    with pytest.raises(TypeError, match="uint8"):
        data.to_uint8(torch.zeros(2, dtype=torch.uint8))


# The real data

@needs_data
@pytest.mark.parametrize(("split", "n"), [("train", 60000), ("test", 10000)])
def test_fashion_mnist_is_balanced_grey_28_by_28(split, n):
    images, labels = data.load("fashion-mnist", split, HERE / "data", labels=True)
    assert images.shape == (n, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.bincount().tolist() == [n // 10] * 10
    # the mean and deviation that every Fashion-MNIST tutorial normalizes by: 0.2860 and 0.3530 on the training split
    assert images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-3)
    assert images.float().std().item() / 255 == pytest.approx(0.3530, abs=1e-3)


# A small data set in place of the real one: the same layout, but three images

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
LABELS = np.array([9, 0, 3], np.uint8)


def idx(values):
    """An array as the bytes of an IDX file."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def put(folder, packed=False):
    """The four files of MNIST's format in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in data.IDX_FILES:
        content = idx(LABELS if "labels" in name else PIXELS)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root on a machine without Debian's data, without apt-get and without a network."""
    def offline(data_set, temporary):
        raise RuntimeError("Error downloading:\nno network")

    monkeypatch.setattr(data, "DEBIAN", Path("/nonexistent/fashion-mnist"))
    monkeypatch.setattr(data, "from_torchvision", offline)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "root"


def complaint(*args, **options):
    """The message with which loading fails: one line."""
    with pytest.raises(BadInput) as caught:
        data.load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "folder"), [
    ("fashion-mnist", "FashionMNIST"),
    ("mnist", "MNIST"),
    ("kmnist", "KMNIST")])
def test_files_of_mnists_format_load_compressed_or_not(root, name, folder, packed):
    put(root / folder / "raw", packed)
    images, labels = data.load(name, "train", root, labels=True)
    assert images.dtype == torch.uint8 and np.array_equal(images[:, 0], PIXELS) and labels.tolist() == LABELS.tolist()
    images.zero_()  # the tensor owns memory that may be written to
    assert len(data.load(name, "test", root)) == 3


def test_cifar10_loads_as_colour_images(root, monkeypatch):
    class Cifar:  # as torchvision's: data (N, H, W, 3) in numpy, targets a list
        def __init__(self, root, train):
            self.data, self.targets = (
                np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3).astype(np.uint8), [1, 2])

    monkeypatch.setattr(datasets, "CIFAR10", Cifar)
    images, labels = data.load("cifar10", "train", root, labels=True)
    assert images.shape == (2, 3, 32, 32) and images[0, :, 0, 1].tolist() == [3, 4, 5] and labels.tolist() == [1, 2]


def test_debians_folder_is_the_second_place_and_replaces_nothing(root, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    put(tmp_path / "debian", packed=True)
    assert np.array_equal(data.load("fashion-mnist", "train", root)[:, 0], PIXELS)
    broken = root / "FashionMNIST/raw/train-images-idx3-ubyte"
    broken.write_bytes(b"broken")  # is not skipped for Debian's good one
    assert str(root) in complaint("fashion-mnist", "train", root)
    assert broken.read_bytes() == b"broken"


def test_debians_files_are_read_even_if_nothing_can_be_written(root, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    put(tmp_path / "debian", packed=True)
    (tmp_path / "file").write_text("")
    assert np.array_equal(data.load("fashion-mnist", "train", tmp_path / "file" / "data")[:, 0], PIXELS)


@pytest.mark.parametrize(("content", "says"), [
    (idx(PIXELS)[:-100], "delete"),
    (b"<html>not found</html>", "delete"),
    (b"", "delete"),
    (idx(PIXELS)[:16], "delete"),
    (idx(PIXELS.astype(">f4"))[:2] + b"\x0d" + idx(PIXELS)[3:], "delete"),
], ids=["truncated", "html", "empty", "only a header", "floats"])
def test_a_wrong_file_is_told_with_the_way_out(root, content, says):
    put(root / "FashionMNIST/raw")
    path = root / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(content)
    message = complaint("fashion-mnist", "train", root)
    assert str(root) in message and says in message
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [gzip.compress(idx(PIXELS))[:-100], b"<html>"], ids=["truncated", "html"])
def test_a_wrong_compressed_file_is_named(root, content):
    put(root / "MNIST/raw", packed=True)
    path = root / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    assert complaint("mnist", "train", root).startswith(str(path))
    assert path.read_bytes() == content


def test_an_unknown_split_is_named(root):
    assert complaint("mnist", "val", root) == "split 'val' is unknown; choose train or test"


def test_no_data_and_no_network_names_the_ways_out(root):
    message = complaint("fashion-mnist", "train", root)
    for part in (str(root), "no network", "no apt-get", "package dataset-fashion-mnist", "FashionMNIST"):
        assert part in message
    assert os.listdir(root) == []
    assert "no network" in complaint("kmnist", "train", root) and "Debian" not in complaint("kmnist", "train", root)


def test_a_data_folder_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot write .*file.*Not a directory"):
        data.load("fashion-mnist", "train", tmp_path / "file")


def fake(folder, name, body):
    """An executable of that name, in place of Debian's."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport os, shutil, sys\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def debian(root, tmp_path):
    """A fake mirror: apt-get downloads an empty .deb if its update came first, dpkg-deb unpacks the small data set."""
    put(tmp_path / "package" / data.DEBIAN.relative_to("/"), packed=True)
    fake(tmp_path / "bin", "apt-get", """
lists = next(a.split("=")[1] for a in sys.argv if a.startswith("Dir::State::lists="))
assert os.getcwd() == os.path.dirname(lists)  # apt-get downloads into its working folder
if sys.argv[-1] == "update":
    open(lists + "/Packages", "w").close()
    sys.exit(100)  # a third party's source is down
if not os.path.exists(lists + "/Packages"):
    sys.exit("E: Unable to locate package")
assert sys.argv[-2:] == ["download", "dataset-fashion-mnist"]
open("dataset-fashion-mnist_0_all.deb", "w").close()""")
    fake(tmp_path / "bin", "dpkg-deb", f"""
assert sys.argv[1] == "-x" and sys.argv[2].endswith("dataset-fashion-mnist_0_all.deb")
shutil.copytree({str(tmp_path / "package")!r}, sys.argv[3])""")
    return tmp_path / "bin"


def test_debians_package_is_fetched_once_without_root_or_lists(root, debian, capsys):
    assert np.array_equal(data.load("fashion-mnist", "train", root)[:, 0], PIXELS)
    assert sorted(os.listdir(root / "FashionMNIST/raw")) == sorted(data.IDX_FILES)
    assert os.listdir(root) == ["FashionMNIST"]  # nothing temporary stays
    assert capsys.readouterr().err.count("\n") == 1
    (debian / "apt-get").unlink()
    assert len(data.load("fashion-mnist", "test", root, labels=True)[1]) == 3
    assert capsys.readouterr().err == ""


def test_fetching_does_not_replace_what_is_there(root, debian):
    mine = root / "FashionMNIST/raw/train-labels-idx1-ubyte"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(idx(LABELS[::-1].copy()))
    assert data.load("fashion-mnist", "train", root, labels=True)[1].tolist() == LABELS[::-1].tolist()


def test_a_failing_apt_or_dpkg_is_quoted(root, debian):
    fake(debian, "dpkg-deb", "sys.exit(2)")
    assert "exit status 2" in complaint("fashion-mnist", "train", root)
    fake(debian, "apt-get", "sys.exit('E: Unable to locate package')")
    assert "apt-get download: E: Unable to locate package" in complaint("fashion-mnist", "train", root)
    assert os.listdir(root) == []


def test_torchvision_comes_before_debian(root, monkeypatch):
    def online(data_set, temporary):
        put(temporary / data_set.__name__ / "raw")
        return temporary

    monkeypatch.setattr(data, "from_torchvision", online)
    for name in ("fashion-mnist", "mnist", "kmnist"):
        assert np.array_equal(data.load(name, "train", root)[:, 0], PIXELS)


# Your own images

@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 1, 28, 28), (5, 3, 32, 32), (2, 4, 8, 12)])
def test_an_npy_file_loads_in_either_layout(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(tmp_path / "my.npy", images)
    loaded = data.load(str(tmp_path / "my.npy"))
    assert loaded.shape == (shape if len(shape) == 4 else (shape[0], 1, *shape[1:])) and loaded.dtype == torch.uint8
    assert np.array_equal(loaded.reshape(shape), images)


def test_an_npy_file_in_any_order_of_memory_loads(tmp_path):
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (5, 8, 12), np.uint8))
    np.save(tmp_path / "my.npy", images)
    loaded = data.load(str(tmp_path / "my.npy"))
    assert loaded.is_contiguous() and np.array_equal(loaded[:, 0], images)


def save_png(folder, name, array, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, **options).save(folder / name)


def test_a_folder_loads_in_the_order_of_the_names_subfolders_too(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 12), np.uint8)
    for name, image in zip(("b.png", "a.png", "c.PNG"), grey):
        save_png(tmp_path / "grey", name, image)
    (tmp_path / "grey" / "notes.txt").write_text("no image")
    assert np.array_equal(data.load(str(tmp_path / "grey"))[:, 0], grey[[1, 0, 2]])
    colour = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), np.uint8)
    save_png(tmp_path / "colour/cats", "1.png", colour[0])
    save_png(tmp_path / "colour/dogs", "1.png", colour[1])
    save_png(tmp_path / "colour", "z.png", grey[0])
    images = data.load(str(tmp_path / "colour"))
    assert images.shape == (3, 3, 8, 12) and np.array_equal(images[:2].permute(0, 2, 3, 1), colour)
    assert all(np.array_equal(channel, grey[0]) for channel in images[2])
    for name, mode in (("rgb.png", "RGB"), ("palette.png", "P"), ("alpha.png", "LA")):  # grey, whatever it is saved as
        Image.fromarray(grey[1]).convert(mode).save(tmp_path / "grey" / name)
    images = data.load(str(tmp_path / "grey"))
    assert images.shape == (6, 1, 8, 12) and all(np.array_equal(image[0], grey[1]) for image in images[[0, 1, 4, 5]])


def test_a_picture_that_a_camera_stored_on_its_side_is_upright(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    save_png(tmp_path / "plain", "a.png", upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: turn it by 90 degrees, clockwise
    (tmp_path / "turned").mkdir()
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned" / "a.png", exif=exif)
    for folder in ("plain", "turned"):
        assert np.array_equal(data.load(str(tmp_path / folder))[0, 0], upright)
        assert np.array_equal(sample.load_picture(tmp_path / folder / "a.png", (1, 8, 8))[0], upright)


def test_what_is_no_set_of_images_is_one_line(tmp_path):
    names = {"float.npy": np.zeros((4, 8, 8), np.float32), "one.npy": np.zeros((8, 8), np.uint8),
             "none.npy": np.zeros((0, 8, 8), np.uint8)}
    for name, array in names.items():
        np.save(tmp_path / name, array)
        assert "uint8 (N, H, W)" in complaint(str(tmp_path / name)), name
    (tmp_path / "cut.npy").write_bytes((tmp_path / "float.npy").read_bytes()[:-9])
    (tmp_path / "text.npy").write_text("text")
    for name in ("cut.npy", "text.npy"):
        assert name in complaint(str(tmp_path / name))
    np.save(tmp_path / "last.npy", np.zeros((5, 8, 8, 3), np.uint8))
    assert "transpose it" in complaint(str(tmp_path / "last.npy"))
    (tmp_path / "one.png").write_bytes(b"")
    assert "is one picture: give a folder" in complaint(str(tmp_path / "one.png"))
    assert "neither a data set" in complaint(str(tmp_path / ("x" * 300)))  # longer than a name may be
    assert ("neither a data set" in complaint(str(tmp_path / "absent"))
            and "absent" in complaint(str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    assert "without images" in complaint(str(tmp_path / "empty"))
    save_png(tmp_path / "mixed", "a.png", np.zeros((8, 8), np.uint8))
    save_png(tmp_path / "mixed", "b.png", np.zeros((8, 9), np.uint8))
    assert "b.png is 8 x 9" in complaint(str(tmp_path / "mixed"))
    save_png(tmp_path / "deep", "a.png", np.zeros((8, 8), np.uint16))
    assert "8 bits" in complaint(str(tmp_path / "deep"))
    save_png(tmp_path / "broken", "a.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    (tmp_path / "broken/a.png").write_bytes((tmp_path / "broken/a.png").read_bytes()[:200])
    assert "a.png cannot be read" in complaint(str(tmp_path / "broken"))
    assert "no labels" in complaint(str(tmp_path / "mixed"), labels=True)
