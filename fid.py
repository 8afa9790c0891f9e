"""The Frechet distance between the features of generated and of real images (FID), sec. 3, eq. (28) = v2 (32).

    python fid.py samples.npy --features fashion            # 128 features of a small classifier, shipped in weights/
    python fid.py runs/*/model.pt --csv results.csv         # InceptionV3's 2048 features, those of published FIDs
    python fid.py --csv results.csv --table                 # quality, coverage, speed: of all results so far
    python fid.py --csv results.csv --plot figures/fid.png  # figures 1, 3, 5: FID against T

FIDs compare only at equal features, reference and number of samples (they fall as it grows): each is printed with all.
Beside it stand its standard deviation over bootstrap draws of the samples, improved precision and recall, and the
Inception score.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import csv
import math
import os
import statistics
from pathlib import Path

import torch

from cli import BadInput, number, one_line, write_atomically
from data import DATA_SETS, label, save_figure, subplots
from data import load as load_images
from features import DIMS, INCEPTION, check_shape, extract, load_features, moments, reference_statistics
from model import add_sampler_flags, load, model_path, sampler_flags

# steps: network evaluations (NFE); seconds: for 1,000 images
COLUMNS = ["name", "method", "T", "steps", "sampler", "features", "reference", "samples", "seed", "batch",
           "fid", "spread", "precision", "recall", "inception_score", "seconds"]
K = 3  # Kynkaanniemi et al. 2019, sec. 2


def frechet_distance(mu, sigma, mu_, sigma_):
    """The right side of eq. (28), v2 (32), between N(mu, Sigma) and N(mu', Sigma'): a float, >= 0.

    float64 tensors (d,), (d, d). Nothing is inverted: covariances of fewer images than features will do. What the
    literature calls FID is this value, a squared distance, although the print has FID^2 on the left.
    """
    # FID = ||mu - mu'||^2 + tr(Sigma + Sigma' - 2 (Sigma^1/2 Sigma' Sigma^1/2)^1/2)                             (28)
    root, failed = torch.linalg.cholesky_ex(sigma)  # any root will do, root root^T = Sigma: this one is the fastest
    if failed:  # Sigma is singular, as of fewer images than features
        eigenvalues, Q = torch.linalg.eigh(sigma)
        root = Q * eigenvalues.clamp(min=0).sqrt()  # rounding makes zero eigenvalues -1e-17
    product = root.T @ sigma_ @ root  # has the eigenvalues of Sigma^1/2 Sigma' Sigma^1/2: those of Sigma Sigma'
    trace_root = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    distance = ((mu - mu_) ** 2).sum() + sigma.trace() + sigma_.trace() - 2 * trace_root
    return distance.clamp(min=0).item() + 0.0  # of equal ones rounding makes -1e-14, or -0.0


def bootstrap_spread(mu, sigma, generated, draws=10):
    """Standard deviation of frechet_distance(mu, sigma, ...) over bootstrap draws of the features generated (n, d)."""
    generator, n = torch.Generator().manual_seed(0), len(generated)
    again = (generated[torch.randint(n, (n,), generator=generator)] for _ in range(draws))  # with replacement
    return statistics.stdev(frechet_distance(mu, sigma, *moments(features.split(1000))) for features in again)


def precision_recall(real, generated, k=K, block=1000):
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. (1), (2)) of features (N, d) and (M, d), N, M > k.

    Precision is the share of the generated ones that lie within the k-th neighbour's distance of a real one, and recall
    that of the real ones within that of a generated one: two floats in [0, 1]. Holds block * max(N, M) distances.
    """
    def share_covered(points, by):
        radii = torch.cat([torch.cdist(rows, by).kthvalue(k + 1).values for rows in by.split(block)])  # 1st: itself
        inside = [(torch.cdist(rows, by) <= radii).any(1) for rows in points.split(block)]  # (block, N) -> (block,)
        return torch.cat(inside).double().mean().item()

    origin = real.mean(0)  # cdist multiplies matrices: a large common offset would cost digits
    real, generated = real - origin, generated - origin
    return share_covered(generated, real), share_covered(real, generated)


