"""litefs_check and litefs_config on real nodes that elect their primary themselves."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.run.nodes import SupervisedNode, raft_nodes

pytestmark = pytest.mark.cluster


def check(node: SupervisedNode) -> dict[str, set[str]]:
    """The levels of what litefs_check finds there, by subject."""
    printed = node.run_command("litefs_check", "--format=json").stdout
    levels: dict[str, set[str]] = {}
    for finding in json.loads(printed.splitlines()[-1])["findings"]:
        if not finding["id"]:
            levels.setdefault(finding["subject"], set()).add(finding["level"])
    return levels


def test_two_nodes_and_a_witness(tmp_path: Path, litefs_binary: Path) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(node) for node in raft_nodes(3, tmp_path, litefs_binary, witnesses=1)]
        *data, witness = nodes
        assert check(witness)["port"] == {"ok"}, "its ports are free"
        for node in data:
            node.start("--migrate")
        witness.start_as_witness()
        for node in data:
            node.wait_for_line("app | ")
        for node in nodes:
            node.wait_for(lambda node=node: check(node).get("voters") == {"ok"}, "all reach each other")  # type: ignore[misc]
            levels = check(node)
            assert {"port", "supervisor", "lease", "voters"} <= levels.keys()
            assert all(found == {"ok"} for found in levels.values()), levels
            assert ("mount" in levels) is (node is not witness)
        assert 'type: "consul"' in data[0].run_command("litefs_config").stdout

        assert witness.stop() == 0
        data[0].wait_for(lambda: check(data[0])["voters"] == {"warning"}, "the witness is missed")
        assert check(data[0])["lease"] == {"ok"}
        assert check(witness)["supervisor"] == {"warning"}
