"""What gunicorn serves: `gunicorn board_site.wsgi`."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "board_site.settings")

application = get_wsgi_application()
