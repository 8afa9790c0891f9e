"""The Frechet distance between the features of generated and of real images (FID), sec. 3, eq. (28) = v2 (32).

    python fid.py samples.npy --features fashion            # 128 features of a small classifier, shipped in weights/
    python fid.py runs/*/model.pt --csv results.csv         # InceptionV3's 2048 features, those of published FIDs
    python fid.py --csv results.csv --table                 # quality, coverage, speed: of all results so far
    python fid.py --csv results.csv --plot figures/fid.png  # figures 1, 3, 5: FID against T, of the same

FIDs compare only at equal features, reference and number of samples (they fall as it grows): each is printed with all.
Beside it stand its standard deviation over bootstrap draws of the samples, improved precision and recall, and the
Inception score.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import hashlib
import math
import os
import statistics
import sys
import time
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from cli import BadInput, number, one_line, write_atomically
from data import load as load_images
from features import DIMS, INCEPTION, check_shape, extract, load_features
from model import add_sampler_flags, load, sampler_flags
from results import COLUMNS, add_to_csv, plot, print_table, read_csv

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


def statistics_of(features, images):
    """moments() of the features of images, uint8 (N, C, H, W)."""
    return moments(found for found, _ in extract(features, images))


def frechet_distance(mu, sigma, mu_, sigma_):
    """The right side of eq. (28), v2 (32), between N(mu, Sigma) and N(mu', Sigma'): a float, >= 0.

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
    distance = ((mu - mu_) ** 2).sum() + sigma.trace() + sigma_.trace() - 2 * trace_root
    return distance.clamp(min=0).item() + 0.0  # of equal ones rounding makes -1e-14, or -0.0


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


