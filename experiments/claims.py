"""What v2, sec. 3.4, says of the objectives, where statistics are cheap: 25 Gaussians, five seeds, and the runs that fail.

    python experiments/claims.py steps     # T = 1, 2, 4, 8, at equal steps and at steps proportional to T: five hours of a core
    python experiments/claims.py rates     # 4 x 4 learning rates of G and D, three seeds: four hours of a core

A run fails with fewer than 20 of the 25 modes, or less than half of its samples of high quality (toy.py). Results go to
figures/claims.csv as they come; begun again it goes on where it was. `rates` also draws figures/stability.png.
"""

import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import csv
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

import toy
from data import save_figure, subplots

CSV = HOME / "figures" / "claims.csv"
COLUMNS = ["objective", "T", "steps", "lr_g", "lr_d", "seed", "modes", "quality", "frechet", "sliced"]
SETTING = COLUMNS[:6]  # the others are toy.score's
OBJECTIVES = ["js", "hellinger", "reverse-kl", "total-variation", "wasserstein"]
ALL_T = (1, 2, 4, 8)
LR_G, LR_D = (5e-4, 1e-3, 2e-3, 4e-3), (1e-3, 2e-3, 4e-3, 8e-3)

EQUAL = [(objective, T, 6000, 2e-3, 4e-3, seed) for seed in range(5) for T in ALL_T for objective in OBJECTIVES]
PROPORTIONAL = [(objective, T, 1500 * T, 2e-3, 4e-3, seed) for seed in range(5) for T in ALL_T for objective in OBJECTIVES]
RATES = [(objective, 4, 3000, lr_g, lr_d, seed) for seed in range(3) for lr_g in LR_G for lr_d in LR_D for objective in OBJECTIVES]


def measure(setting):
    """Train and score one DDGAN on the Gaussians: a setting, in the order of SETTING, with its scores."""
    torch.set_num_threads(1)
    objective, T, steps, lr_g, lr_d, seed = setting
    network, diffusion = toy.train("ddgan", T, seed, objective, steps=steps, lr_g=lr_g, lr_d=lr_d)
    scores = toy.score(toy.sample(network, diffusion, toy.SAMPLES, z_dim=8)[-1], toy.draw(toy.SAMPLES))
    return (*setting, *(round(scores[name], 4) for name in COLUMNS[6:]))


def read():
    """The results so far: {setting: {column: value}}."""
    if not CSV.exists():
        return {}
    with open(CSV, newline="", encoding="utf-8") as file:
        rows = [row | {name: float(row[name]) for name in COLUMNS[1:]} for row in csv.DictReader(file)]
    return {tuple(row[name] for name in SETTING): row for row in rows}


def append(result):
    """Add a line to the CSV, to which another process may add as well."""
    with cli.locked_folder(CSV.parent):
        text = CSV.read_text(encoding="utf-8") if CSV.exists() else ",".join(COLUMNS) + "\n"
        with cli.write_atomically(CSV) as temporary:
            temporary.write_text(text + ",".join(map(str, result)) + "\n", encoding="utf-8")


def run_all(settings, jobs):
    """Measure what is not in the CSV, and append each result as soon as it is there."""
    done = read()
    waiting = [setting for setting in dict.fromkeys(settings) if setting not in done]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for count, job in enumerate(as_completed([pool.submit(measure, setting) for setting in waiting]), start=1):
            append(job.result())
            print(f"{count} of {len(waiting)}", file=sys.stderr, flush=True)


def failed(row):
    return row["modes"] < 20 or row["quality"] < 0.5


def print_steps(results):
    """For each objective and T: the Frechet distance, mean and range over the seeds, and the runs that failed."""
    for name, settings in (("6000 steps for every T", EQUAL), ("1500 T steps", PROPORTIONAL)):
        print(name)
        print(f"{'':16}" + "".join(f"{f'T = {T}':>26}" for T in ALL_T))
        for objective in OBJECTIVES:
            cells = []
            for T in ALL_T:
                rows = [results[s] for s in settings if s[:2] == (objective, T) and s in results]
                found = [row["frechet"] for row in rows] or [float("nan")]
                cells.append(f"{statistics.fmean(found):.2f} ({min(found):.2f}-{max(found):.2f}), {sum(map(failed, rows))}/{len(rows)}")
            print(f"{objective:16}" + "".join(f"{cell:>26}" for cell in cells))
    print("Frechet distance, mean (range), failed runs")


def print_rates(results):
    """The share of each objective's map that works, and the map as a figure: of three seeds those that did not fail."""
    figure, axes = subplots(1, len(OBJECTIVES), figsize=(2.4 * len(OBJECTIVES), 2.8), layout="constrained")
    for axis, objective in zip(axes, OBJECTIVES):
        works = torch.full((4, 4), float("nan"))
        for i, lr_g in enumerate(LR_G):
            for j, lr_d in enumerate(LR_D):
                rows = [results[s] for s in RATES if (s[0], *s[3:5]) == (objective, lr_g, lr_d) and s in results]
                if rows:
                    works[i, j] = 1 - statistics.fmean(map(failed, rows))
        share = works.nanmean().item()
        print(f"{objective:16} {100 * share:5.1f} % of the runs work")
        axis.imshow(works.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
        axis.set(title=f"{objective}: {100 * share:.0f} %", xticks=range(4), xticklabels=[f"{lr:g}" for lr in LR_D], xlabel="lr_D",
                 yticks=range(4), yticklabels=[f"{lr:g}" for lr in LR_G])
        axis.tick_params(labelsize=6)
    axes[0].set_ylabel("lr_G")
    save_figure(figure, CSV.with_name("stability.png"))


def main(argv=None):
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["steps", "rates"], help="which table")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    parser.add_argument("--jobs", type=cli.number(int, 1), default=os.cpu_count(), help="runs at a time, one thread each")
    args = parser.parse_args(argv)
    if not args.print:
        run_all(EQUAL + PROPORTIONAL if args.what == "steps" else RATES, args.jobs)
    (print_steps if args.what == "steps" else print_rates)(read())


if __name__ == "__main__":
    cli.script(main)
