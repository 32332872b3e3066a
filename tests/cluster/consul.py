"""A real Consul for the tests: built once, one agent per cluster."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from litefs_django._litefs import binary
from tests.machine import SESSION_VARIABLE, built_once, free_ports, wait_until

VERSION = "1.8.7"
PACKAGE = "github.com/hashicorp/consul"
BUILD_DIRECTORY = Path(__file__).with_name("consul_build")


def consul() -> Path:
    """The consul command, built into the cache (minutes) when it is not there yet."""
    return built_once(f"consul-{VERSION}", _build)


def _build(target: Path) -> None:
    environment = os.environ | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    subprocess.run(
        [
            binary._find_go(environment),
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags=-s -w",
            "-o",
            target,
            PACKAGE,
        ],
        cwd=BUILD_DIRECTORY,
        env=environment,
        check=True,
    )


class ConsulAgent:
    """A server of one, all in memory: `start` and `clean_up` it."""

    def __init__(self, directory: Path, binary: Path) -> None:
        self.log = directory / "consul.log"
        self._directory = directory
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = dict(zip(("http", "server", "serf_lan"), free_ports(3), strict=True))
        self.url = f"http://127.0.0.1:{self._ports['http']}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns once the agent has elected itself; nothing happens when it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        settings = self._directory / "agent.json"
        settings.write_text(
            json.dumps(
                {
                    "bind_addr": "127.0.0.1",
                    "connect": {"enabled": False},
                    "disable_update_check": True,
                    "log_level": "info",
                    "ports": {**self._ports, "serf_wan": -1, "dns": -1, "grpc": -1},
                }
            )
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "agent", "-dev", "-config-file", settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={SESSION_VARIABLE: os.environ.get(SESSION_VARIABLE, "")},
                start_new_session=True,
            )
        wait_until(self._has_leader, "Consul has a leader", context=self.log.read_text)

    def clean_up(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def expire(self, key: str) -> None:
        """Destroys the session that holds the key, as its TTL does once its holder has died."""
        (entry,) = self._call("GET", f"/v1/kv/{key}")
        self._call("PUT", f"/v1/session/destroy/{entry['Session']}")

    def _has_leader(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Consul has ended:\n{self.log.read_text()}"
        with suppress(URLError):
            return bool(self._call("GET", "/v1/status/leader"))
        return False

    def _call(self, method: str, path: str) -> Any:
        with urlopen(Request(self.url + path, method=method), timeout=5) as response:
            return json.load(response)
