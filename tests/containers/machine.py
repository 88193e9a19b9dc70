"""Containers by hand: namespaces for mounts, network and processes, the image's user, a read-only root.

Everything here runs as root within namespaces of its own (`--inside` of run.py), so nothing is left on the machine.
What an engine has and this has not: cgroups, seccomp, and a root of its own: a container sees this machine's files,
read-only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import psutil

from tests.containers.compose import Image, Service, Volume

ROOT = Path(__file__).parents[2]
PLACE = Path("/opt/freshet")  # of the image's packages, as in the Dockerfile
# The interpreter may lie where only root looks, such as /root/.pyenv: reading everything is allowed, writing is not.
_READ_ONLY = "-all,+dac_read_search"


def run(*command: str | Path) -> None:
    """Run a command of the system; its output is shown if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")


class Container:
    """A service's process with its own network address, mounts and process ids."""

    def __init__(self, machine: Machine, service: Service, uid: int, command: list[str], folder: str,
                 mounts: list[tuple[Path, Volume]]) -> None:
        self.service, self.machine, self.uid = service, machine, uid
        self.log = machine.folder / f"{service.name}.log"
        self._folder = folder
        # The most specific mount last; /tmp at the very end, because sources lie below it.
        lines = ["set -e", f"echo {service.name} > /proc/sys/kernel/hostname"]
        lines.append("mount -t tmpfs -o mode=755 tmpfs /var/lib")
        for source, volume in sorted(mounts, key=lambda one: len(one[1].target)):
            target = shlex.quote(volume.target)
            lines += [f"mkdir -p {target}", f"mount --bind {shlex.quote(str(source))} {target}"]
            lines += [f"mount -o remount,bind,ro {target}"] if volume.read_only else []
        lines += [f"mount --bind {machine.hosts} /etc/hosts", "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm"]
        for target, options in sorted(service.tmpfs, key=lambda one: one[0] == "/tmp"):  # noqa: S108
            lines += [f"mkdir -p {target}", f"mount -t tmpfs -o {options or 'mode=1777'} tmpfs {target}"]
        lines += ["mount -o remount,bind,ro /", "mount -o remount,bind,ro /opt", "mount -o remount,ro /var/lib"]
        lines.append(self._start(command))
        run("ip", "netns", "add", service.name)
        self._connect()
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{service.name}", "unshare", "--mount", "--uts", "--pid",
                 "--fork", "--kill-child=SIGKILL", "--mount-proc", "bash", "-c", "\n".join(lines)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def _start(self, command: list[str]) -> str:
        """Return a line that becomes the command: the container's user, exactly its environment."""
        given = [f"{name}={value}" for name, value in self.service.environment.items()]
        words = ["env", "-i", *given, "setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups",
                 "--no-new-privs", f"--bounding-set={_READ_ONLY}", f"--inh-caps={_READ_ONLY}",
                 f"--ambient-caps={_READ_ONLY}", *command]
        return f"cd {shlex.quote(self._folder)}\nexec {shlex.join(words)}"

    def _connect(self) -> None:
        name, number = self.service.name, self.machine.number(self.service.name)
        run("ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"veth{number}", "master", "bridge", "up")
        run("ip", "-n", name, "address", "add", f"{self.machine.address(name)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", name, "link", "set", device, "up")

    @property
    def first(self) -> psutil.Process | None:
        """The process that has number 1 inside."""
        children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        return children[0] if children else None

    def execute(self, *command: str, within_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `docker compose exec` does."""
        first = self.first
        assert first is not None, f"{self.service.name} has ended:\n{self.tail()}"
        return subprocess.run(
            ["nsenter", f"--target={first.pid}", "--mount", "--net", "--pid", "bash", "-c", self._start([*command])],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_s, check=False)

    def wait(self, within_s: float) -> int:
        """Return the exit code of a command that ends by itself."""
        code = self.process.wait(within_s)
        run("ip", "netns", "delete", self.service.name)
        return code

    def stop(self) -> tuple[int, float]:
        """End it as `docker compose stop` does; return its exit code and the seconds that it took."""
        started = time.monotonic()
        if (first := self.first) is not None:
            first.send_signal(signal.SIGTERM)
        code = self.process.wait(self.service.grace_s)
        run("ip", "netns", "delete", self.service.name)
        return code, time.monotonic() - started

    def tail(self, characters: int = 3000) -> str:
        """Return the end of what it wrote: `docker compose logs`."""
        return self.log.read_text(errors="replace")[-characters:]


class Machine:
    """One network for all containers, their volumes, and the image.

    Args:
        folder: for volumes and logs.
        names: of all services, which is what they call each other.
    """

    def __init__(self, folder: Path, names: list[str], image: Image) -> None:
        self.folder, self.image = folder, image
        self._names = names
        self.hosts = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in names)]
        self.hosts.write_text("\n".join(lines) + "\n")
        for place in ("/opt", "/run"):
            run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
        run("mount", "--bind", self.hosts, "/etc/hosts")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "address", "add", "10.77.0.1/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")

    def number(self, name: str) -> int:
        """Return the number of a service."""
        return self._names.index(name) + 10

    def address(self, name: str) -> str:
        """Return the address of a service."""
        return f"10.77.0.{self.number(name)}"

    def build(self) -> None:
        """Make /opt/freshet: an environment with what pip makes of the copied files, and this one's libraries."""
        context = self.folder / "context"
        for sources, target in self.image.copied:
            for source in sources:
                place = context / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place)
        run(sys.executable, "-m", "venv", "--without-pip", PLACE)
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(PLACE), "platbase": str(PLACE)}))
        # Not by their own path: a checkout below /tmp is hidden by a container's own /tmp.
        libraries = PLACE / "libraries"
        libraries.mkdir()
        run("mount", "--bind", sysconfig.get_path("purelib"), libraries)
        (packages / "libraries.pth").write_text(f"{libraries}\n")
        run(sys.executable, "-m", "pip", "--python", PLACE / "bin" / "python", "install", "--quiet", "--no-deps",
            "--no-index", "--no-build-isolation", context)

    def volume(self, name: str) -> Path:
        """Return the folder of a volume of a role; a new one gets what the image has at that place."""
        folder = self.folder / "volumes" / name
        if not folder.is_dir():
            folder.mkdir(parents=True)
            os.chown(folder, self.image.uid, self.image.gid)
        return folder

    def role(self, service: Service, *, more: list[tuple[Path, Volume]] | None = None,
             command: list[str] | None = None) -> Container:
        """Start a service of the image.

        Args:
            more: further mounts, as `docker compose run -v` adds them.
            command: instead of the service's own.
        """
        mounts = list(more or [])
        for at, volume in enumerate(service.volumes):
            source = self.volume(volume.source or f"{service.name}-{at}")
            for folder in self.image.folders:  # what the image has below the place of a volume is copied into it
                if folder.startswith(volume.target + "/"):
                    self.volume(f"{source.name}/{Path(folder).relative_to(volume.target)}")
            mounts.append((source, volume))
        environment = {name: value.replace("$PATH", os.defpath) for name, value in self.image.environment.items()}
        whole = Service(**{name: getattr(service, name) for name in service.__slots__}
                        | {"environment": environment | service.environment})
        return Container(self, whole, self.image.uid, command or service.command, self.image.folder, mounts)


def publish(port: int, address: tuple[str, int]) -> None:
    """Forward 127.0.0.1:`port` to an address, as an engine publishes a port."""
    door = socket.create_server(("127.0.0.1", port))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def serve() -> None:
        while True:
            near, _ = door.accept()
            try:
                far = socket.create_connection(address, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
