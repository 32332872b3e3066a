"""The board in Django's admin."""

from __future__ import annotations

from django.contrib import admin

from board.models import Message


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    list_display = ["__str__", "author", "created"]
    list_filter = ["created"]
    list_select_related = ["author"]
    search_fields = ["text", "author__username"]
    date_hierarchy = "created"
