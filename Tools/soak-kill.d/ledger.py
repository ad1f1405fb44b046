"""The ledger writer's rules: operations, the model that applies them, and the check that finds which prefix survived.

    writer:   "i" n operation ──► one system call ──► (now and then) fsync returns 0 ──► "a" n
                  │ outside the mount                                                      │
    checker:  base + operations 1…n for every n from the last "a" to the last "i": one of them must be what is there

The log lies outside the mount, on a filesystem that stays up, so that a line once written is never lost.

Invariants:
(L1) An operation is one system call that reaches the filesystem as one request, so that it happened whole or not at all.
(L2) "i" is written before the call, "a" only after fsync returned 0 for a file or directory changed no earlier than the
     operations it acknowledges. By prefix consistency (P1) that makes every earlier operation durable (P2).
(L3) What is on the mount equals the model after some number of operations, not fewer than acknowledged and not more
     than issued. That is P1 and P2 in one comparison, for everything this writer did.
(L4) Contents follow from the seed in the operation: nothing need be kept to check them.
"""

import ctypes
import errno
import hashlib
import itertools
import json
import os
import pickle
import random
import stat
from pathlib import Path

LONGEST_WRITE = 64 << 10   # below every max_write, so that a write(2) is one request (L1)
LARGEST_FILE = 512 << 10
MOST_NAMES = 150
ATTRIBUTE = "user.ledger"


def contents(seed, length):
    return random.Random(seed).randbytes(length)


def exchange(left, right):
    """renameat2 with RENAME_EXCHANGE: two names swap what they name, in one step."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(-100, os.fsencode(left), -100, os.fsencode(right), 2) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Node:
    def __init__(self, kind, target=None):
        self.kind, self.target = kind, target
        self.bytes = bytearray()
        self.attribute = None
        self.digest = None

    def signature(self, links):
        """What is compared; a file's digest is kept until its bytes change."""
        if self.kind == "file" and self.digest is None:
            self.digest = hashlib.sha256(self.bytes).hexdigest()
        return (self.kind, self.target, len(self.bytes), self.digest, self.attribute, links)


class Model:
    """The directory as it is after the operations applied so far."""

    def __init__(self):
        self.names = {}   # path → Node; hard links share a Node
        self.applied = 0

    def apply(self, operation):
        getattr(self, "apply_" + operation["op"])(**operation["with"])
        self.applied = operation["n"]

    def apply_create(self, path):
        self.names[path] = Node("file")

    def apply_write(self, path, offset, length, seed, cut=None):
        node = self.names[path]
        if len(node.bytes) < offset:
            node.bytes.extend(bytes(offset - len(node.bytes)))
        data = contents(seed, length)[:cut]
        node.bytes[offset:offset + len(data)] = data
        node.digest = None

    def apply_truncate(self, path, length):
        node = self.names[path]
        node.bytes = node.bytes[:length] + bytes(max(0, length - len(node.bytes)))
        node.digest = None

    def apply_rename(self, path, to):
        node = self.names.pop(path)
        # rename(2) of two names of one file does nothing at all.
        if self.names.get(to) is node:
            self.names[path] = node
            return
        self.names[to] = node

    def apply_exchange(self, path, to):
        self.names[path], self.names[to] = self.names[to], self.names[path]

    def apply_link(self, path, to):
        self.names[to] = self.names[path]

    def apply_symlink(self, path, target):
        self.names[path] = Node("symlink", target)

    def apply_unlink(self, path):
        del self.names[path]

    def apply_mkdir(self, path):
        self.names[path] = Node("directory")

    def apply_rmdir(self, path):
        del self.names[path]

    def apply_attribute(self, path, value):
        self.names[path].attribute = value

    def signatures(self):
        links = {}
        for node in self.names.values():
            links[id(node)] = links.get(id(node), 0) + 1
        return {path: node.signature(links[id(node)] if node.kind == "file" else 1) for path, node in self.names.items()}

    def of_kind(self, kind):
        return [path for path, node in self.names.items() if node.kind == kind]

    def size(self):
        return sum(len(node.bytes) for node in {id(node): node for node in self.names.values()}.values())


