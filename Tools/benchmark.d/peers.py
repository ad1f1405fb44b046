"""The filesystems that are measured: how each is made, mounted and taken down, on an image of the same size.

Options are each program's own defaults unless they would cripple it or let a background thread disturb the clock:
ext4 initialises its tables at mkfs, ntfs-3g gets `big_writes`, and bindfs passes through to an ext4 image of its own.

(P1) `unmount` returns when the daemon has ended and the image has been fsynced: everything is on the disk by then.
"""

import os
import time
from pathlib import Path

from machine import Daemon, detach, is_mounted, run, unmount


class Peer:
    """One filesystem on one image. `point` is the directory to work in while mounted."""

    name = ""
    fuse = True

    def __init__(self, directory, size, cleanup, prefix=()):
        self.directory = Path(directory) / self.name
        self.directory.mkdir()
        self.image = self.directory / "image"
        self.point = self.directory / "mount"
        self.point.mkdir()
        self.log = self.directory / "log"
        self.size, self.cleanup, self.prefix = size, cleanup, list(prefix)
        self.daemon = None
        self.peak_memory = 0
        self.processor_seconds = 0.0

    def make(self):
        """A fresh image: sparse, of the same size for all."""
        self.image.unlink(missing_ok=True)
        with open(self.image, "wb") as image:
            image.truncate(self.size)
        self.format()
        self.flush_image()

    def mount(self):
        self.daemon = self.start(self.command(), self.point)

    def start(self, command, point):
        return Daemon([*self.prefix, *command], point, self.log, self.cleanup)

    def unmount(self):
        """Seconds from the call until nothing is left to write."""
        started = time.monotonic()
        self.take_down()
        self.flush_image()
        elapsed = time.monotonic() - started
        self.account()
        return elapsed

    def take_down(self):
        self.daemon.unmount()

    def account(self):
        if self.daemon:
            self.peak_memory = max(self.peak_memory, self.daemon.peak_memory)
            self.processor_seconds += self.daemon.processor_seconds
            self.daemon = None

    def abandon(self):
        """After a failure: whatever is still there goes."""
        if self.daemon:
            self.daemon.abandon()
            self.account()
        detach(self.point)

    def flush_image(self):
        descriptor = os.open(self.image, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def daemon_seconds(self):
        """Processor seconds of the daemon so far."""
        if not self.daemon or self.daemon.status is not None:
            return 0.0
        fields = Path(f"/proc/{self.daemon.identifier}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class LoopMount:
    """ext4 through a loop device, as `mount -o loop` sets it up; the device goes with its mount."""

    def __init__(self, image, point, cleanup):
        self.point, self.cleanup = point, cleanup
        self.step = cleanup.add(lambda: detach(point))
        run("mount", "-t", "ext4", "-o", "loop", image, point)

    def unmount(self):
        unmount(self.point)
        self.cleanup.remove(self.step)


def make_ext4(image):
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)


class Ext4(Peer):
    name = "ext4"
    fuse = False

    def format(self):
        make_ext4(self.image)

    def mount(self):
        self.loop = LoopMount(self.image, self.point, self.cleanup)

    def take_down(self):
        self.loop.unmount()


class Fuse2fs(Peer):
    name = "fuse2fs"

    def format(self):
        make_ext4(self.image)

    def command(self):
        return ["fuse2fs", "-f", self.image, self.point]


class Ntfs3g(Peer):
    name = "ntfs-3g"

    def format(self):
        run("mkfs.ntfs", "-q", "-F", "-f", self.image)

    def command(self):
        return ["ntfs-3g", "-o", "no_detach,big_writes", self.image, self.point]


class Bindfs(Peer):
    name = "bindfs"

    def format(self):
        make_ext4(self.image)
        self.lower = self.directory / "lower"
        self.lower.mkdir(exist_ok=True)

    def mount(self):
        self.loop = LoopMount(self.image, self.lower, self.cleanup)
        super().mount()

    def command(self):
        return ["bindfs", "-f", self.lower, self.point]

    def take_down(self):
        super().take_down()
        self.loop.unmount()

    def abandon(self):
        super().abandon()
        if is_mounted(self.lower):
            detach(self.lower)


class DaybookPeer(Peer):
    name = "daybook"

    def __init__(self, *arguments, daybook=None, options="", **named):
        super().__init__(*arguments, **named)
        self.daybook, self.options = daybook, options

    def make(self):
        # mkfs makes its own sparse file; the size is the same.
        self.image.unlink(missing_ok=True)
        self.daybook.make(self.image, str(self.size))
        self.flush_image()

    def mount(self):
        self.daemon = self.daybook.mount(self.image, self.point, self.log, self.cleanup, self.options, self.prefix)


KINDS = {kind.name: kind for kind in (DaybookPeer, Ext4, Fuse2fs, Ntfs3g, Bindfs)}
NEEDS = {
    "ext4": ("mkfs.ext4",),
    "fuse2fs": ("fuse2fs", "mkfs.ext4"),
    "ntfs-3g": ("ntfs-3g", "mkfs.ntfs"),
    "bindfs": ("bindfs", "mkfs.ext4"),
    "daybook": (),
}
