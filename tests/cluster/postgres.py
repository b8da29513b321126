"""PostgreSQL for the scripts here: servers of their own on free ports, which end with the process that started them.

A shell (KEEPER) creates the folder and starts the server as an ordinary user. At the end of its input, which is the end
of this process however it comes, it stops the server and removes the folder.
"""
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

OLDEST = 15
NUMBERS = itertools.count()

KEEPER = r"""
trap '' INT TERM HUP PIPE
umask 077
mkdir "$FOLDER" || exit 1
cd "$FOLDER" || exit 1
clean() {
  "$BIN/pg_ctl" -D data -m immediate -w -t 60 stop >/dev/null 2>&1
  cd /
  rm -rf "$FOLDER"
}
trap clean EXIT
echo folder
while read -r command; do
  case $command in
    create)
      "$BIN/initdb" -D data -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >setup.log 2>&1 ;;
    follow*)
      "$BIN/pg_basebackup" -D data -d "${command#follow }" -R -X stream -c fast --no-sync >setup.log 2>&1 ;;
    remove)
      rm -rf data ;;
    start)
      "$BIN/pg_ctl" -D data -w -t 60 -l server.log start >setup.log 2>&1 </dev/null ;;
    stop*)
      "$BIN/pg_ctl" -D data -w -t 60 -m "${command#stop }" stop >setup.log 2>&1 ;;
    set*)
      printf '%b\n' "${command#set }" >>data/postgresql.conf ;;
  esac
  echo $?
done
"""


def programs():
    """The folder of the newest version's programs; None where there are none."""
    folders = [path / "bin" for path in Path("/usr/lib/postgresql").glob("*")]
    folders += [Path(found).parent for found in [shutil.which("postgres")] if found]
    known = []
    for folder in folders:
        if not all((folder / name).exists() for name in ("initdb", "pg_ctl", "psql", "pg_basebackup")):
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            known.append((int(text.split()[2].split(".")[0]), folder))
    version, folder = max(known, default=(0, None))
    return folder if version >= OLDEST else None


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def as_ordinary_user(command):
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return command
    user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
    group = "nogroup" if user == "nobody" else user
    return ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", *command]


