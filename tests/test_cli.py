"""cli.py: a user's mistake is one line, nothing is lost, and printing never fails."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cli
from data import label, save_figure, subplots

HERE = Path(cli.__file__).parent
SCRIPTS = sorted(str(path.relative_to(HERE)) for folder in (HERE, HERE / "experiments") for path in folder.glob("*.py")
                 if "cli.script(main)" in path.read_text(encoding="utf-8"))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)


def script(tmp_path, body, *flags, **options):
    """Run a small script as a user would; returns its finished process."""
    path = tmp_path / "script.py"
    path.write_text(f"import cli\n{body}\n")
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, path, *flags], cwd=tmp_path, env=environment, text=True, timeout=60,
                          check=False, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


# Flags and errors

@pytest.mark.parametrize(("options", "text", "says"), [
    ({"kind": int, "low": 1}, "0", "0 is not an integer of at least 1"),
    ({"kind": int, "low": 1, "high": 1000}, "1001", "1001 is not an integer of at least 1 and of at most 1000"),
    ({"kind": int}, "1.5", "1.5 is not an integer"),
    ({"kind": int}, "9" * 400, "is not an integer"),
    ({"kind": float, "above": 0}, "0", "0 is not a number above 0"),
    ({"kind": float, "low": 0, "below": 1}, "1", "1 is not a number of at least 0 and below 1"),
    ({"kind": float}, "nan", "nan is not a number"),
    ({"kind": float}, "inf", "inf is not a number"),
    ({"kind": float}, "many", "many is not a number"),
])
def test_a_wrong_number_is_one_line_that_says_the_right_ones(options, text, says, capsys):
    parser = cli.Parser(prog="train")
    parser.add_argument("--T", type=cli.number(**options))
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--T", text])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("train: error: argument --T: ") and error.count("\n") == 1
    assert says in error and error.endswith(" (see --help)\n")


def test_numbers_at_their_bounds_are_accepted():
    assert cli.number(int, low=1, high=4)("1") == 1 and cli.number(int, low=1, high=4)("4") == 4
    assert cli.number(float, above=0, below=1)("1e-9") == 1e-9
    assert type(cli.number(float, low=0)("0")) is float


def test_help_shows_the_defaults():
    parser = cli.Parser()
    parser.add_argument("--T", default=4, help="denoising steps")
    assert "denoising steps (default: 4)" in parser.format_help()


def test_bad_input_is_one_line_and_status_2(tmp_path):
    done = script(tmp_path, "def main():\n    raise cli.BadInput('T is 0:\\nuse 1')\ncli.script(main)")
    assert (done.returncode, done.stderr, done.stdout) == (2, "script.py: error: T is 0: use 1\n", "")


def test_a_bug_keeps_its_traceback(tmp_path):
    done = script(tmp_path, "def main():\n    raise ValueError('a bug')\ncli.script(main)")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_control_c_is_status_130_and_quiet():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.script(interrupted)
    assert caught.value.code == 130


def test_a_reader_of_the_output_that_has_left_is_status_141_and_quiet(tmp_path):
    read, write = os.pipe()
    os.close(read)  # as `| head` does when it has its lines
    done = script(tmp_path, "cli.script(lambda: print('a table'))", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# Writing files

def test_a_file_appears_whole_with_its_folder_and_suffix(tmp_path):
    path = tmp_path / "new" / "folder" / "x.npy"
    cli.check_writable(path)
    assert list(tmp_path.iterdir()) == []
    with cli.write_atomically(path) as temporary:
        np.save(temporary, PIXELS)
        assert temporary.parent == path.parent and not path.exists()
    assert np.array_equal(np.load(path), PIXELS) and os.listdir(path.parent) == ["x.npy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ZeroDivisionError])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "model.pt"
    path.write_text("old")
    with pytest.raises(error), cli.write_atomically(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("name", ["folder", "file/x.png", "file/deeper/x.png", "x" * 300, "fifo"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    before = sorted(os.listdir(tmp_path))
    path = tmp_path / name
    with pytest.raises(cli.BadInput, match="cannot write .*choose another path") as caught:
        cli.check_writable(path)
    assert str(path) in str(caught.value)
    with pytest.raises(cli.BadInput), cli.write_atomically(path) as temporary:
        temporary.write_text("")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("write", ["np.save(p, x.numpy())", "torch.save(x, p)", "torch.save(x, open(p, 'wb'))"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, write):
    body = f"""
import numpy as np, torch
x = torch.zeros(100_000)
def main():
    with cli.write_atomically("out/x.npy") as p:
        {write}
