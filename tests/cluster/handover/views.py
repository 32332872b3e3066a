"""What the requests of these tests reach. Each view that writes makes one author of the name it is given."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.contrib import messages
from django.core.cache import caches
from django.core.signals import got_request_exception
from django.db import connection, connections, transaction
from django.dispatch import Signal, receiver
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template import engines
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator, sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import SimpleLazyObject
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.views import APIView

from litefs_django import NotPrimaryError, conf
from litefs_django.decorators import handles_not_primary, reads, writes
from tests.cluster.models import Author

happened = Signal()


@receiver(got_request_exception)
def say_signal(**kwargs: Any) -> None:
    print(f"signal: {kwargs['sender']}", flush=True)


def node() -> str:
    return conf.get_settings().cluster.node


def say(**values: Any) -> JsonResponse:
    """What a view answers: which node it ran on, and what else there is to say."""
    return JsonResponse({"node": node(), **values})


def add(name: str) -> None:
    Author.objects.create(name=name)


class WritesBefore(MiddlewareMixin):
    """Writes before the view does."""

    def process_request(self, request: HttpRequest) -> None:
        if "before" in request.GET:
            add(request.GET["before"])


@sync_and_async_middleware
def answers_at_once(get_response: Any) -> Callable[[HttpRequest], Any]:
    """As a second middleware: what a request costs that only the first one sees."""
    if not iscoroutinefunction(get_response):
        return lambda request: HttpResponse() if request.path == "/at-once/" else get_response(request)

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        return HttpResponse() if request.path == "/at-once/" else await get_response(request)

    return middleware


def ping(request: HttpRequest) -> HttpResponse:
    return HttpResponse("pong")


def authors(request: HttpRequest) -> JsonResponse:
    return say(names=sorted(Author.objects.values_list("name", flat=True)))


def has(request: HttpRequest) -> JsonResponse:
    authors = Author.objects.using(request.GET.get("using", "default"))
    return say(has=authors.filter(name=request.GET["name"]).exists())


@csrf_exempt
def who(request: HttpRequest, rest: str = "") -> JsonResponse:
    """The request as a view sees it."""
    return say(
        method=request.method,
        path=request.get_full_path(),
        host=request.META.get("HTTP_HOST"),
        url=request.build_absolute_uri(),
        secure=request.is_secure(),
        client=request.META.get("REMOTE_ADDR"),
        headers=dict(request.headers),
        body=hashlib.sha256(request.body).hexdigest(),
        length=len(request.body),
        ours=[key for key in request.META if "LITEFS" in key],
    )


@csrf_exempt
def post(request: HttpRequest) -> JsonResponse:
    """A form that makes an author."""
    Author.objects.using(request.GET.get("using", "default")).create(name=request.POST["name"])
    return say(name=request.POST["name"])


@csrf_exempt
def upload(request: HttpRequest) -> JsonResponse:
    """A form with a file."""
    digest, length = hashlib.sha256(), 0
    for chunk in request.FILES["file"].chunks():  # type: ignore[union-attr]
        digest.update(chunk)
        length += len(chunk)
    add(request.POST["name"])
    return say(digest=digest.hexdigest(), length=length)


@csrf_exempt
def swallow_body(request: HttpRequest) -> JsonResponse:
    """A body of any size, read in pieces."""
    digest, length = hashlib.sha256(), 0
    while chunk := request.read(1 << 16):
        digest.update(chunk)
        length += len(chunk)
    return say(digest=digest.hexdigest(), length=length)


@csrf_exempt
def drain(request: HttpRequest) -> JsonResponse:
    """The same, looked at by nobody: for measurements."""
    length = 0
    while chunk := request.read(1 << 16):
        length += len(chunk)
    return say(length=length)


@csrf_exempt
def answer(request: HttpRequest) -> HttpResponse:
    """A response as the query asks for it."""
    response = HttpResponse(
        b"" if request.GET.get("empty") else b"the body", status=int(request.GET.get("status", 200))
    )
    response["X-Node"] = node()
    response["Content-Encoding"] = "x-odd"
    for number in range(int(request.GET.get("more", 0))):
        response[f"X-More-{number}"] = str(number)
    for name in ("one", "two"):
        response.set_cookie(name, name, httponly=True, samesite="Lax")
    return response


@csrf_exempt
def big(request: HttpRequest) -> HttpResponseBase:
    """A response of so many MiB."""
    megabytes = int(request.GET["megabytes"])
    chunk = bytes(range(256)) * 4096
    response = StreamingHttpResponse(itertools.repeat(chunk, megabytes))
    if hasattr(request, "scope"):

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(megabytes):
                yield chunk

        response = StreamingHttpResponse(chunks())
    if "length" in request.GET:
        response["Content-Length"] = str(megabytes << 20)
    return response


@csrf_exempt
def ranged(request: HttpRequest) -> HttpResponseBase:
    """A part of a file, by hand."""
    first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
    part = bytes(range(100))[int(first) : int(last) + 1]
    return HttpResponse(part, status=206, headers={"Content-Range": f"bytes {first}-{last}/100"})


@csrf_exempt
def events(request: HttpRequest) -> HttpResponseBase:
    """Server-sent events: one now, the next ones when the author 'go' is there; says when the client goes away."""
    name = request.GET["name"]

    def go() -> bool:
        return Author.objects.filter(name=f"go {name}").exists()

    if hasattr(request, "scope"):

        async def stream() -> AsyncIterator[bytes]:
            try:
                yield b"data: first\n\n"
                while not await sync_to_async(go)():
                    await asyncio.sleep(0.02)
                yield b"data: second\n\n"
                while "forever" in request.GET:
                    yield b": still there\n\n"
                    await asyncio.sleep(0.02)
            finally:
                print(f"ended {name}", flush=True)

        return StreamingHttpResponse(stream(), content_type="text/event-stream")

    def sync_stream() -> Iterator[bytes]:
        try:
            yield b"data: first\n\n"
            while not go():
                time.sleep(0.02)
            yield b"data: second\n\n"
            while "forever" in request.GET:
                yield b": still there\n\n"
                time.sleep(0.02)
        finally:
            print(f"ended {name}", flush=True)

    return StreamingHttpResponse(sync_stream(), content_type="text/event-stream")


@csrf_exempt
def slow(request: HttpRequest) -> JsonResponse:
    time.sleep(float(request.GET["seconds"]))
    return say()


# Writes inside of safe requests.


def plain(name: str) -> None:
    add(name)


def in_atomic(name: str) -> None:
    with transaction.atomic():
        add(name)


def swallowed(name: str) -> None:
    try:
        with transaction.atomic():
            add(name)
    except Exception:
        pass


def swallowed_wholly(name: str) -> None:
    with suppress(BaseException):
        add(name)


def turned_into_another(name: str) -> None:
    try:
        add(name)
    except Exception as error:
        raise ValueError("something else") from error


def got_or_created(name: str) -> None:
    Author.objects.get_or_create(name=name)


def saved(name: str) -> None:
    author, _ = Author.objects.update_or_create(name=name, defaults={"name": name})
    author.save()


def in_bulk(name: str) -> None:
    Author.objects.bulk_create([Author(name=name)])


def by_cursor(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO cluster_author (name) VALUES (%s)", [name])


def by_many(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO cluster_author (name) VALUES (%s)", [[name]])


def by_raw_connection(name: str) -> None:
    connection.ensure_connection()
    connection.connection.execute("INSERT INTO cluster_author (name) VALUES (?)", [name])


def by_robust_signal(name: str) -> None:
    def adds(**kwargs: Any) -> None:
        add(name)

    happened.connect(adds)
    try:
        happened.send_robust(None)
    finally:
        happened.disconnect(adds)


def on_commit(name: str) -> None:
    """A hook of a transaction that only reads, before the write."""
    with transaction.atomic():
        transaction.on_commit(lambda: print(f"hook {name}", flush=True))
        list(Author.objects.all()[:1])
    transaction.on_commit(lambda: print(f"hook {name}", flush=True))
    add(name)


def hook_first(name: str) -> None:
    """A hook before there is a connection."""
    connection.close()
    transaction.on_commit(lambda: print(f"hook {name}", flush=True))
    add(name)


def by_hook(name: str) -> None:
    """What a hook writes when the transaction, which only reads, has ended."""
    with transaction.atomic():
        transaction.on_commit(partial(add, name))
        list(Author.objects.all()[:1])


def by_lazy_object(name: str) -> None:
    str(SimpleLazyObject(lambda: Author.objects.create(name=name)))


def by_template(name: str) -> None:
    template = engines["django"].from_string("{% if write %}{{ write }}{% endif %}")
    template.render({"write": SimpleLazyObject(lambda: Author.objects.create(name=name))})


HOW: dict[str, Callable[[str], None]] = {
    function.__name__: function
    for function in (
        plain,
        in_atomic,
        swallowed,
        swallowed_wholly,
        turned_into_another,
        got_or_created,
        saved,
        in_bulk,
        by_cursor,
        by_many,
        by_raw_connection,
        by_robust_signal,
        on_commit,
        hook_first,
        by_hook,
        by_lazy_object,
        by_template,
    )
}


async def by_gather(name: str) -> None:
    await asyncio.gather(asyncio.sleep(0), Author.objects.acreate(name=name))


async def by_gather_of_results(name: str) -> None:
    await asyncio.gather(Author.objects.acreate(name=name), return_exceptions=True)


async def by_task_group(name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
        group.create_task(Author.objects.acreate(name=name))


async def by_sync_to_async(name: str) -> None:
    await sync_to_async(add)(name)


async def by_any_thread(name: str) -> None:
    await sync_to_async(add, thread_sensitive=False)(name)


async def by_to_thread(name: str) -> None:
    await asyncio.to_thread(add, name)


async def by_async_orm(name: str) -> None:
    await Author.objects.acreate(name=name)


ASYNC_HOW: dict[str, Callable[[str], Any]] = {
    function.__name__: function
    for function in (
        by_gather,
        by_gather_of_results,
        by_task_group,
        by_sync_to_async,
        by_any_thread,
        by_to_thread,
        by_async_orm,
    )
}


def write(request: HttpRequest, how: str) -> JsonResponse:
    HOW[how](request.GET["name"])
    return say()


async def awrite(request: HttpRequest, how: str) -> JsonResponse:
    await ASYNC_HOW[how](request.GET["name"])
    return say()


def template_response(request: HttpRequest) -> TemplateResponse:
    """Writes when its template is rendered, after the view."""
    lazy = SimpleLazyObject(partial(Author.objects.create, name=request.GET["name"]))
    return TemplateResponse(request, engines["django"].from_string("{{ write }}"), {"write": lazy})


def session(request: HttpRequest) -> JsonResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    return say(count=request.session["count"])


def begun(request: HttpRequest, how: str) -> JsonResponse:
    """Reads, waits for a file, and then writes."""
    name = request.GET["name"]

    def wait() -> None:
        print(f"ran {name}", flush=True)
        while not Path(request.GET["until"]).exists():
            time.sleep(0.01)

    def read() -> None:
        list(Author.objects.all()[:1])
        wait()

    if how == "hook":
        with transaction.atomic():
            transaction.on_commit(partial(add, name))
            read()
    elif how == "atomic":
        with transaction.atomic():
            read()
            add(name)
    elif how == "unknown":
        request.session["count"] = 1
        confirm = connection.connection._confirm

        def wait_first() -> None:
            wait()
            confirm()

        # The connection is closed with the request.
        connection.connection._confirm = wait_first
        request.session.save()
    elif how == "session":
        request.session["count"] = 1
        read()
        request.session.save()
        add(name)
    else:
        read()
        add(name)
    return say()


def message(request: HttpRequest) -> JsonResponse:
    if "text" in request.GET:
        messages.info(request, request.GET["text"])
        return say()
    return say(messages=[str(each) for each in messages.get_messages(request)])


def bare_thread(request: HttpRequest) -> JsonResponse:
    """A thread that is started by hand knows of no request."""
    found = []

    def run() -> None:
        try:
            add(request.GET["name"])
        except BaseException as error:
            found.append(type(error).__name__)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return say(found=found)


@handles_not_primary
def handled(request: HttpRequest) -> JsonResponse:
    try:
        add(request.GET["name"])
    except NotPrimaryError as error:
        return say(primary=error.primary and error.primary.name)
    return say(primary=None)


@handles_not_primary
async def ahandled(request: HttpRequest) -> JsonResponse:
    try:
        await Author.objects.acreate(name=request.GET["name"])
    except NotPrimaryError as error:
        return say(primary=error.primary and error.primary.name)
    return say(primary=None)


@handles_not_primary
class Handled(View):
    def get(self, request: HttpRequest) -> JsonResponse:
        response: JsonResponse = handled.__wrapped__(request)  # type: ignore[attr-defined]
        return response


@handles_not_primary
class AsyncHandled(View):
    async def get(self, request: HttpRequest) -> JsonResponse:
        response: JsonResponse = await ahandled.__wrapped__(request)  # type: ignore[attr-defined]
        return response


def told(request: HttpRequest, **kwargs: Any) -> JsonResponse:
    """Where it ran; and how often, by what it does outside of the database."""
    print(f"ran {request.GET['name']}", flush=True)
    if "write" in request.GET:
        add(request.GET["name"])
    return say()


marked = writes(told)


@writes
async def amarked(request: HttpRequest) -> JsonResponse:
    return await sync_to_async(told)(request)


@writes
class Marked(View):
    def get(self, request: HttpRequest) -> JsonResponse:
        return told(request)


@method_decorator(csrf_exempt, name="dispatch")
@reads
class Search(View):
    def post(self, request: HttpRequest) -> JsonResponse:
        return told(request)


@csrf_exempt
@reads
def search(request: HttpRequest) -> JsonResponse:
    return told(request)


@csrf_exempt
@reads
async def asearch(request: HttpRequest) -> JsonResponse:
    return await sync_to_async(told)(request)


def cached(request: HttpRequest) -> JsonResponse:
    cache = caches["table"]
    before = cache.get(request.GET["key"])
    cache.set(request.GET["key"], "value", timeout=float(request.GET.get("timeout", 60)))
    deleted = cache.delete("other") if "delete" in request.GET else None
    return say(before=before, after=cache.get(request.GET["key"]), deleted=deleted)


def file(request: HttpRequest) -> FileResponse:
    """A streaming response of a request that has tried to write, and has not told."""
    swallowed_wholly(request.GET["name"])
    return FileResponse(open(__file__, "rb"))


def both(request: HttpRequest) -> JsonResponse:
    """Uses another ENGINE's connection, then writes."""

    def keep() -> None:
        with connections["other"].cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS kept (name text)")
            cursor.execute("INSERT INTO kept VALUES (%s)", [request.GET["name"]])

    if "read" in request.GET:
        with connections["other"].cursor() as cursor:
            cursor.execute("SELECT 1")
        add(request.GET["name"])
    elif "atomic" in request.GET:
        with transaction.atomic(using="other"):
            keep()
            add(request.GET["name"])
    else:
        keep()
        add(request.GET["name"])
    return say()


def late(request: HttpRequest) -> StreamingHttpResponse:
    """Writes when the response is under way already."""

    def stream() -> Iterator[bytes]:
        yield b"begun "
        try:
            add(request.GET["name"])
        except NotPrimaryError:
            yield b"NotPrimaryError"

    return StreamingHttpResponse(stream())


@csrf_exempt
def failing(request: HttpRequest) -> JsonResponse:
    add(request.POST["name"])
    raise RuntimeError(json.dumps("after the write"))


class AuthorSerializer(serializers.ModelSerializer):  # type: ignore[misc]
    class Meta:
        model = Author
        fields = ["name"]


class Rest(APIView):  # type: ignore[misc]
    """REST framework's, which reads the body by parsers of its own."""

    def get(self, request: Any) -> Response:
        if "write" in request.query_params:
            add(request.query_params["write"])
        return Response(AuthorSerializer(Author.objects.all(), many=True).data, headers={"X-Node": node()})

    def post(self, request: Any) -> Response:
        serializer = AuthorSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response(serializer.data, status=201, headers={"X-Node": node()})
