"""A witness: a node that votes and has no data. Its supervisor runs the lease process alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node.children import Children
from litefs_django._litefs.node.control import ControlServer, Say, ask_primary
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.node.lease_process import LeaseProcess
from litefs_django._litefs.node.output import Output
from litefs_django._litefs.node.signals import STOP, Signals
from litefs_django._litefs.node_file import HEARTBEAT, NodeFileWriter


class Witness:
    """Runs the witness that it is given a description of. Only for the main thread."""

    def __init__(self, node: NodeDescription) -> None:
        assert node.lease is not None
        for descriptor in (*node.claims, node.lease.listener):
            os.set_inheritable(descriptor, False)
        self._name = node.name
        self._reach = node.reach
        self._signals = Signals()
        self._output = Output()
        self._children = Children(self._output)
        self._node_file = NodeFileWriter(node.run_path)
        self._lease = LeaseProcess(node.lease, self._children, self._output.say, self._node_file, self._signals.poke)
        self._control = ControlServer(
            node.run_path, {"status": self._status, "promote": self._promote, "stop": self._stop}
        )

    def run(self) -> int:
        """Until SIGTERM or SIGINT has come, or it can vote no more. Returns the exit code."""
        self._output.say(f"{self._name} is a witness: it votes, and has no data")
        code = 0
        try:
            while not STOP.intersection(self._signals.wait(HEARTBEAT)):
                self._beat()
                self._lease.keep()
        except SupervisorError as error:
            self._output.say(str(error))
            code = 1
        for sentence in self._ending():
            self._output.say(sentence)
        self._control.close()
        self._node_file.close()
        self._output.close(timeout=0.5)
        return code

    def _beat(self) -> None:
        self._node_file.beat()
        self._children.reap()

    def _ending(self) -> Iterator[str]:
        said = ""
        for sentence in self._lease.stop():
            if sentence != said:
                said = sentence
                yield sentence
            self._signals.wait(HEARTBEAT)
            self._beat()

    def _status(self, request: Mapping[str, Any], say: Say) -> dict[str, Any]:
        return {"node": self._name, "lease": self._lease.status()}

    def _promote(self, request: Mapping[str, Any], say: Say) -> str:
        """The primary does it. Raises SupervisorError."""
        status = self._lease.status()
        holder = status and status["state"]["lease"]
        if not holder:
            raise SupervisorError(f"{self._name} knows of no primary now; nothing was done.")
        return ask_primary(self._reach, holder["node"], str(request.get("node")), say)

    def _stop(self, request: Mapping[str, Any], say: Say) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return f"{self._name} stops."
