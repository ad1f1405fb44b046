"""What is measured, in groups that share one preparation. A group works through a `Stage` (see measure.py)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    name: str
    title: str
    unit: str            # "/s", "MiB/s" or "s": the last is shown as seconds, and its ratio is still one of speed
    settled: bool = False  # also given as "until everything is on the disk" (unmount and the daemon's end included)
    durable: bool = False  # every operation waits for the disk: flushes and slowest percent are given as well


@dataclass(frozen=True)
class Scale:
    """How much of everything. The defaults give the slowest peer a few seconds a measure."""

    files: int = 10_000
    durable: int = 1_500
    seconds: float = 1.0
    stream: int = 1 << 30
    random_file: int = 256 << 20
    random_reads: int = 8_192
    random_writes: int = 16_384
    overwritten: int = 32 << 20
    delete_transactions: int = 300
    wal_transactions: int = 1_500
    tree: int = 8_000
    many: int = 300_000
    image: int = 20 << 30


QUICK = Scale(files=600, durable=60, seconds=0.1, stream=32 << 20, random_file=16 << 20, random_reads=256,
              random_writes=512, overwritten=4 << 20, delete_transactions=10, wal_transactions=40, tree=400, many=3_000,
              image=1 << 30)

MEASURES = [
    Measure("create", "create + 4K + close", "/s", settled=True),
    Measure("create-4", "the same, 4 threads", "/s", settled=True),
    Measure("stat", "stat, cached", "/s"),
    Measure("list-cold", "readdir + stat, cold", "/s"),
    Measure("read-warm", "open + read 4K + close, warm", "/s"),
    Measure("read-cold", "open + read 4K + close, cold", "/s"),
    Measure("rename", "rename", "/s", settled=True),
    Measure("unlink", "unlink", "/s", settled=True),
    Measure("mkdir", "mkdir", "/s", settled=True),
    Measure("create-fsync", "create + 4K + fsync", "/s", durable=True),
    Measure("create-fsync-4", "the same, 4 threads", "/s", durable=True),
    Measure("overwrite", "overwrite 4K + fdatasync", "/s", durable=True),
    Measure("overwrite-4", "the same, 4 threads", "/s", durable=True),
    Measure("append", "append 512 B + fdatasync", "/s", durable=True),
    Measure("write", "sequential write, fsync at the end", "MiB/s"),
    Measure("read", "sequential read, cold", "MiB/s"),
    Measure("random-read", "random read 4K, cold", "MiB/s"),
    Measure("random-write", "random write 4K, fsync at the end", "MiB/s"),
    Measure("untar", "untar a source tree", "s", settled=True),
    Measure("copy", "cp -a of it", "s", settled=True),
    Measure("git", "git init, add and commit of it", "s", settled=True),
    Measure("remove", "rm -rf of both", "s", settled=True),
    Measure("sqlite-delete", "SQLite transactions, DELETE journal", "/s"),
    Measure("sqlite-wal", "SQLite transactions, WAL", "/s"),
]

# The floors for speed: (measure, "fuse" for the best FUSE peer or "ext4", least ratio).
FLOORS = [
    ("create", "fuse", 1.5),
    ("rename", "fuse", 1.5),
    ("unlink", "fuse", 1.5),
    ("stat", "ext4", 0.7),
    ("read-warm", "ext4", 0.7),
    ("create-fsync", "ext4", 1.2),
    ("append", "ext4", 1.2),
    ("write", "ext4", 0.7),
    ("read", "ext4", 0.7),
]
MEMORY_FLOOR = 256 << 20


def small_files(stage):
    count = stage.scale.files
    stage.mount()
    stage.loop("create", "create", count=count)
    stage.settle("create")
    stage.mount(cold=True)
    stage.loop("list-cold", "list", count=count)
    stage.settle()
    stage.mount(cold=True)
    stage.loop("read-cold", "read-once", count=count)
    stage.loop("read-warm", "read-warm", count=min(count, 1000), seconds=stage.scale.seconds)
    stage.loop("stat", "stat-warm", count=min(count, 1000), seconds=stage.scale.seconds)
    stage.loop("rename", "rename", count=count)
    stage.settle("rename")
    stage.mount()
    stage.loop("unlink", "unlink", count=count)
    stage.settle("unlink")


def small_files_in_parallel(stage):
    stage.mount()
    stage.loop("create-4", "create", count=stage.scale.files // 4, threads=4)
    stage.settle("create-4")


def directories(stage):
    stage.mount()
    stage.loop("mkdir", "mkdir", count=stage.scale.files)
    stage.settle("mkdir")


def durable(stage):
    count, size = stage.scale.durable, stage.scale.overwritten
    stage.mount()
    stage.loop("create-fsync", "create-fsync", count=count, inside="create")
    stage.loop("create-fsync-4", "create-fsync", count=count // 4, threads=4, inside="create-4")
    stage.loop("overwrite", "overwrite-fdatasync", count=count, bytes=size, inside="overwrite")
    stage.loop("overwrite-4", "overwrite-fdatasync", count=count // 4, threads=4, bytes=size // 4, inside="overwrite-4")
    stage.loop("append", "append-fdatasync", count=count, inside="append")
    stage.settle()


def sequential(stage):
    stage.mount()
    stage.loop("write", "write-stream", bytes=stage.scale.stream)
    stage.settle()
    if stage.wants("read"):
        stage.mount(cold=True)
        stage.loop("read", "read-stream", bytes=stage.scale.stream)
        stage.settle()


def random(stage):
    size = stage.scale.random_file
    stage.mount()
    stage.loop(None, "prepare-random", bytes=size)
    stage.settle()
    stage.mount(cold=True)
    stage.loop("random-read", "read-random", bytes=size, count=stage.scale.random_reads, weight=4096 / (1 << 20))
    stage.settle()
    stage.mount(cold=True)
    stage.loop("random-write", "write-random", bytes=size, count=stage.scale.random_writes, weight=4096 / (1 << 20))
    stage.settle()


def trees(stage):
    """Every step starts warm (the tree has been read once since the mount), as it would right after the one before."""
    stage.mount()
    stage.command("untar", ["tar", "-xf", stage.archive, "-C", stage.directory("one")])
    stage.settle("untar")
    if stage.wants("copy", "git", "remove"):
        stage.mount()
        stage.warm("one")
        stage.command("copy", ["cp", "-a", stage.directory("one"), stage.directory() / "two"])
        stage.settle("copy")
    if stage.wants("git", "remove"):
        stage.mount()
        stage.warm("one")
        stage.command("git", ["sh", "-ec", "git init -q . && git add -A && git commit -q -m tree"], within="one")
        stage.settle("git")
    if stage.wants("remove"):
        stage.mount()
        stage.warm("one")
        stage.warm("two")
        stage.command("remove", ["rm", "-rf", stage.directory("one"), stage.directory("two")])
        stage.settle("remove")


def databases(stage):
    stage.mount()
    for name, mode, count in (("sqlite-delete", "DELETE", stage.scale.delete_transactions),
                              ("sqlite-wal", "WAL", stage.scale.wal_transactions)):
        stage.sqlite(name, mode, count)
    stage.settle()


def many_files(stage):
    """Not a speed: what the daemon's memory comes to with very many files, all of them looked at."""
    stage.mount()
    stage.loop(None, "create-many", count=stage.scale.many)
    stage.settle()
    stage.mount()
    stage.warm("t0")
    stage.settle()


GROUPS = {
    small_files: ("create", "list-cold", "read-cold", "read-warm", "stat", "rename", "unlink"),
    small_files_in_parallel: ("create-4",),
    directories: ("mkdir",),
    durable: ("create-fsync", "create-fsync-4", "overwrite", "overwrite-4", "append"),
    sequential: ("write", "read"),
    random: ("random-read", "random-write"),
    trees: ("untar", "copy", "git", "remove"),
    databases: ("sqlite-delete", "sqlite-wal"),
}
