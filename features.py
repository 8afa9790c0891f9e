"""The networks whose features the FID compares, InceptionV3 and a small classifier, and the features' statistics.

    python features.py        # trains the classifier anew: weights/fashion_classifier.pt, 11 minutes on one core

    a, b = (statistics_of(load_features("fashion"), images) for images in (one, other))    # uint8 (N, 1, 28, 28)
    frechet_distance(*a, *b)    # fid.py's

Importing this file takes no torchvision; building InceptionV3 does.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import hashlib
import os
import sys
from collections import namedtuple
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from cli import BadInput, check_writable, one_line, write_atomically
from data import load, network_timeout, normalize

CLASSIFIER = Path(__file__).with_name("weights") / "fashion_classifier.pt"
INCEPTION = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = {"inception": "6726825d", "fashion": "7240de64"}  # first digits, of the weights that the plain names stand for
KINDS = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]  # labels 0..9

# {dimensions: layers}: so many first layers of the network, averaged over space, give features of so many dimensions
DIMS = {"inception": {64: 5, 192: 8, 768: 16, 2048: 21}, "fashion": {32: 4, 64: 8, 128: 17}}

NEIGHBOURS = 10_000  # ours: images of each kind whose distances precision and recall take
BATCH = 100  # images at a time; Inception takes 6 MB for each

# label: how results name them; network: x (B, C, H, W) in [-1, 1] -> logits, its first `layers` layers -> features;
# key: SHA-256 of its weights
Features = namedtuple("Features", "label network layers key")


def fashion_classifier():
    """x (B, 1, 28, 28) in [-1, 1] -> logits (B, 10). Its last layer sees the 128 features of `--features fashion`."""
    def block(c_in, c_out):
        return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2),  # (B, 1, 28, 28) -> (B, 64, 7, 7)
        *block(64, 128), nn.MaxPool2d(2), *block(128, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),  # -> (B, 128)
        nn.Linear(128, 10),
    ).to(memory_format=torch.channels_last)  # a third faster in training on a CPU


class PortBlock(nn.Module):
    """A block of torchvision's Inception3 whose pooled branch, the last one, pools as the 2015 network does."""

    def __init__(self, block, pool):
        super().__init__()
        self.block, self.pool, self.conv = block, pool, block.branch_pool
        block.branch_pool = nn.Identity()  # the block still pools in its own way; forward drops that

    def forward(self, x):
        return torch.cat([*self.block._forward(x)[:-1], self.conv(self.pool(x))], 1)


class Enlarge(nn.Module):
    """x (B, 1 or 3, H, W) -> (B, 3, 299, 299)."""

    def forward(self, x):
        return F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)


def inception(weights):
    """The FID network of 2015, as in its PyTorch port, as a sequence of layers.

    x (B, 1 or 3, H, W) in [-1, 1] -> logits (B, 1008). Unlike torchvision's it has 1008 classes, average pools that
    leave out the padding, and a maximum pool at the end; its logits have no bias, as in the code of Salimans et al.
    2016, whose Inception score this network gives.
    """
    from torchvision.models import Inception3

    network = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    network.load_state_dict(weights)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"):
        pool = nn.MaxPool2d(3, 1, 1) if name == "7c" else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        setattr(network, f"Mixed_{name}", PortBlock(getattr(network, f"Mixed_{name}"), pool))
    nn.init.zeros_(network.fc.bias)
    *layers, _dropout, fc = network.children()
    network = nn.Sequential(Enlarge(), *layers, nn.Flatten(), fc)
    return network.to(memory_format=torch.channels_last)  # half again as fast on a CPU


def load_features(name, inception_weights=None, device="cpu", dims=None):
    """The Features called "fashion" (shipped) or "inception" (downloaded once, 95 MB).

    dims: their number, a key of DIMS[name] (default: the last layer's).

    Raises BadInput for missing or foreign weights, and for other dims.
    """
    last = max(DIMS[name])
    dims = dims or last
    if dims not in DIMS[name]:
        raise BadInput(f"--dims {dims}: the {name} features have {', '.join(map(str, DIMS[name]))} dimensions, choose "
                       "one of these")
    layers = DIMS[name][dims]
    path, advice = CLASSIFIER, "run `python features.py`, or `git checkout weights`"
    try:
        if name == "inception":
            path = Path(inception_weights or Path(torch.hub.get_dir(), "checkpoints", Path(INCEPTION).name))
            advice = (f"give a good copy of {INCEPTION} by --inception-weights FILE, or use --features fashion, "
                      "which is for grey images of 28 x 28")
            if not inception_weights and not path.exists():
                with network_timeout():
                    torch.hub.load_state_dict_from_url(INCEPTION, map_location="cpu", check_hash=True)
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if name == "inception":
            network = inception(weights)
        else:
            network = fashion_classifier()
            network.load_state_dict(weights)
        if not all(values.isfinite().all() for values in network.state_dict().values()):
            raise ValueError("they contain NaN or inf")
        if not key.startswith(SHA256[name]):
            if name == "inception" and not inception_weights:
                raise ValueError(f"SHA-256 {key[:8]}...: delete it")
            name = f"{name}-{key[:8]}"  # not to be taken for published FIDs, or RESULTS.md's
    except Exception as error:  # every way a network can fail; and unpickling a damaged file can raise nearly anything
        reason = one_line(error)[:150]  # load_state_dict lists every weight, unpickling lectures on safety
        raise BadInput(f"no weights of the {name} features in {path} ({reason}): {advice}") from error
    label = name if dims == last else f"{name}-{dims}"
    return Features(label, network.eval().requires_grad_(False).to(device), layers, key)


