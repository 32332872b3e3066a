"""Any node takes any request: what has to be written goes to the primary, and its answer comes back.

First in MIDDLEWARE, save for django_prometheus's PrometheusBeforeMiddleware:

    MIDDLEWARE = ["litefs_django.middleware.LiteFSMiddleware", *MIDDLEWARE]

What it decides stands in `litefs_django.handover.course`; here a step is done, in WSGI's way and in ASGI's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from litefs_django import conf
from litefs_django.exceptions import HandOver, NotPrimaryError
from litefs_django.handover import elsewhere, http_client, note
from litefs_django.handover.course import Ask, Call, Look, Pause, Send, Step, course
from litefs_django.handover.transport import Forwarded, Outgoing

GetResponse = Callable[[HttpRequest], Any]


class LiteFSMiddleware:
    """Hands requests over to the primary.

    Not used where LiteFS is off and where all of its databases are in memory, as in tests. Raises
    ImproperlyConfigured, and the server does not start, when LITEFS lacks what HANDOVER needs.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        if not conf.is_enabled() or not conf.has_databases():
            raise MiddlewareNotUsed
        if problems := conf.get_settings().handover_problems():
            raise ImproperlyConfigured("\n".join(map(str, problems)))
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
            self._send = _asgi_client()
        elsewhere.watch()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self.__acall__(request)
        steps = course(request)
        try:
            step = next(steps)
            while True:
                try:
                    done = self._do(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            response: HttpResponseBase = end.value
            return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        steps = course(request)
        try:
            step = next(steps)
            while True:
                try:
                    done = await self._ado(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            response: HttpResponseBase = end.value
            return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """The second net: a NotPrimaryError that reaches Django as it is, from a raw connection, say."""
        if isinstance(exception, NotPrimaryError):
            refused = note.refuse(exception)
            if isinstance(refused, HandOver):
                raise refused from exception

    def _do(self, step: Step) -> Any:
        match step:
            case Ask(request):
                return self.get_response(request)
            case Call(function) | Look(function):
                return function()
            case Pause(seconds):
                return time.sleep(seconds)
            case Send(outgoing):
                return http_client.send(outgoing)

    async def _ado(self, step: Step) -> Any:
        match step:
            case Ask(request):
                return await self.get_response(request)
            case Call(function):
                return await sync_to_async(function)()
            case Look(function):
                # LiteFS may be slow to answer, or hang.
                return await asyncio.get_running_loop().run_in_executor(None, function)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Send(outgoing):
                return await self._send(outgoing)


def _asgi_client() -> Callable[[Outgoing], Awaitable[Forwarded]]:
    try:
        from litefs_django.handover import aiohttp_client
    except ImportError as error:
        raise ImproperlyConfigured(
            f"LiteFSMiddleware under ASGI needs aiohttp ({error}): install 'litefs-django[asgi]'."
        ) from error
    return aiohttp_client.send
