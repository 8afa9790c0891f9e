"""FID as a function of T: train, score and draw all that figures 1 to 9 show.

    python experiments/sweep.py                    # all, some 30 hours of one CPU core; begun again it goes on where it was
    python experiments/sweep.py 'js-*' ddpm-10     # these runs only
    python experiments/sweep.py --draw             # the figures, from what is scored so far

A run trains in runs/sweep/NAME and prints into NAME.log. Its scores go to figures/sweep.csv and 20 of its samples to
figures/samples/NAME.npy, so that the figures need no checkpoint. On a CPU two runs share the time, one thread each.
"""

import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import fnmatch
import os
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import torch

from data import save_figure, subplots
from fid import read_csv
from sample import save_rows

FIGURES = HOME / "figures"
CSV, SAMPLES = FIGURES / "sweep.csv", FIGURES / "samples"
OBJECTIVES = ["js", "hellinger", "reverse-kl", "total-variation", "wasserstein"]
STEPS = 6000


def ddgan(objective, T, steps=STEPS, seed=0):
    """The name of a run, its command, and the numbers of samples to score."""
    name = f"{objective}-{T}" + (f"-seed{seed}" if seed else "") + (f"-steps{steps}" if steps != STEPS else "")
    return name, (["train_ddgan.py", "--objective", objective, "--T", str(T), "--steps", str(steps), "--seed", str(seed)], [10_000])


def ddpm(T):
    """The same for a DDPM, which draws with all its T steps."""
    return f"ddpm-{T}", (["train_ddpm.py", "--T", str(T)], [2000, 10_000] if T <= 50 else [2000])


RUNS = dict([  # in this order
    *(ddgan(objective, 4) for objective in OBJECTIVES),
    *(ddgan("js", T) for T in (1, 10, 2, 8, 6)),
    *(ddpm(T) for T in (10, 20, 50, 100, 200, 500, 1000)),
    *(ddgan(objective, T) for T in (1, 10, 2, 8, 6) for objective in OBJECTIVES[1:]),
    *(ddgan(objective, T, seed=seed) for T in (4, 10) for objective in ("js", "hellinger") for seed in (1, 2)),
    *(ddgan("js", T, steps=1500 * T) for T in (1, 2, 10)),  # every t trained as often; T = 4 is above
])


def train_and_score(name, folder, device):
    """Train a run, or what is left of it, draw its 20 samples and score it; CalledProcessError if one of these fails."""
    (script, *flags), counts = RUNS[name]
    out, on = folder / name, ["--device", str(device)]
    resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
    commands = [[script, *flags, *on, "--out", out, *resume],
                ["sample.py", out / "model.pt", *on, "-n", "20", "--npy", SAMPLES / f"{name}.npy", "--out", out / "samples.png"],
                ["fid.py", out / "model.pt", *on, "--features", "fashion", "--samples", *map(str, counts), "--csv", CSV]]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.log", "a") as log:
        for script, *arguments in commands:
            subprocess.run([sys.executable, HOME / script, *arguments], env={"OMP_NUM_THREADS": "1", **os.environ},
                           stdout=log, stderr=log, check=True)


