#!/usr/bin/env python3
"""The programs that work in the mount while its daemon is killed: `writers.py NAME MOUNT OUTSIDE SEED`.

Each runs until the mount is gone (status 0), or fails while the mount is alive (status 3 and a message: a violation).
What a writer was promised it notes in OUTSIDE, on a filesystem that stays up; `checks.py` holds the mount to it.
Each starts on whatever the last crash left, as a program on a rebooted machine does.
"""

import errno
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import postgres as postgresql
from ledger import Ledger

GONE = (errno.ENOTCONN, errno.ECONNABORTED)
GIT = ["git", "-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync", "-c", "gc.auto=0", "-c", "maintenance.auto=false",
       "-c", "user.name=Soak", "-c", "user.email=soak@localhost", "-c", "advice.detachedHead=false"]


FULL = ("No space left on device", "Out of diskspace", "out of disk space")


class Full(Exception):
    """The filesystem has no space: make room, go on."""


class Notes:
    """An append-only file outside the mount."""

    def __init__(self, path):
        self.path = path
        self.file = open(path, "ab", buffering=0)

    def add(self, *words):
        self.file.write((" ".join(str(word) for word in words) + "\n").encode())

    def was(self, word):
        return any(words[0] == word for words in Notes.read(self.path))

    @staticmethod
    def read(path):
        return [line.split() for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def execute(*command, **options):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace",
                            env=dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null", LC_ALL="C"),
                            **options)
    if result.returncode == 0:
        return result.stdout
    if any(words in result.stderr for words in FULL):
        raise Full
    raise RuntimeError(f"{Path(command[0]).name} ended with status {result.returncode}: {result.stderr.strip()[-400:]}")


# Writers: each a function of (own directory in the mount, directory outside, seed)


def ledger(root, outside, seed):
    # Space is the other writers' business: a refused operation is noted as such.
    Ledger(outside, root.name).write(str(root), seed, stop=lambda: False)


def untar(root, outside, seed):
    """Unpacks the tree again and again; keeps the newest whole one. Notes: start, whole (fsynced after), remove."""
    path = outside / "untar.notes"
    notes = Notes(path)
    number = max([int(words[1]) for words in Notes.read(path)], default=0)
    whole = [name for name, state in tree_states(path).items() if state == "whole"]
    for present in sorted(root.iterdir()):
        if present.name not in whole:
            notes.add("remove", present.name.removeprefix("tree-"))
            shutil.rmtree(present)
    while True:
        number += 1
        tree = root / f"tree-{number}"
        notes.add("start", number)
        try:
            tree.mkdir()
            execute("tar", "-xf", outside / "tree.tar", "-C", tree)
            sync(tree)
        except (Full, OSError) as problem:
            if isinstance(problem, OSError) and problem.errno != errno.ENOSPC:
                raise
            notes.add("remove", number)
            shutil.rmtree(tree, ignore_errors=False)
            time.sleep(0.2)
            continue
        notes.add("whole", number)
        for old in sorted(root.iterdir()):
            if old != tree:
                notes.add("remove", old.name.removeprefix("tree-"))
                shutil.rmtree(old)


def tree_states(path):
    states = {}
    for word, number in Notes.read(path):
        states[f"tree-{number}"] = word
    return states


def git(root, outside, seed):
    """Commits small changes. Notes: commit (git returned), kept (its reference is fsynced too)."""
    chance, notes, count = random.Random(seed), Notes(outside / "git.notes"), 0
    if not (root / ".git" / "HEAD").exists() or not Notes.read(outside / "git.notes"):
        # Nothing was promised yet: a repository that was just being made is made anew.
        for present in root.iterdir():
            shutil.rmtree(present) if present.is_dir() and not present.is_symlink() else present.unlink()
        execute(*GIT, "init", "-q", "-b", "main", root)
    for lock in (root / ".git").rglob("*.lock"):
        lock.unlink()
    while True:
        count += 1
        try:
            change_files(root, chance)
            execute(*GIT, "add", "-A", cwd=root)
            execute(*GIT, "commit", "-q", "--allow-empty", "-m", f"commit {count} of {seed}", cwd=root)
            identifier = execute(*GIT, "rev-parse", "HEAD", cwd=root).strip()
            notes.add("commit", identifier)
            sync(root / ".git/refs/heads")
            notes.add("kept", identifier)
            if chance.random() < 0.02:
                execute(*GIT, "repack", "-a", "-d", "-q", cwd=root)
        except (Full, RuntimeError) as problem:
            # git does not always say why it could not write: the filesystem does.
            if isinstance(problem, RuntimeError) and not nearly_full(root):
                raise
            time.sleep(0.5)
            for lock in (root / ".git").rglob("*.lock"):
                lock.unlink()


