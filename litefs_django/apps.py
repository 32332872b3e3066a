from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from litefs_django.management.refusal import say_where_to_write


class LiteFSConfig(AppConfig):
    name = "litefs_django"
    label = "litefs_django"
    verbose_name = "LiteFS"

    def ready(self) -> None:
        # Imported late: checks.py reads django.conf.settings through conf.py.
        from litefs_django import checks as ours
        from litefs_django import conf

        conf.remember_names()
        for check in ours.CHECKS:
            checks.register(check, ours.TAG)
        for check in ours.DEPLOY_CHECKS:
            checks.register(check, ours.TAG, deploy=True)
        say_where_to_write()
