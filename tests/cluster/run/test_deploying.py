"""A new release on three nodes while they serve, in the order of docs/deploying.rst."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import ROOT, SupervisedNode
from tests.machine import free_ports, wait_until

pytestmark = pytest.mark.cluster

SETTINGS = "from tests.cluster.project_settings import *\nINSTALLED_APPS += ['notes']"
MODELS = """
from django.db import models
class Note(models.Model):
    text = models.TextField()
"""
FIRST = """
from django.db import migrations, models
class Migration(migrations.Migration):
    operations = [migrations.CreateModel("Note", [("id", models.BigAutoField(primary_key=True)),
                                                  ("text", models.TextField())])]
"""
NEW_FIELD = "    tag = models.TextField(default='', db_default='')\n"
SECOND = """
from django.db import migrations, models
class Migration(migrations.Migration):
    dependencies = [("notes", "0001_first")]
    operations = [migrations.AddField("Note", "tag", models.TextField(default="", db_default=""))]
"""
# Adds a note for POST. Answers with its release, and the text of the last note.
PAGE = """
import django
django.setup()
from notes.models import Note
def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        Note.objects.create(text=environ["wsgi.input"].read().decode())
    start_response("200 OK", [])
    return [f"{'new' if hasattr(Note, 'tag') else 'old'} {Note.objects.latest('pk').text}".encode()]
"""


def make_release(directory: Path, *, is_new: bool) -> Path:
    migrations = directory / "notes" / "migrations"
    migrations.mkdir(parents=True)
    for package in (migrations, migrations.parent):
        (package / "__init__.py").touch()
    (directory / "release_settings.py").write_text(SETTINGS)
    (directory / "page.py").write_text(PAGE)
    (directory / "notes" / "models.py").write_text(MODELS + (NEW_FIELD if is_new else ""))
    (migrations / "0001_first.py").write_text(FIRST)
    if is_new:
        (migrations / "0002_tag.py").write_text(SECOND)
    return directory


class Site:
    """One node, and gunicorn with the release that its link `current` leads to."""

    def __init__(self, node: SupervisedNode, release: Path) -> None:
        self.node = node
        self.current = node.directory.parent / f"{node.directory.name}-current"
        self.current.symlink_to(release)
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        node.environment |= {"DJANGO_SETTINGS_MODULE": "release_settings", "PYTHONPATH": f"{ROOT}:{self.current}"}
        gunicorn = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind", f"127.0.0.1:{port}", "page:app"]
        node.start("--migrate", application=gunicorn)

    def migrate(self, release: Path, *arguments: str) -> tuple[int, str]:
        """litefs_migrate of that release, beside the server. Returns exit code and output."""
        environment = {**self.node.environment, "PYTHONPATH": f"{ROOT}:{release}"}
        command = [sys.executable, str(self.node.manage), "litefs_migrate", *arguments]
        ended = subprocess.run(command, env=environment, timeout=120, check=False, stdout=-1, stderr=-2, text=True)
        return ended.returncode, ended.stdout

    def ask(self, text: str | None = None) -> str:
        """Its answer; with `text` to a POST."""
        with urlopen(self.url, None if text is None else text.encode(), timeout=60) as response:
            return str(response.read().decode())

    def answers(self) -> bool:
        try:
            return bool(self.ask())
        except URLError:
            return False

    def load(self, release: Path) -> None:
        """As a deploy would: the link, then SIGHUP, until no worker has the old release."""
        link = self.current.with_name("next")
        link.symlink_to(release)
        link.rename(self.current)
        assert self.node.process is not None
        self.node.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.ask().startswith("new "), "the new release answers", context=self.node.output)


@contextmanager
def asked_all_the_time(*asking: Callable[[], str]) -> Iterator[list[list[str]]]:
    """Each of them again and again, in a thread of its own; yields their answers, errors among them."""
    stopping = threading.Event()
    answers: list[list[str]] = [[] for _ in asking]

    def ask(one: Callable[[], str], said: list[str]) -> None:
        while not stopping.wait(0.01):
            try:
                said.append(one())
            except OSError as error:
                said.append(f"failed: {error}")

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(asking, answers, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


@pytest.mark.timeout(600)
def test_nobody_notices(start_nodes: StartNodes, tmp_path: Path) -> None:
    old = make_release(tmp_path / "old", is_new=False)
    new = make_release(tmp_path / "new", is_new=True)
    sites = [Site(node, old) for node in start_nodes(3)]
    primary, *replicas = sites
    written: list[str] = []

    def write() -> str:
        written.append(f"note {len(written)}")
        return primary.ask(written[-1])

    wait_until(lambda: primary.node.found("Listening at"), "gunicorn listens", context=primary.node.output)
    write()
    for site in sites:
        wait_until(site.answers, "it answers", context=site.node.output)
    with asked_all_the_time(write, *(site.ask for site in sites)) as answers:
        code, said = replicas[0].migrate(new, "--check")
        assert (code, "node2: database 'default' (db.sqlite3) lacks notes.0002_tag" in said) == (1, True), said
        code, said = primary.migrate(new)
        assert code == 0, said
        wait_until(lambda: replicas[1].migrate(new, "--check")[0] == 0, "all nodes have the migration")
        # Now the old release writes to the new table.
        count = len(answers[0])
        wait_until(lambda: len(answers[0]) > count + 10, "it does so")
        for site in [*replicas, primary]:
            site.load(new)
        count = len(answers[0])
        wait_until(lambda: len(answers[0]) > count + 10, "the new release writes")
    assert {said.split()[0] for one in answers for said in one} == {"old", "new"}
    assert all(said.endswith(f" note {number}") for number, said in enumerate(answers[0], 1))
    for site in sites:
        wait_until(lambda site=site: site.ask() == f"new {written[-1]}", "the last note is everywhere")  # type: ignore[misc]
