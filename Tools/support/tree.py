"""A digest of a directory tree that shares no code with `daybook digest`, so that the two can be held against each other."""

import hashlib
import os
import stat
from pathlib import Path


def tree_digest(root):
    """SHA-256 over names, types, modes, owners, extended attributes, hard-link structure and contents."""
    total, first_names = hashlib.sha256(), {}
    for path in sorted_paths(Path(root)):
        facts = os.lstat(path)
        name = os.path.relpath(path, root)
        parts = [name, oct(facts.st_mode), str(facts.st_uid), str(facts.st_gid)]
        parts += [f"{key}={os.getxattr(path, key, follow_symlinks=False).hex()}"
                  for key in sorted(os.listxattr(path, follow_symlinks=False)) if not key.startswith("system.")]
        if stat.S_ISLNK(facts.st_mode):
            parts.append(os.readlink(path))
        elif stat.S_ISREG(facts.st_mode):
            first = first_names.setdefault(facts.st_ino, name) if facts.st_nlink > 1 else name
            parts.append(f"as {first}" if first != name else hash_of(path))
        elif not stat.S_ISDIR(facts.st_mode):
            parts.append(f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}")
        for part in parts:
            encoded = os.fsencode(part)
            total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()


def sorted_paths(root):
    yield root
    pending = [root]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(directory), key=os.fsencode):
            path = directory / name
            yield path
            if path.is_dir() and not path.is_symlink():
                pending.append(path)


def hash_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
