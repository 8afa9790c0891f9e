"""Fashion-MNIST as a uint8 tensor and its one mapping to and from [-1, 1], sec. 3; the manners that all scripts share.

    images = load("train")                # (60000, 1, 28, 28) uint8, verified, from disk or fetched
    x_0 = normalize(images[:128])         # float32 in [-1, 1]

Every script reads its flags with Parser and number, reports what a user got wrong as BadInput (one line, exit status 2),
and writes its files with write_atomically.
"""
import argparse
import contextlib
import gzip
import hashlib
import io
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts the four files

# (split, labels?) -> file, shape, SHA-256 of what follows the header; computed from Debian's 0.0~git20200523.55506a9-1
FILES = {
    ("train", False): ("train-images-idx3-ubyte", (60000, 28, 28),
                       "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"),
    ("train", True): ("train-labels-idx1-ubyte", (60000,),
                      "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"),
    ("test", False): ("t10k-images-idx3-ubyte", (10000, 28, 28),
                      "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"),
    ("test", True): ("t10k-labels-idx1-ubyte", (10000,),
                     "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"),
}


class BadInput(ValueError):
    """What a user got wrong: a message of one line that names the value and the way out."""


class Parser(argparse.ArgumentParser):
    """ArgumentParser that shows the defaults, and answers a wrong flag with one line instead of the whole usage."""

    def __init__(self, *args, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs):
        super().__init__(*args, formatter_class=formatter_class, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see --help)\n")


def number(kind, low=None, high=None, above=None, below=None):
    """An argparse type: a finite int or float with low <= value <= high and above < value < below, where given."""
    bounds = [f"{word} {bound}" for word, bound in
              (("of at least", low), ("of at most", high), ("above", above), ("below", below)) if bound is not None]
    wanted = " ".join(["an integer" if kind is int else "a number", " and ".join(bounds)]).strip()

    def parse(text):
        try:
            value = kind(text)
            good = (math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
                    and (above is None or value > above) and (below is None or value < below))
        except (ValueError, OverflowError):  # isfinite overflows on an int of 400 digits
            good = False
        if not good:
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return parse


def one_line(text):
    """An error's text without its line breaks."""
    return " ".join(str(text).split())


@contextlib.contextmanager
def one_line_errors():
    """`with one_line_errors(): main()`: BadInput is one line on stderr and status 2, Ctrl-C is status 130; bugs show.

    If the reader of stdout has left (`| head`), that is status 141, and quiet.
    """
    try:
        yield
        sys.stdout.flush()  # here, for at exit nobody could catch the BrokenPipeError
    except torch.OutOfMemoryError:
        print(f"{os.path.basename(sys.argv[0])}: error: the GPU's memory is full: try a smaller --batch", file=sys.stderr)
        sys.exit(2)
    except BadInput as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as a shell reports it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes once more at exit, and fails
        sys.exit(141)  # 128 + SIGPIPE


def check_writable(path):
    """Raise BadInput if a file could not be written at path; leaves nothing behind. For before hours of work."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a folder, or a device that os.replace would destroy
            raise OSError(None, "it exists and is not a file")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}; choose another path") from error


@contextlib.contextmanager
def write_atomically(path):
    """Yield a temporary path beside `path`, of the same suffix, that becomes `path` if the block succeeds.

    Creates the folder. On any failure, Ctrl-C included, the temporary file goes and an older `path` stays. An OSError
    of the block is taken for a failed write and raised as BadInput: do nothing but the writing in it. (np.save adds
    .npy to a path of another suffix, and so writes beside the temporary one: give it an open file.)
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save on a full disk
            raise
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot write {path}: {reason}; free some space or choose another path") from error
    finally:
        with contextlib.suppress(OSError):  # most often: it has been moved into place
            temporary.unlink()


