"""What a visitor may fill in."""

from __future__ import annotations

from django import forms

from board.models import Message


class MessageForm(forms.ModelForm):
    class Meta:
        model = Message
        fields = ["text", "attachment"]
        widgets = {"text": forms.Textarea(attrs={"rows": 3, "placeholder": "What do you want to say?"})}
        labels = {"text": "Message"}
