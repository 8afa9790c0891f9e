"""data.py: the mapping to [-1, 1] is exact, only the right files load, and every mistake of a user is one line."""
import gzip
import hashlib
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data

HERE = Path(data.__file__).parent
needs_data = pytest.mark.skipif(any(data.find(name, HERE / "data") is None for name, _, _ in data.FILES.values()),
                                reason="Fashion-MNIST is neither in ./data nor in Debian's folder")


def script(tmp_path, body, *flags, **options):
    """Run a small script as a user would; returns its finished process."""
    path = tmp_path / "script.py"
    path.write_text(f"import data\n{body}\n")
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, path, *flags], cwd=tmp_path, env=environment, text=True, timeout=60, check=False,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


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
    images, labels = data.load(split, HERE / "data", labels=True)
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


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty root/FashionMNIST/raw on a machine without Debian's data, without apt-get and without a network."""
    def offline(temporary):
        raise RuntimeError("Error downloading:\nno network")

    monkeypatch.setattr(data, "DEBIAN", Path("/nonexistent/fashion-mnist"))
    monkeypatch.setattr(data, "from_torchvision", offline)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for (split, labels), (name, _, _) in list(data.FILES.items()):
        values = LABELS if labels else PIXELS
        sha256 = hashlib.sha256(values.tobytes()).hexdigest()
        monkeypatch.setitem(data.FILES, (split, labels), (name, values.shape, sha256))
    folder = tmp_path / "root" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    return folder


def load(raw, split="train", labels=False):
    return data.load(split, raw.parent.parent, labels)


