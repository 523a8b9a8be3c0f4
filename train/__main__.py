"""`python -m train VERB ...`: parses, runs one verb, and turns what goes wrong into one line and an exit code."""

import argparse
import errno
import hashlib
import importlib
import importlib.metadata
import os
import select
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from bertgpt.errors import InputError

from .atomic_files import user_cache

VERBS = {
    "prepare": "tokenize a corpus to a token store",
    "pretrain": "pretrain BERT or GPT-1 from a configuration",
    "finetune": "fine-tune BERT or GPT-1 on a task from a configuration",
    "plan": "tell what a configuration needs, without making it",
    "report": "draw a run's curves and tell where it ended",
    "fill-mask": "fill [MASK] in a text with a BERT",
    "evaluate": "score a fine-tuned model on labelled rows",
    "predict": "tell what a fine-tuned model says of texts",
    "generate": "continue a text with a GPT-1",
    "embed": "turn texts into vectors",
    "export": "write a model as a Hugging Face folder or as StableHLO",
}
PROGRAM = "python -m train" if __package__ == "train" else "bertgpt"  # as the user has started it
TRAINER = ("grain", "matplotlib", "optax", "orbax", "rich", "yaml")  # the packages of the extra `train`
FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like every other mistake of the user."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


class Version(argparse.Action):
    """Prints the versions that a report of a fault needs, and the devices."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        import jax

        versions = (f"{name} {importlib.metadata.version(name)}" for name in ("bertgpt", "jax", "jaxlib", "flax"))
        device = f"{jax.devices()[0].device_kind} ({jax.default_backend()})"
        print(*versions, f"devices: {jax.device_count()} x {device}", sep="\n")
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; returns 0, 2 for a user's mistake (one line on stderr), or 1 for a fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
    parser = Parser(prog=PROGRAM, description="Pretrain, fine-tune and use BERT and GPT-1.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the versions and the devices")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text, add_help=False)
    try:
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
        return 130
    except BrokenPipeError:
        return leave_broken_pipe()
    except Exception as error:
        return leave(error)


def leave_broken_pipe() -> int:
    """0 where whoever read our output has had enough; 1 where nobody reads stderr, so that nothing can be told."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return 1
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def compiled_folder() -> Path:
    """Where compiled programs are kept from one start to the next; apart for processors of other abilities, since a
    home may be shared, and a program of one may not run on another."""
    cpu = Path("/proc/cpuinfo")
    flags = {line for line in cpu.read_text().splitlines() if line.startswith("flags")} if cpu.exists() else set()
    abilities = hashlib.sha256("".join(sorted(flags)).encode()).hexdigest()[:8]
    return user_cache() / f"compiled-{abilities}"


def leave(error: Exception) -> int:
    """Explains what went wrong, and its exit code; one process of several goes at once, since the others may never come
    to the point where JAX waits for all."""
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
        time.sleep(2)  # the others end with it: let those that met the same error tell so
    os._exit(code)


def show_warning(message: Any, *_: Any) -> None:
    """One line on stderr, without the place in the code."""
    print(f"warning: {message}", file=sys.stderr)


def explain(error: Exception) -> int:
    """One line on stderr for what a user can mend, and 2; a traceback for the rest, and 1."""
    text = " ".join(str(error).split())
    number = getattr(error, "errno", None)
    if isinstance(error, InputError):
        message = text
    elif isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in TRAINER:
        message = f"{error.name} is not installed; pip install 'bertgpt[train]'"
    elif number in FULL or "No space left on device" in text or "ENOSPC" in text:
        message = f"disk full: {text[:300]}; free some space and give the same command again"
    elif number in DENIED:
        message = f"cannot write or read: {text}"
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        message = f"out of memory: lower train.batch_size or raise train.accumulate ({text[:200]})"
    elif type(error).__name__ == "NotFiniteError":
        print(f"error: {text}", file=sys.stderr)
        return 1
    else:
        traceback.print_exception(error)
        return 1
    print(f"error: {message}", file=sys.stderr)
    return 2


def console() -> NoReturn:
    """The command: runs a verb and ends the process with its exit code."""
    code = main()
    if code == 130:  # JAX may have been stopped while it started; the interpreter's own end can crash then
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    console()
