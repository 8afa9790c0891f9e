"""Draw the logs of several DDGAN runs into one figure: python experiments/curves.py runs/NAME ... --out curves.png

Left the critic's estimate of its divergence, eq. (18) or v2 (31), which is -loss_D; right gap_1, V(real) - V(fake) at
t = 1, which near 0 means a critic at chance.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import csv

from cli import BadInput
from data import label, save_figure, subplots


def read(run):
    """log.csv of a run's folder as lists of numbers: {column: values}."""
    path = Path(run, "log.csv")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("it has no line")
        return {name: [float(row[name]) for row in rows] for name in ("step", "loss_D", "gap_1")}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise BadInput(f"cannot read {path} as a DDGAN's log ({error!r}): give the folder of a "
                       "run of train_ddgan.py") from error


def main(argv=None):
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run of train_ddgan.py")
    parser.add_argument("--out", default="curves.png", help="the figure")
    args = parser.parse_args(argv)
    cli.check_outputs(args.out, inputs=[Path(run, "log.csv") for run in args.runs])
    figure, (left, right) = subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for run in args.runs:
        log = read(run)
        left.plot(log["step"], [-loss for loss in log["loss_D"]], label=label(Path(run).name))
        right.plot(log["step"], log["gap_1"])
    left.set(title="-loss_D: D's estimate of its divergence", xlabel="step")
    right.set(title="gap_1: V(real) - V(fake) at t = 1", xlabel="step")
    figure.legend(loc="outside right center", fontsize=8)
    save_figure(figure, args.out, dpi=120)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.script(main)
