"""The Frechet distance between the features of generated and of real images (FID), sec. 3, eq. (28) = v2 (32).

    python fid.py samples.npy --features fashion            # 128 features of a small classifier, shipped in weights/
    python fid.py runs/*/model.pt --csv results.csv         # InceptionV3's 2048 features, those of published FIDs
    python fid.py --csv results.csv --table                 # quality, coverage, speed: papers 002 and 004, of all results so far
    python fid.py --csv results.csv --plot figures/fid.png  # figures 1, 3, 5: FID against T, of the same
    python fid.py --train-classifier                        # made weights/fashion_classifier.pt

FIDs compare only at equal features, reference and number of samples (they fall as it grows): each is printed with all.
Beside it stand its standard deviation over bootstrap draws of the samples, and improved precision and recall.
"""
import csv
import hashlib
import statistics
import sys
import time
from collections import namedtuple
from itertools import chain, islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import Inception3
from tqdm import tqdm

import data
import sample
from data import BadInput

CLASSIFIER = Path(__file__).with_name("weights") / "fashion_classifier.pt"
INCEPTION = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = {"inception": "6726825d", "fashion": "7240de64"}  # first digits of the weights' that give the features their name
COLUMNS = ["name", "method", "T", "steps", "sampler", "features", "reference", "samples", "seed",
           "fid", "spread", "precision", "recall", "seconds"]  # steps: network evaluations (NFE); seconds: for 1,000 images
K, NEIGHBOURS = 3, 10_000  # Kynkaanniemi et al. 2019, sec. 2 and ours: images of each kind whose distances are taken


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


def frechet_distance(mu, sigma, mu_, sigma_):
    """The right side of eq. (28), v2 (32), between N(mu, Sigma) and N(mu', Sigma'): a float, >= 0 up to rounding.

    float64 tensors (d,), (d, d). Nothing is inverted: covariances of fewer images than features will do. What the
    literature calls FID is this value, a squared distance, although the print has FID^2 on the left.
    """
    # FID = ||mu - mu'||^2 + tr(Sigma + Sigma' - 2 (Sigma^1/2 Sigma' Sigma^1/2)^1/2)                             (28)
    root, failed = torch.linalg.cholesky_ex(sigma)  # any root will do, root root^T = Sigma: this one takes the least time
    if failed:  # Sigma is singular, as of fewer images than features
        eigenvalues, Q = torch.linalg.eigh(sigma)
        root = Q * eigenvalues.clamp(min=0).sqrt()  # rounding makes zero eigenvalues -1e-17
    product = root.T @ sigma_ @ root  # has the eigenvalues of Sigma^1/2 Sigma' Sigma^1/2: those of Sigma Sigma'
    trace_root = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    return (((mu - mu_) ** 2).sum() + sigma.trace() + sigma_.trace() - 2 * trace_root).item()


def bootstrap_spread(mu, sigma, made, draws=10):
    """Standard deviation of frechet_distance(mu, sigma, ...) over samples drawn anew, with replacement, from made (n, d)."""
    generator = torch.Generator().manual_seed(0)
    again = [made[torch.randint(len(made), (len(made),), generator=generator)] for _ in range(draws)]
    return statistics.stdev(frechet_distance(mu, sigma, *moments(features.split(1000))) for features in again)


