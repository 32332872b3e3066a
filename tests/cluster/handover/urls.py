from __future__ import annotations

from django.contrib import admin
from django.urls import path

from tests.cluster.handover import views
from tests.cluster.models import Tag

admin.site.register(Tag)

urlpatterns = [
    path("ping/", views.ping),
    path("authors/", views.authors),
    path("has/", views.has),
    path("who/", views.who),
    path("who/<path:rest>", views.who),
    path("post/", views.post),
    path("upload/", views.upload),
    path("swallow/", views.swallow_body),
    path("drain/", views.drain),
    path("answer/", views.answer),
    path("big/", views.big),
    path("ranged/", views.ranged),
    path("events/", views.events),
    path("slow/", views.slow),
    path("write/<str:how>/", views.write),
    path("awrite/<str:how>/", views.awrite),
    path("template/", views.template_response),
    path("session/", views.session),
    path("begun/<str:how>/", views.begun),
    path("message/", views.message),
    path("thread/", views.bare_thread),
    path("handled/", views.handled),
    path("ahandled/", views.ahandled),
    path("handled-class/", views.Handled.as_view()),
    path("ahandled-class/", views.AsyncHandled.as_view()),
    path("told/", views.told),
    path("told/<str:more>/", views.told),
    path("marked/", views.marked),
    path("amarked/", views.amarked),
    path("marked-class/", views.Marked.as_view()),
    path("search/", views.search),
    path("asearch/", views.asearch),
    path("search-class/", views.Search.as_view()),
    path("cached/", views.cached),
    path("file/", views.file),
    path("both/", views.both),
    path("late/", views.late),
    path("failing/", views.failing),
    path("rest/", views.Rest.as_view()),
    path("admin/", admin.site.urls),
]
