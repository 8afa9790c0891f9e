"""FID as a function of T: train, score and draw all that figures 1 to 9 show.

    python experiments/sweep.py                    # all, 40 hours of one CPU core; begun again it goes on where it was
    python experiments/sweep.py 'js-*' ddpm-10     # these runs only
    python experiments/sweep.py --draw             # the figures, from what is scored so far

A run trains in runs/sweep/NAME and prints into NAME.log. Its scores go to sweep.csv and 20 of its samples to
samples/NAME.npy in the folder --results, so that the figures need no checkpoint. On a CPU two runs train at a time, one
thread each.
"""

import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import fnmatch
import os
import signal
import statistics
import subprocess
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import torch

from data import save_figure, subplots
from fid import read_csv
from sample import save_rows
from unet import PRESETS

COMPARED = ["js", "hellinger", "reverse-kl", "total-variation", "wasserstein"]  # the paper's
STEPS = 6000  # of a DDGAN
DDPM_STEPS = 7000  # the cpu preset's, on a GPU too, where 60,000 would be ten times a DDGAN's


def ddgan(objective, T, steps=STEPS, seed=0):
    """The name of a run, its command, and the numbers of samples to score."""
    name = f"{objective}-{T}" + (f"-seed{seed}" if seed else "") + (f"-steps{steps}" if steps != STEPS else "")
    command = ["train_ddgan.py", "--objective", objective, "--T", str(T), "--steps", str(steps), "--seed", str(seed)]
    return name, (command, ["10000"])


def ddpm(T):
    """The same for a DDPM, which draws with all its T steps."""
    return f"ddpm-{T}", (["train_ddpm.py", "--T", str(T), "--steps", str(DDPM_STEPS)],
                          ["2000", "10000"] if T <= 100 else ["2000"])


ALL_T = {"ddpm": (10, 20, 50, 100, 200, 500, 1000), **dict.fromkeys(COMPARED, (1, 2, 4, 6, 8, 10))}
RUNS = dict([  # in this order
    *(ddgan(objective, 4) for objective in COMPARED),
    *(ddgan("js", T) for T in (1, 10, 2, 8, 6)),
    *(ddpm(T) for T in ALL_T["ddpm"]),
    *(ddgan(objective, T) for T in (1, 10, 2, 8, 6) for objective in COMPARED[1:]),
    *(ddgan(objective, T, seed=seed) for T in (4, 10, 1) for objective in COMPARED for seed in (1, 2)),
    *(ddgan("js", T, steps=1500 * T) for T in (1, 2, 10)),  # every t trained as often; T = 4 is above
])


def unscored(name, results):
    """The numbers of samples with which a run has no score yet."""
    scored = {(row["name"], row["samples"]) for row in read_csv(results / "sweep.csv")}
    return [count for count in RUNS[name][1] if (name, count) not in scored]