def perform(root, operation, held):
    """The one system call of an operation. `held` keeps some unlinked files open: recovery has to free those."""
    words = operation["with"]
    path = os.path.join(root, words["path"])
    kind = operation["op"]
    if kind == "create":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    elif kind == "write":
        data = contents(words["seed"], words["length"])
        descriptor = os.open(path, os.O_WRONLY)
        try:
            written = os.pwrite(descriptor, data, words["offset"])
        finally:
            os.close(descriptor)
        if written != len(data):
            words["cut"] = written  # as POSIX lets a full disk do
    elif kind == "truncate":
        os.truncate(path, words["length"])
    elif kind == "rename":
        os.rename(path, os.path.join(root, words["to"]))
    elif kind == "exchange":
        exchange(path, os.path.join(root, words["to"]))
    elif kind == "link":
        os.link(path, os.path.join(root, words["to"]))
    elif kind == "symlink":
        os.symlink(words["target"], path)
    elif kind == "unlink":
        if operation["n"] % 3 == 0 and not os.path.islink(path):
            held.append(os.open(path, os.O_RDONLY))
        os.unlink(path)
        while len(held) > 8:
            os.close(held.pop(0))
    elif kind == "mkdir":
        os.mkdir(path)
    elif kind == "rmdir":
        os.rmdir(path)
    elif kind == "attribute":
        os.setxattr(path, ATTRIBUTE, words["value"].encode())


class Chooser:
    """The next operation, at random, possible in the model's present state."""

    CHANCES = (["create"] * 16 + ["write"] * 40 + ["truncate"] * 4 + ["rename"] * 12 + ["replace"] * 6 + ["exchange"] * 2
               + ["link"] * 3 + ["symlink"] * 2 + ["unlink"] * 9 + ["mkdir"] * 3 + ["rmdir"] * 1 + ["attribute"] * 3)

    def __init__(self, model, seed):
        self.model, self.random, self.serial = model, random.Random(seed), 0

    def fresh(self, number):
        directories = self.model.of_kind("directory")
        name = f"n{number}"
        return os.path.join(self.random.choice(directories), name) if directories and self.random.random() < 0.6 else name

    def pick(self, kind):
        names = self.model.of_kind(kind)
        return self.random.choice(names) if names else None

    def next(self, number):
        while True:
            kind = self.random.choice(self.CHANCES)
            if len(self.model.names) > MOST_NAMES:
                kind = "unlink"
            words = self.words(kind, number)
            if words:
                return {"n": number, "op": "rename" if kind == "replace" else kind, "with": words}

    def words(self, kind, number):
        if kind == "create":
            return {"path": self.fresh(number)}
        if kind == "symlink":
            return {"path": self.fresh(number), "target": f"target {number}"}
        if kind == "mkdir":
            return {"path": f"d{number}"} if len(self.model.of_kind("directory")) < 12 else None
        if kind == "rmdir":
            path = self.pick("directory")
            empty = path and not any(name.startswith(path + "/") for name in self.model.names)
            return {"path": path} if empty else None
        path = self.pick("file")
        if kind == "unlink" and (not path or self.random.random() < 0.1):
            # Without this the names that are no files would pile up until nothing can be done any more.
            path = self.pick("symlink") or path
        if not path:
            return None
        size = len(self.model.names[path].bytes)
        if kind == "write":
            length = self.random.choice((1, 100, 512, 4096, 5000, 16384, self.random.randrange(1, LONGEST_WRITE + 1)))
            offset = size if self.random.random() < 0.6 else self.random.randrange(size + 5000)
            if offset + length > LARGEST_FILE:
                return None
            return {"path": path, "offset": offset, "length": length, "seed": self.random.randrange(1 << 32)}
        if kind == "truncate":
            return {"path": path, "length": self.random.randrange(size + 3000)}
        if kind in ("rename", "link"):
            return {"path": path, "to": self.fresh(number)}
        if kind in ("replace", "exchange"):
            other = self.pick("file")
            same = other and self.model.names[other] is self.model.names[path]
            return {"path": path, "to": other} if other and not same else None
        if kind == "unlink":
            return {"path": path}
        return {"path": path, "value": f"value {number}"}