class Server:
    """One server. Its address stays the same, whatever data folder it gets."""

    hba: tuple[str, ...] = ("host all all 127.0.0.0/8 trust", "host replication all 127.0.0.0/8 trust")

    def __init__(self, name="a", settings=(), memory=None, at=None):
        """`memory`: the size of a disk in memory that it has for itself; needs root. `at`: its address and port, and the
        command that starts a program there."""
        number = next(NUMBERS)
        pid = os.getpid()
        self.host, self.port, prefix = at or (*self._free(pid, number), [])
        self.name = name
        self.bin = programs()
        self.settings = [f"port = {self.port}", f"listen_addresses = '{self.host}'", "unix_socket_directories = ''",
                         "max_connections = 100", "shared_buffers = 64MB", "wal_keep_size = 64MB",
                         # A standby looks for its primary at once when that is back: its default pause is 5 s.
                         "wal_retrieve_retry_interval = 100ms", *settings]
        base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
        self.folder = base / f"wxrelay-cluster-{pid}-{number}"
        command = [*prefix, *as_ordinary_user(["sh", "-c", KEEPER])]
        if memory:
            # The mount goes with the processes that see it.
            self.folder = Path("/mnt") / self.folder.name
            mount = f"mount -t tmpfs -o mode=1777,size={memory} wxrelay /mnt && exec \"$@\""
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        environment = {**os.environ, "FOLDER": str(self.folder), "BIN": str(self.bin), "LC_ALL": "C.UTF-8"}
        self.keeper = subprocess.Popen(command, env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        if self.keeper.stdout.readline() != "folder\n":
            raise RuntimeError("PostgreSQL's folder could not be made")

    @staticmethod
    def _free(pid, number):
        """An address that no other process uses, so that nobody takes the port first."""
        host = f"127.{(pid >> 8) & 255 | 1}.{pid & 255}.{10 + number}"
        with socket.create_server((host, 0)) as probe:
            return host, probe.getsockname()[1]

    def order(self, command):
        self.keeper.stdin.write(f"{command}\n")
        self.keeper.stdin.flush()
        return self.keeper.stdout.readline().strip() == "0"

    def must(self, command):
        if not self.order(command):
            raise RuntimeError(f"{self.name}: {command}: {self.text('setup.log')} {self.text('server.log')[-2000:]}")

    def path(self, name):
        """A file in its folder, as it is seen from here."""
        return Path(f"/proc/{self.keeper.pid}/root{self.folder}") / name

    def text(self, name):
        with contextlib.suppress(OSError):
            return self.path(name).read_text(errors="replace")
        return ""

    def create(self):
        """A new, empty server, started, with a role and its database."""
        self.must("create")
        self.must("set " + "\\n".join(self.settings))
        self.path("data/pg_hba.conf").write_text("".join(f"{line}\n" for line in self.hba))
        self.start()
        self.sql("CREATE ROLE wxrelay LOGIN", "postgres")
        self.sql("CREATE DATABASE wxrelay OWNER wxrelay TEMPLATE template0", "postgres")
        return self

    def follow(self, primary, way=None):
        """A standby of another server, with a copy of its data in place of its own, started. `way`: the address and port by
        which it reaches that one."""
        host, port = way or (primary.host, primary.port)
        self.must("remove")
        self.must(f"follow host={host} port={port} user=postgres application_name={self.name}")
        self.must("set " + "\\n".join([*self.settings, "synchronous_standby_names = ''"]))
        # What `ALTER SYSTEM` set on the other one; the stream's own settings stay.
        lines = self.text("data/postgresql.auto.conf").splitlines()
        self.path("data/postgresql.auto.conf").write_text("".join(f"{line}\n" for line in lines if line.startswith("primary_")))
        self.start()
        return self

    def start(self):
        # The system may take a moment to end the processes of a server that was killed, and what they share.
        for _ in range(50):
            if self.order("start"):
                return
            time.sleep(0.2)
        self.must("start")

    def stop(self, mode="fast"):
        self.must(f"stop {mode}")

    def end(self):
        """Ends it and removes its folder."""
        self.keeper.stdin.close()
        self.keeper.wait()

    def pid(self):
        return int(self.text("data/postmaster.pid").split("\n")[0])

    def processes(self):
        """All of its processes, the first one first."""
        first = self.pid()
        found = [first]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == first:
                    found.append(int(entry.name))
        return found

    def signal_all(self, number):
        """Sends all of its processes a signal; they make no others meanwhile."""
        found = self.processes()
        os.kill(found[0], signal.SIGSTOP)
        for pid in [*self.processes()[1:], found[0]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self):
        """kill -9 of all its processes at once, as when the machine is lost."""
        found = self.processes()
        self.signal_all(signal.SIGKILL)
        while any(is_running(pid) for pid in found):
            time.sleep(0.01)

    def freeze(self):
        self.signal_all(signal.SIGSTOP)

    def thaw(self):
        self.signal_all(signal.SIGCONT)

    def promote(self):
        """Makes it a primary; returns when it accepts writes."""
        if self.sql("SELECT pg_promote(true, 60)", "postgres") != "t":
            raise RuntimeError(f"{self.name} was not promoted")

    def set(self, name, value):
        """A setting of the whole server."""
        self.sql(f"ALTER SYSTEM SET {name} = '{value}'", "postgres")
        self.sql("SELECT pg_reload_conf()", "postgres")

    def sql(self, text, database="wxrelay"):
        """Executes SQL as the superuser; the rows as lines, columns separated by `|`."""
        command = [self.bin / "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", self.host,
                   "-p", str(self.port), "-d", database, "-c", text]
        # What a test reads or sets must not wait for a standby.
        environment = {**os.environ, "PGOPTIONS": "-c synchronous_commit=local -c default_transaction_read_only=off"}
        run = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120)
        if run.returncode:
            raise RuntimeError(f"{self.name}: {text}: {run.stderr.strip()}")
        return run.stdout.rstrip("\n")

    def each_session(self, function, chance=1.0):
        """Calls `pg_terminate_backend` or `pg_cancel_backend` for sessions of the relay; how many there were."""
        sql = f"SELECT {function}(pid) FROM pg_stat_activity WHERE usename = 'wxrelay' AND random() < {chance}"
        return len(self.sql(sql).splitlines())

    def has_standby(self):
        return self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"


def pgbouncer():
    """The program; None if it is not installed. Not everybody has /usr/sbin on the path."""
    return shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")


class Pooler:
    """PgBouncer before a server, in transaction mode. Its address stays the same."""

    def __init__(self, server, connections):
        self.host = server.host
        with socket.create_server((self.host, 0)) as probe:
            self.port = probe.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix="wxrelay-pooler-"))
        self.folder.chmod(0o755)
        users = self.folder / "users"
        users.write_text('"wxrelay" ""\n')
        self.settings = self.folder / "pgbouncer.ini"
        self.settings.write_text(
            f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\nlisten_addr = {self.host}\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {connections}\n"
            # It refuses logins for as long after one that failed: its default is 15 s.
            "server_login_retry = 1\n")
        self.process = None

    def start(self):
        # Ends with this process: its input is the pipe.
        command = ["sh", "-c", '"$0" -q "$1" </dev/null >/dev/null 2>&1 & pid=$!; read -r _; kill -KILL $pid',
                   pgbouncer(), self.settings]
        self.process = subprocess.Popen(as_ordinary_user(command), cwd="/", stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self.host, self.port), 1).close()
                return
            if time.monotonic() > deadline:
                raise RuntimeError("PgBouncer does not listen")
            time.sleep(0.02)

    def kill(self):
        """kill -9."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def end(self):
        self.kill()
        shutil.rmtree(self.folder)


def url(*servers):
    return "postgres://wxrelay@" + ",".join(f"{server.host}:{server.port}" for server in servers) + "/wxrelay"