def precision_recall(real, made, k=K, block=1000):
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. (1), (2)) of features (N, d) and (M, d), N, M > k.

    Precision is the share of the made ones that lie within the k-th neighbour's distance of a real one, and recall that of
    the real ones within that of a made one: two floats in [0, 1]. Needs block * max(N, M) distances at a time.
    """
    def share_covered(points, by):
        radii = torch.cat([torch.cdist(rows, by).kthvalue(k + 1).values for rows in by.split(block)])  # 1st: itself
        inside = [(torch.cdist(rows, by) <= radii).any(1) for rows in points.split(block)]  # (block, N) -> (block,)
        return torch.cat(inside).double().mean().item()

    origin = real.mean(0)  # cdist multiplies matrices: a large common offset would cost digits
    real, made = real - origin, made - origin
    return share_covered(made, real), share_covered(real, made)


# label: how results name them; network: x (B, C, H, W) in [-1, 1] -> (B, d); key: SHA-256 of its weights
Features = namedtuple("Features", "label network key")


def fashion_classifier():
    """x (B, 1, 28, 28) in [-1, 1] -> logits (B, 10). Without its last layer: the 128 features of `--features fashion`.

    They are averages over the image after the last block, as Inception's 2048 are.
    """
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


class Inception(Inception3):
    """The FID network of 2015, as in its PyTorch port: x (B, 1 or 3, H, W) in [-1, 1] -> (B, 2048).

    Unlike torchvision's it has 1008 classes, average pools that leave out the padding, and a maximum pool at the end.
    """

    def __init__(self, weights):
        super().__init__(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
        self.load_state_dict(weights)
        for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"):
            pool = nn.MaxPool2d(3, 1, 1) if name == "7c" else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
            setattr(self, f"Mixed_{name}", PortBlock(getattr(self, f"Mixed_{name}"), pool))
        self.fc = nn.Identity()
        self.to(memory_format=torch.channels_last)  # half again as fast on a CPU

    def forward(self, x):
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return super().forward(x.expand(-1, 3, -1, -1))  # grey (B, 1, 299, 299) -> (B, 3, 299, 299)


def load_features(name, inception_weights=None, device="cpu"):
    """Features "fashion" or "inception" (fetched if need be: 95 MB); BadInput for missing or foreign weights."""
    path, ways_out = CLASSIFIER, "run `python fid.py --train-classifier`, or `git checkout weights`"
    try:
        if name == "inception":
            path = Path(inception_weights or Path(torch.hub.get_dir(), "checkpoints", Path(INCEPTION).name))
            ways_out = "give a good copy by --inception-weights FILE, or use --features fashion"
            if not inception_weights and not path.exists():
                with data.network_timeout():
                    torch.hub.load_state_dict_from_url(INCEPTION, map_location="cpu", check_hash=True)
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if name == "inception":
            network = Inception(weights)
        else:
            network = fashion_classifier()
            network.load_state_dict(weights)
            network = network[:-1]
        if not all(values.isfinite().all() for values in network.state_dict().values()):
            raise ValueError("they contain NaN or inf")
        if not key.startswith(SHA256[name]):
            if name == "inception" and not inception_weights:
                raise ValueError(f"SHA-256 {key[:8]}...: delete it")
            name = f"{name}-{key[:8]}"  # other weights, other numbers: not to be taken for published FIDs, or the README's
    except Exception as error:  # every way a network can fail; and unpickling a damaged file can raise nearly anything
        reason = data.one_line(error)[:150]  # load_state_dict lists every weight, unpickling lectures on safety
        raise BadInput(f"no weights of the {name} features in {path} ({reason}): {ways_out}") from error
    return Features(name, network.eval().requires_grad_(False).to(device), key)


@torch.inference_mode()
def extract(features, images, batch=100):
    """Yield the features (B, d) of uint8 images (N, C, H, W), batch by batch. Inception takes 6 MB for each image."""
    device = next(features.network.parameters()).device
    for chunk in tqdm(images.split(batch), desc=f"{features.label} features", leave=False, disable=None):
        yield features.network(data.normalize(chunk.to(device)))


def reference_statistics(features, images, name, folder):
    """moments() of the reference images' features, and those of NEIGHBOURS of them at random, (n, d).

    They are kept in folder; a file damaged or made from anything else is rebuilt.
    """
    pixels = hashlib.sha256(images.numpy()).hexdigest()
    key = f"to [-1, 1], n - 1, {NEIGHBOURS}; {features.label} {features.key}; {tuple(images.shape)} {pixels}"
    path = Path(folder, f"{features.label}-{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.npz")
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as cache:
                found = str(cache["key"])
                mu, sigma, some = (torch.from_numpy(cache[part]) for part in ("mu", "sigma", "some"))
            fits = found == key and mu.dtype == sigma.dtype == torch.float64 and sigma.shape == (*mu.shape, len(mu))
            fits = fits and some.dtype == torch.float32 and some.shape == (min(NEIGHBOURS, len(images)), len(mu))
            if fits and all(part.isfinite().all() for part in (mu, sigma, some)):
                return mu, sigma, some
            raise ValueError("another key, shape or dtype, or not finite")
        except Exception as error:  # noqa: BLE001 - reading a damaged zip can raise nearly anything
            print(f"rebuilding {path}, no statistics of these images ({data.one_line(error)})", file=sys.stderr)
    data.check_writable(path)  # before what may take hours
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]  # a file may be sorted
    batches = extract(features, shuffled, batch=100)
    some = torch.cat([*islice(batches, NEIGHBOURS // 100)]).float().cpu()
    mu, sigma = moments(chain([some], batches))
    with data.write_atomically(path) as temporary:
        np.savez(temporary, key=key, mu=mu.numpy(), sigma=sigma.numpy(), some=some.numpy())
    return mu, sigma, some


def train_classifier(root, seed=0, epochs=9, batch=128, max_lr=3e-3):
    """Train the network of `--features fashion`, write its weights, return its test accuracy. 11 min on one core."""
    data.check_writable(CLASSIFIER)
    (images, labels), (test_images, test_labels) = (data.load(split, root, labels=True) for split in ("train", "test"))
    torch.manual_seed(seed)
    network, per_epoch = fashion_classifier(), len(images) // batch  # a shorter last batch is left out
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr, total_steps=epochs * per_epoch)
    for epoch in range(epochs):
        for i in tqdm(torch.randperm(len(images)).split(batch)[:per_epoch], desc=f"epoch {epoch + 1} of {epochs}"):
            x = data.normalize(images[i])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)  # a mirrored garment is a garment
            loss = F.cross_entropy(network(x), labels[i])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        predicted = torch.cat([network(data.normalize(chunk)).argmax(1) for chunk in test_images.split(500)])
    with data.write_atomically(CLASSIFIER) as temporary:
        torch.save(dict(network.state_dict()), temporary)
    return (predicted == test_labels).double().mean().item()


def load_npy(path, samples=None):
    """The first `samples` (default: all) images of an .npy file: uint8 (N, 1, 28, 28), N >= 2; else BadInput."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.dtype != np.uint8 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"it holds {images.dtype} {images.shape}")
    except Exception as error:  # not there, not an .npy, an .npz, objects, cut short
        raise BadInput(f"{path} is no .npy file of images, uint8 (N, 1, 28, 28) ({data.one_line(error)}): make one "
                       "by sample.py --npy FILE") from error
    if len(images) < (samples or 2):
        raise BadInput(f"{path} holds {len(images)} images, fewer than {samples or 2}: give --samples "
                       f"{max(len(images), 2)}, or make more by sample.py -n {samples or 2} --npy FILE")
    return torch.from_numpy(images[:samples].copy())