def run_all(names, folder, device, jobs):
    """Train and score the named runs, `jobs` at a time; returns the number of those that failed."""
    failed, pool = 0, ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(train_and_score, name, folder, device): name for name in names}
        for job in as_completed(waiting):
            name = waiting[job]
            if isinstance(job.exception(), subprocess.CalledProcessError):
                failed += 1
                print(f"{name}: failed with status {job.exception().returncode}: see {folder / name}.log", flush=True)
            else:
                job.result()
                print(f"{name}: FID " + ", ".join(f"{row['fid']} ({row['samples']} samples)" for row in rows_of(name)), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C stops the trainers, too, which save
    return failed


# -- the figures ----------------------------------------------------------------------------------------------


def rows_of(name):
    return [row for row in read_csv(CSV) if row["name"] == name]


def fids(T, runs, samples="10000"):
    """FIDs of those of the runs that are scored with so many samples and have T steps."""
    return [float(row["fid"]) for name, _ in runs for row in rows_of(name) if row["samples"] == samples and row["T"] == str(T)]


def draw_line(axes, name, values, style="o-"):
    """A line through the means of values {T: FIDs of several seeds}, with bars from the least to the largest."""
    values = {T: found for T, found in values.items() if found}
    means = [statistics.fmean(found) for found in values.values()]
    bars = [[mean - min(found) for mean, found in zip(means, values.values())], [max(found) - mean for mean, found in zip(means, values.values())]]
    if values:
        axes.errorbar(list(values), means, yerr=bars, fmt=style, capsize=4, markersize=4, label=name)


def save_curves(figure, axes, path):
    if axes.containers:  # an empty one has no legend
        axes.legend()
        save_figure(figure, path)


def draw():
    """Write figures 1 to 9 from the CSV and the samples; what is not scored yet is left out."""
    figure, axes = subplots(figsize=(6, 3.6), layout="constrained")
    for samples, all_T in (("2000", (10, 20, 50, 100, 200, 500, 1000)), ("10000", (10, 20, 50))):
        draw_line(axes, f"{samples} samples", {T: fids(T, [ddpm(T)], samples) for T in all_T})
    axes.set(xscale="log", ylim=(0, None), xlabel="T", ylabel="FID, fashion", title="DDPM trained with T steps, figure 1")
    save_curves(figure, axes, FIGURES / "fid-of-T-ddpm.png")

    figure, axes = subplots(figsize=(7, 4), layout="constrained")
    for objective in OBJECTIVES:
        draw_line(axes, objective, {T: fids(T, [ddgan(objective, T, seed=seed) for seed in (0, 1, 2)]) for T in (1, 2, 4, 6, 8, 10)})
    draw_line(axes, "js, 1500 T steps", {T: fids(T, [ddgan("js", T, steps=1500 * T)]) for T in (1, 2, 4, 10)}, "k.--")
    axes.set(ylim=(0, None), xlabel="T", ylabel="FID, fashion", title=f"DDGAN, {STEPS} steps of training, figures 3, 5")
    save_curves(figure, axes, FIGURES / "fid-of-T-ddgan.png")

    for kind, T_of_rows in [("ddpm", (10, 20, 50, 100, 200, 500, 1000)), *((objective, (1, 2, 4, 6, 8, 10)) for objective in OBJECTIVES)]:
        files = {T: SAMPLES / f"{kind}-{T}.npy" for T in T_of_rows}
        rows = [(f"T = {T}", torch.from_numpy(np.load(path))) for T, path in files.items() if path.exists()]
        if rows:
            save_rows(rows, FIGURES / f"samples-{kind}.png")


def main(argv=None):
    parser = cli.Parser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("names", nargs="*", metavar="NAME", help=f"runs to do, * for any letters (default: all): {', '.join(RUNS)}")
    flag("--draw", action="store_true", help="only draw the figures")
    flag("--jobs", type=cli.number(int, 1), help="runs at a time (default: 2 on a CPU, 1 on a GPU)")
    flag("--folder", type=cli.path, default=HOME / "runs" / "sweep", help="of the runs")
    flag("--device", type=cli.device, default=cli.default_device(), help="where to train")
    args = parser.parse_args(argv)
    for pattern in args.names:
        if not fnmatch.filter(RUNS, pattern):
            raise cli.BadInput(f"{pattern} is none of the runs: {', '.join(RUNS)}")
    failed = 0
    if not args.draw:
        scored = {row["name"] for row in read_csv(CSV)}
        chosen = [name for name in RUNS if name not in scored and (not args.names or any(fnmatch.fnmatch(name, pattern) for pattern in args.names))]
        failed = run_all(chosen, Path(args.folder), args.device, args.jobs or (1 if args.device.type == "cuda" else 2))
    draw()
    print(f"wrote the figures of {len(read_csv(CSV))} results into {FIGURES}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.script(main)
