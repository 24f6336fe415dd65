"""Builds the programs, and runs them from one number to another."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
SOURCES = ROOT / "fastclaw" / "spawner" / "c"
BUILDS = ROOT / "build" / "fuzz"

OF_SPAWNER = (
    *("clients", "collect", "confine", "frames", "measure", "reaper", "program", "pump", "start", "system", "terminal"),
)
"""Built as they are. main.c is part of sim_main.c, start.c of requests.c too; tree.c is played (trees.c)."""

OF_FILES = ("tar_format", "text", "globs")
"""The helper's modules without system calls, for archives.c."""

STORIES = ("sim_main", "fibers", "kernel", "trees", "ledger", "story")
FLAGS = [
    *("-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-I", str(SOURCES), "-I", str(HERE)),
]
RENAMED = ["-fno-builtin", "-Dmemcpy=own_memcpy", "-Dmemset=own_memset"]
"""The spawner has a libc's names for functions of its own; beside a libc they have others."""

ENV = {
    **os.environ,
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=3",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def compiler() -> str:
    """CC, or cc."""
    return os.environ.get("CC", "cc")


def missing() -> str | None:
    """What is not here that the harnesses need, in one line; None: nothing."""
    if shutil.which(compiler()) is None:
        return f"the fuzzer needs a C compiler with sanitizers, and there is no {compiler()!r}: install gcc, or set CC"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "nothing.c"
        program.write_text("int main(void) { return 0; }\n")
        words = [compiler(), "-fsanitize=address,undefined", str(program), "-o", str(program.with_suffix(""))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
    return f"{compiler()} has no sanitizers (libasan and libubsan for gcc, libclang-rt-dev for clang): {last}"


def build() -> Path:
    """The folder with the programs. They are built where their sources have changed since.

    Raises:
        subprocess.CalledProcessError: the compiler refuses; it has said why.
    """
    folder = BUILDS / _fingerprint()
    if not (folder / "stories").exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as fresh:
            _build_into(Path(fresh) / "out")
            if not folder.exists():
                (Path(fresh) / "out").rename(folder)
    return folder


def run(program: Path, first: int, count: int) -> subprocess.CompletedProcess[str]:
    """From number `first` on; it stops at the first that goes wrong, and says so on its stderr."""
    return subprocess.run([program, str(first), str(count)], capture_output=True, text=True, check=False, env=ENV)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """What a program said, without the sanitizer's words about fibers."""
    said = [line for line in done.stderr.splitlines() if "makecontext/swapcontext" not in line]
    return "\n".join([f"exit code {done.returncode}", *said])


def _fingerprint() -> str:
    files = sorted([*SOURCES.rglob("*.[ch]"), *HERE.glob("*.[ch]")])
    digest = hashlib.sha256(" ".join([compiler(), *FLAGS]).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _build_into(folder: Path) -> None:
    folder.mkdir()
    jobs = [
        partial(_compile, folder / f"of_{name}.o", HERE / "source.c", f'-DSOURCE="{name}.c"') for name in OF_SPAWNER
    ]
    jobs += [
        partial(_compile, folder / f"of_{name}.o", HERE / "source.c", f'-DSOURCE="files/{name}.c"') for name in OF_FILES
    ]
    jobs += [partial(_compile, folder / f"{name}.o", HERE / f"{name}.c") for name in (*STORIES, "requests", "archives")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
    _link(folder, "stories", [*(f"of_{name}" for name in OF_SPAWNER), *STORIES])
    _link(folder, "archives", ["archives", *(f"of_{name}" for name in OF_FILES), "of_system"])
    _link(folder, "requests", ["requests", "of_system", "of_confine", "of_program", "of_terminal"])
    for object_file in folder.glob("*.o"):
        object_file.unlink()


def _compile(to: Path, source: Path, *more: str) -> None:
    renamed = RENAMED if source.stem in ("source", "sim_main", "requests") else []
    subprocess.run([compiler(), *FLAGS, *renamed, *more, "-c", str(source), "-o", str(to)], check=True)


def _link(folder: Path, program: str, objects: list[str]) -> None:
    words = [*(str(folder / f"{name}.o") for name in objects), "-o", str(folder / program)]
    subprocess.run([compiler(), *FLAGS, *words], check=True)