cli.script(main)"""
    limit = (100_000, 100_000)  # bytes a file may have, in place of a full disk; x takes 400,000
    done = script(tmp_path, body, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write out/x.npy" in done.stderr and os.listdir(tmp_path / "out") == []


def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    for name, old in (("there.csv", "old"), ("new.csv", None)):
        target, link = tmp_path / "real" / name, tmp_path / name
        if old:
            target.write_text(old)
        link.symlink_to(target)
        with cli.write_atomically(link) as temporary:
            temporary.write_text("new")
        assert link.is_symlink() and target.read_text() == "new"


@pytest.mark.parametrize("name", [
    "é ü 漢.txt",
    "$a$_^{.txt",
    "_hidden",
    "x" * 255,
    "y." + "z" * 253,
    b"\xff\xfe.txt",
    "two\nlines"])
def test_every_file_name_that_the_system_allows_can_be_written_and_shown(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name if isinstance(name, bytes) else name.encode())
    path = os.fsdecode(path)
    with cli.write_atomically(path) as temporary:
        temporary.write_text("whole")
    assert Path(path).read_text() == "whole" and len(os.listdir(tmp_path)) == 1
    figure, axes = subplots()
    axes.plot([0, 1], label=label(os.path.basename(path)))
    axes.set_title(label(os.path.basename(path)))
    assert len(axes.get_legend_handles_labels()[1]) == 1  # a label with _ in front would be hidden
    save_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


# Printing never fails

@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_stdout_has_not_is_escaped(tmp_path, encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = script(tmp_path, "cli.script(lambda: print('x\\u6f22y', '\\udcff'))")
    assert done.returncode == 0 and "\\u6f22" in done.stdout


def test_a_full_stdout_is_told_after_the_work(tmp_path):
    body = "def main():\n    print('a table', flush=True)\n    open('work', 'w').close()\ncli.script(main)"
    with open("/dev/full", "w") as full:
        done = script(tmp_path, body, stdout=full)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left" in done.stderr
        assert (tmp_path / "work").exists()
        assert script(tmp_path, "cli.script(lambda: print('x', file=__import__('sys').stderr))",
                      stderr=full).returncode == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_closed_stream_is_no_error_and_no_file_of_ours_takes_its_place(tmp_path, number):
    body = ("def main():\n    import sys\n    print('out')\n    print('err', file=sys.stderr)\n"
            "    open('work', 'w').write('w')\ncli.script(main)")
    done = script(tmp_path, body, preexec_fn=lambda: os.close(number))
    assert done.returncode == 0 and (tmp_path / "work").read_text() == "w"


@pytest.mark.parametrize("error", ["MemoryError()", "torch.OutOfMemoryError('CUDA out of memory. Tried')",
                                   "RuntimeError('DefaultCPUAllocator: not enough memory: you tried')"])
def test_a_full_memory_is_one_line_that_names_the_batch(tmp_path, error):
    done = script(tmp_path, f"import torch\ndef main():\n    raise {error}\ncli.script(main)")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--batch" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_control_c_is_quiet_even_while_torch_is_imported(name, tmp_path):
    (tmp_path / "torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = subprocess.run([sys.executable, HERE / name, "--help"], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.stderr == done.stdout == "" and done.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "inline", "tkagg"])
def test_no_display_backend_is_ever_loaded(tmp_path, backend, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", backend)
    body = f"""
import os, sys, data
figure, axes = data.subplots()
data.save_figure(figure, "x.png")
assert "matplotlib.pyplot" not in sys.modules and os.environ["MPLBACKEND"] == {backend!r}"""
    done = script(tmp_path, body)
    assert done.returncode == 0 and (tmp_path / "x.png").exists(), done.stderr


def test_nothing_is_written_over_what_is_read_or_over_another_output(tmp_path):
    (tmp_path / "model.pt").write_text("weights")
    (tmp_path / "link.png").symlink_to(tmp_path / "model.pt")
    for outputs, inputs in ((["model.pt"], ["model.pt"]), (["link.png"], ["model.pt"]),
                            (["a.png", None, "./a.png"], [])):
        outputs = [output and os.path.join(tmp_path, output) for output in outputs]
        with pytest.raises(cli.BadInput, match="would be written over"):
            cli.check_outputs(*outputs, inputs=[tmp_path / name for name in inputs])
    cli.check_outputs(tmp_path / "a.png", None, inputs=[tmp_path / "model.pt"])


def test_a_files_mode_is_kept(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    path.chmod(0o640)
    with cli.write_atomically(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(text, capsys):
    parser = cli.Parser(prog="train")
    parser.add_argument("--out", type=cli.path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", text])
    assert "is not the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_signal_of_a_closing_terminal_changes_nothing_but_a_second_control_c_stops(number):
    with cli.signals_noted() as received:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert received == [number, number]
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_after_a_reader_has_left_the_work_goes_on(tmp_path):
    read, write = os.pipe()
    os.close(read)
    body = ("def main():\n    print('a', flush=True)\n    open('work', 'w').close()\n    print('b', flush=True)\n"
            "cli.script(main)")
    done = script(tmp_path, body, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "") and (tmp_path / "work").exists()


def test_help_into_a_full_disk_is_one_line(tmp_path):
    body = "cli.script(lambda: cli.Parser().parse_args(['--help']))"
    with open("/dev/full", "w") as full:
        done = script(tmp_path, body, stdout=full)
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_importing_a_file_loads_no_library_that_its_use_does_not_need():
    code = "import sys, cli, data, diffusion, losses, unet, model, run, features, fid, sample; print([m for m in " \
           "('matplotlib', 'torchvision', 'scipy', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True,
                          check=True).stdout == "[]\n"
