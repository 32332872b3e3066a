"""The board's own tests; they run on an in-memory database and need no LiteFS: `python manage.py test`."""

from __future__ import annotations

from unittest.mock import patch

from django.contrib.auth.models import User
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError
from django.db.transaction import atomic
from django.test import TestCase
from django.urls import reverse

from board.models import Message, StoredFile
from board.storage import DatabaseStorage
from board.uploads import MAX_SIZE


class MessageTests(TestCase):
    user: User

    @classmethod
    def setUpTestData(cls) -> None:
        cls.user = User.objects.create_user("ada")

    def test_newest_first_on_pages_of_ten(self) -> None:
        for number in range(1, 13):
            Message.objects.create(author=self.user, text=f"number {number}.")

        first = self.client.get(reverse("message-list"))
        second = self.client.get(reverse("message-list"), {"page": 2})

        self.assertEqual([m.text for m in first.context["page"]], [f"number {n}." for n in range(12, 2, -1)])
        self.assertEqual([m.text for m in second.context["page"]], ["number 2.", "number 1."])
        self.assertContains(second, "Page 2 of 2")

    def test_posting_needs_a_user(self) -> None:
        response = self.client.post(reverse("message-create"), {"text": "hello"})

        self.assertRedirects(response, f"{reverse('login')}?next={reverse('message-create')}")
        self.assertFalse(Message.objects.exists())

    def test_posting(self) -> None:
        self.client.force_login(self.user)

        response = self.client.post(reverse("message-create"), {"text": "<b>hello</b>"}, follow=True)

        self.assertContains(response, "&lt;b&gt;hello&lt;/b&gt;")
        self.assertEqual(Message.objects.get().author, self.user)

    def test_an_empty_message_is_asked_for_again(self) -> None:
        self.client.force_login(self.user)

        response = self.client.post(reverse("message-create"), {"text": " "})

        self.assertContains(response, "This field is required.")

    def test_only_its_author_deletes_a_message(self) -> None:
        message = Message.objects.create(author=self.user, text="mine")
        address = reverse("message-delete", args=[message.pk])
        self.client.force_login(User.objects.create_user("bob"))
        self.assertEqual(self.client.post(address).status_code, 404)

        self.client.force_login(self.user)
        self.assertContains(self.client.get(address), "mine")
        self.assertRedirects(self.client.post(address), reverse("message-list"))
        self.assertFalse(Message.objects.exists())


class AccountTests(TestCase):
    def test_sign_up_logs_in(self) -> None:
        fields = {"username": "ada", "password1": "difference engine", "password2": "difference engine"}

        response = self.client.post(reverse("signup"), fields, follow=True)

        self.assertContains(response, "Log out")

    def test_messages_are_in_the_admin(self) -> None:
        admin = User.objects.create_superuser("root")
        Message.objects.create(author=admin, text="seen by the admin")
        self.client.force_login(admin)

        response = self.client.get(reverse("admin:board_message_changelist"), {"q": "seen"})

        self.assertContains(response, "seen by the admin")


PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d0000000049454e44ae426082"
)
SCRIPT = b"<script>alert(document.cookie)</script>"


