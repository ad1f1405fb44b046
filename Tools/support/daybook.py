"""The `daybook` command as the tools use it. Everything they assume about its arguments and output is in this file."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

from machine import Daemon, Failure, last_line, run, say

REPOSITORY = Path(__file__).resolve().parents[2]

# Exit status of fsck(8): a bit mask; 0 is a filesystem without errors.
FSCK_CLEAN = 0


def locate():
    """The command named by DAYBOOK, or this package's release build, made now if need be."""
    named = os.environ.get("DAYBOOK")
    if named:
        command = shlex.split(named)
        if not os.access(command[0], os.X_OK):
            raise Failure("DAYBOOK does not name a command that can be run")
        return Daybook(command)
    say("building daybook (swift build -c release)")
    result = subprocess.run(["swift", "build", "-c", "release", "--product", "daybook"], cwd=REPOSITORY,
                            capture_output=True, text=True)
    binary = REPOSITORY / ".build/release/daybook"
    if result.returncode != 0 or not binary.exists():
        errors = [line for line in (result.stdout + result.stderr).splitlines() if "error:" in line]
        raise Failure(f"the release build failed: {errors[0] if errors else last_line(result.stderr)}")
    return Daybook([str(binary)])


class Daybook:
    def __init__(self, command):
        self.command = command

    def make(self, image, size):
        run(*self.command, "mkfs", "--size", size, image)

    def mount(self, image, point, log, cleanup, options="", prefix=(), patience=120):
        """Mounts with the daemon in the foreground as our child; returns when the directory is usable."""
        command = self.mount_command(image, point, options)
        return Daemon([*prefix, *command], point, log, cleanup, patience)

    def mount_command(self, image, point, options=""):
        return [*self.command, "mount", "-f", *(["-o", options] if options else []), str(image), str(point)]

    def check(self, image):
        """`fsck -n -f`: (status, all it said)."""
        result = run(*self.command, "fsck", "-n", "-f", image, check=False, timeout=1800)
        return result.returncode, (result.stdout + result.stderr).strip()

    def log(self, target, limit):
        """The newest `limit` records, newest first, as dictionaries."""
        output = run(*self.command, "log", "--json", "--reverse", "--limit", limit, target).stdout
        try:
            return [json.loads(line) for line in output.splitlines() if line.strip()]
        except ValueError:
            raise Failure("`daybook log --json` printed a line that is not JSON") from None

    def last_sequence(self, target):
        records = self.log(target, 1)
        if not records or not isinstance(records[0].get("sequence"), int):
            raise Failure("`daybook log --json` showed no record with a sequence")
        return records[0]["sequence"]

    def digest(self, target, at=None):
        """The tree's digest: 64 hexadecimal digits."""
        words = ["digest", target] if at is None else ["digest", "--at", at, target]
        found = re.search(r"\b[0-9a-f]{64}\b", run(*self.command, *words, timeout=1800).stdout)
        if not found:
            raise Failure("`daybook digest` printed no SHA-256")
        return found.group()
