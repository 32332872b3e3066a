"""The course of one request through the middleware, as steps: decisions stand here, waiting in the middleware.

`course()` is a generator. It yields a Step and is sent its result, or is thrown what the step raised; it
returns the response. So WSGI and ASGI differ in nothing but how a step is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.http.response import HttpResponseBase
from django.utils.encoding import escape_uri_path

from litefs_django import conf, node
from litefs_django._litefs.settings import LiteFSSettings, Node, redacted
from litefs_django.exceptions import HandOver, NotPrimaryError
from litefs_django.handover import answers, cookie, marks, note, signing
from litefs_django.handover.answers import Answer
from litefs_django.handover.exchange import Body, Exchange, LengthRequired, exchange_of
from litefs_django.handover.headers import RequestRefused, request_headers
from litefs_django.handover.note import RequestNote
from litefs_django.handover.transport import CONNECT_TIMEOUT, Broken, ClientGone, Forwarded, NotSent, Outgoing, let_go

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before the second look for a primary; each further pause is longer by that factor.
PAUSE = 0.02
GROWTH = 1.25

# Seconds after which the other nodes are asked, one by one, when none is named or the named one is not the primary.
# No pause is longer, either.
SEARCH = 0.25

# Seconds for which the node that has answered a request is sent the next one without a look. If it is not the primary
# any more it says so.
FRESH = 0.1

# Seconds to connect that each attempt has at least, where time is up.
LAST_CHANCE = 0.1

# Seconds between two complaints about requests that come too late: each of them is sent again and again.
COMPLAINT = 30.0

_named_late: set[str] = set()
_answered: dict[str, float] = {}  # when, by the node's name
_complained: dict[str, float] = {}  # when, by what about


@dataclass(frozen=True, slots=True)
class Ask:
    """Let the rest of the project answer the request. Gives its response."""

    request: HttpRequest


@dataclass(frozen=True, slots=True)
class Call:
    """Call this, which may take a moment, where Django runs synchronous code. Gives what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Look:
    """Call this, which reads files of LiteFS's mount. Gives what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request to another node. Gives its Forwarded, or raises NotSent, Broken or ClientGone."""

    outgoing: Outgoing


Step = Ask | Call | Look | Pause | Send
Steps = Generator[Step, Any, T]


class _Refused(Exception):
    """Ends the course with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


@lru_cache(maxsize=1)
def _signer(secrets: tuple[str, ...]) -> signing.Signer:
    return signing.Signer(secrets)


def course(request: HttpRequest) -> Steps[HttpResponseBase]:
    """From a request's arrival to its response."""
    settings = conf.get_settings()
    exchange = exchange_of(request)
    try:
        return (yield from _Course(settings, exchange).steps())
    except _Refused as refused:
        return refused.answer.response(request)