def nearly_full(path):
    facts = os.statvfs(path)
    return facts.f_bavail < facts.f_blocks * 0.15


def change_files(root, chance):
    for _ in range(chance.randrange(1, 12)):
        path = root / f"folder-{chance.randrange(8)}" / f"file-{chance.randrange(60)}"
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists() and chance.random() < 0.2:
                path.unlink()
            elif path.exists() and chance.random() < 0.2:
                path.rename(path.with_suffix(f".{chance.randrange(10)}"))
            else:
                path.write_bytes(chance.randbytes(chance.randrange(1, 20_000)).hex().encode())
        except OSError as problem:
            if problem.errno == errno.ENOSPC:
                raise Full from None
            raise


DATABASES = {"rollback": ("DELETE", "EXTRA"), "wal": ("WAL", "FULL")}


def sqlite(root, outside, seed):
    """Transactions in two databases. EXTRA, because only that fsyncs the directory after the rollback journal is gone."""
    chance, notes, connections, numbers = random.Random(seed), Notes(outside / "sqlite.notes"), {}, {}
    for name, (mode, synchronous) in DATABASES.items():
        connection = sqlite3.connect(root / f"{name}.sqlite", isolation_level=None, timeout=30)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE IF NOT EXISTS entry(n INTEGER PRIMARY KEY, body BLOB, digest TEXT)")
        connection.execute("CREATE INDEX IF NOT EXISTS entry_digest ON entry(digest)")
        connections[name] = connection
        numbers[name] = connection.execute("SELECT coalesce(max(n), 0) FROM entry").fetchone()[0]
    while True:
        name = chance.choice(list(DATABASES))
        connection, number = connections[name], numbers[name] + 1
        body = chance.randbytes(chance.randrange(10, 6000))
        notes.add("try", name, number)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO entry VALUES(?, ?, ?)", (number, body, hashlib.sha256(body).hexdigest()))
            connection.execute("DELETE FROM entry WHERE n <= ?", (number - 1500,))
            connection.execute("COMMIT")
            # SQLite takes a directory that it cannot open for one that needs no fsync, so on a mount that has just died COMMIT may
            # succeed without it. If the daemon still answers now, it did then.
            os.statvfs(root)
        except sqlite3.OperationalError as problem:
            if "full" not in str(problem):
                raise
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            time.sleep(0.3)
            continue
        notes.add("kept", name, number)
        numbers[name] = number


def postgres(root, outside, seed):
    """A PostgreSQL server and one client of it."""
    postgresql.work(root, outside, seed, Notes(outside / "postgres.notes"))


WRITERS = {"ledger-1": ledger, "ledger-2": ledger, "untar": untar, "git": git, "sqlite": sqlite, "postgres": postgres}


def gone(point, device, problem):
    """Whether the mount is dead or no longer there; asked again for a moment, as a daemon dies in steps."""
    if isinstance(problem, OSError) and problem.errno in GONE:
        return True
    for _ in range(20):
        try:
            # statvfs goes to the daemon, where stat would be answered from the kernel's cache long after its death.
            os.statvfs(point)
            if os.stat(point).st_dev != device:
                return True
        except OSError as problem:
            if problem.errno in GONE:
                return True
        time.sleep(0.05)
    return False


def main():
    name, point, outside, seed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    device = os.stat(point).st_dev
    try:
        root = point / name
        root.mkdir(exist_ok=True)
        WRITERS[name](root, outside, seed)
    except Exception as problem:  # noqa: BLE001: any failure is expected once the daemon is dead, none before
        if gone(point, device, problem):
            os._exit(0)  # without closing: finalisers would touch the dead mount
        print(f"{type(problem).__name__}: {problem}", flush=True)
        os._exit(3)


if __name__ == "__main__":
    main()