def read_csv(path):
    """The rows of an earlier --csv FILE as dicts of strings; [] if there is none; BadInput if it is something else."""
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"its columns are {reader.fieldnames}")
        for row in rows:
            for name in COLUMNS[COLUMNS.index("fid"):]:
                float(row[name] or 0)
            int(row["T"] or 0), int(row["steps"] or 0)
        return rows
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise BadInput(f"{path} is no table of FIDs ({data.one_line(error)}): choose another --csv") from error


def plot(path, rows):
    """FID against the denoising steps, a line for each way of making and scoring images; figures 1, 3, 5."""
    rows = [row for row in rows if row["steps"]]  # images from an .npy have no place on the axis
    if not rows:
        raise BadInput(f"nothing to draw in {path}: no result has a T; score checkpoints, or give an earlier --csv")
    steps, scoring = [int(row["steps"]) for row in rows], ["features", "reference", "samples"]
    varying = [c for c in ["sampler", *scoring] if len({row[c] for row in rows}) > 1]  # for the legend to tell apart
    strided = {(row["method"], row["T"]) for row in rows if row["T"] != row["steps"]}  # one model, several numbers of steps
    lines = {}
    for row, step in zip(rows, steps):
        its_T = [f"T = {row['T']}"] if (row["method"], row["T"]) in strided else []
        label = ", ".join([row["method"], *its_T, *(row[c] for c in varying if row[c])])
        lines.setdefault(label, {}).setdefault(step, []).append(float(row["fid"]))
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for label, fids in sorted(lines.items()):
        x = sorted(fids)
        axes.plot(x, [np.mean(fids[step]) for step in x], "o-", label=label)  # several runs: their mean
    axes.set(xlabel="denoising steps" if strided else "T", ylabel="FID",
             ylim=(0, None), xscale="log" if max(steps) > 20 * min(steps) else "linear",
             title=", ".join(f"{c} {rows[0][c]}" for c in scoring if c not in varying))
    figure.legend(loc="outside right upper")
    with data.write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)


def print_table(rows):
    """The corners of the trilemma, a line for each result, in order of the network evaluations; speed-up: over the DDPM's 1000 ancestral ones."""
    if not rows:
        raise BadInput("no results to print: score checkpoints, or give the --csv of earlier ones")
    slowest = [float(row["seconds"]) for row in rows if (row["method"], row["steps"], row["sampler"]) == ("DDPM", "1000", "ancestral")]
    heads = ["name", "method", "T", "NFE", "sampler", "samples", "FID", "+-", "precision", "recall", "s/1000", "speed-up"]
    lines = [heads]
    for row in sorted(rows, key=lambda row: int(row["steps"] or 0)):
        faster = f"{slowest[-1] / float(row['seconds']):.1f}" if slowest and row["seconds"] else ""
        shown = [f"{float(row[c]):.{digits}f}" for c, digits in (("fid", 2), ("spread", 2), ("precision", 3), ("recall", 3))]
        lines.append([*(row[c] for c in ("name", "method", "T", "steps", "sampler", "samples")), *shown, row["seconds"], faster])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    for name in ("features", "reference", "seed"):
        print(f"{name}: {', '.join(sorted({row[name] for row in rows if row[name]}))}")


