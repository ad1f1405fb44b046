"""A real source tree, packed once: what the tools untar, copy, commit and delete.

It is made from what is on the machine (C headers, then scripts and documents until there are enough files), in sorted
order, so that the same machine gives the same tree. Only regular files, directories and relative symbolic links go in.
"""

import hashlib
import os
import stat
import tarfile
from pathlib import Path

from machine import Failure

SOURCES = ("/usr/include", "/usr/lib/python3", "/usr/share/perl", "/usr/share/doc", "/usr/share", "/usr/lib")
LARGEST_FILE = 2 << 20
LARGEST_TREE = 400 << 20


def collect(minimum):
    """Paths of at least `minimum` files: [(path, name in the tree, facts)], directories before what they hold."""
    entries, files, size = [], 0, 0
    for source in SOURCES:
        root = Path(source)
        if files >= minimum or not root.is_dir():
            continue
        top = source.strip("/").replace("/", "-")
        for directory, below, names in os.walk(root):
            below.sort()
            inside = Path(top, os.path.relpath(directory, root))
            entries.append((directory, str(inside), os.lstat(directory)))
            for name in sorted(names):
                path = os.path.join(directory, name)
                facts = os.lstat(path)
                regular = stat.S_ISREG(facts.st_mode) and facts.st_size <= LARGEST_FILE
                link = stat.S_ISLNK(facts.st_mode) and not os.readlink(path).startswith("/")
                if not (regular or link) or size + facts.st_size > LARGEST_TREE:
                    continue
                entries.append((path, str(inside / name), facts))
                files += regular
                size += facts.st_size if regular else 0
            if files >= minimum:
                break
    if files < minimum:
        raise Failure(f"found only {files} files for the source tree, {minimum} are needed")
    return entries


class Corpus:
    """The packed tree: `archive` (an uncompressed tar), its file count and size, and the digest of every file."""

    def __init__(self, archive, minimum=8000):
        self.archive = Path(archive)
        self.files = []  # (name, size, SHA-256) in archive order
        self.bytes = 0
        with tarfile.open(self.archive, "w", format=tarfile.GNU_FORMAT) as tar:
            for path, name, _ in collect(minimum):
                # Links between files of the source become files of their own: the tree is what its names say.
                tar.inodes = {}
                member = tar.gettarinfo(path, name)
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                member.mode |= stat.S_IRUSR | stat.S_IWUSR
                if not member.isreg():
                    tar.addfile(member)
                    continue
                contents = Path(path).read_bytes()
                member.size = len(contents)
                tar.addfile(member, _Bytes(contents))
                self.files.append((name, len(contents), hashlib.sha256(contents).hexdigest()))
                self.bytes += len(contents)

    def describe(self):
        return f"{len(self.files):,} files, {self.bytes / (1 << 20):.0f} MiB"


class _Bytes:
    """The least that tarfile reads from."""

    def __init__(self, contents):
        self.contents, self.offset = contents, 0

    def read(self, size):
        piece = self.contents[self.offset:self.offset + size]
        self.offset += len(piece)
        return piece