def inception_score(logits, splits=10):
    """exp E KL(p(y|x) || p(y)) of logits (N, classes), the mean over `splits` parts (Salimans et al. 2016, sec. 4): a float >= 1.

    The parts are taken in order, so the images must not be sorted. 1 where all images are taken for one class, or each for all; the number of classes where each is surely of one, and
    these are equally frequent.
    """
    log_p = torch.log_softmax(logits.double(), dim=1)
    parts = log_p.tensor_split(min(splits, len(log_p)))
    divergences = [(part.exp() * (part - part.logsumexp(0) + math.log(len(part)))).sum(1).mean() for part in parts]
    return torch.stack(divergences).exp().mean().item()


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
            fits = fits and neighbours.dtype == torch.float32 and neighbours.shape == (min(NEIGHBOURS, len(images)), len(mu))
            if fits and all(part.isfinite().all() for part in (mu, sigma, neighbours)):
                return mu, sigma, neighbours
            raise ValueError("another key, shape or dtype, or not finite")
        except Exception as error:  # noqa: BLE001 - reading a damaged zip can raise nearly anything
            print(f"rebuilding {path}, no statistics of these images ({one_line(error)})", file=sys.stderr)
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]  # a file may be sorted
    batches = (found for found, _ in extract(features, shuffled, batch=100))
    neighbours = torch.cat([*islice(batches, NEIGHBOURS // 100)]).float().cpu()
    mu, sigma = moments(chain([neighbours], batches))
    try:
        with write_atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=key, mu=mu.numpy(), sigma=sigma.numpy(), neighbours=neighbours.numpy())
    except BadInput as error:
        print(f"the reference's statistics are not kept for the next time: {error}", file=sys.stderr)
    return mu, sigma, neighbours


# -- the command ----------------------------------------------------------------------------------------------


def score(args):
    """Yield the FID of each source and each number of samples as a row of the table, with its path."""
    sources = []  # a Model, or uint8 images (N, C, H, W)
    for path in args.sources:
        path = Path(path, "model.pt") if os.path.exists(os.path.join(path, "model.pt")) else Path(path)  # a run's folder is its model
        images = os.path.isdir(path) or path.suffix.lower() == ".npy"
        sources.append((path, load_images(str(path)) if images else load(path, args.device)))
    models = [source for _, source in sources if not isinstance(source, torch.Tensor)]
    flags = dict(zip(models, sampler_flags(args, models)))
    nfe = {model: model.sampler(**arguments)[1] for model, arguments in flags.items()}  # wrong flags are told before any work
    reference, real = load_reference(args, models)
    shape = tuple(real.shape[1:])
    check_shape(args.features, shape)
    for path, source in [(args.reference, real), *sources]:
        found = source.shape[1:] if isinstance(source, torch.Tensor) else source.shape
        if tuple(found) != shape:
            raise BadInput(f"{path} has images of shape {tuple(found)}, the reference {reference} of {shape}: give another --reference")
        wanted = max(args.samples or [K + 1]) if source is not real else K + 1
        if isinstance(source, torch.Tensor) and len(source) < wanted:
            raise BadInput(f"{path} holds {len(source)} images, fewer than {wanted}: " + (
                f"give --samples {len(source)}, or more images" if len(source) > K else f"precision and recall need {K + 1} or more"))
    features = load_features(args.features, args.inception_weights, args.device, args.dims)
    mu, sigma, neighbours = reference_statistics(features, real, Path(args.root, "fid"))
    for path, source in sources:
        row = dict.fromkeys(COLUMNS, "")
        in_a_run = path.name in ("model.pt", "checkpoint.pt")  # whose folder has the name
        row |= {"name": path.absolute().parent.name if in_a_run else path.stem, "method": "images",
                "features": features.label, "reference": reference}
        if isinstance(source, torch.Tensor):
            counts = args.samples or [len(source)]
            # at random, for a file may be sorted: a part must stand for the whole, also each split of the Inception score
            source = source[torch.randperm(len(source), generator=torch.Generator().manual_seed(args.seed))[:max(counts)]]
            row["seed"] = str(args.seed)
        else:
            counts = args.samples or [10000]
            row |= {"method": source.label, "T": str(source.T), "steps": str(nfe[source]), "seed": str(args.seed), "batch": str(args.batch)}
            if source.method == "DDPM":
                row["sampler"] = f"ddim eta {args.eta or 0:g}" if args.sampler == "ddim" else "ancestral"
                row["sampler"] += " beta" if args.variance == "beta" else ""
            start = time.perf_counter()
            source = source.generate(max(counts), args.seed, args.batch, args.amp, progress=True, **flags[source])
            row["seconds"] = f"{1000 * (time.perf_counter() - start) / max(counts):.3g}"
        made, logits = (torch.cat(parts).float().cpu() for parts in zip(*extract(features, source)))  # (n, d), (n, classes)
        for n in counts:
            few = min(n, len(neighbours))  # precision and recall want as many of either kind
            precision, recall = precision_recall(neighbours[:few], made[:few])
            yield path, row | {"samples": str(n), "fid": f"{frechet_distance(mu, sigma, *moments(made[:n].split(1000))):.4f}",
                               "spread": f"{bootstrap_spread(mu, sigma, made[:n]):.4f}",
                               "precision": f"{precision:.4f}", "recall": f"{recall:.4f}", "inception_score": f"{inception_score(logits[:n]):.3f}"}


def load_reference(args, models):
    """The reference's name for the table, and its images."""
    if args.reference not in ("train", "test"):
        return Path(args.reference).stem, load_images(args.reference, "train", args.root)
    data = sorted({model.args["data"] for model in models}) or ["fashion-mnist"]
    if len(data) > 1:
        raise BadInput(f"these models were trained on {' and '.join(data)}: score them one by one, or give one --reference")
    return args.reference if data == ["fashion-mnist"] else f"{Path(data[0]).stem} {args.reference}", load_images(data[0], args.reference, args.root)


def main(argv=None):
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("sources", nargs="*", type=cli.path, metavar="SOURCE", help="a model.pt, a run's folder, or images: an .npy file of uint8 (N, H, W) or "
        "(N, C, H, W), or a folder of images")
    add("--features", choices=["inception", "fashion"], default="inception",
        help="inception: those of published FIDs, hours on a CPU; fashion: for a quick look at 28 x 28 garments, without a download")
    add("--dims", type=number(int, 1), help="features of an earlier layer, averaged over the image, as pytorch-fid's --dims: " + "; ".join(
        f"{', '.join(map(str, dims))} of {name}" for name, dims in DIMS.items()) + " (default: the last)")
    add("--samples", type=number(int, K + 1), nargs="+", help="images of each source, one count or several; the FID falls as they grow "
        "(default: 10000 of a model; of a file or folder all, or so many at random)")
    add("--reference", type=cli.path, default="train", metavar="train|test|DATA", help="the real images: a split of what the models were trained on, "
        "or another data set, .npy file or folder")
    add("--csv", type=cli.path, metavar="FILE", help="append the results to this table")
    add("--table", action="store_true", help="print quality, coverage and speed: all of --csv if given, else these results")
    add("--plot", type=cli.path, metavar="FILE", help="draw FID against T as PNG, of the same")
    add("--inception-weights", type=cli.path, metavar="FILE", help=f"a copy of {Path(INCEPTION).name}; downloaded if not given")
    add("--root", type=cli.path, default="data", metavar="DIR", help="folder for the data sets that have a name, and for the reference's statistics in DIR/fid")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    if not (args.sources or args.csv and (args.plot or args.table)):
        parser.error("nothing to do: give a checkpoint or images, or --csv with --table or --plot for earlier results")
    cli.check_outputs(args.csv, args.plot, inputs=[*args.sources, args.reference])
    rows = read_csv(args.csv) if args.csv else []
    for path, row in score(args) if args.sources else ():
        rows = add_to_csv(args.csv, row) if args.csv else [*rows, row]
        details = ", ".join(f"{c} {row[c]}" for c in COLUMNS[1:COLUMNS.index("fid")] if row[c])
        print(f"{path}: FID {row['fid']} +- {row['spread']}, precision {float(row['precision']):.3f}, recall {float(row['recall']):.3f}, "
              f"IS {float(row['inception_score']):.2f} ({details})")
    if args.table:
        print_table(rows)
    if args.plot:
        plot(args.plot, rows)
        print(f"wrote {args.plot}")


if __name__ == "__main__":
    cli.script(main)
