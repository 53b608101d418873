"""Environments of the clients: a folder for each below build/clients, with a venv or with node_modules."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tools.clients.clients import ROOT, Client

_ENVIRONMENTS = ROOT / "build" / "clients"


class Missing(Exception):
    """A program that a client needs is not on this machine, or its packages cannot be installed."""


def folder_of(client: Client) -> Path:
    """Return the folder of a client's environment."""
    return _ENVIRONMENTS / client.name


def program_of(client: Client, ending: str) -> str:
    """Return the program that runs a script of this client with this ending."""
    if ending == ".py":
        return str(folder_of(client) / "venv" / "bin" / "python") if client.packages else sys.executable
    return "node" if ending == ".mjs" else "sh"


def install(client: Client) -> None:
    """Install the pinned packages of a client, if they are not there yet. Raises Missing."""
    folder = folder_of(client)
    done = folder / "installed.json"
    if done.is_file() and json.loads(done.read_text()) == list(client.packages):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if client.node:
        if not shutil.which("npm"):
            raise Missing("npm is not on this machine")
        _run("npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), *client.packages)
    elif not client.packages:
        if not shutil.which(client.name):
            raise Missing(f"{client.name} is not on this machine")
    else:
        venv.create(folder / "venv", with_pip=True)
        _run(program_of(client, ".py"), "-m", "pip", "install", "-q", *client.packages)
    done.write_text(json.dumps(client.packages))


def version_of(client: Client) -> str:
    """Return the version of a client: that of its first package, or what the program says; "" if it is not there."""
    if not client.packages:
        if not shutil.which("curl"):
            return ""
        return subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return client.packages[0].replace("==", "@").rpartition("@")[2]


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Missing(f"{' '.join(command[:3])} failed: {ran.stderr.strip()[-500:]}")
