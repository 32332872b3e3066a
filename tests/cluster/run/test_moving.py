"""From a plain SQLite project to a cluster, step by step as docs/moving.rst has it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.plain import make_file, names_in
from tests.cluster.run.applications import python
from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import DATABASE, SupervisedNode

pytestmark = pytest.mark.cluster

ADD = "import sys, django; django.setup()\nfrom django.contrib.auth.models import Group\n"
SHOW = ADD + "print('groups:', *Group.objects.values_list('name', flat=True), flush=True)\nimport time; time.sleep(600)"


def manage(node: SupervisedNode, *arguments: object) -> str:
    """The output of a management command on that node."""
    command = [sys.executable, str(node.manage), *map(str, arguments)]
    with node.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return str(output)


def test_a_project_moves(start_nodes: StartNodes, tmp_path: Path) -> None:
    nodes = start_nodes(3)
    first = nodes[0]
    plain = tmp_path / "plain.sqlite3"
    code = ADD + "from django.core.management import call_command; call_command('migrate', verbosity=0)\n"
    code += "Group.objects.create(name='of the plain project')"
    environment = first.environment | {"LITEFS_TEST_LITEFS": '{"ENABLED": false}', "LITEFS_TEST_DATABASE": str(plain)}
    subprocess.run(python(code), env=environment, check=True, timeout=60)

    first.start(application=["sleep", "infinity"])
    first.wait_for_line("the application runs, this node is the primary")
    assert "found sound" in manage(first, "litefs_import", "default", plain)
    assert "No migrations to apply." in manage(first, "litefs_migrate")
    assert first.stop(number=signal.SIGINT) == 0

    for node in nodes:
        node.start_and_wait("--migrate", application=python(SHOW))
        assert node.found("app | groups: of the plain project")
    assert manage(nodes[1], "litefs_migrate", "--check") == "All nodes have them.\n"

    manage(nodes[2], "litefs_export", "default", tmp_path / "back.sqlite3")
    environment["LITEFS_TEST_DATABASE"] = str(tmp_path / "back.sqlite3")
    shown = subprocess.run(
        python(ADD + "print(Group.objects.get())"),
        env=environment,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert shown.stdout == "of the plain project\n"


def test_a_stop_in_mid_import(start_nodes: StartNodes, tmp_path: Path) -> None:
    """The stop does not wait for it: nothing is imported then."""
    (node,) = start_nodes(1)
    node.start_and_wait()
    manage(node, "litefs_import", "default", make_file(tmp_path / "first", "old"))
    large = make_file(tmp_path / "large", "new", size=80_000_000)
    command = [sys.executable, str(node.manage), "litefs_import", "default", str(large), "--noinput"]
    with node.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as importing:
        node.wait_for(lambda: any((node.data / "replaced").glob("db.sqlite3-*")), "it imports")
        node.stop()
        output, _ = importing.communicate(timeout=60)
    assert importing.returncode == 1
    assert "What was there before is kept in " in output
    node.assert_nothing_left()
    node.start_and_wait()
    assert names_in(node.mount / DATABASE) == ["old"]
