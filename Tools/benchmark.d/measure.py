"""One group of measures on one filesystem: mount, time, settle, and keep the figures.

(S1) The clock runs only around the loop itself, or from the loop's start until everything is on the disk (`settle`).
(S2) What an earlier measure left dirty is on the disk before the clock starts.
(S3) A failure spoils only what it happened in: the filesystem gets a fresh image and the run goes on.
"""

import json
import os
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from catalogue import MEASURES
from machine import Failure, FlushCounter, busy_seconds, drop_caches, last_line

BY_NAME = {measure.name: measure for measure in MEASURES}
PATIENCE = 900  # seconds for one loop or program; the slowest peer needs a twentieth


@dataclass
class Sample:
    """One round's figures for one measure."""

    operations: float
    seconds: float
    settled_seconds: float = 0.0
    flushes: float | None = None       # of the disk, an operation
    slowest_percent: float = 0.0       # seconds below which 99 % of operations stayed
    daemon_seconds: float = 0.0
    machine_seconds: float = 0.0

    @property
    def rate(self):
        return self.operations / self.seconds

    @property
    def settled_rate(self):
        return self.operations / (self.seconds + self.settled_seconds)


@dataclass
class Results:
    # measure → filesystem → [Sample]
    samples: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    failures: list = field(default_factory=list)
    memory: dict = field(default_factory=lambda: defaultdict(int))          # peak of any daemon
    memory_many: dict = field(default_factory=lambda: defaultdict(int))     # the same with very many files
    daemon_seconds: dict = field(default_factory=lambda: defaultdict(list))  # a round


class Stage:
    def __init__(self, peer, group, scale, wanted, helper, archive, results, prefix=()):
        self.peer, self.group, self.scale, self.wanted = peer, group, scale, wanted
        self.helper, self.archive, self.results, self.prefix = helper, archive, results, list(prefix)
        self.latest = {}
        self.flushes = FlushCounter(peer.directory)

    def wants(self, *names):
        return any(name in self.wanted for name in names)

    def directory(self, *parts):
        path = self.peer.point.joinpath(self.group, *parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    # Mounting

    def mount(self, cold=False):
        if cold:
            drop_caches()
        else:
            os.sync()
        self.peer.mount()
        self.directory()

    def settle(self, name=None):
        """Unmounts. The time it takes belongs to the measure named: what it wrote is on the disk only now."""
        seconds = self.peer.unmount()
        if name in self.latest:
            self.latest.pop(name).settled_seconds = seconds

    # Measuring

    def loop(self, name, workload, inside="", weight=1.0, **arguments):
        """A loop of the compiled helper. `weight` turns operations into the measure's unit."""
        command = [self.helper, workload, self.directory(inside) if inside else self.directory()]
        for key, value in arguments.items():
            command += [f"--{key}", value]
        with self.observed(name) as observed:
            output = self.execute(command)
        facts = json.loads(output)
        observed.keep(facts["operations"] * weight, facts["seconds"], facts["operations"], facts.get("p99", 0.0))

    def command(self, name, command, within=None, operations=1, **options):
        """A program from its start to its end."""
        environment = dict(
            os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null", GIT_AUTHOR_NAME="Benchmark",
            GIT_AUTHOR_EMAIL="benchmark@localhost", GIT_COMMITTER_NAME="Benchmark",
            GIT_COMMITTER_EMAIL="benchmark@localhost", LC_ALL="C")
        directory = self.directory(within) if within else "/"
        with self.observed(name) as observed:
            started = time.monotonic()
            self.execute(command, cwd=directory, env=environment, **options)
            seconds = time.monotonic() - started
        observed.keep(operations, seconds, operations)

    def warm(self, inside):
        """Reads a whole tree once, off the clock."""
        self.execute([self.helper, "warm", self.directory(inside)])

    def sqlite(self, name, mode, transactions):
        """Transactions of one insert and one update each, through the SQLite shell, all synchronous."""
        if not self.wants(name):
            return
        script = [f"PRAGMA journal_mode={mode};", "PRAGMA synchronous=FULL;",
                  "CREATE TABLE entry(id INTEGER PRIMARY KEY, label TEXT, body BLOB);",
                  "CREATE INDEX entry_label ON entry(label);"]
        for number in range(1, transactions + 1):
            script.append(f"BEGIN; INSERT INTO entry VALUES({number}, 'label {number * 7919 % 10007}', randomblob(400)); "
                          f"UPDATE entry SET body = randomblob(200) WHERE id = {(number * 31) % number + 1}; COMMIT;")
        database = self.directory() / f"{mode.lower()}.sqlite"
        self.command(name, ["sqlite3", "-bail", database], operations=transactions, input="\n".join(script))

    def execute(self, command, **options):
        command = [*self.prefix, *(str(word) for word in command)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, **options)
        except subprocess.TimeoutExpired:
            raise Failure(f"{Path(command[len(self.prefix)]).name} did not end within {PATIENCE} s") from None
        if result.returncode != 0:
            program = Path(command[len(self.prefix)]).name
            raise Failure(f"{program}: {last_line(result.stderr or result.stdout).removeprefix(program + ': ')}")
        return result.stdout

    def observed(self, name):
        return Observation(self, name)


class Observation:
    """What the machine did meanwhile: processor time and flushes."""

    def __init__(self, stage, name):
        self.stage, self.name = stage, name

    def __enter__(self):
        self.daemon = self.stage.peer.daemon_seconds()
        self.machine = busy_seconds()
        self.flushes = self.stage.flushes.count()
        return self

    def __exit__(self, *problem):
        self.machine = busy_seconds() - self.machine
        self.daemon = self.stage.peer.daemon_seconds() - self.daemon
        after = self.stage.flushes.count()
        self.flushes = after - self.flushes if after is not None else None

    def keep(self, amount, seconds, operations, slowest_percent=0.0):
        if self.name is None or not self.stage.wants(self.name):
            return
        flushes = self.flushes / operations if self.flushes is not None else None
        sample = Sample(amount, seconds, 0.0, flushes, slowest_percent, self.daemon, self.machine)
        self.stage.results.samples[self.name][self.stage.peer.name].append(sample)
        if BY_NAME[self.name].settled:
            self.stage.latest[self.name] = sample
