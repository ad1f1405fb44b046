"""What the tools need from the machine: packages, commands, mounts, daemons, facts, and cleaning up behind them.

Invariants:
(M1) Whatever a tool mounts, starts or creates is on its `Cleanup` before it exists, so that it goes away on success,
     failure, Ctrl-C and SIGTERM alike.
(M2) Processes are ended by the identifier they were started with, never by name.
(M3) No call here touches a dead mount in a way that could block: mounts are looked up in the kernel's table.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Failure(Exception):
    """Ends a tool with one clear line and status 1."""


# Commands a tool needs → the Debian package that brings each.
PACKAGES = {
    "fuse2fs": "fuse2fs",
    "ntfs-3g": "ntfs-3g",
    "mkfs.ntfs": "ntfs-3g",
    "mkfs.ext4": "e2fsprogs",
    "bindfs": "bindfs",
    "sqlite3": "sqlite3",
    "git": "git",
    "cc": "gcc",
    "pkg-config": "pkg-config",
    "postgres": "postgresql",
    "tar": "tar",
    "fusermount3": "fuse3",
}


def add_to_path():
    """Where Debian keeps what is not for everybody's hands: administration, and the server of each version of PostgreSQL."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.environ["PATH"].split(":")
    os.environ["PATH"] = ":".join(path + [place for place in ["/usr/sbin", "/sbin", *map(str, servers[:1])] if place not in path])


def install_packages(*commands):
    """Brings the packages of missing commands with apt-get; does nothing when all are there."""
    add_to_path()
    missing = sorted({PACKAGES[command] for command in commands if not shutil.which(command)})
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for attempt in (install, ["apt-get", "update", "-q"], install):
        result = subprocess.run(attempt, env=environment, capture_output=True, text=True)
        if attempt is install and result.returncode == 0:
            add_to_path()
            return
    raise Failure(f"cannot install {' '.join(missing)}: {last_line(result.stderr)}")


def require_root():
    if os.geteuid() != 0:
        raise Failure("this tool mounts filesystems and drops caches: run it as root")
    if not os.path.exists("/dev/fuse"):
        raise Failure("/dev/fuse is missing")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def run(*command, timeout=600, check=True, **options):
    """A command to its end, output captured; a failure names the command and its last line of complaint."""
    command = [str(word) for word in command]
    try:
        result = subprocess.run(command, timeout=timeout, capture_output=True, text=True, errors="replace", **options)
    except subprocess.TimeoutExpired:
        raise Failure(f"`{' '.join(command)}` did not end within {timeout} s") from None
    if check and result.returncode != 0:
        message = last_line(result.stderr or result.stdout)
        raise Failure(f"`{' '.join(command)}` ended with status {result.returncode}: {message}")
    return result


# Cleaning up


class Cleanup:
    """A stack of things to undo, newest first. Every step is tried; a step that fails is reported, not fatal."""

    def __init__(self):
        self.steps = []

    def add(self, step):
        self.steps.append(step)
        return step

    def remove(self, step):
        if step in self.steps:
            self.steps.remove(step)

    def undo(self):
        while self.steps:
            step = self.steps.pop()
            try:
                step()
            except Exception as problem:  # noqa: BLE001: the remaining steps must still run
                say(f"clean-up: {problem}")


class Interrupts:
    """Turns signals into KeyboardInterrupt, but not while something is being started that has no name yet (M1)."""

    depth = 0
    pending = False

    @classmethod
    def arrive(cls, number, frame):
        if cls.depth:
            cls.pending = True
        else:
            raise KeyboardInterrupt

    @classmethod
    @contextlib.contextmanager
    def deferred(cls):
        cls.depth += 1
        try:
            yield
        finally:
            cls.depth -= 1
            if cls.pending and not cls.depth:
                cls.pending = False
                raise KeyboardInterrupt


def start(command, cleanup=None, **options):
    """A process of ours in a session of its own, so that Ctrl-C reaches only the tool, and its whole group can be ended."""
    with Interrupts.deferred():
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        if cleanup:
            cleanup.add(lambda: end(process))
    return process


def end(process):
    """Ends a process that `start` began, and what it began, by its own group (M2)."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@contextlib.contextmanager
def cleaning_up():
    """Runs the body with a `Cleanup` that is undone however the body ends, signals included."""
    cleanup = Cleanup()

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, Interrupts.arrive) for number in handled}
    try:
        yield cleanup
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        cleanup.undo()
        for number in handled:
            signal.signal(number, previous[number])


def workspace(cleanup, parent=None):
    """A private directory on a real disk (images in a tmpfs would measure memory), removed at the end."""
    parent = Path(parent or os.environ.get("TMPDIR") or "/var/tmp")
    if filesystem_type(parent) in ("tmpfs", "ramfs", "overlay") and not os.environ.get("DAYBOOK_ANY_DISK"):
        raise Failure("the working directory is not on a disk: choose another one with --directory")
    with Interrupts.deferred():
        directory = Path(tempfile.mkdtemp(prefix="daybook-", dir=parent)).resolve()
        step = cleanup.add(lambda: shutil.rmtree(directory))
        step.directory = directory
    return directory


def keep_workspace(cleanup, directory):
    """Takes the removal of a workspace off the list: what is in it is evidence."""
    cleanup.steps = [step for step in cleanup.steps if getattr(step, "directory", None) != directory]


def main(body):
    """Runs a tool's body and turns what it raises into one line and an exit status."""
    try:
        sys.exit(body())
    except Failure as failure:
        say(f"{Path(sys.argv[0]).name}: {failure}")
        sys.exit(1)
    except KeyboardInterrupt:
        say(f"{Path(sys.argv[0]).name}: interrupted")
        sys.exit(130)


