"""Every page of the site."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from board import views

urlpatterns = [
    path("", views.message_list, name="message-list"),
    path("new/", views.message_create, name="message-create"),
    path("uploads/<path:name>", views.upload, name="upload"),
    path("<int:pk>/delete/", views.message_delete, name="message-delete"),
    path("signup/", views.sign_up, name="signup"),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
