"""The board's pages."""

from __future__ import annotations

from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import content_disposition_header
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

from board.forms import MessageForm
from board.models import Message, StoredFile
from board.uploads import image_type

MESSAGES_PER_PAGE = 10


@require_safe
def message_list(request: HttpRequest) -> HttpResponse:
    messages = Message.objects.select_related("author")
    page = Paginator(messages, MESSAGES_PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "board/message_list.html", {"page": page, "form": MessageForm()})


@login_required
def message_create(request: HttpRequest) -> HttpResponse:
    assert request.user.is_authenticated
    form = MessageForm(request.POST or None, request.FILES or None, instance=Message(author=request.user))
    if request.method == "POST" and form.is_valid():
        form.save()
        return redirect("message-list")
    return render(request, "board/message_form.html", {"form": form})


# It never changes, so a browser need not ask for it again; a deleted one may be seen for that long.
@cache_control(public=True, max_age=3600, immutable=True)
@require_safe
def upload(request: HttpRequest, name: str) -> HttpResponse:
    """A file that a visitor has uploaded. Nothing in it is ever run as a part of this site."""
    file = get_object_or_404(StoredFile, name=name)
    picture = image_type(name)
    headers = {
        "Content-Disposition": content_disposition_header(picture is None, name.rpartition("/")[2]) or "inline",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        # The browser is to believe the content type, and not to look for HTML in it.
        "X-Content-Type-Options": "nosniff",
    }
    return HttpResponse(bytes(file.content), content_type=picture or "application/octet-stream", headers=headers)


@login_required
def message_delete(request: HttpRequest, pk: int) -> HttpResponse:
    assert request.user.is_authenticated
    message = get_object_or_404(Message, pk=pk, author=request.user)
    if request.method == "POST":
        message.delete()
        return redirect("message-list")
    return render(request, "board/message_confirm_delete.html", {"message": message})


def sign_up(request: HttpRequest) -> HttpResponse:
    form = UserCreationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        login(request, form.save())
        return redirect("message-list")
    return render(request, "registration/signup.html", {"form": form})