# Mounts


def mounts():
    """Mount points → (type, source, device number), newest last, as the kernel's table has them."""
    table = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            words, tail = fields.split(), rest.split()
            point = words[4].encode().decode("unicode_escape")
            table[point] = (tail[0], tail[1], words[2])
    return table


def is_mounted(point):
    return str(point) in mounts()


def filesystem_type(path):
    return run("stat", "-f", "-c", "%T", path).stdout.strip()


def unmount(point, patience=20):
    """Unmounts, waiting out processes that are just leaving."""
    deadline = time.monotonic() + patience
    while True:
        result = run("umount", point, check=False, timeout=600)
        if result.returncode == 0:
            return
        if not is_mounted(point):
            return
        if time.monotonic() > deadline:
            raise Failure(f"cannot unmount: {last_line(result.stderr)}")
        time.sleep(0.05)


def detach(point):
    """Takes a mount out of the tree whatever its state, and never waits for its daemon."""
    while is_mounted(point):
        kind, _, number = mounts()[str(point)]
        if kind.startswith("fuse"):
            # A request that is still waiting for an answer would keep its process, and us, for ever.
            with contextlib.suppress(OSError):
                Path(f"/sys/fs/fuse/connections/{number.partition(':')[2]}/abort").write_text("1")
        if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(str(point)), 2) != 0:  # MNT_DETACH
            return


def drop_caches():
    """Everything written back, everything clean forgotten: the state after a reboot, as far as reads can tell."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


# Daemons


class Daemon:
    """A filesystem's process, kept in the foreground as our child, so that its identity, end and cost are certain."""

    def __init__(self, command, point, log, cleanup, patience=120):
        self.point = Path(point)
        self.cleanup = cleanup
        self.peak_memory = 0
        self.processor_seconds = 0.0
        self.status = None
        self.log = Path(log)
        started = time.monotonic()
        with open(log, "ab") as output, Interrupts.deferred():
            self.process = start(command, stdout=output, stderr=output)
            self.identifier = self.process.pid
            self.step = cleanup.add(self.abandon)
        self.wait_until_usable(started + patience)
        self.mount_seconds = time.monotonic() - started

    def wait_until_usable(self, deadline):
        while not is_mounted(self.point):
            if self.poll():
                self.cleanup.remove(self.step)
                raise Failure(f"the filesystem did not mount (status {self.status}): {self.complaint()}")
            if time.monotonic() > deadline:
                self.abandon()
                raise Failure("the filesystem did not mount in time")
            time.sleep(0.0005)
        try:
            os.listdir(self.point)
        except OSError as problem:
            self.abandon()
            raise Failure(f"the filesystem mounted and failed: {problem.strerror}: {self.complaint()}") from None

    def complaint(self):
        return last_line(self.log.read_text(errors="replace"))

    def sample(self):
        """The peak of resident memory so far; what a process has at its very end is seen by sampling until then."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.identifier}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_memory = max(self.peak_memory, int(line.split()[1]) * 1024)

    def processor_seconds_so_far(self):
        nanoseconds = 0
        for thread in Path(f"/proc/{self.identifier}/task").iterdir():
            # One that has ended in between no longer says.
            with contextlib.suppress(OSError):
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9

    def poll(self):
        """Whether the process has ended; its cost is taken when it has."""
        if self.status is not None:
            return True
        identifier, status, usage = os.wait4(self.identifier, os.WNOHANG)
        if identifier == 0:
            return False
        self.status = os.waitstatus_to_exitcode(status)
        self.process.returncode = self.status
        self.processor_seconds = usage.ru_utime + usage.ru_stime
        return True

    def wait(self, patience=300):
        deadline = time.monotonic() + patience
        while not self.poll():
            self.sample()
            if time.monotonic() > deadline:
                raise Failure(f"the daemon did not end within {patience} s after its unmount")
            time.sleep(0.001)

    def unmount(self):
        """Unmounts and waits for the daemon's end: what it wrote last is then handed to the disk."""
        self.sample()
        unmount(self.point)
        self.wait()
        self.cleanup.remove(self.step)

    def kill(self):
        """SIGKILL, and the process gone when this returns; the dead mount stays until `detach`."""
        self.sample()
        if self.status is None:
            os.kill(self.identifier, signal.SIGKILL)
        self.wait(30)

    def abandon(self):
        # The process first: it could still be about to mount. Then nobody answers, which `detach` allows for.
        if not self.poll():
            os.killpg(self.identifier, signal.SIGKILL)
            self.wait(30)
        detach(self.point)
        self.cleanup.remove(self.step)


# Facts


def machine_facts():
    """Kernel, processors, memory: what a figure depends on, without naming the machine."""
    release = os.uname()
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.partition(":")[2].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    return {
        "kernel": f"{release.sysname} {release.release.partition('-')[0]} {release.machine}",
        "processors": f"{os.cpu_count()} × {model}",
        "memory": f"{memory:.0f} GiB",
    }


class FlushCounter:
    """Cache flushes the disk below a file completed: tells what a filesystem's fsync really does."""

    def __init__(self, path):
        number = os.stat(path).st_dev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
        if (device / "partition").exists():
            device = device.parent
        self.statistics = device / "stat"

    def count(self):
        try:
            fields = self.statistics.read_text().split()
            return int(fields[15]) if len(fields) > 15 else None
        except OSError:
            return None


def busy_seconds():
    """Processor seconds the whole machine has spent so far, steal and idle left out."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + fields[5] + fields[6]) / os.sysconf("SC_CLK_TCK")
