"""Command-line helpers shared by the scripts: flags, one-line errors, files written whole.

Scripts import this file first: from then on Ctrl-C ends them quietly, even while torch is still being imported.
"""

import argparse
import contextlib
import errno
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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
    """Appends the default, unless there is none or the help text already names it."""

    def _get_help_string(self, action):
        told = action.default is None or action.default is False or "default" in action.help
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that shows the defaults, and answers a wrong flag with one line instead of the whole usage."""

    def __init__(self, doc="", **kwargs):  # doc: a script's docstring
        first_line = doc.partition("\n")[0]
        super().__init__(description=first_line, formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see --help)\n")


def number(kind, low=None, high=None, above=None, below=None):
    """An argparse type: a finite int or float with low <= value <= high and above < value < below, where given.

    An int without `high` is at most a thousand million: what is larger overflows somewhere inside torch.
    """
    high = 10**9 if kind is int and high is None else high
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


def path(text):
    """An argparse type: the name of a file or folder. An empty name (from an unset shell variable) is refused."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file or folder")
    return text


def default_device():
    """The GPU if there is one, else the CPU: a torch.device."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device(name):
    """An argparse type: a torch.device of this machine, cpu or cuda."""
    import torch

    with contextlib.suppress(RuntimeError, AssertionError):
        if torch.device(name).type in ("cpu", "cuda"):
            return torch.zeros(1, device=name).device
    there = " or ".join(["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"])
    raise argparse.ArgumentTypeError(f"this machine has no device {name}: use {there}")


def one_line(text):
    """An error's text without its line breaks."""
    return " ".join(str(text).split())


def script(main):
    """Run main() as a command.

    BadInput and a full memory are one line on stderr and status 2. Ctrl-C is status 130. Where stdout or stderr cannot
    be written to, main() goes on, and the status is 1 in the end, or 141, quietly, if the reader has left (`| head`).
    Bugs keep their traceback.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)
    try:
        status = run(main)
        sys.stdout.flush()
        if error := sys.stdout.error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at exit, and would fail again
            if error.errno == errno.EPIPE:
                sys.exit(141)  # 128 + SIGPIPE
            print(f"{Path(sys.argv[0]).name}: error: cannot print: {error.strerror}", file=sys.stderr)
        if status or error:
            sys.exit(status or 1)
    finally:
        sys.stdout, sys.stderr = streams


def run(main):
    """The exit status of main(), with its error told in one line."""
    try:
        main()
        return 0
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell reports it
    except BadInput as error:
        message = one_line(error)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        full = any(words in str(error) for words in ("out of memory", "not enough memory", "allocate memory"))
        if not full and not isinstance(error, MemoryError):
            raise
        message = f"the memory is full ({one_line(error)[:99] or 'MemoryError'}): try a smaller --batch or fewer images"
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    return 2


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
            self.error = error

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def signals_noted():
    """Within the block Ctrl-C, SIGTERM and SIGHUP only add their number to the list that it yields.

    A second Ctrl-C stops at once; not a second SIGHUP, for a terminal that closes may send two. What is ignored stays
    so (nohup), and outside the main thread, where Python takes no signals, nothing changes.
    """
    received, handlers = [], {}
    if threading.current_thread() is threading.main_thread():
        numbers = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")} - {None}  # None: Windows
        handlers = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}

    def note(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, handlers[number])

    try:
        for number in handlers:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def printable(name):
    """A file's name without what a terminal or a table would stumble over."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


# -- files ----------------------------------------------------------------------------------------------------


def check_writable(path):
    """Raise BadInput if a file could not be written at path; leaves nothing behind. Call it before hours of work."""
    target = Path(os.path.realpath(path))  # what a link points to
    try:
        if target.exists() and not target.is_file():  # a folder, or a device that os.replace would destroy
            raise OSError(None, "it exists and is not a file")
        if target.exists() and not os.access(target, os.W_OK):
            raise OSError(None, "it is read-only")
        folder = next(parent for parent in target.parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()
        with contextlib.suppress(FileNotFoundError):
            target.stat()  # raises for a name that is too long; exists does not, from Python 3.14 on
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}; choose another path") from error


def check_outputs(*outputs, inputs=()):
    """check_writable for each output that is given, and BadInput if one is an input or another output."""
    taken = {os.path.realpath(path): path for path in inputs}
    for path in filter(None, outputs):
        check_writable(path)
        place = os.path.realpath(path)
        if place in taken:
            raise BadInput(f"{path} would be written over {taken[place]}, which is used here too: choose another name")
        taken[place] = path


@contextlib.contextmanager
def locked_folder(folder, wait=60.0):
    """Lock a folder, made if missing, for the block: no other process can hold it meanwhile.

    BadInput if it cannot be made, or if another process still holds it after `wait` seconds. The system's lock ends
    with the process. Without locks (Windows, some file systems) nothing is held.
    """
    end = time.monotonic() + wait
    try:
        os.makedirs(os.path.realpath(folder), exist_ok=True)  # where a link points
        descriptor = os.open(folder if fcntl else os.devnull, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"cannot write into {folder}: {error.strerror}; choose another folder") from error
    try:
        while fcntl:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise BadInput(f"another run is writing into {folder}: choose another folder") from error
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_atomically(path):
    """Yield a temporary path in path's folder that becomes `path`, or what it links to, if the block succeeds.

    Creates the folder. On any failure, Ctrl-C included, the temporary file goes and an older `path` stays. An OSError
    of the block is taken for a failed write and raised as BadInput: do nothing but the writing in it. (np.save adds
    .npy to a path of another suffix, and so writes beside the temporary one: give it an open file.)
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{os.getpid()}.tmp{target.suffix[:9]}")  # short: a name may have up to 255 bytes
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save on a full disk
            raise
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot write {path}: {reason}; free some space or choose another path") from error
    finally:
        with contextlib.suppress(OSError):  # most often: it has been moved into place
            temporary.unlink()
