"""Data sets as uint8 tensors, sec. 3: Fashion-MNIST, others of torchvision, your own; the mapping to [-1, 1]; pictures.

    images = load()                       # Fashion-MNIST's training set, uint8 (60000, 1, 28, 28), from disk or fetched
    images = load("my.npy")               # your own: an .npy file of uint8 (N, H, W) or (N, C, H, W), or a folder
    x_0 = normalize(images[:128])         # float32 in [-1, 1]
"""

import contextlib
import gzip
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from cli import BadInput, check_writable, one_line, printable, write_atomically

DATA_SETS = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST", "kmnist": "KMNIST", "cifar10": "CIFAR10",
             "stacked": "FashionMNIST"}  # torchvision's names
IDX_FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts them, as .gz
SUFFIXES = [".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"]


def normalize(images):
    """uint8 [0, 255] -> float32 [-1, 1], any shape and device. TypeError for another dtype: already normalized."""
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


def load(data="fashion-mnist", split="train", root="data", labels=False):
    """The images of a data set, an .npy file or a folder: uint8 (N, C, H, W); with labels also int64 (N,).

    data: a key of DATA_SETS, read by torchvision from root and fetched into it if it is not there; else a path, whose
    images have no splits and no labels. Raises BadInput for what is not there or cannot be read.
    """
    if data in DATA_SETS:
        images, targets = load_stacked(split, root) if data == "stacked" else load_named(data, split, root)
        return (images, targets) if labels else images
    if labels:
        raise BadInput(f"{data} has no labels: choose one of {', '.join(DATA_SETS)}")
    if os.path.isdir(data):
        return load_folder(data)
    if not os.path.exists(data):
        raise BadInput(f"{data} is neither a data set ({', '.join(DATA_SETS)}) nor a file or folder that can be found")
    if Path(data).suffix.lower() in SUFFIXES:
        raise BadInput(f"{data} is one picture: give a folder of pictures")
    return load_npy(data)


