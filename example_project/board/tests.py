"""The board's own tests; they run on an in-memory database and need no LiteFS: `python manage.py test`."""

from __future__ import annotations

from unittest.mock import patch

from django.contrib.auth.models import User
from django.test import TestCase
from django.urls import reverse

from board.models import Message
from litefs_django import NotPrimaryError
from litefs_django._litefs.settings import Node

NODE2 = Node(name="node2", address="10.0.0.2", url="http://10.0.0.2:8000")
NODE1 = Node(name="node1", address="10.0.0.1", url="http://10.0.0.1:8000")


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


class NodeTests(TestCase):
    def test_footer_says_that_litefs_is_off(self) -> None:
        self.assertContains(self.client.get(reverse("message-list")), "LiteFS is off")

    def refuse(self, primary: Node | None) -> str:
        """The page of a refused write. The error is a fake: in these tests no LiteFS runs."""
        self.client.force_login(User.objects.create_user("ada"))
        error = NotPrimaryError("refused", alias="default", node=NODE2, primary=primary)
        with patch.object(Message, "save", side_effect=error):
            response = self.client.post(reverse("message-create"), {"text": "hello"})
        self.assertContains(response, "Not saved: node2 is a replica", status_code=503)
        return response.content.decode()

    def test_refused_write_links_to_the_primary(self) -> None:
        self.assertIn('href="http://10.0.0.1:8000/"', self.refuse(primary=NODE1))

    def test_refused_write_without_a_primary(self) -> None:
        self.assertIn("There is no primary at the moment", self.refuse(primary=None))
