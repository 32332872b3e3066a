"""The project's tables and its superuser, on the primary."""

from __future__ import annotations

import django
from django.core.management import call_command

USERNAME, PASSWORD = "ada", "correct horse battery"

if __name__ == "__main__":
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    call_command("createcachetable", verbosity=0)
    from django.contrib.auth.models import User

    User.objects.create_superuser(USERNAME, password=PASSWORD)
