"""`python -m train COMMAND ...`: parse the arguments, run one command, report an error as one line and an exit code."""

import argparse
import difflib
import errno
import faulthandler
import hashlib
import importlib
import importlib.metadata
import os
import select
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from bertgpt.errors import InputError, one_line

from . import interrupts
from .atomic_files import user_cache

VERBS = {
    "prepare": "tokenize a corpus to a token store",
    "pretrain": "pretrain BERT or GPT-1 from a configuration",
    "finetune": "fine-tune BERT or GPT-1 on a task from a configuration",
    "glue": "fine-tune a model on GLUE, with scores beside the published ones",
    "squad": "the same on SQuAD 1.1 and 2.0",
    "plan": "print the parameters, FLOPs and memory that a run needs",
    "report": "draw the curves of one or several runs and print their final results",
    "fill-mask": "fill [MASK] in a text with a BERT",
    "evaluate": "score a fine-tuned model on labelled rows",
    "predict": "predict with a fine-tuned model",
    "generate": "continue a text with a GPT-1",
    "embed": "turn texts into vectors",
    "score": "print how likely a model finds texts: log-probabilities and perplexity",
    "inspect": "show what a run or model folder contains",
    "export": "write a model as a Hugging Face folder or as StableHLO",
}
PROGRAM = "python -m train" if __package__ == "train" else "bertgpt"  # as the user started it
TRAINER = ("grain", "matplotlib", "optax", "orbax", "rich", "yaml")  # the packages of the extra `train`
FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
    errno.ENOENT,  # a folder that cannot be made, or a file that somebody removed meanwhile
)


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError for a wrong argument, like any other mistake of the user."""

    def error(self, message: str) -> NoReturn:
        message = message.replace(", KEY=VALUE", "")  # argparse calls it required too
        raise InputError(f"{message}; {self._advice(message)}see {self.prog} --help")

    def _advice(self, message: str) -> str:
        """What the user may have meant by arguments that are unknown."""
        given = message.removeprefix("unrecognized arguments: ")
        if given == message:
            return ""
        options = [one.partition("=")[0] for one in given.split() if one.startswith("--")]
        if not options:
            return "put a text of several words in quotes; "
        if any(action.dest == "config" for action in self._actions):
            from .config import option_hint

            return "settings are given as key=value; " + "".join(map(option_hint, options))
        known = [name for action in self._actions for name in action.option_strings]
        near = [found for one in options for found in difflib.get_close_matches(one.replace("_", "-"), known, 1)]
        return f"did you mean {', '.join(near)}? " if near else ""


class Version(argparse.Action):
    """Print the versions and devices that a bug report needs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        import jax

        versions = (f"{name} {importlib.metadata.version(name)}" for name in ("bertgpt", "jax", "jaxlib", "flax"))
        problem = device_problem()
        if problem is None:
            problem = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
        print(*versions, f"devices: {problem}", sep="\n")
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for a mistake of the user (one line on stderr), 1 for a bug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
    parser = Parser(prog=PROGRAM, description="Pretrain, fine-tune and use BERT and GPT-1.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the versions and the devices")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text, add_help=False)
    try:
        if arguments and not arguments[0].startswith("-"):
            check_verb(arguments[0])
        verb = parser.parse_args(arguments[:1]).verb
        command = importlib.import_module(f".cli.{verb.replace('-', '_')}", __package__)
        options = Parser(prog=f"{PROGRAM} {verb}", description=command.__doc__)
        command.add_arguments(options)
        parsed = options.parse_intermixed_args(arguments[1:])
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            command.run(parsed)
        return 0
    except KeyboardInterrupt:
        return interrupts.CODE
    except BrokenPipeError:
        return leave_broken_pipe()
    except Exception as error:
        return leave(error)


