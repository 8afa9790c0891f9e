"""README.md, PAPER.md and RESULTS.md: what they name exists, what they quote is the code, and their form."""

import ast
import re
import runpy
import shlex
import sys

import pytest
import torch
from conftest import HOME

import cli
import fid
import losses
import train_ddgan

sys.path.insert(0, str(HOME / "experiments"))
import blind
import claims

PAGES = {name: (HOME / name).read_text(encoding="utf-8") for name in ("README.md", "PAPER.md", "RESULTS.md")}
each_page = pytest.mark.parametrize("name", PAGES)
SCRIPTS = [path.relative_to(HOME).as_posix() for folder in (HOME, HOME / "experiments") for path in folder.glob("*.py")]


def definitions(file):
    """{name: its lines} of a file's classes, functions, methods (as Class.method) and tables."""
    source, found = (HOME / file).read_text(encoding="utf-8"), {}

    def note(name, node):
        found[name] = [line.strip() for line in source.splitlines()[node.lineno - 1:node.end_lineno]]

    for node in ast.parse(source).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            note(node.name, node)
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    note(f"{node.name}.{inner.name}", inner)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            note(node.targets[0].id, node)
    return found


def test_every_function_that_the_paper_page_names_exists_and_has_the_lines_that_it_quotes():
    page = PAGES["PAPER.md"].replace("\n", " \n")
    named, quotes, last = 0, 0, None
    for match in re.finditer(r"`([\w/]+\.py):\s+([\w.]+)`|```python(.*?)```", page, re.DOTALL):
        file, name, quote = match.groups()
        if quote is None:
            assert name in definitions(file), f"{file} has no {name}"
            named, last = named + 1, definitions(file)[name]
        else:
            for line in filter(None, map(str.strip, quote.splitlines())):
                assert line in last, f"{line!r} is not in {last[0]!r}"
                quotes += 1
    assert named >= 25 and quotes >= 40


def test_every_equation_of_both_versions_has_its_place_on_the_paper_page():
    printed = re.findall(r"^(?:\*\*\(28\)\*\*, )?\*\*(v2 )?\((\d+)\)\*\*", PAGES["PAPER.md"], re.MULTILINE)
    numbers = [(bool(v2), int(number)) for v2, number in printed]
    assert numbers == [(False, n) for n in range(1, 28)] + [(True, n) for n in range(28, 33)]
    assert PAGES["PAPER.md"].count("**(28)**, **v2 (32)**") == 1  # FID