def normalize(images):
    """uint8 [0, 255] -> float32 [-1, 1], any shape and device. TypeError for another dtype: it was normalized before."""
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize: expected uint8 images, got {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(x):
    """[-1, 1] -> uint8 [0, 255], rounded and clamped: the inverse of normalize. ValueError for NaN or inf."""
    if not x.is_floating_point():
        raise TypeError(f"to_uint8: expected floating-point images in [-1, 1], got {x.dtype}")
    if not x.isfinite().all():
        raise ValueError("to_uint8: the images contain NaN or inf")  # as an integer each would be an ordinary grey
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load(split="train", root="data", labels=False):
    """Fashion-MNIST: uint8 (N, 1, 28, 28), N = 60000 (train) or 10000 (test); with labels also int64 (N,) in 0..9.

    Looks in root/FashionMNIST/raw (torchvision's layout, .gz or not), then in Debian's folder; what is in neither is
    fetched into the former. Raises BadInput for a wrong file (which is never skipped or replaced) and if none is found.
    """
    if (split, False) not in FILES:
        raise BadInput(f"split {split!r} is unknown; choose train or test")
    images = read(split, False, root).unsqueeze(1)  # (N, 28, 28) -> (N, 1, 28, 28)
    return (images, read(split, True, root).long()) if labels else images


def read(split, labels, root):
    """One of the four files as a uint8 tensor, its contents verified."""
    name, shape, sha256 = FILES[split, labels]
    path = find(name, root) or fetch(name, root)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(path, f"cannot be read ({error})") from error
    # IDX: two zero bytes, 8 for uint8, the number of axes, each axis as a big-endian int32, then the values
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
    if content[:len(header)] != header:
        raise wrong(path, f"is no IDX file of shape {shape}: it starts with {content[:len(header)].hex() or 'nothing'}")
    if len(content) != len(header) + math.prod(shape):
        raise wrong(path, f"has {len(content)} bytes instead of {len(header) + math.prod(shape)}")
    values = np.frombuffer(content, np.uint8, offset=len(header))
    if hashlib.sha256(values).hexdigest() != sha256:
        raise wrong(path, "has other contents than Fashion-MNIST (SHA-256 differs)")
    return torch.from_numpy(values.reshape(shape).copy())  # a copy, because torch wants memory that it may write to


def wrong(path, what):
    """The error for a file that is there but not as it must be."""
    return BadInput(one_line(f"{path} {what}; replace it by a good copy, or move it away to have it fetched again"))


def find(name, root):
    """The path of a file on this machine, or None."""
    raw = Path(root, "FashionMNIST", "raw")
    return next((path for path in (raw / name, raw / f"{name}.gz", DEBIAN / f"{name}.gz") if os.path.lexists(path)), None)


def fetch(name, root):
    """Fetch the data set into root/FashionMNIST/raw and return the path of one of its files, or raise BadInput."""
    raw, failures = Path(root, "FashionMNIST", "raw"), []
    check_writable(raw / name)
    Path(root).mkdir(parents=True, exist_ok=True)
    print(f"Fashion-MNIST is not on this machine: fetching 30 MB into {raw}", file=sys.stderr)
    for source in (from_torchvision, from_debian):
        with tempfile.TemporaryDirectory(dir=root) as temporary:  # so that a download cut short leaves nothing
            try:
                folder = source(Path(temporary).absolute())
                raw.mkdir(parents=True, exist_ok=True)
                for file, _, _ in FILES.values():
                    if not find(file, root):
                        os.replace(folder / f"{file}.gz", raw / f"{file}.gz")
                return find(name, root)
            except Exception as error:  # noqa: BLE001 - a network fails in many ways, and the next source may work
                failures.append(one_line(error))
    raise BadInput(f"no Fashion-MNIST: {name}[.gz] is neither in {raw} nor in {DEBIAN}, and fetching it failed "
                   f"({'; '.join(failures)}): install Debian's package dataset-fashion-mnist, or put the four files "
                   f"into {raw}, or retry with a network")


@contextlib.contextmanager
def network_timeout(seconds=20):
    """Downloads by torchvision and torch.hub set no timeout: behind a silent firewall they would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def from_torchvision(temporary):
    """Let torchvision download the four files; returns their folder. Raises whatever torchvision does."""
    import torchvision  # here, because its import takes a second that nobody else needs

    with network_timeout(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torchvision.datasets.FashionMNIST(temporary, download=True)
    return temporary / "FashionMNIST" / "raw"


def from_debian(temporary):
    """Fetch Debian's package and unpack it, without installing it; returns the folder. Raises RuntimeError, OSError.

    apt keeps its lists in the temporary folder: no root needed, and a machine whose lists are empty or old will do.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise RuntimeError("no apt-get here")
    apt = ["apt-get", "-qq", "-o", f"Dir::State::lists={temporary}/lists", "-o", f"Dir::Cache={temporary}/cache",
           "-o", "APT::Sandbox::User=root"]  # else root's apt would become _apt, which may not enter the folder
    (temporary / "lists").mkdir()
    (temporary / "cache").mkdir()
    run = {"cwd": temporary, "capture_output": True, "text": True, "timeout": 600}
    # the update may fail for a source that is not needed; whether it sufficed, the download will tell
    subprocess.run([*apt, "update"], check=False, **run)
    download = subprocess.run([*apt, "download", "dataset-fashion-mnist"], check=False, **run)
    if download.returncode:
        raise RuntimeError(f"apt-get download: {download.stderr}")
    subprocess.run(["dpkg-deb", "-x", next(temporary.glob("*.deb")), "unpacked"], **run, check=True)
    return temporary / "unpacked" / DEBIAN.relative_to("/")
