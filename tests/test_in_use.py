"""Commands for which there is no LiteFS; litefs_run and litefs_check say it too, in the tests of these."""

from __future__ import annotations

import re

import pytest
from django.core.management import CommandError, call_command

from tests.configuring import OURS, Configure


@pytest.mark.parametrize(
    "command", [("litefs_status",), ("litefs_config",), ("litefs_promote",), ("litefs_export", "default", "x")]
)
def test_it_says_what_there_is_in_its_place(command: tuple[str, ...], configure: Configure) -> None:
    configure({"ENABLED": False}, default={**OURS, "NAME": "/srv/mysite/db.sqlite3"})
    said = 'LITEFS["ENABLED"] is False: no LiteFS, the databases are plain files (default: /srv/mysite/db.sqlite3).'
    with pytest.raises(CommandError, match=re.escape(f"{said} Are NODE and DEBUG set in this shell")):
        call_command(*command)