def check_verb(given: str) -> None:
    """
    Raises:
        InputError: there is no such command; the error names the nearest.
    """
    if given not in VERBS:
        near = difflib.get_close_matches(given, VERBS, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{given}: no such command; {meant}the commands are {', '.join(VERBS)}")


def leave_broken_pipe() -> int:
    """Return 0 if the reader of stdout closed the pipe; 1 if stderr is closed, and no error can be shown."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return 1
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def compiled_folder() -> Path:
    """The folder of JAX's compilation cache.

    Its name contains a hash of the processor's flags: a home folder may be shared by machines, and a program compiled
    for one processor may not run on another.
    """
    cpu = Path("/proc/cpuinfo")
    flags = {line for line in cpu.read_text().splitlines() if line.startswith("flags")} if cpu.exists() else set()
    abilities = hashlib.sha256("".join(sorted(flags)).encode()).hexdigest()[:8]
    return user_cache() / f"compiled-{abilities}"


def leave(error: Exception) -> int:
    """Print an error and return the exit code.

    In a run of several processes, exit immediately: JAX would wait for the other processes, which may never arrive.
    """
    hosts = sys.modules.get(f"{__package__}.hosts")
    if hosts is None or not hosts.several():
        return explain(error)
    if hosts.is_lost_peer(error):
        print(f"error: {hosts.lost(error)}", file=sys.stderr)
        code = 1
    else:
        code = explain(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if hosts.is_first():
        time.sleep(2)  # the other processes exit with it: let them print the same error first
    os._exit(code)


def show_warning(message: Any, *_: Any) -> None:
    """Print a warning as one line on stderr, without its location in the code."""
    print(f"warning: {message}", file=sys.stderr)


def explain(error: Exception) -> int:
    """Print an error and return the exit code: one line and 2 if the user can fix it, else a traceback and 1."""
    text = one_line(str(error))
    number = getattr(error, "errno", None)
    if isinstance(error, InputError):
        message = text
    elif isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in TRAINER:
        message = f"{error.name} is not installed; pip install 'bertgpt[train]'"
    elif number in FULL or "No space left on device" in text or "ENOSPC" in text:
        message = f"disk full: {text[:300]}; free some space and run the command again"
    elif number in DENIED or "os_error_code" in text:  # as the library that writes checkpoints reports it
        message = f"cannot write or read: {text}"
    elif number == errno.ENAMETOOLONG:
        message = f"a name is too long for the file system: {text}; give a shorter one"
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        message = (
            "out of memory: lower the batch (train.batch_size, or --batch-size or --samples), or raise "
            f"train.accumulate ({text[:200]})"
        )
    elif type(error).__name__ == "NotFiniteError":
        print(f"error: {text}", file=sys.stderr)
        return 1
    elif (problem := device_problem()) is not None:
        message = problem
    else:
        traceback.print_exception(error)
        return 1
    print(f"error: {message}", file=sys.stderr)
    return 2


def device_problem() -> str | None:
    """Why JAX has no devices, in one line with what to do; None if it has some, or was not asked for any.

    Not asked in a run of several processes, which may all have to answer together.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.distributed.is_initialized():
        return None
    try:
        jax.devices()
        return None
    except Exception as error:  # JAX raises RuntimeError, and AssertionError for a platform that it knows but lacks
        reason = one_line(str(error)).partition(" (")[0].rstrip(".") or "it is not installed"
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return f"JAX finds no device: {reason}; set JAX_PLATFORMS=cpu to use the CPU"
    return (
        f"JAX_PLATFORMS is {wanted}, but JAX cannot use it: {reason}; set it to cpu, or install the platform "
        "(cuda, tpu: make install EXTRA=cuda or EXTRA=tpu)"
    )


def console() -> NoReturn:
    """The entry point: run a command and exit with its code.

    On SIGUSR1, and when a fault such as SIGSEGV ends the process, the Python stacks of all threads are written to
    stderr.
    """
    if sys.stderr is not None:  # it is None if the user closed it
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1)
    interrupts.install()
    code = main()
    if interrupts.RECEIVED.is_set():  # a library may have made another error of it
        code = interrupts.CODE
    if code == interrupts.CODE:  # JAX may have been interrupted while it started; the normal exit can crash then
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    console()
