"""`list` names the targets; `check` runs their seeds and changed inputs; `search TARGET SECONDS` fuzzes one."""

import base64
import binascii
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from fuzz import limits, mutations

MEMORY = 1 << 30  # bytes more than a process takes when it begins


def check(*names: str) -> int:
    """Prints a JSON object a line for each input that breaks the contract; of all targets where none is named."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others set 1 GiB aside
    from fuzz import targets

    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        limits.limit_memory(MEMORY)
        for name in names or targets.TARGETS:
            home = targets.prepare(name, Path(folder, name))
            rng = np.random.default_rng(binascii.crc32(name.encode()))
            sound = targets.seeds(name)
            picked = (sound[rng.integers(len(sound))] for _ in range(targets.TARGETS[name].rounds))
            changed = (mutations.mutate(rng, data, sound) for data in picked)
            for data in (*sound, *changed):
                try:
                    targets.run(name, home, data)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:
                    broken += 1
                    found = {"target": name, "error": f"{type(error).__name__}: {error}"[:500]}
                    print(json.dumps(found | {"input": base64.b64encode(data[:100_000]).decode()}), flush=True)
    return int(broken > 0)


def search(name: str, seconds: str) -> int:
    """Runs atheris (libFuzzer) on a target; what breaks the contract is written beside the seeds."""
    import atheris

    with atheris.instrument_imports(include=["bertgpt", "train"]):
        from fuzz import targets

    sound = targets.seeds(name)
    kept = targets.SEEDS / targets.TARGETS[name].seeds
    kept.mkdir(exist_ok=True)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, most)
        return mutations.mutate(rng, data, sound)[:most]

    with tempfile.TemporaryDirectory() as folder:
        home = targets.prepare(name, Path(folder, "home"))
        inputs = Path(folder, "inputs")
        inputs.mkdir()
        for number, data in enumerate(sound):
            (inputs / str(number)).write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/", f"-timeout={2 * targets.SECONDS}"]
        options += [f"-malloc_limit_mb={MEMORY >> 20}", "-rss_limit_mb=3000", "-max_len=200000"]
        arguments = [sys.argv[0], *options, str(inputs)]
        atheris.Setup(arguments, lambda data: targets.run(name, home, data), custom_mutator=change)
        atheris.Fuzz()
    return 0


def show() -> int:
    """Prints the names of the targets."""
    from fuzz import targets

    print(*targets.TARGETS)
    return 0


VERBS = {"list": show, "check": check, "search": search}

if __name__ == "__main__":
    sys.exit(VERBS[sys.argv[1]](*sys.argv[2:]))