class UploadTests(TestCase):
    user: User

    @classmethod
    def setUpTestData(cls) -> None:
        cls.user = User.objects.create_superuser("ada")

    def setUp(self) -> None:
        self.client.force_login(self.user)

    def post(self, name: str, content: bytes) -> Message:
        fields = {"text": "with a file", "attachment": SimpleUploadedFile(name, content)}
        self.assertRedirects(self.client.post(reverse("message-create"), fields), reverse("message-list"))
        return Message.objects.latest("pk")

    def test_a_picture_is_shown(self) -> None:
        message = self.post("One pixel.PNG", PICTURE)

        self.assertContains(self.client.get(reverse("message-list")), f'<img src="{message.attachment.url}"')
        response = self.client.get(message.attachment.url)
        self.assertEqual(response.content, PICTURE)
        self.assertEqual(response["Content-Type"], "image/png")
        self.assertEqual(response["Content-Disposition"], 'inline; filename="One_pixel.PNG"')

    def test_nothing_else_is_shown(self) -> None:
        for name in ("a.html", "a.svg", "a.xhtml", "a.pdf", "a.js", "a", "a.png.html", "a.htm\u0142"):
            message = self.post(name, SCRIPT)

            self.assertNotContains(self.client.get(reverse("message-list")), f'<img src="{message.attachment.url}"')
            response = self.client.get(message.attachment.url)
            self.assertEqual(response.content, SCRIPT)
            self.assertEqual(response["Content-Type"], "application/octet-stream")
            self.assertRegex(response["Content-Disposition"], "^attachment; filename")

    def test_a_page_that_calls_itself_a_picture_is_none_to_a_browser(self) -> None:
        fields = {"text": "!", "attachment": SimpleUploadedFile("a.png", SCRIPT, content_type="text/html")}
        self.client.post(reverse("message-create"), fields)

        response = self.client.get(Message.objects.get().attachment.url)

        self.assertEqual(response["Content-Type"], "image/png")
        self.assertEqual(response["X-Content-Type-Options"], "nosniff")
        self.assertEqual(response["Content-Security-Policy"], "default-src 'none'; sandbox")

    def test_names_that_mean_something_else(self) -> None:
        for name, kept in [
            ("../../etc/passwd", "passwd"),
            ("a b;c=<i>.png", "a_bci.png"),
            ("x" * 150 + ".png", "x" * 150 + ".png"),
        ]:
            message = self.post(name, PICTURE)

            self.assertEqual(message.filename, kept)
            self.assertEqual(self.client.get(message.attachment.url).content, PICTURE)

    def test_the_same_name_twice(self) -> None:
        first, second = self.post("a.txt", b"first"), self.post("a.txt", b"second")

        self.assertEqual((first.filename, second.filename), ("a.txt", "a.txt"))
        self.assertEqual(self.client.get(first.attachment.url).content, b"first")
        self.assertEqual(self.client.get(second.attachment.url).content, b"second")

    def test_the_limit(self) -> None:
        self.post("a.bin", bytes(MAX_SIZE))

        file = SimpleUploadedFile("b.bin", bytes(MAX_SIZE + 1))
        response = self.client.post(reverse("message-create"), {"text": "more", "attachment": file})

        self.assertContains(response, "1.0\xa0MB is the limit.")
        self.assertEqual((Message.objects.count(), StoredFile.objects.count()), (1, 1))

    def test_it_goes_with_its_message(self) -> None:
        message = self.post("a.txt", b"mine")
        address = message.attachment.url

        self.client.post(reverse("message-delete", args=[message.pk]))

        self.assertEqual(self.client.get(address).status_code, 404)
        self.assertFalse(StoredFile.objects.exists())

    def test_it_goes_with_its_author(self) -> None:
        self.post("a.txt", b"mine")

        User.objects.filter(pk=self.user.pk).delete()

        self.assertFalse(StoredFile.objects.exists())

    def test_a_message_that_is_not_saved_leaves_no_file(self) -> None:
        with self.assertRaises(IntegrityError), atomic():
            Message.objects.create(text="by nobody", attachment=ContentFile(b"lost", "a.txt"))

        self.assertFalse(StoredFile.objects.exists())

    def test_in_the_admin(self) -> None:
        message = self.post("first.txt", b"first")
        address = reverse("admin:board_message_change", args=[message.pk])
        self.assertContains(self.client.get(address), f'href="{message.attachment.url}"')
        fields = {"author": self.user.pk, "text": message.text}

        self.client.post(address, {**fields, "attachment": SimpleUploadedFile("second.txt", b"second")})
        message.refresh_from_db()
        self.assertEqual(message.filename, "second.txt")
        self.assertEqual(bytes(StoredFile.objects.get().content), b"second")

        self.client.post(address, fields)
        self.assertEqual(bytes(StoredFile.objects.get().content), b"second")

        self.client.post(address, {**fields, "attachment-clear": "on"})
        message.refresh_from_db()
        self.assertFalse(message.attachment)
        self.assertFalse(StoredFile.objects.exists())

    def test_deleted_in_the_admins_list(self) -> None:
        message = self.post("a.txt", b"mine")
        fields = {"action": "delete_selected", "_selected_action": message.pk, "post": "yes"}

        self.client.post(reverse("admin:board_message_changelist"), fields)

        self.assertFalse(StoredFile.objects.exists())


class DatabaseStorageTests(TestCase):
    def test_a_file(self) -> None:
        name = default_storage.save("a/b.txt", ContentFile(b"content"))

        self.assertEqual((name, default_storage.size(name), default_storage.exists(name)), ("a/b.txt", 7, True))
        with default_storage.open(name) as file:
            self.assertEqual(file.read(), b"content")
        default_storage.delete(name)
        self.assertFalse(default_storage.exists(name))

    def test_a_name_that_is_taken(self) -> None:
        names = [default_storage.save("a.txt", ContentFile(content)) for content in (b"first", b"second")]

        self.assertEqual([default_storage.open(name).read() for name in names], [b"first", b"second"])

    def test_a_name_that_is_taken_at_the_last_moment(self) -> None:
        """As by another process, between the question and the write: for the test nothing is found at first."""
        default_storage.save("a.txt", ContentFile(b"first"))

        with patch.object(DatabaseStorage, "exists", side_effect=[False, True, False]):
            name = default_storage.save("a.txt", ContentFile(b"second"))

        self.assertNotEqual(name, "a.txt")
        self.assertEqual(default_storage.open("a.txt").read(), b"first")
        self.assertEqual(default_storage.open(name).read(), b"second")

    def test_what_it_refuses(self) -> None:
        with self.assertRaisesMessage(SuspiciousFileOperation, "'a.txt' has 1048577 bytes; 1048576 is the limit."):
            default_storage.save("a.txt", ContentFile(bytes(MAX_SIZE + 1)))
        with self.assertRaises(FileNotFoundError):
            default_storage.open("a.txt")
        with self.assertRaises(FileNotFoundError):
            default_storage.size("a.txt")
        with self.assertRaisesMessage(ValueError, "'a.txt' cannot be opened as 'wb', only for reading ('rb')."):
            default_storage.open("a.txt", "wb")


class NodeTests(TestCase):
    def test_footer_says_that_litefs_is_off(self) -> None:
        self.assertContains(self.client.get(reverse("message-list")), "LiteFS is off")
