from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage

from litefs_django import checks
from litefs_django._litefs import binary, listening
from litefs_django._litefs.binary import Requirement
from tests.configuring import ONE_NODE, OURS, Configure, ids, run
from tests.machine import free_ports

ROOT = Path(__file__).parent.parent


class TestExposure:
    @pytest.mark.parametrize(
        "address",
        [
            *("8.8.8.8", "172.32.0.1", "100.128.0.1", "192.169.0.1", "203.0.113.7", "2001:4860:4860::8888"),
            "::ffff:8.8.8.8",
        ],
    )
    def test_a_public_address(self, configure: Configure, address: str) -> None:
        configure({"NODE": "a", "NODES": {"a": {"ADDRESS": address}}})
        (message,) = checks.check_exposure(None)
        assert ids([message]) == ["W003"]
        assert "a public address (port 20202)" in message.msg

    @pytest.mark.parametrize(
        "address",
        [
            *("10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "127.0.0.1", "169.254.1.1", "100.64.0.1"),
            *("100.127.255.255", "fd00::1", "fe80::1", "::1", "::ffff:10.0.0.1", "localhost"),
            "no-such-host.invalid",
        ],
    )
    def test_no_public_address(self, configure: Configure, address: str) -> None:
        configure({"NODE": "a", "NODES": {"a": {"ADDRESS": address}}})
        assert checks.check_exposure(None) == []

    @pytest.mark.parametrize("host", ["", "0.0.0.0", "[::]"])
    def test_every_interface(self, configure: Configure, host: str) -> None:
        configure({**ONE_NODE, "LITEFS_YML": {"http": {"addr": f"{host}:20202"}}})
        (message,) = checks.check_exposure(None)
        assert "listens on every interface of this machine" in message.msg

    def test_where_it_listens_counts(self, configure: Configure) -> None:
        """Behind address translation ADDRESS is another machine's."""
        nodes = {"a": {"ADDRESS": "8.8.8.8"}}
        configure({"NODE": "a", "NODES": nodes, "LITEFS_YML": {"http": {"addr": "10.0.0.1:20202"}}})
        assert checks.check_exposure(None) == []

    def test_other_nodes_check_themselves(self, configure: Configure) -> None:
        configure({"NODE": "a", "PRIMARY": "a", "NODES": {"a": {"ADDRESS": "10.0.0.1"}, "b": {"ADDRESS": "8.8.8.8"}}})
        assert checks.check_exposure(None) == []

    @pytest.mark.parametrize("answer", ["8.8.8.8", None], ids=["public", "none"])
    def test_a_host_name(self, configure: Configure, monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
        """A resolver in place of the system's, which knows no public name here, and none that hangs."""
        over = threading.Event()

        def resolve(*args: Any, **kwargs: Any) -> list[Any]:
            if answer is None:
                over.wait(60)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer or "8.8.8.8", 0))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        if answer is None:
            monkeypatch.setattr(listening, "_RESOLVING", 0.1)
        configure({"NODE": "a", "NODES": {"a": {"ADDRESS": "web1.example.com"}}})
        assert ids(checks.check_exposure(None)) == ([] if answer is None else ["W003"])
        over.set()


class TestPort:
    def check(self, configure: Configure, address: str, port: int, **litefs: Any) -> list[CheckMessage]:
        configure({"NODE": "a", "NODES": {"a": {"ADDRESS": address, "HTTP_PORT": port}}, **litefs})
        return checks.check_port(None)

    @pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
    def test_free(self, configure: Configure, address: str) -> None:
        (port,) = free_ports(1)
        for _ in range(2):
            assert self.check(configure, address, port) == []
        with socket.create_server(("127.0.0.1", port)):
            pass  # Nothing is left of the check.

    def test_taken(self, configure: Configure) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            (message,) = self.check(configure, "127.0.0.1", port)
            assert ids([message]) == ["E019"]
            assert f"port {port}: another process ({os.getpid()}, " in message.msg
            # On every interface is on that one too.
            every = {"LITEFS_YML": {"http": {"addr": f":{port}"}}}
            assert ids(self.check(configure, "127.0.0.1", port, **every)) == ["E019"]

    def test_not_an_address_of_this_machine(self, configure: Configure) -> None:
        (message,) = self.check(configure, "203.0.113.7", 20202)
        assert ids([message]) == ["E019"]
        assert "this machine has no such address" in message.msg
        assert message.hint is not None
        assert '{"http": {"addr": ":20202"}}' in message.hint

    def test_a_name_that_nobody_has(self, configure: Configure) -> None:
        (message,) = self.check(configure, "no-such-host.invalid", 20202)
        assert ids([message]) == ["E019"]