class _Course:
    def __init__(self, settings: LiteFSSettings, exchange: Exchange) -> None:
        self.settings = settings
        self.exchange = exchange
        self.request = exchange.request
        self.signer = _signer(settings.secrets) if settings.secrets else None
        self.is_from_node = False
        self.is_writing = False
        # Whether the primary was sent a request for what it has, which may also have written, and has not answered.
        self.is_unknown = False
        self.deadline: float | None = None
        self.next_pause = PAUSE
        self.has_said_why = False
        # Why the request could not be sent, by the node's name.
        self.not_sent: dict[str, str] = {}
        # Whether the browser's cookie is ahead of the primary: of a database that is no more.
        self.is_ahead = False

    def steps(self) -> Steps[HttpResponseBase]:
        if self.exchange.hop is not None and not self._admit(self.exchange.hop):
            return self._nothing_done(answers.LATE)
        try:
            self.exchange.read_small_body()
        except UnreadablePostError:
            raise _Refused(answers.INCOMPLETE) from None
        wanted = cookie.read(self.request)
        self.is_writing = self.is_from_node or marks.writes(self.request, self.settings.writes)
        if self.is_writing:
            primary = self._recent_primary() or (yield Look(node.primary))
            if not self._is_this(primary):
                if self.is_from_node:
                    return self._nothing_done()
                if (response := (yield from self._hand_over(primary))) is not None:
                    return response
                # This node has become the primary meanwhile.
                self._begin_again()
            self.is_ahead = yield from self._is_behind(wanted)
        elif wanted and (response := (yield from self._catch_up(wanted))) is not None:
            return response
        return (yield from self._answer())

    # A request from another node.

    def _admit(self, hop: str) -> bool:
        """Lets a hop in as what it was on the node that sent it; False for one that comes too late.

        Raises _Refused for a forged or stray one.
        """
        if self.signer is None:
            raise _Refused(answers.FORGED)
        try:
            found = self.signer.verify(hop, self.exchange.signed(), time.time())
        except signing.TooLate as error:
            if time.monotonic() > _complained.get(str(error), -COMPLAINT) + COMPLAINT:
                _complained[str(error)] = time.monotonic()
                logger.warning("A request from another node is not served: %s.", error)
            return False
        except signing.SignatureError as error:
            logger.warning("A request that claims to come from another node is refused: %s.", error)
            raise _Refused(answers.FORGED) from None
        except RequestRefused as error:
            raise _Refused(answers.MALFORMED) from error
        this = self.settings.cluster.node
        if found.target != this:
            logger.error(
                'Node %r has sent a request for %r to %r: look at LITEFS["NODES"][%r]["URL"], which has to be '
                "the application server of that node itself.",
                found.source,
                found.target,
                this,
                found.target,
            )
            raise _Refused(answers.LOOP)
        self.exchange.restore(found)
        self.is_from_node = True
        return True

    def _nothing_done(self, answer: Answer = answers.NOT_AVAILABLE) -> HttpResponse:
        """Tells the node that sent the request that it may send it elsewhere, or here again."""
        assert self.signer is not None
        assert self.exchange.hop is not None
        response = answer.response(self.request)
        response[signing.ANSWER] = self.signer.sign_answer(self.exchange.hop)
        # The request goes on: it is not for the log.
        response._has_been_logged = True  # type: ignore[attr-defined]
        return response

    # The project's answer.

    def _answer(self) -> Steps[HttpResponseBase]:
        """Lets the project answer here; a write that is refused makes it a handover, or another run here."""
        while True:
            with note.opened(None if self.is_writing else self.request) as opened:
                try:
                    response = yield from self._ask(opened)
                finally:
                    if opened.unknown is not None:
                        # Where LOGGING says nothing of it, Django tells nobody but the administrators, by mail.
                        path = escape_uri_path(self.request.path_info)
                        logger.error("%s %s: %s", self.request.method, path, opened.unknown)
                if opened.unknown is not None and (opened.refused is not None or response.status_code == 400):
                    # Django's sessions make a 400 of it.
                    raise opened.unknown
                if opened.refused is None:
                    if opened.written or self.is_ahead:
                        yield from self._remember(response, opened.written)
                    return response
            self._say_why(opened)
            self._check_nothing_is_done_twice(opened)
            if opened.is_stale:
                self.is_writing = True
                self._begin_again()
                continue
            if self.is_from_node:
                return self._nothing_done()
            if (handed := (yield from self._hand_over())) is not None:
                return handed
            yield from self._wait()
            self._begin_again()

    def _check_nothing_is_done_twice(self, opened: RequestNote) -> None:
        """Raises _Refused where running the request again, here or elsewhere, would, or might."""
        if opened.has_written:
            raise _Refused(answers.PARTLY_SAVED)
        if self.is_unknown:
            raise _Refused(answers.UNKNOWN)

    def _until(self) -> float:
        """When the request has waited long enough for somebody who can serve it, since it first had to."""
        if self.deadline is None:
            self.deadline = time.monotonic() + self.settings.handover_timeout
        return self.deadline

    def _wait(self) -> Steps[None]:
        """Pauses before the next look, each time longer. Raises _Refused when the request has waited long enough."""
        left = self._until() - time.monotonic()
        if left <= 0:
            why = "".join(f"; {each}" for each in self.not_sent.values())
            path, patience = escape_uri_path(self.request.path_info), self.settings.handover_timeout
            logger.warning("%s %s found no primary for %g s%s", self.request.method, path, patience, why)
            raise _Refused(answers.NOT_AVAILABLE)
        yield Pause(min(self.next_pause, left))
        self.next_pause = min(self.next_pause * GROWTH, SEARCH)

    def _begin_again(self) -> None:
        """Makes a new request of the first one, to be answered here."""
        again = self.exchange.again()
        if again is None:
            raise _Refused(answers.NOT_AVAILABLE)
        self.request = again

    def _ask(self, opened: RequestNote) -> Steps[HttpResponseBase]:
        try:
            response: HttpResponseBase = yield Ask(self.request)
            if opened.refused is None and opened.has_hooks:
                yield Call(opened.run_hooks)
        except BaseException as error:
            if not _is_hand_over(error):
                raise
            return HttpResponse()
        if opened.refused is not None:
            # Somebody has caught it.
            let_go(response)
        return response

    def _say_why(self, opened: RequestNote) -> None:
        request = self.request
        if not opened.is_stale and not isinstance(opened.refused, NotPrimaryError):
            # LiteFS is away.
            if not self.has_said_why:
                self.has_said_why = True
                path = escape_uri_path(request.path_info)
                logger.warning("%s %s is not answered here: %s", request.method, path, opened.refused)
            return
        match = request.resolver_match
        name = match.view_name or match._func_path if match else escape_uri_path(request.path_info)
        if request.method in marks.SAFE_METHODS and name not in _named_late:
            _named_late.add(name)
            logger.info(
                "%s wrote in a %s request, which then began again, as one that writes. If it does "
                'anything outside of the database before, name its path in LITEFS["WRITES"] or mark it with @writes.',
                name,
                request.method,
            )

    # Read-your-writes.

    def _remember(self, response: HttpResponseBase, written: set[str]) -> Steps[None]:
        """Lets the browser's next request know how far the databases have to be."""
        positions = {}
        deadline = time.monotonic() + self.settings.read_your_writes_timeout
        for alias, txid in {**cookie.read(self.request), **dict.fromkeys(written, 0)}.items():
            here = yield from self._txid(alias)
            while here == 0 and alias in written and time.monotonic() < deadline:
                # LiteFS has ended since.
                yield Pause(PAUSE)
                here = yield from self._txid(alias)
            if here is not None:
                positions[alias] = here if alias in written else min(here, txid)
        cookie.write(response, positions, is_secure=self.request.is_secure())

    def _txid(self, alias: str) -> Steps[int | None]:
        """This node's; None when there is no such database."""
        if all(database.alias != alias for database in self.settings.databases):
            return None
        position = yield Look(lambda: node.position(alias))
        return position.txid if position else 0

    def _is_behind(self, wanted: dict[str, int]) -> Steps[bool]:
        for alias, txid in wanted.items():
            here = yield from self._txid(alias)
            if here is not None and here < txid:
                return True
        return False

    def _catch_up(self, wanted: dict[str, int]) -> Steps[HttpResponseBase | None]:
        """Waits until this node has what the browser has written; else the primary's response, if it gives one."""
        deadline = time.monotonic() + self.settings.read_your_writes_timeout
        while (yield from self._is_behind(wanted)):
            if (yield Look(node.is_primary)):
                self.is_ahead = True
                return None
            if time.monotonic() >= deadline:
                return (yield from self._hand_over(is_needed=False))
            yield Pause(node.PAUSE)
        return None

    # To the primary.

    def _is_this(self, primary: Node | None) -> bool:
        return primary is not None and primary.name == self.settings.cluster.node

    def _hand_over(self, primary: Node | None = None, *, is_needed: bool = True) -> Steps[HttpResponseBase | None]:
        """The primary's response. None when this node has become the primary, or can answer as well as it can.

        It begins with that primary, if it is known already.
        Raises _Refused when no primary answers within HANDOVER_TIMEOUT; without `is_needed` it does not wait.
        """
        try:
            request = self.exchange.signed()
            headers = request_headers(self.exchange.headers())
        except RequestRefused:
            raise _Refused(answers.MALFORMED) from None
        if is_needed:
            self._until()
        next_search = time.monotonic() + (SEARCH if is_needed else 0)
        while True:
            primary = primary or (yield Look(node.primary))
            if self._is_this(primary):
                return None
            targets = [primary] if primary is not None else []
            if time.monotonic() >= next_search and self._can_search():
                next_search = time.monotonic() + SEARCH
                targets += [other for other in self.settings.cluster.others if other is not primary]
            for target in targets:
                response = yield from self._try(target, request, headers, is_needed=is_needed)
                if response is not None:
                    return response
            if not is_needed:
                return None
            primary = None
            yield from self._wait()

    def _recent_primary(self) -> Node | None:
        """The node that has answered just now, for a request that can be sent once more if it is not the primary."""
        oldest = time.monotonic() - FRESH
        others = self.settings.cluster.others
        recent = next((other for other in others if _answered.get(other.name, 0.0) > oldest), None)
        if recent is None or self.is_from_node:
            return None
        try:
            body = self.exchange.body()
        except LengthRequired:
            return None
        return recent if body is not None and body.data is not None else None

    def _can_search(self) -> bool:
        """Whether the request can be sent to one node after the other, of which all but the primary do nothing.

        A node that was the primary itself may take seconds to find the new one.
        """
        return self.settings.handover == "forward" and self._body().data is not None

    def _try(
        self, primary: Node, request: signing.Request, headers: list[tuple[str, str]], *, is_needed: bool
    ) -> Steps[HttpResponseBase | None]:
        """Its response; None when it has done nothing and can be asked again."""
        if self.settings.handover == "redirect":
            assert primary.public_url is not None
            return HttpResponse(status=307, headers={"Location": primary.public_url.rstrip("/") + request.target})
        if self.settings.handover == "replay":
            return HttpResponse(status=409, headers={"fly-replay": f"instance={primary.name}"})
        body = self._body()
        hop = self._sign(primary, request, body)
        assert primary.url is not None
        outgoing = Outgoing(
            url=primary.url.rstrip("/"),
            method=request.method,
            target=request.target,
            headers=[("Host", request.host), *headers, *_framing(request, body), (signing.HOP, hop)],
            body=body,
            timeout=self.settings.handover_timeout,
            connect_timeout=self._connect_timeout(is_needed=is_needed),
        )
        begun = time.monotonic()
        try:
            response: Forwarded = yield Send(outgoing)
        except NotSent as error:
            self.not_sent[primary.name] = f"{primary.name} takes no connection at {redacted(primary.url)} ({error})"
            return None
        except ClientGone:
            raise _Refused(answers.INCOMPLETE) from None
        except Broken as error:
            if not is_needed:
                self.is_unknown = True
                return None
            path = request.target.partition("?")[0]
            logger.warning("%s %s was sent to %r and not answered: %s.", request.method, path, primary.name, error)
            raise _Refused(answers.UNKNOWN) from None
        return self._unless_nothing_done(primary, response, hop, begun)

    def _connect_timeout(self, *, is_needed: bool) -> float:
        """Seconds. Well below those for an answer, so that it is known that nothing was sent."""
        most = min(CONNECT_TIMEOUT, self.settings.handover_timeout / 2)
        return min(most, max(self._until() - time.monotonic(), LAST_CHANCE)) if is_needed else most

    def _sign(self, primary: Node, request: signing.Request, body: Body) -> str:
        assert self.signer is not None
        hop = signing.Hop(
            source=self.settings.cluster.node,
            target=primary.name,
            scheme=self.exchange.scheme,
            client=self.exchange.client,
        )
        length = len(body.data) if body.data is not None else body.length or 0
        return self.signer.sign(hop, request, time.time(), length)

    def _unless_nothing_done(self, primary: Node, response: Forwarded, hop: str, begun: float) -> Forwarded | None:
        answer = response.answer
        assert self.signer is not None
        if answer is not None and self.signer.is_answer(answer, hop):
            let_go(response)
            self.not_sent.pop(primary.name, None)
            if response.status_code == answers.LATE.status and time.monotonic() - begun < signing.WINDOW:
                logger.warning(
                    "No request can be handed to %r: its clock is more than %g s ahead of this node's, %r.",
                    primary.name,
                    signing.WINDOW,
                    self.settings.cluster.node,
                )
                raise _Refused(answers.NOT_AVAILABLE)
            return None
        _answered[primary.name] = time.monotonic()
        return response

    def _body(self) -> Body:
        try:
            body = self.exchange.body()
        except LengthRequired:
            raise _Refused(answers.LENGTH_REQUIRED) from None
        if body is None:
            # It was larger than what is kept, and is gone.
            raise _Refused(answers.NOT_AVAILABLE)
        return body


def _framing(request: signing.Request, body: Body) -> Iterator[tuple[str, str]]:
    """How the body's end is told."""
    if body.data is None and body.length is None:
        yield "Transfer-Encoding", "chunked"
        return
    length = len(body.data) if body.data is not None else body.length
    if length or request.method not in marks.SAFE_METHODS:
        yield "Content-Length", str(length)


def _is_hand_over(error: BaseException) -> bool:
    """Whether it is HandOver, by itself or out of a TaskGroup."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_hand_over, error.exceptions))
    return isinstance(error, HandOver)