def complaint(raw, **options):
    """The message with which loading fails: one line."""
    with pytest.raises(data.BadInput) as caught:
        load(raw, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_load_compressed_or_not(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(idx(PIXELS))
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    images, labels = load(raw, labels=True)
    assert np.array_equal(images[:, 0], PIXELS) and labels.tolist() == LABELS.tolist()
    images.zero_()  # the tensor owns memory that may be written to


def test_debians_folder_is_the_second_place(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    (tmp_path / "debian").mkdir()
    (tmp_path / "debian" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS)))
    assert np.array_equal(load(raw)[:, 0], PIXELS)
    (raw / "train-images-idx3-ubyte").write_bytes(b"broken")  # is not skipped for Debian's good one
    assert str(raw) in complaint(raw)
    assert (raw / "train-images-idx3-ubyte").read_bytes() == b"broken"


@pytest.mark.parametrize(("content", "says"), [
    (gzip.compress(idx(PIXELS))[:-100], "cannot be read"),
    (b"<html>not found</html>", "cannot be read"),
    (gzip.compress(idx(PIXELS)[:-1]), f"has {16 + 3 * 784 - 1} bytes instead of {16 + 3 * 784}"),
    (gzip.compress(b""), "starts with nothing"),
    (gzip.compress(idx(LABELS)), "no IDX file of shape (3, 28, 28)"),
    (gzip.compress(idx(PIXELS[:2])), "no IDX file of shape (3, 28, 28)"),
    (gzip.compress(idx(255 - PIXELS)), "SHA-256"),
], ids=["truncated", "html", "short", "empty", "labels", "fewer", "other pixels"])
def test_a_wrong_file_is_named_with_the_way_out(raw, content, says):
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    message = complaint(raw)
    assert message.startswith(str(path)) and says in message and "good copy" in message
    assert path.read_bytes() == content


def test_a_truncated_uncompressed_file_is_named(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(idx(PIXELS)[:1000])
    assert "train-images-idx3-ubyte has 1000 bytes instead of 2368" in complaint(raw)


def test_a_folder_or_a_dangling_link_in_a_files_place_is_named(raw):
    (raw / "train-images-idx3-ubyte").mkdir()
    assert "train-images-idx3-ubyte cannot be read" in complaint(raw)
    (raw / "t10k-images-idx3-ubyte").symlink_to("gone")
    assert "t10k-images-idx3-ubyte cannot be read" in complaint(raw, split="test")


def test_wrong_labels_are_found_out_too(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(idx(PIXELS))
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[::-1].copy()))
    assert "train-labels-idx1-ubyte has other contents" in complaint(raw, labels=True)


def test_an_unknown_split_is_named(raw):
    assert complaint(raw, split="val") == "split 'val' is unknown; choose train or test"


def test_no_data_and_no_network_names_the_places_and_the_ways_out(raw):
    message = complaint(raw)
    for part in (str(raw), str(data.DEBIAN), "no network", "no apt-get", "package dataset-fashion-mnist", "four files"):
        assert part in message
    assert list(raw.iterdir()) == [] and os.listdir(raw.parent.parent) == ["FashionMNIST"]


def test_a_data_folder_that_cannot_be_written_is_named(raw, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.BadInput, match=r"cannot write .*file.*Not a directory"):
        data.load("train", tmp_path / "file")


def fake(folder, name, body):
    """An executable of that name, in place of Debian's."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport os, shutil, sys\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def debian(raw, tmp_path):
    """A fake mirror: apt-get downloads an empty .deb if its update came first, dpkg-deb unpacks the small data set."""
    package = tmp_path / "package" / data.DEBIAN.relative_to("/")
    package.mkdir(parents=True)
    for (_, labels), (name, _, _) in data.FILES.items():
        (package / f"{name}.gz").write_bytes(gzip.compress(idx(LABELS if labels else PIXELS)))
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


def test_debians_package_is_fetched_once_without_root_or_lists(raw, debian, capsys):
    assert np.array_equal(load(raw)[:, 0], PIXELS)
    assert sorted(os.listdir(raw)) == sorted(f"{name}.gz" for name, _, _ in data.FILES.values())
    assert os.listdir(raw.parent.parent) == ["FashionMNIST"]  # nothing temporary stays
    assert capsys.readouterr().err.count("\n") == 1
    (debian / "apt-get").unlink()
    assert len(load(raw, "test", labels=True)[1]) == 3
    assert capsys.readouterr().err == ""


def test_fetching_does_not_replace_what_is_there(raw, debian):
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"mine")
    load(raw)
    assert (raw / "train-labels-idx1-ubyte.gz").read_bytes() == b"mine"


def test_a_failing_apt_or_dpkg_is_quoted(raw, debian):
    fake(debian, "dpkg-deb", "sys.exit(2)")
    assert "exit status 2" in complaint(raw)
    fake(debian, "apt-get", "sys.exit('E: Unable to locate package')")
    assert "apt-get download: E: Unable to locate package" in complaint(raw)
    assert list(raw.iterdir()) == []


def test_torchvision_comes_before_debian(raw, monkeypatch):
    def online(temporary):
        for (_, labels), (name, _, _) in data.FILES.items():
            (temporary / f"{name}.gz").write_bytes(gzip.compress(idx(LABELS if labels else PIXELS)))
        return temporary

    monkeypatch.setattr(data, "from_torchvision", online)
    assert np.array_equal(load(raw)[:, 0], PIXELS)


# Flags and errors

@pytest.mark.parametrize(("options", "text", "says"), [
    ({"kind": int, "low": 1}, "0", "0 is not an integer of at least 1"),
    ({"kind": int, "low": 1, "high": 1000}, "1001", "1001 is not an integer of at least 1 and of at most 1000"),
    ({"kind": int}, "1.5", "1.5 is not an integer"),
    ({"kind": int}, "9" * 400, "is not an integer"),
    ({"kind": float, "above": 0}, "0", "0 is not a number above 0"),
    ({"kind": float, "low": 0, "below": 1}, "1", "1 is not a number of at least 0 and below 1"),
    ({"kind": float}, "nan", "nan is not a number"),
    ({"kind": float}, "inf", "inf is not a number"),
    ({"kind": float}, "many", "many is not a number"),
])
def test_a_wrong_number_is_one_line_that_says_the_right_ones(options, text, says, capsys):
    parser = data.Parser(prog="train")
    parser.add_argument("--T", type=data.number(**options))
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--T", text])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("train: error: argument --T: ") and error.count("\n") == 1
    assert says in error and error.endswith(" (see --help)\n")


def test_numbers_at_their_bounds_are_accepted():
    assert data.number(int, low=1, high=4)("1") == 1 and data.number(int, low=1, high=4)("4") == 4
    assert data.number(float, above=0, below=1)("1e-9") == 1e-9
    assert type(data.number(float, low=0)("0")) is float


def test_help_shows_the_defaults():
    parser = data.Parser()
    parser.add_argument("--T", default=4, help="denoising steps")
    assert "denoising steps (default: 4)" in parser.format_help()


def test_bad_input_is_one_line_and_status_2(tmp_path):
    done = script(tmp_path, "with data.one_line_errors():\n    raise data.BadInput('T is 0:\\nuse 1')")
    assert (done.returncode, done.stderr, done.stdout) == (2, "script.py: error: T is 0: use 1\n", "")


def test_a_bug_keeps_its_traceback(tmp_path):
    done = script(tmp_path, "with data.one_line_errors():\n    raise ValueError('a bug')")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_control_c_is_status_130_and_quiet():
    with pytest.raises(SystemExit) as caught, data.one_line_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130


def test_a_reader_of_the_output_that_has_left_is_status_141_and_quiet(tmp_path):
    read, write = os.pipe()
    os.close(read)  # as `| head` does when it has its lines
    done = script(tmp_path, "with data.one_line_errors():\n    print('a table')", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# Writing files

def test_a_file_appears_whole_with_its_folder_and_suffix(tmp_path):
    path = tmp_path / "new" / "folder" / "x.npy"
    data.check_writable(path)
    assert list(tmp_path.iterdir()) == []
    with data.write_atomically(path) as temporary:
        np.save(temporary, PIXELS)
        assert temporary.parent == path.parent and not path.exists()
    assert np.array_equal(np.load(path), PIXELS) and os.listdir(path.parent) == ["x.npy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ZeroDivisionError])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "model.pt"
    path.write_text("old")
    with pytest.raises(error), data.write_atomically(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("name", ["folder", "file/x.png", "file/deeper/x.png", "x" * 300, "fifo"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    before = sorted(os.listdir(tmp_path))
    path = tmp_path / name
    with pytest.raises(data.BadInput, match="cannot write .*choose another path") as caught:
        data.check_writable(path)
    assert str(path) in str(caught.value)
    with pytest.raises(data.BadInput), data.write_atomically(path) as temporary:
        temporary.write_text("")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("write", ["np.save(p, x.numpy())", "torch.save(x, p)", "torch.save(x, open(p, 'wb'))"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, write):
    body = f"""
import numpy as np, torch
x = torch.zeros(100_000)
with data.one_line_errors(), data.write_atomically("out/x.npy") as p:
    {write}"""
    limit = (100_000, 100_000)  # bytes a file may have, in place of a full disk; x takes 400,000
    done = script(tmp_path, body, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write out/x.npy" in done.stderr and os.listdir(tmp_path / "out") == []