class TestDirectories:
    def paths(self, directory: Path, **changed: Path) -> dict[str, str]:
        paths = {key: directory / key for key in ("MOUNT_PATH", "DATA_PATH", "RUN_PATH")} | changed
        return {key: str(path) for key, path in paths.items()}

    @pytest.mark.parametrize("key", ["MOUNT_PATH", "DATA_PATH", "RUN_PATH"])
    def test_that_can_be_made(self, configure: Configure, tmp_path: Path, key: str) -> None:
        (tmp_path / key).mkdir()
        configure({**ONE_NODE, **self.paths(tmp_path, **{key: tmp_path / key / "a/b"})})
        assert checks.check_directories(None) == []
        assert [path.name for path in tmp_path.rglob("*")] == [key]

    @pytest.mark.parametrize("key", ["MOUNT_PATH", "DATA_PATH", "RUN_PATH"])
    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("file", "is not a directory"),
            ("file/below", "cannot be reached (Not a directory)"),
            ("dangling", "is a symbolic link"),
            ("dangling/below", "cannot be made: {}/dangling is not a directory"),
            ("/proc/1/below", "does not exist and cannot be made by user 0 in /proc/1"),
        ],
    )
    def test_that_cannot(self, configure: Configure, tmp_path: Path, key: str, path: str, said: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "dangling").symlink_to("gone")
        configure({**ONE_NODE, **self.paths(tmp_path, **{key: tmp_path / path})})
        messages = checks.check_directories(None)
        if path.startswith("/proc") and os.geteuid():
            return
        (message,) = messages
        assert ids([message]) == ["E018"]
        assert message.msg.startswith(f"LITEFS[\"{key}\"]: '{tmp_path / path}' {said.format(tmp_path)}")

    def test_a_link_to_a_directory(self, configure: Configure, tmp_path: Path) -> None:
        """Fine but for MOUNT_PATH: the kernel knows mounts by their own names."""
        (tmp_path / "real").mkdir()
        for key in self.paths(tmp_path):
            (tmp_path / key).symlink_to("real")
        configure({**ONE_NODE, **self.paths(tmp_path)})
        (message,) = checks.check_directories(None)
        assert message.msg.startswith('LITEFS["MOUNT_PATH"]: ')
        assert message.msg.endswith(" is a symbolic link, and has to be the directory itself.")

    @pytest.mark.parametrize("mode", [0o777, 0o775])
    def test_that_others_may_write_to(self, configure: Configure, tmp_path: Path, mode: int) -> None:
        configured = self.paths(tmp_path)
        for path in configured.values():
            Path(path).mkdir()
            Path(path).chmod(mode)
        configure({**ONE_NODE, **configured})
        assert [message.msg.partition(":")[0] for message in checks.check_directories(None)] == [
            'LITEFS["RUN_PATH"]',
            'LITEFS["DATA_PATH"]',
        ]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_of_another_user(self) -> None:
        """In a process that has become nobody."""
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from litefs_django._litefs.directories import directory_problem\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "for path in sys.argv[1:]:\n"
            "    print(directory_problem(Path(path), is_owned=True))\n"
        )
        # pytest's own are for root alone.
        with tempfile.TemporaryDirectory() as directory:
            Path(directory).chmod(0o755)
            result = subprocess.run(
                [sys.executable, "-c", code, directory, f"{directory}/a/b"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
        assert result.stdout.splitlines() == [
            "cannot be written to by user 65534 (Permission denied)",
            f"does not exist and cannot be made by user 65534 in {directory} (Permission denied)",
        ]


class TestDeployment:
    """What a machine lacks cannot be taken from it for a test: the answers of binary.py stand in."""

    def test_only_on_request(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary, "missing_requirements", lambda *args: [Requirement("fusermount3", "apt-get")])
        node = {"ADDRESS": "127.0.0.1", "HTTP_PORT": free_ports(1)[0]}
        configure({"NODE": "a", "NODES": {"a": node}, "BINARY": "/nonexistent"}, default={**OURS, "CONN_MAX_AGE": None})
        assert run() == []
        assert sorted(ids(run(deploy=True))) == ["E012", "E014"]

    def test_each_requirement_has_an_id(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(shutil, "which", lambda program: None)
        monkeypatch.setattr(binary, "_fuse_device_error", lambda: FileNotFoundError(2, "No such file or directory"))
        monkeypatch.setattr(binary, "_may_mount", lambda: False)
        monkeypatch.setattr(binary, "_has_user_allow_other", lambda: False)
        monkeypatch.setattr(binary, "_has_name", lambda: False)
        configure({**ONE_NODE, "ALLOW_OTHER": True})
        messages = checks.check_machine(None)
        assert ids(messages) == ["E010", "E011", "E012", "E040", "E013"]
        assert messages[0].msg.startswith("This machine lacks /dev/fuse (No such file or directory)")
        assert all(message.hint for message in messages)

    def test_another_system(self, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """What these checks look at elsewhere does not exist there."""
        (tmp_path / "db.sqlite3").touch()
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path)}, default={**OURS, "CONN_MAX_AGE": None})
        monkeypatch.setattr(sys, "platform", "darwin")
        assert run() == []
        (message,) = checks.check_machine(None)
        assert ids([message]) == ["E016"]
        assert "darwin" in message.msg

    @pytest.mark.parametrize("user", [0, 1000])
    def test_it_is_asked_for_this_user(self, configure: Configure, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
        asked: list[tuple[bool, bool]] = []

        def missing(is_root: bool, allow_other: bool) -> list[Requirement]:
            asked.append((is_root, allow_other))
            return []

        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(binary, "missing_requirements", missing)
        for allow_other in (None, True, False):
            configure({**ONE_NODE, **({} if allow_other is None else {"ALLOW_OTHER": allow_other})})
            assert checks.check_machine(None) == []
        is_root = user == 0
        assert asked == [(is_root, is_root), (is_root, True), (is_root, False)]

    def test_a_real_binary(self, configure: Configure, litefs_binary: Path, tmp_path: Path) -> None:
        configure({**ONE_NODE, "BINARY": str(litefs_binary)})
        assert checks.check_binary(None) == []

    def test_no_binary(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        configure({**ONE_NODE, "BINARY": "/nonexistent/litefs"})
        (message,) = checks.check_binary(None)
        assert ids([message]) == ["E014"]
        assert "/nonexistent/litefs" in message.msg

    def test_another_program(self, configure: Configure, tmp_path: Path) -> None:
        other = tmp_path / "litefs"
        other.write_text("#!/bin/sh\necho LiteFS v0.5.11, commit=x\n")
        other.chmod(0o755)
        configure({**ONE_NODE, "BINARY": str(other)})
        (message,) = checks.check_binary(None)
        assert ids([message]) == ["E015"]
        assert "v0.5.11" in message.msg