def train_and_score(name, folder, results, device, preset, running):
    """Train a run, or what is left of it, draw its 20 samples and score it; CalledProcessError if one of these fails.

    preset: the networks' size; running: a set that holds the process at work.
    """
    counts = unscored(name, results)
    if not counts:  # another sweep was faster
        return
    (script, *flags), _ = RUNS[name]
    out, model, samples = folder / name, folder / name / "model.pt", results / "samples" / f"{name}.npy"
    on, resume = ["--device", str(device)], ["--resume"] if (out / "checkpoint.pt").exists() else []
    commands = [[script, *flags, "--preset", preset, *on, "--out", out, *resume],
                ["sample.py", model, *on, "-n", "20", "--npy", samples, "--out", out / "samples.png"],
                ["fid.py", model, *on, "--features", "fashion", "--samples", *counts, "--csv", results / "sweep.csv"]]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with open(folder / f"{name}.log", "a") as log:
        for script, *arguments in commands:
            command = [sys.executable, HOME / script, *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            running.add(process)
            status = process.wait()
            running.discard(process)
            if status:
                raise subprocess.CalledProcessError(status, script)


def run_all(names, folder, results, device, preset, jobs):
    """Train and score the named runs, `jobs` at a time; returns the number of those that failed."""
    if not names:
        return 0
    failed, running, pool = 0, set(), ThreadPoolExecutor(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        waiting = {pool.submit(train_and_score, name, folder, results, device, preset, running): name for name in names}
        for job in as_completed(waiting):
            name = waiting[job]
            try:
                job.result()
                rows = [row for row in read_csv(results / "sweep.csv") if row["name"] == name]
                found = ", ".join(f"{row['fid']} ({row['samples']} samples)" for row in rows)
                print(f"{name}: FID {found}", flush=True)
            except subprocess.CalledProcessError as error:
                failed += 1
                print(f"{name}: {error.cmd} ended with status {error.returncode}: see {folder / name}.log", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()  # a trainer saves first
    return failed


# -- the figures ----------------------------------------------------------------------------------------------


def fids(scores, runs, samples="10000"):
    """The FIDs that the rows `scores` have for runs (what ddgan or ddpm returns) with so many samples."""
    return [float(row["fid"]) for name, _ in runs for row in scores if (row["name"], row["samples"]) == (name, samples)]


def draw_line(axes, name, values, style="o-"):
    """A line through the means of values {T: FIDs of several seeds}, with bars from the least to the largest."""
    values = {T: found for T, found in values.items() if found}
    if values:
        means = np.array([statistics.fmean(found) for found in values.values()])
        bars = means - [min(found) for found in values.values()], [max(found) for found in values.values()] - means
        bars = bars if any(len(found) > 1 for found in values.values()) else None
        axes.errorbar(list(values), means, yerr=bars, fmt=style, capsize=4, markersize=4, label=name)


def draw(results):
    """Write figures 1 to 9 from the CSV and the samples; what is not scored yet is left out. Returns their names."""
    written, scores = [], read_csv(results / "sweep.csv")

    def save_curves(figure, axes, name):
        if axes.containers:  # not an empty one
            axes.legend()
            save_figure(figure, results / name)
            written.append(name)

    figure, axes = subplots(figsize=(6, 3.6), layout="constrained")
    for samples in ("2000", "10000"):
        draw_line(axes, f"{samples} samples", {T: fids(scores, [ddpm(T)], samples) for T in ALL_T["ddpm"]})
    axes.set(xscale="log", ylim=(0, None), xticks=ALL_T["ddpm"], xticklabels=ALL_T["ddpm"], xlabel="T",
             ylabel="FID, fashion", title="DDPM trained with T steps, figure 1")
    save_curves(figure, axes, "fid-of-T-ddpm.png")

    figure, axes = subplots(figsize=(7, 4), layout="constrained")
    for objective in COMPARED:
        seeds = {T: [ddgan(objective, T, seed=seed) for seed in range(3)] for T in ALL_T[objective]}
        draw_line(axes, objective, {T: fids(scores, runs) for T, runs in seeds.items()})
    proportional = {T: fids(scores, [ddgan("js", T, steps=1500 * T)]) for T in (1, 2, 4, 10)}
    draw_line(axes, "js, 1500 T steps", proportional, "k.--")
    axes.set(ylim=(0, None), xticks=ALL_T["js"], xlabel="T", ylabel="FID, fashion",
             title=f"DDGAN, {STEPS} steps of training, figures 3, 5")
    save_curves(figure, axes, "fid-of-T-ddgan.png")

    for kind, all_T in ALL_T.items():  # figures 2, 4, 6-9
        files = {T: results / "samples" / f"{kind}-{T}.npy" for T in all_T}
        rows = [(f"T = {T}", torch.from_numpy(np.load(path))) for T, path in files.items() if path.exists()]
        if rows:
            save_rows(rows, results / f"samples-{kind}.png")
            written.append(f"samples-{kind}.png")
    return written


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("names", nargs="*", metavar="NAME", help=f"runs to do, * for any letters (default: all): {', '.join(RUNS)}")
    flag("--draw", action="store_true", help="only draw the figures")
    flag("--jobs", type=cli.number(int, 1), help="runs at a time (default: 2 on a CPU, 1 on a GPU)")
    flag("--folder", type=cli.path, default=HOME / "runs" / "sweep", help="of the runs")
    flag("--results", type=cli.path, help="folder of sweep.csv, the samples and the figures; a new one begins anew "
         "(default: figures, for the preset gpu figures/gpu)")
    flag("--device", type=cli.device, default=cli.default_device(), help="where to train")
    flag("--preset", choices=list(PRESETS), help="sizes of the networks (default: gpu on a GPU, else cpu)")
    args = parser.parse_args(argv)
    on_gpu = args.device.type == "cuda"
    preset = args.preset or ("gpu" if on_gpu else "cpu")
    folder, results = Path(args.folder), Path(args.results or HOME / "figures" / ("gpu" if preset == "gpu" else ""))
    for pattern in args.names:
        if not fnmatch.filter(RUNS, pattern):
            raise cli.BadInput(f"{pattern} is none of the runs: {', '.join(RUNS)}")
    if args.draw and args.names:
        raise cli.BadInput(f"--draw draws all that is there: leave {args.names[0]} out")
    cli.check_outputs(results / "sweep.csv", results / "samples" / "a.npy", folder / "a.log")
    chosen = [name for name in RUNS if not args.names or any(fnmatch.fnmatch(name, pattern) for pattern in args.names)]
    left = [] if args.draw else [name for name in chosen if unscored(name, results)]
    if not left and not args.draw:
        print(f"nothing is left to do: {results / 'sweep.csv'} has the scores; to train anew give another --folder and "
              "--results")
    failed = run_all(left, folder, results, args.device, preset, args.jobs or (1 if on_gpu else 2))
    print(f"wrote into {results}: {', '.join(draw(results)) or 'nothing, for nothing is scored yet'}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that the trainers end, too
    cli.script(main)
