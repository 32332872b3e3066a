from __future__ import annotations

from django.db import migrations, models

import board.uploads


class Migration(migrations.Migration):
    dependencies = [("board", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="StoredFile",
            fields=[
                ("name", models.CharField(max_length=200, primary_key=True, serialize=False)),
                ("content", models.BinaryField()),
            ],
        ),
        migrations.AddField(
            model_name="message",
            name="attachment",
            field=models.FileField(
                blank=True,
                db_default="",
                default="",
                max_length=200,
                upload_to=board.uploads.unique_name,
                validators=[board.uploads.validate_size],
                verbose_name="picture or file",
            ),
        ),
    ]