def test_every_test_that_a_page_names_exists():
    tests = "".join(path.read_text(encoding="utf-8") for path in (HOME / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", "".join(PAGES.values()))
    assert len(named) >= 10
    for name in named:
        assert f"def {name}(" in tests, name


def test_the_map_of_the_readme_names_what_is_there():
    rows = re.findall(r"^\|[^|]*(?:\\\|[^|]*)*\| (`[\w/.]+\.py`[^|]*) \| (`[^|]*) \|", PAGES["README.md"], re.MULTILINE)
    assert len(rows) >= 15
    for files, names in rows:
        known = {}
        for file in re.findall(r"`([\w/]+\.py)`", files):
            known |= definitions(file)
        methods = {name.split(".")[-1] for name in known}
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in known or name in methods, f"{name} is in none of {files}"


class Parsed(Exception):
    pass


def flags_of(script, monkeypatch):
    """The flags of a script's own parser."""
    def stop(parser, *args, **options):
        raise Parsed(parser)

    with monkeypatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(cli.Parser, "parse_args", stop)
        runpy.run_path(str(HOME / script))["main"]([])
    return caught.value.args[0]._option_string_actions


@each_page
def test_every_command_on_a_page_is_a_script_with_flags_that_it_has(name, monkeypatch):
    page = re.sub(r"\n(?![\n ])", " ", PAGES[name])  # a command in a paragraph may be broken over two lines
    commands = re.findall(r"(?:python|pip install[^&`]*&& \S*python) ((?:experiments/)?\w+\.py)((?: [^`&#\n]*)?)", page)
    assert len(commands) > 5
    flags = {script: flags_of(script, monkeypatch) for script in {script for script, _ in commands}}
    for script, arguments in commands:
        for word in shlex.split(arguments):
            assert not word.startswith("--") or word.split("=")[0] in flags[script], f"{script} {word}"


@each_page
def test_every_figure_and_link_leads_to_a_file(name):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", PAGES[name])
    assert targets or name == "PAPER.md"
    for target in targets:
        assert target.startswith("https://") or (HOME / target).is_file(), target


@each_page
def test_lines_have_120_columns_and_a_sentence_two_decimals_at_most(name):
    page, code = PAGES[name], False
    for line in page.splitlines():
        code ^= line.startswith("```")
        assert len(line) <= 120 or code or line.startswith(("    ", "|")), line
    for word in ("paper 003", "↓", "by hand", "git checkout"):
        assert word not in page
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    prose = "\n".join("" if line.startswith(("    ", "|", "**(", "**v2", "#")) else line for line in prose.splitlines())
    for sentence in re.split(r"(?<=[.:])\s+(?=[A-Z*`(-])|\n\n", prose):
        assert len(re.findall(r"(?<![\w.-])\d+\.\d+(?!\w|\.\w)", sentence)) <= 2, sentence


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) <= 1800


def test_every_paper_that_the_code_cites_is_in_the_readmes_list():
    papers = " ".join(PAGES["README.md"].split("## The papers")[1].split())
    code = "".join((HOME / script).read_text(encoding="utf-8") for script in SCRIPTS)
    cited = set(re.findall(
        r"\b([A-Z][a-z]+)(?:(?:, [A-Z][a-z]+)* and [A-Z][a-z]+|(?:, [A-Z][a-z]+)+| et al\.) ((?:19|20)\d\d)", code))
    assert len(cited) >= 12
    for author, year in cited:
        assert re.search(rf"\. {author}\b[^*]* {year}, \*", papers), f"{author} {year}"


def test_the_table_of_2_4_has_every_objective_and_no_other():
    table = re.findall(r"^\| `([a-z][\w-]+)`[^|]*\|", PAGES["PAPER.md"], re.MULTILINE)
    ours = {"js", "hellinger", "reverse-kl", "total-variation", "wasserstein", "kl", "pearson"}
    assert len(table) == len(set(table)) and ours <= set(table)
    assert set(table) | set(train_ddgan.RECIPES) <= set(losses.OBJECTIVES)  # a reader may add a row


# The numbers of the pages are those of the tables in figures/ and of the shipped weights

@pytest.mark.parametrize("name", ["shipped", "objectives", "energy", "T", "T-2", "ddpm", "long", "ten", "temperature"])
def test_the_results_page_has_what_the_raters_marked(name):
    sources, raters = blind.read(HOME / "figures" / f"blind-{name}.csv")
    rows = [" | ".join(str(len(tiles & raters[rater])) for rater in sorted(raters)) for tiles in sources.values()]
    assert re.search(r"[^\n]*\n\|[^\n]*\| ".join(map(re.escape, ["", *rows])), PAGES["RESULTS.md"])  # one below another


def test_the_results_page_has_what_its_commands_print(tmp_path, capsys):
    results = claims.read(HOME / "figures/claims.csv")
    claims.print_rates(results, tmp_path / "stability.png")
    claims.print_steps(results)
    fid.print_table(fid.read_csv(HOME / "figures/trilemma.csv"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if not line.startswith("wrote")]
    assert len(lines) > 30
    for line in lines:
        assert line in PAGES["RESULTS.md"], line


@pytest.mark.parametrize(("title", "file", "digits"), [("FID", "sweep", 2), ("FID, 64 dimensions", "sweep-64", 3)])
def test_the_results_page_has_every_run_of_the_sweep(title, file, digits):
    scores = {row["name"]: f"{float(row['fid']):.{digits}f}" for row in fid.read_csv(HOME / f"figures/{file}.csv")
              if row["samples"] == "10000" and re.fullmatch(r"[a-z-]+-\d+", row["name"])}
    page, found = PAGES["RESULTS.md"], {}
    table = re.search(rf"\| {title} \| T = 1 \| 2 \| 4 \| 6 \| 8 \| 10 \|\n[|-]+\n(.*?)\n\n", page, re.DOTALL)[1]
    for line in table.splitlines():
        objective, *cells = map(str.strip, line.strip("|").split("|"))
        found |= {f"{objective}-{T}": cell.split()[0] for T, cell in zip((1, 2, 4, 6, 8, 10), cells) if cell}
    for T, *both in re.findall(r"^\| (\d+) \| (\d+\.\d\d) \+-.* \| (0\.\d{3}) \|$", page, re.MULTILINE):
        found[f"ddpm-{T}"] = both[file == "sweep-64"]
    assert found == scores


def test_the_results_page_has_every_seed():
    tables = [{row["name"]: float(row["fid"]) for row in fid.read_csv(HOME / f"figures/{file}.csv")
               if row["samples"] == "10000"} for file in ("sweep", "sweep-64")]
    for name in ("js-4", "hellinger-4", "js-10", "hellinger-10"):
        seeds = [name, f"{name}-seed1", f"{name}-seed2"]
        cells = [f"{table[seed]:.{digits}f}" for table, digits in zip(tables, (2, 3)) for seed in seeds]
        assert " | ".join(["| " + name.replace("-", ", T = "), *cells]) + " |" in PAGES["RESULTS.md"], name


def test_the_results_page_has_the_models_at_every_temperature():
    hot, cold = (fid.read_csv(HOME / f"figures/{file}.csv") for file in ("shipped", "temperature"))
    table = [row | {"sampler": "temperature 1"} for row in hot if row["name"] in ("ddgan", "siddm")] + cold
    cells = {}
    for row in table:
        digits = 2 if row["features"] == "fashion" else 4
        cells.setdefault((row["name"].upper(), row["sampler"].split()[1]), {})[row["features"]] = (
            f"{float(row['fid']):.{digits}f} +- {float(row['spread']):.{digits}f} | {float(row['precision']):.3f} | "
            f"{float(row['recall']):.3f}")
    assert len(cells) == 10
    for (name, temperature), scores in cells.items():
        line = f"| {name} | {temperature} | {scores['fashion']} | {scores['fashion-64']} |"
        assert line in PAGES["RESULTS.md"], line


def test_every_fid_with_a_spread_is_in_a_table():
    tables = [path for path in (HOME / "figures").glob("*.csv") if path.read_text().startswith("name,method")]
    rows = [row for path in tables for row in fid.read_csv(path)]
    scores = {(*(f"{float(row[name]):.2f}" for name in ("fid", "spread")),
               *(f"{float(row[name]):.3f}" for name in ("precision", "recall"))) for row in rows}
    parts = re.split(r"^## ", PAGES["RESULTS.md"], flags=re.MULTILINE)  # those of a GPU and the bits are in none
    text = "".join(part for part in parts if not part.startswith(("On a GPU", "Bits")))
    shown = set(re.findall(r"(\d+\.\d\d) \+- (\d\.\d\d)(?!\d)", text))
    assert len(shown) > 10 and shown <= {score[:2] for score in scores}
    with_precision = set(re.findall(r"(\d+\.\d\d) \+- (\d\.\d\d) \| (0\.\d{3}) \| (0\.\d{3}) \|", text))
    assert len(with_precision) > 20 and with_precision <= scores


@pytest.mark.parametrize(("name", "T", "steps", "batch"), [
    ("ddpm", 1000, 28_000, 64), ("ddgan", 4, 34_000, 32), ("ddgan-1", 1, 34_000, 32), ("siddm", 4, 34_000, 32)])
def test_the_shipped_models_are_those_of_the_readmes_table(name, T, steps, batch):
    args = torch.load(HOME / f"weights/{name}.pt", weights_only=True)["args"]
    assert (args["T"], args["step"], args["batch"]) == (T, steps, batch)
    assert args["network"]["width"] == 48  # all have the same
    (row,) = (row for row in fid.read_csv(HOME / "figures/shipped.csv")
              if (row["name"], row["features"]) == (name, "fashion") and "ddim" not in row["sampler"])
    numbers = rf"{steps:,} x {batch} \| {row['steps']} \| {float(row['fid']):.2f} \| {float(row['recall']):.3f} \|"
    numbers += rf" {float(row['seconds']):.2g} \|"
    assert re.search(rf"^\|[^\n]*T = {T}[^\n]*\| {numbers}", PAGES["README.md"], re.MULTILINE)
