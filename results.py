"""The table of results that fid.py fills: a CSV file, printed as the trilemma, drawn as FID against T (figures 1, 3, 5)."""

import csv
import os

import numpy as np

import cli
from cli import BadInput, one_line, write_atomically
from data import label, save_figure, subplots

COLUMNS = ["name", "method", "T", "steps", "sampler", "features", "reference", "samples", "seed", "batch",
           "fid", "spread", "precision", "recall", "inception_score", "seconds"]  # steps: network evaluations (NFE); seconds: for 1,000 images


def read_csv(path):
    """The rows of an earlier --csv FILE as dicts of strings; [] if there is none; BadInput if it is something else."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            rows, columns = list(reader), reader.fieldnames
        if columns != COLUMNS:
            raise ValueError(f"its columns are {columns}")
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise ValueError(f"result {line - 1} has another number of cells than the {len(COLUMNS)} columns")
            [float(row[name]) for name in ("samples", "fid", "spread", "precision", "recall", "inception_score")]
            [int(row[name] or 0) for name in ("T", "steps")], float(row["seconds"] or 0)
        return rows
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{path} is no table of FIDs ({one_line(error)}): mend it or choose another --csv") from error


def add_to_csv(path, row):
    """Append a row to the table at path, to which other processes may add as well; returns all rows."""
    with cli.locked_folder(os.path.dirname(os.path.realpath(path))):
        rows = [*read_csv(path), row]
        with write_atomically(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([COLUMNS, *([row[c] for c in COLUMNS] for row in rows)])
    return rows


def plot(path, rows):
    """FID against the denoising steps, a line for each way of making and scoring images; figures 1, 3, 5."""
    rows = [row for row in rows if row["steps"]]  # images from a file have no place on the axis
    if not rows:
        raise BadInput(f"nothing to draw in {path}: no result has a T; score checkpoints, or give an earlier --csv")
    steps, scoring = [int(row["steps"]) for row in rows], ["features", "reference", "samples"]
    varying = [c for c in ["sampler", *scoring] if len({row[c] for row in rows}) > 1]  # for the legend to tell apart
    strided = {(row["method"], row["T"]) for row in rows if row["T"] != row["steps"]}  # one model, several numbers of steps
    lines = {}
    for row, step in zip(rows, steps):
        trained_T = [f"T = {row['T']}"] if (row["method"], row["T"]) in strided else []
        name = ", ".join([row["method"], *trained_T, *(row[c] for c in varying if row[c])])
        lines.setdefault(label(name), {}).setdefault(step, []).append(float(row["fid"]))
    figure, axes = subplots(figsize=(8, 4), layout="constrained")
    for name, fids in sorted(lines.items()):
        x = sorted(fids)
        axes.plot(x, [np.mean(fids[step]) for step in x], "o-", label=name)  # several runs: their mean
    axes.set(xlabel="denoising steps" if strided else "T", ylabel="FID",
             ylim=(0, None), xscale="log" if max(steps) > 20 * min(steps) else "linear",
             title=label(", ".join(f"{c} {rows[0][c]}" for c in scoring if c not in varying)))
    figure.legend(loc="outside right upper")
    save_figure(figure, path)
    return figure


def print_table(rows):
    """The corners of the trilemma, a line for each result, in order of the network evaluations; speed-up: over the DDPM's 1000 ancestral ones."""
    if not rows:
        raise BadInput("no results to print: score checkpoints, or give the --csv of earlier ones")
    slowest = [float(row["seconds"] or 0) for row in rows if (row["method"], row["steps"], row["sampler"]) == ("DDPM", "1000", "ancestral")]
    lines = [["name", "method", "T", "NFE", "sampler", "samples", "FID", "+-", "precision", "recall", "IS", "s/1000", "speed-up"]]
    for row in sorted(rows, key=lambda row: int(row["steps"] or 0)):
        timed = slowest and float(row["seconds"] or 0) > 0
        shown = [f"{float(row[c]):.{digits}f}" for c, digits in (("fid", 2), ("spread", 2), ("precision", 3), ("recall", 3), ("inception_score", 2))]
        lines.append([*(cli.printable(row[c]) for c in ("name", "method", "T", "steps", "sampler", "samples")), *shown, row["seconds"],
                      f"{slowest[-1] / float(row['seconds']):.1f}" if timed else ""])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    for name in ("features", "reference", "seed"):
        print(f"{name}: {', '.join(sorted({row[name] for row in rows if row[name]}))}")
