"""What the board stores."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models.signals import post_delete
from django.dispatch import receiver

from board.uploads import image_type, unique_name, validate_size


class Message(models.Model):
    """One message of one user, with a picture or file if they like; the newest comes first."""

    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="messages")
    text = models.TextField(max_length=1000)
    attachment = models.FileField(
        "picture or file",
        upload_to=unique_name,
        blank=True,
        default="",
        # For the release that has no such field, and goes on writing while this one is brought to each node.
        db_default="",
        max_length=200,
        validators=[validate_size],
    )
    created = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        ordering = ["-created", "-pk"]

    def __str__(self) -> str:
        return self.text if len(self.text) <= 60 else f"{self.text[:59]}…"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Message and file come in one transaction, in which a file that was there before goes."""
        with transaction.atomic():
            before = Message.objects.filter(pk=self.pk).values_list("attachment", flat=True).first()
            super().save(*args, **kwargs)
            if before and before != self.attachment.name:
                self.attachment.storage.delete(before)

    @property
    def has_picture(self) -> bool:
        return image_type(self.attachment.name) is not None

    @property
    def filename(self) -> str:
        """The visitor's name for the attachment."""
        return PurePosixPath(self.attachment.name).name


@receiver(post_delete, sender=Message)
def delete_attachment(instance: Message, **kwargs: object) -> None:
    """Not in a `Message.delete`: neither the admin nor the deletion of a user would call that."""
    if instance.attachment:
        instance.attachment.storage.delete(instance.attachment.name)


class StoredFile(models.Model):
    """A file of DatabaseStorage."""

    name = models.CharField(primary_key=True, max_length=200)
    content = models.BinaryField()

    def __str__(self) -> str:
        return self.name
