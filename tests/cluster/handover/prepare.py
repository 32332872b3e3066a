"""The project's tables and its superuser: see `site.prepared_database`."""

from __future__ import annotations

import django
from django.core.management import call_command

from litefs_django import conf

USERNAME, PASSWORD = "ada", "correct horse battery"

if __name__ == "__main__":
    django.setup()
    for database in conf.get_settings().databases:
        call_command("migrate", database=database.alias, run_syncdb=True, verbosity=0)
    call_command("createcachetable", verbosity=0)
    from django.contrib.auth.models import User

    User.objects.create_superuser(USERNAME, password=PASSWORD)
