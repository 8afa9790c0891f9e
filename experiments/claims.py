"""What v2, sec. 3.4, says of the objectives, where statistics are cheap: 25 Gaussians, several seeds, and failed runs.

    python experiments/claims.py steps     # T = 1, 2, 4, 8, at equal steps and at 1500 T: three hours of a core
    python experiments/claims.py rates     # 4 x 4 learning rates of G and D, three seeds: two hours of a core

A run fails with fewer than 20 of the 25 modes, or less than half of its samples of high quality (toy.py). Results go to
the table --csv as they come; begun again it goes on where it was. `rates` also draws stability.png beside it.
"""

import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import os
import signal
import statistics
from itertools import product
from multiprocessing import get_context

import torch

import toy
from data import save_figure, subplots
from fid import add_to_csv, read_csv
from sweep import COMPARED

COLUMNS = ["objective", "T", "steps", "lr_g", "lr_d", "seed", "modes", "quality", "frechet", "sliced"]
SETTING = COLUMNS[:6]  # the others are toy.score's
ALL_T = (1, 2, 4, 8)
LR_G, LR_D = (5e-4, 1e-3, 2e-3, 4e-3), (1e-3, 2e-3, 4e-3, 8e-3)  # ours: around toy.py's own, a factor of two apart

OWN = toy.LR, toy.LR_D["ddgan"]  # toy.py's own rates
EQUAL = [(objective, T, 6000, *OWN, seed) for seed, T, objective in product(range(5), ALL_T, COMPARED)]
PROPORTIONAL = [(objective, T, 1500 * T, *OWN, seed) for seed, T, objective in product(range(5), ALL_T, COMPARED)]
SEEDS = range(3)  # of RATES
RATES = [(objective, 4, 3000, *rates, seed) for seed, *rates, objective in product(SEEDS, LR_G, LR_D, COMPARED)]


def measure(setting):
    """Train and score a DDGAN on the Gaussians: a row, a dict. If its samples are not finite it has no mode."""
    torch.set_num_threads(1)
    objective, T, steps, lr_g, lr_d, seed = setting
    network, diffusion = toy.train("ddgan", T, seed, objective, steps=steps, lr_g=lr_g, lr_d=lr_d)
    x = toy.sample(network, diffusion, toy.SAMPLES)[-1]
    none = {"modes": 0, "quality": 0.0, "frechet": float("inf"), "sliced": float("inf")}
    scores = toy.score(x, toy.draw(toy.SAMPLES)) if x.isfinite().all() else none
    return dict(zip(SETTING, setting)) | {name: round(scores[name], 4) for name in COLUMNS[6:]}


def check(row):
    for name in COLUMNS[1:]:
        float(row[name])


def read(path):
    """The results so far: {setting: {column: value}}."""
    rows = [row | {name: float(row[name]) for name in COLUMNS[1:]} for row in read_csv(path, COLUMNS, check)]
    return {tuple(row[name] for name in SETTING): row for row in rows}


def run_all(settings, path, jobs):
    """Measure what is not in the table at path, `jobs` runs at a time, and append each result as it comes."""
    done = read(path)
    waiting = [setting for setting in dict.fromkeys(settings) if setting not in done]
    # Ctrl-C is the parent's: it ends them
    with get_context("spawn").Pool(jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for count, row in enumerate(pool.imap_unordered(measure, waiting), start=1):
            add_to_csv(path, row, COLUMNS, check)
            print(f"{count} of {len(waiting)}", file=sys.stderr, flush=True)


def failed(row):
    return row["modes"] < 20 or row["quality"] < 0.5


def print_steps(results):
    """For each objective and T: the Frechet distance, median and range over the seeds, and how many runs failed."""
    for name, settings in (("6000 steps for every T", EQUAL), ("1500 T steps", PROPORTIONAL)):
        print(name)
        print(f"{'':16}" + "".join(f"{f'T = {T}':>26}" for T in ALL_T))
        for objective in COMPARED:
            cells = []
            for T in ALL_T:
                rows = [results[s] for s in settings if s[:2] == (objective, T) and s in results]
                if rows:
                    found, failures = [row["frechet"] for row in rows], f"{sum(map(failed, rows))}/{len(rows)}"
                    cells.append(f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f}), {failures}")
                else:
                    cells.append("")
            print(f"{objective:16}" + "".join(f"{cell:>26}" for cell in cells))
    print("Frechet distance: median (range); failed runs / runs")


def print_rates(results, path):
    """The share of each objective's runs that do not fail; as a figure, that of each pair of rates."""
    figure, axes = subplots(1, len(COMPARED), figsize=(2.4 * len(COMPARED), 2.8), layout="constrained")

    def found(objective, *rates):
        return [results[s] for s in RATES if (s[0], *s[3:5]) == (objective, *rates) and s in results]

    for axis, objective in zip(axes, COMPARED):
        cells = [[found(objective, lr_g, lr_d) for lr_d in LR_D] for lr_g in LR_G]
        rows = [row for line in cells for cell in line for row in cell]
        share = 1 - sum(map(failed, rows)) / len(rows) if rows else float("nan")
        working = [sum(not failed(row) for row in rows if row["seed"] == seed) for seed in SEEDS]
        print(f"{objective:16} {100 * share:5.1f} % of {len(rows)} runs work, by seed {', '.join(map(str, working))}")
        works = [[1 - sum(map(failed, cell)) / len(cell) if cell else float("nan") for cell in line] for line in cells]
        axis.imshow(works, vmin=0, vmax=1, origin="lower")
        axis.set(title=f"{objective}: {100 * share:.0f} %", xlabel="lr_D",
                 xticks=range(len(LR_D)), xticklabels=[f"{lr:g}" for lr in LR_D],
                 yticks=range(len(LR_G)), yticklabels=[f"{lr:g}" for lr in LR_G])
        axis.tick_params(labelsize=6)
    axes[0].set_ylabel("lr_G")
    save_figure(figure, path)
    print(f"wrote {path}")


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("what", choices=["steps", "rates"], help="which of the two experiments")
    flag("--draw", action="store_true", help="only print and draw what is there")
    flag("--csv", type=cli.path, default=HOME / "figures" / "claims.csv", help="the table of results")
    flag("--jobs", type=cli.number(int, 1), default=os.cpu_count(), help="runs at a time, one thread each")
    args = parser.parse_args(argv)
    picture = Path(args.csv).with_name("stability.png")
    cli.check_outputs(args.csv, picture)
    if not args.draw:
        run_all(EQUAL + PROPORTIONAL if args.what == "steps" else RATES, args.csv, args.jobs)
    if args.what == "steps":
        print_steps(read(args.csv))
    else:
        print_rates(read(args.csv), picture)


if __name__ == "__main__":
    cli.script(main)
