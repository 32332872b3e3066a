from __future__ import annotations

import pytest
from django.test import override_settings

from litefs_django import checks
from tests.cluster.nodes import StaticCluster

pytestmark = pytest.mark.cluster


def test_databases_on_the_mount_are_in_their_place(static_cluster: StaticCluster) -> None:
    node = static_cluster.primary
    node.database().touch()
    with override_settings(LITEFS=node.litefs):
        assert checks.check_mount_path(None) == []
        # What litefs_run takes away: nothing can be listed there.
        node.kill()
        assert checks.check_mount_path(None) == []
        node.unmount()
        node.database().touch()
        (message,) = checks.check_mount_path(None)
        assert message.id == "litefs_django.E009"
