"""Handing a request over to the primary: see `litefs_django.middleware`."""