def load_npy(path):
    """uint8 (N, H, W) or (N, C, H, W) from an .npy file as (N, C, H, W), or BadInput."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
            raise ValueError(f"it holds {images.dtype} {images.shape}")
        if images.ndim == 4 and images.shape[3] <= 4 < images.shape[1]:
            raise ValueError(f"it holds {images.shape}, which looks like (N, H, W, C): transpose it")
    except Exception as error:  # not an .npy, an .npz, objects, cut short
        raise BadInput(f"{path} is not an .npy file of images, uint8 (N, H, W) or (N, C, H, W) "
                       f"({one_line(error)[:150]}): write one by numpy.save, or give a folder of images") from error
    images = torch.from_numpy(np.array(images, order="C"))
    return images.unsqueeze(1) if images.dim() == 3 else images  # (N, H, W) -> (N, 1, H, W)


def load_folder(path):
    """All images under a folder, in the order of names: uint8 (N, C, H, W), C = 1 if all are grey; or BadInput."""
    from PIL import Image

    def refuse(error):
        raise BadInput(f"{error.filename} cannot be read ({error.strerror}): make it readable or move it away")

    found = [Path(folder, name) for folder, _, names in os.walk(path, onerror=refuse) for name in names]
    files, arrays = sorted(file for file in found if file.suffix.lower() in SUFFIXES), []
    if not files:
        raise BadInput(f"{path} is a folder without images ({' '.join(SUFFIXES)})")
    for file in files:
        try:
            with Image.open(file) as image:
                array = np.asarray(opaque(image, "RGB"))
                arrays.append(array[..., 0].copy() if (array == array[..., :1]).all() else array)  # grey, however saved
        except Exception as error:  # a damaged file can raise nearly anything
            raise BadInput(f"{file} cannot be read ({one_line(error)[:150]}): repair it or move it away") from error
        if arrays[-1].shape[:2] != arrays[0].shape[:2]:
            (H, W), (H_0, W_0) = arrays[-1].shape[:2], arrays[0].shape[:2]
            raise BadInput(f"{file} is {H} x {W}, but {files[0]} is {H_0} x {W_0}: make all of one size")
    if any(array.ndim == 3 for array in arrays):  # colour: grey images get three equal channels
        arrays = [np.dstack([array] * 3) if array.ndim == 2 else array for array in arrays]
    images = torch.from_numpy(np.stack(arrays))
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()  # -> (N, C, H, W)


def opaque(image, mode):
    """A PIL image, upright, as mode "L" or "RGB". ValueError for more than 8 bits and for transparency."""
    from PIL import ImageOps

    if image.mode[0] in "IF":  # 16 or 32 bits, which PIL would cut off at 255
        raise ValueError(f"its pixels are of kind {image.mode}, not of 8 bits")
    if ("A" in image.getbands() or "transparency" in image.info) and image.convert("RGBA").getextrema()[3][0] < 255:
        raise ValueError("it is transparent in places: give it a background")
    return ImageOps.exif_transpose(image).convert(mode)  # a camera may note how to turn it


# -- torchvision's data sets, and where their files come from -------------------------------------------------


def load_named(name, split, root):
    """The images, uint8 (N, C, H, W), and labels, int64 (N,), of a key of DATA_SETS."""
    from torchvision import datasets

    if split not in ("train", "test"):
        raise BadInput(f"split {split!r} is unknown; choose train or test")
    data_set = getattr(datasets, DATA_SETS[name])
    try:
        try:
            found = data_set(root, train=split == "train")
        except RuntimeError as error:
            if "not found" not in str(error):
                raise
            with tempfile.TemporaryDirectory() as elsewhere:  # for a root that cannot be written to
                place = elsewhere if name == "fashion-mnist" and DEBIAN.exists() and not can_write(root) else root
                fetch(data_set, name, place)
                found = data_set(place, train=split == "train")
        images = torch.as_tensor(found.data)
        # (N, H, W) or (N, H, W, C) -> (N, C, H, W)
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        normalize(images[:1])
    except BadInput:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise BadInput(f"{name} in {root} cannot be read ({one_line(error)[:150] or type(error).__name__}): "
                       "delete its files there, to have it fetched again") from error
    return images, torch.as_tensor(found.targets)


def load_stacked(split, root):
    """Three garments as the channels of one image, 1,000 modes as StackedMNIST: uint8 (N, 3, H, W), labels 0..999."""
    images, labels = load_named("fashion-mnist", split, root)
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randperm(len(images), generator=generator) for _ in range(3))
    return torch.cat([images[a], images[b], images[c]], dim=1), 100 * labels[a] + 10 * labels[b] + labels[c]


def random_batch(images, n, mixed=False):
    """n of the images (N, C, H, W) at random, with replacement; mixed, for "stacked": each channel from another."""
    C = images.shape[1]
    i = torch.randint(len(images), (n, C if mixed else 1), device=images.device)
    return images[i, torch.arange(C, device=images.device)]  # (n, C or 1), (C,) -> (n, C, H, W)


def can_write(root):
    with contextlib.suppress(BadInput):
        check_writable(Path(root, "file"))
        return True
    return False


def fetch(data_set, name, root):
    """Put the files of a data set where torchvision looks for them, under root, or raise BadInput."""
    raw, failures = Path(root, data_set.__name__, "raw"), []
    if name != "cifar10":
        for file in IDX_FILES:
            for packed in [raw / f"{file}.gz", *([DEBIAN / f"{file}.gz"] if name == "fashion-mnist" else [])]:
                if packed.exists() and not (raw / file).exists():
                    unpack(packed, raw / file)
        if all((raw / file).exists() for file in IDX_FILES):
            return
    check_writable(raw / "file")
    Path(root).mkdir(parents=True, exist_ok=True)
    print(f"{name} is not on this machine: fetching it into {root}", file=sys.stderr)
    for source in (from_torchvision, from_debian)[:2 if name == "fashion-mnist" else 1]:
        with tempfile.TemporaryDirectory(dir=root) as temporary:  # so that a download cut short leaves nothing
            try:
                folder = source(data_set, Path(temporary).absolute())
                for file in [file for file in folder.rglob("*") if file.is_file()]:
                    target = Path(root, file.relative_to(folder))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():
                        os.replace(file, target)
                return
            except Exception as error:  # noqa: BLE001 - a network fails in many ways, and the next source may work
                failures.append(one_line(error)[:200])
    debian = ", or install Debian's package dataset-fashion-mnist" if name == "fashion-mnist" else ""
    raise BadInput(f"no {name}: it is not in {root}, and fetching it failed ({'; '.join(failures)}): retry with a "
                   f"network, put the files where torchvision's {data_set.__name__} looks for them{debian}")


def unpack(packed, path):
    """Decompress a .gz file to path, or raise BadInput."""
    try:
        content = gzip.decompress(packed.read_bytes())
    except Exception as error:  # truncated, not compressed, a folder
        raise BadInput(f"{packed} cannot be read ({one_line(error)}): replace it by a good one or delete it") from error
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def network_timeout():
    """Downloads by torchvision and torch.hub set no timeout: behind a silent firewall they would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # seconds
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def from_torchvision(data_set, temporary):
    """Let torchvision download the data set; returns its root. Raises whatever torchvision does."""
    with network_timeout(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        data_set(temporary, download=True)
    return temporary


def from_debian(data_set, temporary):
    """Fetch and unpack Debian's package, without installing it: torchvision's root. RuntimeError or OSError on failure.

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
    unpacked, root = temporary / "unpacked" / DEBIAN.relative_to("/"), temporary / "root"
    for file in IDX_FILES:
        unpack(unpacked / f"{file}.gz", root / data_set.__name__ / "raw" / file)
    return root


# -- pictures -------------------------------------------------------------------------------------------------


def subplots(*shape, figsize=None, layout=None, **grid):
    """matplotlib's subplots without pyplot, so that no display is needed, whatever backend MPLBACKEND names."""
    backend = os.environ.pop("MPLBACKEND", None)  # one that is not installed would stop the import
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(*shape, **grid)


def save_figure(figure, path, dpi=150):
    """Write a matplotlib figure as PNG."""
    with write_atomically(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name in letters that the font lacks
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")


def label(name):
    """A file's name for a figure: printable, and none of it read as mathematics or as a hidden legend."""
    text = printable(name)
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def image_grid(images, columns):
    """uint8 images (N, C, H, W) in rows of `columns`: one uint8 image (H', W', 3); of C not 1 or 3 only channel 0."""
    from torchvision.utils import make_grid

    shown = images if images.shape[1] in (1, 3) else images[:, :1]
    grid = make_grid(shown, nrow=columns, padding=1, pad_value=255)  # (3, H', W')
    return grid.permute(1, 2, 0).numpy()


def save_grid(images, path):
    """Write uint8 images (N, C, H, W) as one PNG of eight columns, each pixel twice as wide and high."""
    from PIL import Image

    grid = Image.fromarray(image_grid(images, columns=8))
    with write_atomically(path) as temporary:
        grid.resize((2 * grid.width, 2 * grid.height), resample=0).save(temporary, "PNG")