def score(args):
    """Print the FID of each source, and yield it as a row of the table."""
    split = args.reference in ("train", "test")
    if not split and not args.reference.endswith(".npy"):
        raise BadInput(f"--reference {args.reference} is unknown: choose train, test or an .npy file")
    most = max(args.samples)
    sources = [load_npy(path, most) if path.endswith(".npy") else sample.load_model(path, args.device)
               for path in args.sources]
    models = [source for source in sources if isinstance(source, sample.Model)]
    flags = dict(zip(models, sample.sampler_flags(args, models)))
    nfe = {model: model.sampler(**its)[1] for model, its in flags.items()}  # wrong flags are told before any work
    features = load_features(args.features, args.inception_weights, args.device)
    real = data.load(args.reference, args.data) if split else load_npy(args.reference)
    reference = args.reference if split else Path(args.reference).stem
    mu, sigma, some = reference_statistics(features, real, reference, Path(args.data, "fid"))
    for path, source in zip(map(Path, args.sources), sources):
        row = dict.fromkeys(COLUMNS, "")
        in_a_run = path.name in ("model.pt", "checkpoint.pt")  # whose folder has the name
        row |= {"name": path.absolute().parent.name if in_a_run else path.stem, "method": "images",
                "features": features.label, "reference": reference}
        if isinstance(source, sample.Model):
            row |= {"method": source.label, "T": str(source.T), "steps": str(nfe[source]), "seed": str(args.seed)}
            if source.method == "DDPM":
                row["sampler"] = f"ddim eta {args.eta or 0:g}" if args.sampler == "ddim" else "ancestral"
                row["sampler"] += " beta" if args.variance == "beta" else ""
            start = time.perf_counter()
            source = sample.generate(source, most, args.seed, args.batch, args.amp, progress=True, **flags[source])
            row["seconds"] = f"{1000 * (time.perf_counter() - start) / most:.1f}"
        made = torch.cat([*extract(features, source)]).float().cpu()  # (n, d)
        for n in args.samples:
            few = min(n, len(some))  # precision and recall want as many of either kind
            precision, recall = precision_recall(some[:few], made[:few])
            row = row | {"samples": str(n), "fid": f"{frechet_distance(mu, sigma, *moments(made[:n].split(1000))):.4f}",
                         "spread": f"{bootstrap_spread(mu, sigma, made[:n]):.4f}",
                         "precision": f"{precision:.4f}", "recall": f"{recall:.4f}"}
            print(f"{path}: FID {row['fid']} +- {row['spread']}, precision {precision:.3f}, recall {recall:.3f} ("
                  + ", ".join(f"{c} {row[c]}" for c in COLUMNS[1:COLUMNS.index("fid")] if row[c]) + ")")
            yield row


def main(argv=None):
    parser = data.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("sources", nargs="*", metavar="CHECKPOINT_OR_NPY", help="a model, or its images: uint8 (N, 1, 28, 28)")
    add("--features", choices=["inception", "fashion"], default="inception",
        help="inception: those of published FIDs, hours on a CPU; fashion: for a quick look, without a download")
    add("--samples", type=data.number(int, K + 1), nargs="+", default=[10000],
        help="generated images, one count or several; the FID falls as they grow")
    add("--reference", default="train", metavar="train|test|FILE.npy", help="the real images")
    add("--csv", metavar="FILE", help="append the results to this table")
    add("--table", action="store_true", help="print quality, coverage and speed: the whole --csv if given, else these results")
    add("--plot", metavar="FILE", help="draw FID against T as PNG, of the same")
    add("--inception-weights", metavar="FILE", help=f"a copy of {Path(INCEPTION).name}; downloaded if not given")
    add("--data", default="data", metavar="DIR", help="Fashion-MNIST, and the reference's statistics in DIR/fid")
    add("--train-classifier", action="store_true", help=f"first train the fashion features anew: {CLASSIFIER.name}")
    sample.add_sampler_flags(parser)
    args = parser.parse_args(argv)
    if not (args.sources or args.train_classifier or args.csv and (args.plot or args.table)):
        parser.error("nothing to do: give a checkpoint or an .npy file, or --csv with --table or --plot for earlier results")
    rows = read_csv(args.csv) if args.csv else []
    for path in filter(None, (args.csv, args.plot)):
        data.check_writable(path)
    if args.train_classifier:
        print(f"{CLASSIFIER}: test accuracy {train_classifier(args.data, args.seed):.2%}")
    for row in score(args) if args.sources else ():
        rows = [*(read_csv(args.csv) if args.csv else rows), row]  # read again: another fid.py may have added to it
        if args.csv:
            with data.write_atomically(args.csv) as temporary, open(temporary, "w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *([row[c] for c in COLUMNS] for row in rows)])
    if args.table:
        print_table(rows)
    if args.plot:
        plot(args.plot, rows)
        print(f"wrote {args.plot}")


if __name__ == "__main__":
    with data.one_line_errors():
        main()