def inception_score(logits, splits=10):
    """exp E KL(p(y|x) || p(y)) of logits (N, classes), mean over `splits` parts (Salimans et al. 2016, sec. 4): >= 1.

    The parts are taken in order, so the images must not be sorted. It is 1 where all images are taken for one class, or
    each for all; the number of classes where each is surely of one, and these are equally frequent.
    """
    log_p = torch.log_softmax(logits.double(), dim=1)
    parts = log_p.tensor_split(min(splits, len(log_p)))
    divergences = [(part.exp() * (part - part.logsumexp(0) + math.log(len(part)))).sum(1).mean() for part in parts]
    return torch.stack(divergences).exp().mean().item()


# -- the table of results -------------------------------------------------------------------------------------


def check_numbers(row):
    """Raise ValueError if a cell of COLUMNS that must hold a number does not."""
    for name in ("samples", "fid", "spread", "precision", "recall", "inception_score"):
        float(row[name])
    for name in ("T", "steps"):
        int(row[name] or 0)
    float(row["seconds"] or 0)


def read_csv(path, columns=COLUMNS, check=check_numbers):
    """The rows of an earlier table as dicts of strings; [] if there is none; BadInput if it is something else.

    check(row) raises ValueError if a row is malformed.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            rows, found = list(reader), reader.fieldnames
        if found != columns:
            raise ValueError(f"its columns are {found}")
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise ValueError(f"result {line - 1} has another number of cells than the {len(columns)} columns")
            check(row)
        return rows
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{path} is not a table of these results ({one_line(error)}): repair it, or choose "
                       "another") from error


def add_to_csv(path, row, columns=COLUMNS, check=check_numbers):
    """Append a row, a dict, to the table at path, to which other processes may add as well; returns all rows."""
    with cli.locked_folder(os.path.dirname(os.path.realpath(path))):
        rows = [*read_csv(path, columns, check), row]
        text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with write_atomically(path) as temporary, open(temporary, "w", **text) as file:
            csv.writer(file).writerows([columns, *([row[c] for c in columns] for row in rows)])
    return rows


def plot(path, rows):
    """FID against the denoising steps, a line for each way of making and scoring images; figures 1, 3, 5."""
    rows = [row for row in rows if row["steps"]]  # images from a file have no place on the axis
    if not rows:
        raise BadInput(f"nothing to draw in {path}: no result has a T; score checkpoints, or give an earlier --csv")
    steps, scoring = [int(row["steps"]) for row in rows], ["features", "reference", "samples"]
    varying = [c for c in ["sampler", *scoring] if len({row[c] for row in rows}) > 1]  # for the legend to tell apart
    strided = {(row["method"], row["T"]) for row in rows if row["T"] != row["steps"]}  # several numbers of steps
    lines = {}
    for row, step in zip(rows, steps):
        trained_T = [f"T = {row['T']}"] if (row["method"], row["T"]) in strided else []
        name = ", ".join([row["method"], *trained_T, *(row[c] for c in varying if row[c])])
        lines.setdefault(label(name), {}).setdefault(step, []).append(float(row["fid"]))
    figure, axes = subplots(figsize=(8, 4), layout="constrained")
    for name, fids in sorted(lines.items()):
        axes.plot(*zip(*sorted((step, statistics.fmean(found)) for step, found in fids.items())), "o-", label=name)
    axes.set(xlabel="denoising steps" if strided else "T", ylabel="FID",
             ylim=(0, None), xscale="log" if max(steps) > 20 * min(steps) else "linear",
             xticks=sorted({*steps}), xticklabels=sorted({*steps}),
             title=label(", ".join(f"{c} {rows[0][c]}" for c in scoring if c not in varying)))
    figure.legend(loc="outside right upper")
    save_figure(figure, path)
    return figure


def print_table(rows):
    """Print quality, coverage and speed, by network evaluations; the speed-up is over a DDPM's 1000 ancestral steps."""
    if not rows:
        raise BadInput("no results to print: score checkpoints, or give the --csv of earlier ones")
    ddpm = "DDPM", "1000", "ancestral"
    slowest = [float(row["seconds"] or 0) for row in rows if (row["method"], row["steps"], row["sampler"]) == ddpm]
    texts = {"name": "name", "method": "method", "T": "T", "NFE": "steps", "sampler": "sampler", "samples": "samples"}
    numbers = {"FID": ("fid", 2), "+-": ("spread", 2), "precision": ("precision", 3), "recall": ("recall", 3),
               "IS": ("inception_score", 2)}
    lines = [[*texts, *numbers, "s/1000", "speed-up"]]
    for row in sorted(rows, key=lambda row: int(row["steps"] or 0)):
        timed = slowest and float(row["seconds"] or 0) > 0
        lines.append([*(cli.printable(row[c]) for c in texts.values()),
                      *(f"{float(row[c]):.{digits}f}" for c, digits in numbers.values()),
                      row["seconds"], f"{slowest[-1] / float(row['seconds']):.1f}" if timed else ""])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    for name in ("features", "reference", "seed"):
        print(f"{name}: {', '.join(sorted({row[name] for row in rows if row[name]}))}")


