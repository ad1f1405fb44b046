"""What a filesystem must hold after a crash, checked on the mounted directory against the writers' notes.

Every check raises AssertionError with what was promised and what is there, or returns a few words for the log line.
"""

import hashlib
import os
import sqlite3
import subprocess
from pathlib import Path

import postgres
from ledger import Ledger
from writers import DATABASES, GIT, Notes, tree_states


def check_ledger(point, outside, name):
    root = point / name
    if not root.exists():
        acknowledged = Ledger(outside, name).read()[1]
        assert acknowledged == 0, f"{name}: {acknowledged} operations were acknowledged, and its directory is gone"
        return f"{name} not begun"
    prefix, acknowledged, issued = Ledger(outside, name).check(str(root))
    return f"{name} {prefix} in [{acknowledged}, {issued}]"


def check_trees(point, outside, files):
    """A whole tree is whole. One being unpacked is a prefix of the archive: `tar` fsyncs nothing, P1 promises it."""
    states, whole, partial = tree_states(outside / "untar.notes"), 0, 0
    for name, state in states.items():
        root = point / "untar" / name
        if state == "whole":
            wrong = next((file for file in files if not matches(root, file)), None)
            assert wrong is None, f"{name} was unpacked and fsynced, but {wrong[0]} is {describe(root, wrong)}"
            present = sum(len(names) for _, _, names in os.walk(root))
            assert present >= len(files), f"{name} has {present} files of {len(files)}"
            whole += 1
        elif state == "start" and root.exists():
            partial = check_prefix(root, files)
    return f"{whole} whole tree, {partial} files of another"


def check_prefix(root, files):
    there = [os.path.lexists(root / name) for name, _, _ in files]
    count = len(there) - there[::-1].index(True) if True in there else 0
    for number, file in enumerate(files[:count]):
        if matches(root, file):
            continue
        # Only the last file there may be unfinished: nothing after it was begun.
        assert number == count - 1, (f"{root.name}: {files[count - 1][0]} is there, but {file[0]}, written before it, "
                                     f"is {describe(root, file)}")
        size = os.lstat(root / file[0]).st_size
        assert size <= file[1], f"{root.name}: {file[0]} has {size} bytes, more than were ever written"
    return count


def matches(root, file):
    name, size, digest = file
    try:
        data = (root / name).read_bytes()
    except FileNotFoundError:
        return False
    return len(data) == size and hashlib.sha256(data).hexdigest() == digest


def describe(root, file):
    path = root / file[0]
    if not os.path.lexists(path):
        return "missing"
    size = os.lstat(path).st_size
    return f"of {size} bytes instead of {file[1]}" if size != file[1] else "of the right size but with other contents"


def check_git(point, outside):
    root = point / "git"
    notes = Notes.read(outside / "git.notes")
    committed = [words[1] for words in notes]
    if not committed:
        return "git not begun"
    environment = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null", LC_ALL="C")

    def git(*words, feed=None):
        return subprocess.run([*GIT, *words], cwd=root, input=feed, capture_output=True, text=True, errors="replace",
                              env=environment)

    # What a killed git leaves behind is the next one's to remove; fsck reads past it.
    result = git("fsck", "--full", "--no-dangling", "--no-progress")
    complaint = (result.stdout + result.stderr).strip()
    assert result.returncode == 0 and "error" not in complaint, f"git fsck: status {result.returncode}: {complaint[:400]}"
    # A commit's object was renamed into place before git fsynced the reference: P1 keeps it as soon as git returned.
    listed = git("cat-file", "--batch-check", feed="\n".join(dict.fromkeys(committed)) + "\n").stdout
    missing = [line for line in listed.splitlines() if not line.split()[1:2] == ["commit"]]
    assert not missing, f"git: {len(missing)} acknowledged commits are missing: {missing[0]}"
    kept = [words[1] for words in notes if words[0] == "kept"]
    if kept:
        result = git("merge-base", "--is-ancestor", kept[-1], "HEAD")
        assert result.returncode == 0, f"git: commit {kept[-1]} was acknowledged and fsynced, but main does not have it"
    # The newest promise stands for all before it: ancestors come with it.
    newest = [words for words in notes if words[0] == "kept"][-1:] or notes[-1:]
    (outside / "git.notes").write_text("".join(f"{word} {identifier}\n" for word, identifier in newest))
    return f"git {git('rev-list', '--count', 'HEAD').stdout.strip()} commits"


def check_sqlite(point, outside):
    notes, words = Notes.read(outside / "sqlite.notes"), []
    for name in DATABASES:
        path = point / "sqlite" / f"{name}.sqlite"
        tried = max([int(note[2]) for note in notes if note[:2] == ["try", name]], default=0)
        kept = max([int(note[2]) for note in notes if note[:2] == ["kept", name]], default=0)
        if not path.exists():
            assert kept == 0, f"{name}.sqlite: {kept} transactions were acknowledged, and it is gone"
            continue
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            result = connection.execute("PRAGMA integrity_check").fetchone()[0]
            assert result == "ok", f"{name}.sqlite: integrity_check: {result}"
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'entry'").fetchone()[0]
            rows = connection.execute("SELECT n, body, digest FROM entry ORDER BY n").fetchall() if tables else []
        except sqlite3.DatabaseError as problem:
            raise AssertionError(f"{name}.sqlite: {problem}") from None
        finally:
            connection.close()
        last = rows[-1][0] if rows else 0
        assert kept <= last <= max(tried, kept), f"{name}.sqlite: row {last} is last; {kept} acknowledged, {tried} tried"
        for number, (row, body, digest) in enumerate(rows, start=last - len(rows) + 1):
            assert row == number and hashlib.sha256(body).hexdigest() == digest, f"{name}.sqlite: row {number} is wrong"
        words.append(f"{name} {last} in [{kept}, {tried}]")
    return ", ".join(words) or "sqlite not begun"


def check_postgres(point, outside, thorough):
    return postgres.check(point / "postgres", outside, Notes.read(outside / "postgres.notes"), thorough)
