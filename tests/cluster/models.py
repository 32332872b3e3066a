"""What the tests write and read through the ORM; `connections.create_tables` makes the tables."""

from __future__ import annotations

from django.db import models


class Author(models.Model):
    name = models.CharField(max_length=50, unique=True)

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Book(models.Model):
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    title = models.CharField(max_length=50)
    pages = models.IntegerField(default=0)
    tags = models.ManyToManyField(Tag)

    def __str__(self) -> str:
        return self.title