# -- the command ----------------------------------------------------------------------------------------------


def score(args):
    """Yield the FID of each source and each number of samples as a row of the table, with its path."""
    sources = [load_source(path, args.device) for path in args.sources]
    models = [source for _, source in sources if not isinstance(source, torch.Tensor)]
    flags = dict(zip(models, sampler_flags(args, models)))
    nfe = {model: model.sampler(**flags[model])[1] for model in models}
    reference, real = load_reference(args, models)
    check_shape(args.features, real.shape[1:])
    check_source(args.reference, real, reference, real, K + 1)
    for path, source in sources:
        check_source(path, source, reference, real, max(args.samples or [K + 1]))
    features = load_features(args.features, args.inception_weights, args.device, args.dims)
    mu, sigma, neighbours = reference_statistics(features, real, Path(args.root, "fid"))
    for path, source in sources:
        row = dict.fromkeys(COLUMNS, "")
        in_a_run = path.name in ("model.pt", "checkpoint.pt")  # whose folder has the name
        row |= {"name": path.absolute().parent.name if in_a_run else path.stem, "method": "images",
                "features": features.label, "reference": reference, "seed": str(args.seed)}
        if isinstance(source, torch.Tensor):
            counts = args.samples or [len(source)]
            # at random, for a file may be sorted: a part, as a split of the Inception score, must stand for the whole
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(args.seed))
            source = source[order[:max(counts)]]
        else:
            counts = args.samples or [10000]
            row |= {"method": source.label, "T": str(source.T), "steps": str(nfe[source]), "batch": str(args.batch),
                    "sampler": source.sampler_name(**flags[source])}
            source, seconds = source.generate_timed(max(counts), args.seed, args.batch, amp=args.amp, **flags[source])
            row["seconds"] = f"{1000 * seconds / max(counts):.3g}"
        # (n, d) and (n, classes)
        generated, logits = (torch.cat(parts).float().cpu() for parts in zip(*extract(features, source)))
        for n in counts:
            few = min(n, len(neighbours))  # precision and recall want as many of either kind
            precision, recall = precision_recall(*(part[:few].to(args.device) for part in (neighbours, generated)))
            fid = frechet_distance(mu, sigma, *moments(generated[:n].split(1000)))
            spread = bootstrap_spread(mu, sigma, generated[:n])
            yield path, row | {"samples": str(n), "fid": f"{fid:.4f}", "spread": f"{spread:.4f}",
                               "precision": f"{precision:.4f}", "recall": f"{recall:.4f}",
                               "inception_score": f"{inception_score(logits[:n]):.3f}"}


def load_source(path, device):
    """The path, or that of the model.pt in a run's folder, and its Model or its uint8 images (N, C, H, W)."""
    path = model_path(path)
    images = os.path.isdir(path) or path.suffix.lower() == ".npy"
    return path, load_images(path) if images else load(path, device)