def check_shape(name, shape):
    """Raise BadInput unless the features `name` are defined for images of shape (C, H, W)."""
    fits = {"fashion": tuple(shape) == (1, 28, 28), "inception": shape[0] in (1, 3)}
    if not fits[name]:
        other = "inception" if fits["inception"] else "images of 1 or 3 channels"
        raise BadInput(f"--features {name} does not fit images of shape {tuple(shape)}: fashion is for (1, 28, 28), "
                       f"inception for 1 or 3 channels of any size; use {other}")


@torch.inference_mode()
def extract(features, images):
    """Yield features (B, d) and logits (B, classes) of uint8 images (N, C, H, W), batch by batch."""
    device = next(features.network.parameters()).device
    for chunk in tqdm(images.split(BATCH), desc=f"{features.label} features", leave=False, disable=None):
        h = features.network[:features.layers](normalize(chunk.to(device)))
        yield h.flatten(2).mean(2) if h.dim() == 4 else h, features.network[features.layers:](h)


def kinds(images, device="cpu"):
    """What the classifier sees in each of uint8 images (N, 1, 28, 28): indices into KINDS, int64 (N,), on the CPU.

    Raises BadInput for missing or foreign weights.
    """
    features = load_features("fashion", device=device)
    return torch.cat([logits.argmax(1) for _, logits in extract(features, images)]).cpu()


# -- their statistics: mu and Sigma of eq. (28) ------------------------------------------------------------------


def moments(batches):
    """Mean (d,) and covariance (d, d; divisor n - 1) of a stream of batches (B, d), in float64; n >= 2 in all.

    Only sums are kept, not the features; about the first batch's mean, so that a large common offset costs no digits.
    """
    n = origin = total = outer = 0
    for batch in batches:
        batch = batch.to("cpu", torch.float64)
        if n == 0:
            origin = batch.mean(0)
        batch = batch - origin
        n += len(batch)
        total = total + batch.sum(0)
        outer = outer + batch.T @ batch  # (d, B) x (B, d) -> (d, d)
    return origin + total / n, (outer - torch.outer(total, total) / n) / (n - 1)


def statistics_of(features, images):
    """moments() of the features of images, uint8 (N, C, H, W)."""
    return moments(found for found, _ in extract(features, images))


def reference_statistics(features, images, folder):
    """moments() of the reference images' features, and those of NEIGHBOURS of them at random, (n, d).

    They are kept in folder if it can be written to; a file damaged or made from anything else is rebuilt.
    """
    pixels = hashlib.sha256(images.numpy()).hexdigest()
    key = f"to [-1, 1], n - 1, {NEIGHBOURS}; {features.label} {features.key}; {tuple(images.shape)} {pixels}"
    path = Path(folder, f"{features.label}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.npz")
    if os.path.exists(path):
        try:
            with np.load(path, allow_pickle=False) as cache:
                found = str(cache["key"])
                mu, sigma, neighbours = (torch.from_numpy(cache[part]) for part in ("mu", "sigma", "neighbours"))
            fits = found == key and mu.dtype == sigma.dtype == torch.float64 and sigma.shape == (*mu.shape, len(mu))
            shape = min(NEIGHBOURS, len(images)), len(mu)
            fits = fits and neighbours.dtype == torch.float32 and neighbours.shape == shape
            if fits and all(part.isfinite().all() for part in (mu, sigma, neighbours)):
                return mu, sigma, neighbours
            raise ValueError("another key, shape or dtype, or not finite")
        except Exception as error:  # noqa: BLE001 - reading a damaged zip can raise nearly anything
            print(f"rebuilding {path}, no statistics of these images ({one_line(error)})", file=sys.stderr)
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]  # a file may be sorted
    batches = (found for found, _ in extract(features, shuffled))
    neighbours = torch.cat([*islice(batches, NEIGHBOURS // BATCH)]).float().cpu()
    mu, sigma = moments(chain([neighbours], batches))
    try:
        with write_atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=key, mu=mu.numpy(), sigma=sigma.numpy(), neighbours=neighbours.numpy())
    except BadInput as error:
        print(f"the reference's statistics are not kept for the next time: {error}", file=sys.stderr)
    return mu, sigma, neighbours


# -- the classifier's training ----------------------------------------------------------------------------------


def train_classifier(root="data", seed=0):
    """Train the network of `--features fashion`, write its weights, return its test accuracy."""
    epochs, batch, max_lr = 9, 128, 3e-3  # ours
    check_writable(CLASSIFIER)
    images, labels = load("fashion-mnist", "train", root, labels=True)
    test_images, test_labels = load("fashion-mnist", "test", root, labels=True)
    torch.manual_seed(seed)
    network, per_epoch = fashion_classifier(), len(images) // batch  # a shorter last batch is left out
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=epochs * per_epoch)
    for epoch in range(epochs):
        for i in tqdm(torch.randperm(len(images)).split(batch)[:per_epoch], desc=f"epoch {epoch + 1} of {epochs}"):
            x = normalize(images[i])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)  # a mirrored garment is a garment
            loss = F.cross_entropy(network(x), labels[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    with write_atomically(CLASSIFIER) as temporary:
        torch.save(dict(network.state_dict()), temporary)
    return (kinds(test_images) == test_labels).double().mean().item()


def main(argv=None):
    parser = cli.Parser("Train the classifier of `fid.py --features fashion`, over the shipped weights.")
    parser.add_argument("--root", type=cli.path, default="data", help="folder for Fashion-MNIST")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="of the initial weights and the batches")
    args = parser.parse_args(argv)
    print(f"{CLASSIFIER}: test accuracy {train_classifier(args.root, args.seed):.2%}")


if __name__ == "__main__":
    cli.script(main)
