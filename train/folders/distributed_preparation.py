"""Corpus preparation as one datatrove pipeline: tasks in local processes, on Ray or on Slurm, then a merge.

A work folder next to the store contains the tokenizer, the parts and datatrove's `completions`, so the same command
again runs only the tasks that remain. Its name is a hash of the settings and of the tokenizer (if the tokenizer is
trained, of the files of the text instead). A part records its input files with their sizes and modification times; if
these have changed, the part is made again.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.slurm import launch_slurm_job
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from tokenizers import Tokenizer

from bertgpt.data.text import store, store_shards, workers
from bertgpt.data.text.text_source import Files, TextSource
from bertgpt.errors import InputError
from bertgpt.tokenizers import tokenizer_from_str

from ..atomic_files import write_first

PACKAGE = __package__.partition(".")[0]  # the trainer's package: train, or bertgpt_train if installed
ROOT = str(Path(__file__).parent.parent.parent) if PACKAGE == "train" else ""  # of a checkout, for PYTHONPATH
TASK_MEMORY = 1  # GB that Ray reserves per task; docs/scale.md gives what a task uses

MAX_JOBS = 1000  # Slurm's default limit of an array; with more tasks, each job runs several

logger.disable("datatrove")  # it logs a traceback of each error to stderr; failure.txt has the error


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """How the work is distributed.

    Attributes:
        tasks: most tasks; there are never more than files.
        workers: tasks that run at once; None: one per core on this machine, no limit on Ray and Slurm.
        ray: run on the Ray cluster at RAY_ADDRESS, or a running local one, or a new local one.
        slurm: run on Slurm with these sbatch options, which must contain `partition` and `time`.
        command: arguments of `python -m train` for the same work on this machine; the last Slurm job uses it to merge.
    """

    tasks: int
    workers: int | None = None
    ray: bool = False
    slurm: dict[str, str] | None = None
    command: tuple[str, ...] = ()


def prepare(
    folder: Path,
    source: TextSource,
    wanted: dict[str, Any],
    make_tokenizer: Callable[[], Tokenizer],
    task_options: TaskOptions,
) -> bool:
    """Prepare a store in tasks; the result is byte-identical to that of `store.prepare`.

    Args:
        folder: the store's folder.
        source: the text.
        wanted: JSON values that identify the tokenizer.
        make_tokenizer: called if no earlier attempt has left a tokenizer.
        task_options: the tasks, and where they run.

    Returns:
        Whether the store is complete; False if the tasks were submitted to Slurm.

    Raises:
        InputError: as `store.prepare`; or a task failed.
    """
    store.check_replaceable(folder)
    files = source.files()
    stamps = store_shards.stamps(files)
    runs = store_shards.deal([size for _, size, _ in stamps], task_options.tasks)
    work = _work_folder(folder, [store.identity(source), wanted, None if "sha256" in wanted else stamps])
    step = TokenizeFiles(work, source, files, stamps, runs)
    executor = _executor(step, task_options)  # raises for a wrong option before a tokenizer is trained
    tokenizer = _keep_tokenizer(work, make_tokenizer)
    if _incomplete(executor, step):
        step.failure.unlink(missing_ok=True)
        with _ray() if task_options.ray else contextlib.nullcontext():
            executor.run()
        if task_options.slurm is not None:
            return False
        _check_complete(executor, step)
    with store.temporary_folder(folder) as new:
        part = store_shards.merge(new, [step.part_folder(rank) for rank in range(len(runs))], tokenizer)
        store.finish(folder, new, source, tokenizer, wanted, part)
    for stale in _work_folders(folder):
        shutil.rmtree(stale, ignore_errors=True)  # a network file system may keep an open log file
    return True


class TokenizeFiles(PipelineStep):
    """The pipeline step of a task: makes a part of the store from consecutive input files."""

    name = "token store"
    type = "tokenizer"

    def __init__(self, work: Path, source: TextSource, files: Files, stamps: list[tuple], runs: list[range]) -> None:
        """
        Args:
            work: the work folder, which contains the tokenizer.
            source: how the files are read.
            files: all files.
            stamps: path, size and modification time of each file.
            runs: for each task, the indices of its files.
        """
        super().__init__()
        self.work, self.source, self.files, self.stamps, self.runs = work.absolute(), source, files, stamps, runs
        self.failure = self.work / "failure.txt"
        self.launched_at = os.getcwd()  # relative paths start there

    @functools.cached_property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer in the work folder."""
        return store.tokenizer_hash(_read_tokenizer(self.work))

    def part_folder(self, rank: int) -> Path:
        """The folder of a task's part; it exists once the part is complete."""
        return self.work / "parts" / f"{rank:05d}"

    def has_part(self, rank: int) -> bool:
        """Whether a task's part exists and was made with this tokenizer from unchanged files."""
        part = store_shards.read_part(self.part_folder(rank))
        if part is None or part.tokenizer != self.tokenizer_hash:
            return False
        made = [(entry["path"], entry["size"], entry["modified"]) for entry in part.files]
        return made == [self.stamps[index] for index in self.runs[rank]]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Make the part; yield nothing. An error is also written to failure.txt, for other machines to read."""
        os.chdir(self.launched_at)
        workers.use_one_core()
        start = time.process_time()
        try:
            size = self._make_part(rank)
        except Exception as error:
            text = str(error) if isinstance(error, InputError) else traceback.format_exc()
            self.failure.write_text(text, encoding="utf-8")
            raise
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # KiB on Linux -> MiB
        text = f"{size / 1e6:,.1f} MB of text in {seconds:.1f} core-seconds, peak memory {peak} MiB"
        print(f"task {rank} of {world_size}: {text}", flush=True)
        yield from ()

    def _make_part(self, rank: int) -> int:
        run, trained = self.runs[rank], len(self.files.train)
        train = [self.files.train[index] for index in run if index < trained]
        evaluated = [self.files.eval[index - trained] for index in run if index >= trained]
        files = self.files._replace(train=train, eval=evaluated)
        tokenizer = _read_tokenizer(self.work)
        expected = [self.stamps[index] for index in run]
        part = store_shards.make_part(self.part_folder(rank), self.source, files, tokenizer, expected)
        return sum(sizes["text_bytes"] for sizes in part.splits.values())


class _Local(LocalPipelineExecutor):
    """Runs tasks in processes that exit with this one; raises if one is killed (datatrove's pool would wait)."""

    def run(self) -> None:
        if self.workers == 1:
            return super().run()
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of JAX's threads
        with concurrent.futures.ProcessPoolExecutor(self.workers, context, workers.end_with_parent) as pool:
            try:
                for _ in pool.map(self._run_for_rank, self.get_incomplete_ranks()):
                    pass
            except BrokenProcessPool as error:
                raise workers.killed_worker(self.workers) from error
            finally:
                pool.shutdown(cancel_futures=True)


class _Slurm(SlurmPipelineExecutor):
    """Runs each task as a job, and a last job that merges the parts instead of datatrove's statistics."""

    merge_command: str

    def launch_merge_stats(self) -> None:
        options = {"dependency": f"afterok:{self.job_id}", "kill-on-invalid-dep": "yes"}
        script = self.get_launch_file_contents(self.get_sbatch_args() | options, self.merge_command)
        with self.logging_dir.open("merge_script.slurm", "w") as file:
            file.write(script)
        launch_slurm_job(script, self.job_id_retriever)


def _executor(step: TokenizeFiles, task_options: TaskOptions) -> PipelineExecutor:
    tasks, logging_dir = len(step.runs), str(step.work)
    if task_options.slurm is not None:
        return _slurm(step, task_options)
    if task_options.ray:
        if importlib.util.find_spec("ray") is None:
            raise InputError("--ray needs ray: pip install 'bertgpt[scale]'")
        at_once = task_options.workers or -1
        return RayPipelineExecutor([step], tasks, at_once, logging_dir=logging_dir, mem_per_cpu_gb=TASK_MEMORY)
    multiprocess.set_start_method("forkserver", force=True)  # for datatrove's helper process, as for the tasks
    return _Local([step], tasks, min(tasks, task_options.workers or os.cpu_count() or 1), logging_dir)


def _slurm(step: TokenizeFiles, task_options: TaskOptions) -> PipelineExecutor:
    options = dict(task_options.slurm or {})
    if missing := {"partition", "time"} - set(options):
        raise InputError(f"--slurm: no {' and no '.join(sorted(missing))}; give partition=NAME,time=HOURS:MINUTES:00")
    if shutil.which("sbatch") is None:
        raise InputError("--slurm: sbatch not found; run the command on a machine with Slurm")
    folder = shlex.quote(str(Path(sys.executable).parent))
    executor = _Slurm(
        [step],
        len(step.runs),
        options.pop("time"),
        options.pop("partition"),
        workers=task_options.workers or -1,
        job_name="bertgpt-prepare",
        qos="",
        env_command=f"export PATH={folder}:$PATH PYTHONPATH={shlex.quote(ROOT)}:$PYTHONPATH",
        sbatch_args=options,
        logging_dir=str(step.work),
        tasks_per_job=-(-len(step.runs) // MAX_JOBS),
    )
    executor.merge_command = shlex.join([sys.executable, "-m", PACKAGE, *task_options.command])
    return executor


def _ray() -> contextlib.AbstractContextManager:
    """Connect to the Ray cluster at RAY_ADDRESS or a running local one, or start one for this run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # disable Ray's usage reports
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # log every task's line; both must be set before the import
    import ray

    return ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": {"PYTHONPATH": ROOT}})


def _work_folders(folder: Path) -> Iterator[Path]:
    name = re.compile(rf"\.{re.escape(folder.name)}\.work-[0-9a-f]{{16}}")
    return (path for path in folder.parent.iterdir() if name.fullmatch(path.name))


def _work_folder(folder: Path, decisive: list[Any]) -> Path:
    name = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
    work = folder.with_name(f".{folder.name}.work-{name}")
    work.mkdir(parents=True, exist_ok=True)
    return work


def _read_tokenizer(work: Path) -> Tokenizer:
    return tokenizer_from_str((work / "tokenizer.json").read_text(encoding="utf-8"))


def _keep_tokenizer(work: Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """Load the tokenizer of an earlier attempt or a faster process, or make one; training twice may give two."""
    if not (work / "tokenizer.json").exists():
        write_first(work / "tokenizer.json", make().to_str(pretty=True))
    return _read_tokenizer(work)


def _incomplete(executor: PipelineExecutor, step: TokenizeFiles) -> list[int]:
    """The tasks that remain; removes the completion mark of a task whose part is missing or stale."""
    for rank in range(executor.world_size):
        if executor.is_rank_completed(rank) and not step.has_part(rank):
            executor.logging_dir.rm(f"completions/{rank:05d}")
    return executor.get_incomplete_ranks()


def _check_complete(executor: PipelineExecutor, step: TokenizeFiles) -> None:
    """
    Raises:
        InputError: a task failed on Ray, which does not pass its exception on.
    """
    failed = _incomplete(executor, step)
    if failed:
        text = (
            step.failure.read_text(encoding="utf-8") if step.failure.exists() else "killed, perhaps for lack of memory"
        )
        reason = text.strip().splitlines()[-1]
        raise InputError(f"{reason} ({len(failed)} of {executor.world_size} tasks failed; {step.failure})")