def check_source(path, source, reference, real, wanted):
    """Raise BadInput for a Model or images of another shape than the real images, or fewer images than wanted."""
    images = isinstance(source, torch.Tensor)
    found, shape = tuple(source.shape[1:] if images else source.shape), tuple(real.shape[1:])
    if found != shape:
        raise BadInput(f"{path} has images of shape {found}, the reference {reference} of {shape}: give another "
                       "--reference")
    if images and len(source) < wanted:
        some = f"give --samples {len(source)}, or more images"
        advice = some if len(source) > K else f"precision and recall need {K + 1} or more"
        raise BadInput(f"{path} holds {len(source)} images, fewer than {wanted}: {advice}")


def load_reference(args, models):
    """The reference's name for the table, and its images."""
    if args.reference not in ("train", "test"):
        return Path(args.reference).stem, load_images(args.reference, "train", args.root)
    data = sorted({model.args["data"] for model in models}) or ["fashion-mnist"]
    if len(data) > 1:
        raise BadInput(f"these models were trained on {' and '.join(data)}: score each alone, or give one --reference")
    if args.reference == "test" and data[0] not in DATA_SETS:
        raise BadInput(f"--reference test: {data[0]} has no test images; give a folder or .npy file of some")
    name = args.reference if data == ["fashion-mnist"] else f"{Path(data[0]).stem} {args.reference}"
    return name, load_images(data[0], args.reference, args.root)


def main(argv=None):
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("sources", nargs="*", type=cli.path, metavar="SOURCE", help="a model.pt, a run's folder, or images: an .npy "
        "file of uint8 (N, H, W) or (N, C, H, W), or a folder of images")
    add("--features", choices=["inception", "fashion"], default="inception", help="inception: those of published FIDs, "
        "hours on a CPU; fashion: for a quick look at 28 x 28 garments, without a download")
    depths = "; ".join(f"{', '.join(map(str, dims))} of {name}" for name, dims in DIMS.items())
    add("--dims", type=number(int, 1), help="features of an earlier layer, averaged over the image, as pytorch-fid's "
        f"--dims: {depths} (default: the last)")
    add("--samples", type=number(int, K + 1), nargs="+", help="images of each source, one count or several; the FID "
        "falls as they grow (default: 10000 of a model; of a file or folder all, or so many at random)")
    add("--reference", type=cli.path, default="train", metavar="train|test|DATA", help="the real images: a split of "
        "what the models were trained on, or another data set, .npy file or folder")
    add("--csv", type=cli.path, metavar="FILE", help="append the results to this table")
    add("--table", action="store_true", help="print quality, coverage and speed: all of --csv if given, else these "
        "results")
    add("--plot", type=cli.path, metavar="FILE", help="draw FID against T from the results that --table would "
        "print, as PNG")
    add("--inception-weights", type=cli.path, metavar="FILE", help=f"a copy of {Path(INCEPTION).name}; else downloaded")
    add("--root", type=cli.path, default="data", metavar="DIR", help="folder for the data sets that have a name, and, "
        "in DIR/fid, for the reference's statistics")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    if not (args.sources or args.csv and (args.plot or args.table)):
        parser.error("nothing to do: give a checkpoint or images, or --csv with --table or --plot for earlier results")
    cli.check_outputs(args.csv, args.plot, inputs=[*args.sources, args.reference])
    rows = read_csv(args.csv) if args.csv else []
    for path, row in score(args) if args.sources else ():
        details = ", ".join(f"{c} {row[c]}" for c in COLUMNS[1:COLUMNS.index("fid")] if row[c])
        print(f"{path}: FID {row['fid']} +- {row['spread']}, precision {float(row['precision']):.3f}, "
              f"recall {float(row['recall']):.3f}, IS {float(row['inception_score']):.2f} ({details})")
        rows = add_to_csv(args.csv, row) if args.csv else [*rows, row]
    if args.table:
        print_table(rows)
    if args.plot:
        plot(args.plot, rows)
        print(f"wrote {args.plot}")


if __name__ == "__main__":
    cli.script(main)
