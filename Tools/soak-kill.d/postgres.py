"""A PostgreSQL server with its data in the mount: the writer's and the check's.

The server runs as the user `postgres`, because it refuses to be root's, in the process group of whoever starts it, and dies with
it. Notes: `try N` before a transaction that inserts row N, `kept N` when COMMIT has been answered.
"""

import grp
import os
import pwd
import random
import signal
import subprocess
import time

USER = "postgres"
PORT = "5599"


def identity():
    """Keywords that make subprocess run a program as the server's user."""
    user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [group.gr_gid for group in grp.getgrall() if USER in group.gr_mem],
            "env": dict(os.environ, HOME="/", LC_ALL="C", PGHOST="/tmp", PGPORT=PORT, PGUSER=USER)}


class Server:
    def __init__(self, root, outside):
        self.root, self.data = root, root / "data"
        # Sockets outside of the mount: the path of one inside would be too long.
        self.sockets = outside / "postgres"
        self.log = outside / "postgres.log"
        self.sockets.mkdir(exist_ok=True)
        user = pwd.getpwnam(USER)
        for path in (root, self.sockets):
            os.chown(path, user.pw_uid, user.pw_gid)
        os.chmod(outside, 0o711)
        self.identity = identity()
        self.identity["env"]["PGHOST"] = str(self.sockets)
        self.process = None

    def run(self, *command, **options):
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace", cwd="/",
                              **self.identity, **options)

    def initialize(self):
        result = self.run("initdb", "-D", self.data, "--data-checksums", "-A", "trust")
        if result.returncode:
            raise RuntimeError(f"initdb: {result.stderr.strip()[-300:]}")

    def start(self, patience=120):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["postgres", "-D", str(self.data), "-k", str(self.sockets), "-p", PORT, "-c", "listen_addresses=", "-c", "max_connections=10",
                 "-c", "shared_buffers=16MB", "-c", "max_wal_size=64MB", "-c", "checkpoint_timeout=30s"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self.identity)
        deadline = time.monotonic() + patience
        while self.run("pg_isready", "-q").returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {self.complaint()}")
            time.sleep(0.05)

    def complaint(self):
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if "FATAL" in line or "PANIC" in line]
        return lines[-1] if lines else "no message"

    def query(self, text):
        result = self.run("psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres")
        if result.returncode:
            raise RuntimeError(f"psql: {result.stderr.strip()[-300:]}")
        return result.stdout.strip()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise RuntimeError("the server did not stop") from None


def work(root, outside, seed, notes):
    """One transaction after another, on whatever is there."""
    server = Server(root, outside)
    if not (server.data / "PG_VERSION").exists() or not notes.was("made"):
        if server.data.exists():
            subprocess.run(["rm", "-rf", str(server.data)], check=True)
        server.initialize()
        server.start()
        server.query("CREATE TABLE entry(n bigint PRIMARY KEY, body text, sum text); CREATE INDEX ON entry(sum)")
        notes.add("made")
    else:
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        server.start()
    number = int(server.query("SELECT coalesce(max(n), 0) FROM entry"))
    chance = random.Random(seed)
    client = subprocess.Popen(["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "postgres"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", **server.identity)
    while True:
        number += 1
        body = chance.randbytes(chance.randrange(10, 3000)).hex()
        notes.add("try", number)
        client.stdin.write(f"BEGIN; INSERT INTO entry VALUES({number}, '{body}', md5('{body}')); DELETE FROM entry WHERE n <= {number - 3000};"
                           f" UPDATE entry SET body = body || 'x', sum = md5(body || 'x') WHERE n = {number - 7}; COMMIT;\n\\echo done {number}\n")
        client.stdin.flush()
        answer = client.stdout.readline().strip()
        if answer != f"done {number}":
            raise RuntimeError(f"PostgreSQL: {client.stderr.read().strip()[-300:]}; {server.complaint()}")
        notes.add("kept", number)


def check(root, outside, notes, thorough):
    """Every row that was acknowledged is there, whole and in its indexes; returns a few words."""
    if not any(words[0] == "made" for words in notes):
        return "postgres not begun"
    kept = max((int(words[1]) for words in notes if words[0] == "kept"), default=0)
    tried = max((int(words[1]) for words in notes if words[0] == "try"), default=0)
    server = Server(root, outside)
    (server.data / "postmaster.pid").unlink(missing_ok=True)
    try:
        server.start()
        last, count, wrong = server.query("SELECT coalesce(max(n), 0), count(*), count(*) FILTER (WHERE md5(body) <> sum) FROM entry").split("|")
        last, count, wrong = int(last), int(count), int(wrong)
        least = int(server.query("SELECT coalesce(min(n), 1) FROM entry"))
        server.query("CREATE EXTENSION IF NOT EXISTS amcheck")
        server.query("SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE amname = 'btree' AND relpersistence = 'p'"
                     " AND relkind = 'i'")
    except RuntimeError as problem:
        raise AssertionError(f"postgres: {problem}") from None
    finally:
        server.stop()
    assert kept <= last <= max(tried, kept), f"postgres: row {last} is last; {kept} acknowledged, {tried} tried"
    assert count == last - least + 1 or count == 0, f"postgres: {count} rows from {least} to {last}"
    assert wrong == 0, f"postgres: {wrong} rows are wrong"
    if thorough:
        result = server.run("pg_checksums", "--check", "-D", server.data)
        assert result.returncode == 0, f"pg_checksums: {(result.stdout + result.stderr).strip()[-300:]}"
    return f"postgres {last} in [{kept}, {tried}]{', checksums good' if thorough else ''}"