class Ledger:
    """One ledger's files outside the mount: `base` (the model last verified) and `log` (what was done since)."""

    def __init__(self, directory, name):
        self.name = name
        self.base = Path(directory) / f"{name}.base"
        self.log = Path(directory) / f"{name}.log"

    def load(self):
        return pickle.loads(self.base.read_bytes()) if self.base.exists() else Model()

    def save(self, model):
        temporary = self.base.with_suffix(".new")
        temporary.write_bytes(pickle.dumps(model))
        temporary.rename(self.base)
        self.log.write_text("")

    def read(self):
        """(operations in order, number acknowledged)"""
        operations, acknowledged = [], 0
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            kind, _, rest = line.partition(" ")
            if kind == "i":
                operations.append(json.loads(rest))
            elif kind == "x":  # refused, with nothing done (no space, not supported)
                operations = [operation for operation in operations if operation["n"] != int(rest)]
            elif kind == "c":  # a write that came short
                number, cut = map(int, rest.split())
                next(operation for operation in operations if operation["n"] == number)["with"]["cut"] = cut
            elif kind == "a":
                acknowledged = int(rest)
        return operations, acknowledged

    def write(self, root, seed, stop):
        """Works until `stop()`; raises what the filesystem raises."""
        model = self.load()
        chooser = Chooser(model, seed)
        number, held, until_sync = model.applied, [], 0
        with open(self.log, "ab", buffering=0) as log:
            while not stop():
                number += 1
                operation = chooser.next(number)
                log.write(f"i {json.dumps(operation)}\n".encode())
                try:
                    perform(root, operation, held)
                except OSError as problem:
                    if problem.errno not in (errno.ENOSPC, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                        raise
                    log.write(f"x {number}\n".encode())
                    continue
                if "cut" in operation["with"]:
                    log.write(f"c {number} {operation['with']['cut']}\n".encode())
                model.apply(operation)
                until_sync -= 1
                if until_sync <= 0:
                    self.make_durable(root, operation, model, chooser.random)
                    log.write(f"a {number}\n".encode())
                    until_sync = chooser.random.choice((1, 1, 2, 4, 8, 16, 40))

    def make_durable(self, root, operation, model, chance):
        """fsync or fdatasync of what was just changed, or fsync of its directory: each must hold everything before."""
        path = operation["with"].get("to", operation["with"]["path"])
        node = model.names.get(path)
        regular = node is not None and node.kind == "file"
        if not regular or chance.random() < 0.3:
            path = os.path.dirname(path)
            regular = False
        descriptor = os.open(os.path.join(root, path) if path else root, os.O_RDONLY)
        try:
            os.fdatasync(descriptor) if regular and chance.random() < 0.4 else os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check(self, root):
        """Finds the prefix that is there (L3) and makes it the new base. Returns (prefix, acknowledged, issued), or raises."""
        operations, acknowledged = self.read()
        model = self.load()
        found = survey(root)
        acknowledged = max(acknowledged, model.applied)
        issued = max([operation["n"] for operation in operations], default=model.applied)
        best = None
        for operation in [None, *itertools.chain.from_iterable(map(requests, operations))]:
            if operation:
                model.apply(operation)
            if model.applied < acknowledged and model.applied < issued:
                continue
            expected = model.signatures()
            if expected == found and model.applied >= acknowledged:
                self.save(model)
                return model.applied, acknowledged, issued
            wrong = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
            if best is None or len(wrong) < len(best[1]):
                best = (model.applied, sorted(wrong), expected)
        number, wrong, expected = best
        lines = [f"{path}: expected {brief(expected.get(path))}, found {brief(found.get(path))}" for path in wrong[:5]]
        raise AssertionError(
            f"{self.name}: what is there is no prefix of what was done between operation {acknowledged} (acknowledged) and "
            f"{issued} (issued); nearest is {number} with {len(wrong)} differences: " + "; ".join(lines))


def requests(operation):
    """An operation as the kernel hands it over. A write(2) that begins within a page and goes beyond it is two requests, and the
    request is the unit of what a crash leaves."""
    words = operation["with"]
    if operation["op"] == "write" and words.get("cut") is None:
        head = -words["offset"] % 4096
        if 0 < head < words["length"]:
            yield {**operation, "with": {**words, "cut": head}}
    yield operation


def brief(signature):
    if signature is None:
        return "nothing"
    kind, target, size, digest, attribute, links = signature
    return f"{kind} of {size} bytes, digest {str(digest)[:12]}, attribute {attribute}, {links} links"


def survey(root):
    """What is there, in the model's terms."""
    found = {}
    for directory, below, names in os.walk(root):
        for name in below + names:
            path = os.path.join(directory, name)
            facts = os.lstat(path)
            relative = os.path.relpath(path, root)
            if stat.S_ISLNK(facts.st_mode):
                found[relative] = ("symlink", os.readlink(path), 0, None, None, 1)
            elif stat.S_ISDIR(facts.st_mode):
                found[relative] = ("directory", None, 0, None, None, 1)
            else:
                data = Path(path).read_bytes()
                attribute = os.getxattr(path, ATTRIBUTE).decode() if ATTRIBUTE in os.listxattr(path) else None
                found[relative] = ("file", None, len(data), hashlib.sha256(data).hexdigest(), attribute, facts.st_nlink)
    return found
