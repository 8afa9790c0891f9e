"""Command-line helpers shared by the scripts: flags, one-line errors, files written whole, pictures without a display.

Scripts import this file first: from then on Ctrl-C ends them quietly, even while torch is still being imported.
"""

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path


def quiet_interrupt(kind, error, trace):
    """sys.excepthook that prints nothing for Ctrl-C, whose status 130 says enough."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:  # not in a notebook, which has a hook of its own
    sys.excepthook = quiet_interrupt


# -- flags and errors -----------------------------------------------------------------------------------------


class BadInput(ValueError):
    """A user's mistake: a message of one line that names the value and the way out."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, but where there is none, or where the text itself says it."""

    def _get_help_string(self, action):
        told = action.default is None or action.default is False or "default" in action.help
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that shows the defaults, and answers a wrong flag with one line instead of the whole usage."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see --help)\n")


def number(kind, low=None, high=None, above=None, below=None):
    """An argparse type: a finite int or float with low <= value <= high and above < value < below, where given."""
    bounds = [f"{word} {bound}" for word, bound in
              (("of at least", low), ("of at most", high), ("above", above), ("below", below)) if bound is not None]
    wanted = " ".join(["an integer" if kind is int else "a number", " and ".join(bounds)]).strip()

    def parse(text):
        try:
            value = kind(text)
            good = (math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
                    and (above is None or value > above) and (below is None or value < below))
        except (ValueError, OverflowError):  # isfinite overflows on an int of 400 digits
            good = False
        if not good:
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return parse


SEED = number(int, 0, 2**63 - 1)


def default_device():
    """The GPU if there is one, else the CPU: a torch.device."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device(name):
    """An argparse type: a torch.device of this machine, cpu or cuda."""
    import torch

    try:
        if torch.device(name).type in ("cpu", "cuda"):
            return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        pass
    there = " or ".join(["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"])
    raise argparse.ArgumentTypeError(f"{name} is no device of this machine: use {there}")


def one_line(text):
    """An error's text without its line breaks."""
    return " ".join(str(text).split())


def script(main):
    """Run main() as a command.

    BadInput and a full memory are one line on stderr and status 2. Ctrl-C is status 130, and a reader of stdout that has
    left (`| head`) is 141, both quiet. Where stdout or stderr cannot be written to, main() goes on; the status is then 1.
    Bugs keep their traceback.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)
    try:
        main()
        sys.stdout.flush()
        if sys.stdout.error:
            discard_stdout()
            print(f"{Path(sys.argv[0]).name}: error: cannot print: {sys.stdout.error.strerror}", file=sys.stderr)
            sys.exit(1)
    except BadInput as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as a shell reports it
    except BrokenPipeError:
        discard_stdout()
        sys.exit(141)  # 128 + SIGPIPE
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        full = any(words in str(error) for words in ("out of memory", "not enough memory", "allocate memory"))
        if not full and not isinstance(error, MemoryError):
            raise
        fail(f"the memory is full ({one_line(error)[:99] or 'MemoryError'}): try a smaller --batch")
    finally:
        sys.stdout, sys.stderr = streams


def discard_stdout():
    """Send what is left to print to nowhere: Python flushes it once more at exit, and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def fail(message):
    print(f"{Path(sys.argv[0]).name}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


class Stream:
    """stdout or stderr to which printing never fails: not on a full disk, not closed, not for want of a character."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115 - None: it was closed when Python began
        self.error = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text):
        return self._try(self.stream.write, text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, function, *args):
        try:
            return function(*args)
        except OSError as error:
            if error.errno == errno.EPIPE and self.stream is sys.__stdout__:
                raise
            self.error = error

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def signals_noted():
    """Within the block Ctrl-C, SIGTERM and SIGHUP only add their number to the list that it yields; a second one stops at once.

    What is ignored stays so (nohup), and outside the main thread, where Python takes no signals, nothing changes.
    """
    received, handlers = [], {}
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]  # Windows has none
        handlers = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}

    def note(number, frame):
        received.append(number)
        signal.signal(number, handlers[number])

    try:
        for number in handlers:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# -- files ----------------------------------------------------------------------------------------------------


def check_writable(path):
    """Raise BadInput if a file could not be written at path; leaves nothing behind. For before hours of work."""
    target = Path(os.path.realpath(path))  # what a link points to
    try:
        if target.exists() and not target.is_file():  # a folder, or a device that os.replace would destroy
            raise OSError(None, "it exists and is not a file")
        folder = next(parent for parent in target.parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()
        target.exists()  # raises for a name that is too long
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}; choose another path") from error


@contextlib.contextmanager
def write_atomically(path):
    """Yield a temporary path in path's folder that becomes `path`, or what it links to, if the block succeeds.

    Creates the folder. On any failure, Ctrl-C included, the temporary file goes and an older `path` stays. An OSError
    of the block is taken for a failed write and raised as BadInput: do nothing but the writing in it. (np.save adds
    .npy to a path of another suffix, and so writes beside the temporary one: give it an open file.)
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{os.getpid()}.tmp{target.suffix[:9]}")  # short: a name may have as many as 255 bytes
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save on a full disk
            raise
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot write {path}: {reason}; free some space or choose another path") from error
    finally:
        with contextlib.suppress(OSError):  # most often: it has been moved into place
            temporary.unlink()


# -- pictures -------------------------------------------------------------------------------------------------


def subplots(*shape, **options):
    """matplotlib's subplots without pyplot, so that no display is needed, whatever backend MPLBACKEND names."""
    backend = os.environ.pop("MPLBACKEND", None)  # one that is not installed would stop the import
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    grid = {name: options.pop(name) for name in ("squeeze", "width_ratios", "height_ratios") if name in options}
    figure = Figure(**options)
    return figure, figure.subplots(*shape, **grid)


def save_figure(figure, path, dpi=150):
    """Write a matplotlib figure as PNG."""
    with write_atomically(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name in letters that the font lacks
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")


def label(name):
    """A file's name for a figure or a table: printable, and none of it read as mathematics or as a hidden legend."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def image_grid(images, columns):
    """uint8 images (N, C, H, W) in rows of `columns`: one uint8 image (H', W', 3). Of C other than 1 or 3 the first channel is shown."""
    from torchvision.utils import make_grid

    shown = images if images.shape[1] in (1, 3) else images[:, :1]
    return make_grid(shown, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy()  # (3, H', W') -> (H', W', 3)


def save_grid(images, path, columns=8):
    """Write uint8 images (N, C, H, W) as one PNG of `columns` columns, each pixel twice as wide and high."""
    from PIL import Image

    grid = Image.fromarray(image_grid(images, columns))
    with write_atomically(path) as temporary:
        grid.resize((2 * grid.width, 2 * grid.height), resample=0).save(temporary, "PNG")
