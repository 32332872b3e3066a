"""Who a node is for the others: certificates from a secret, and TLS that takes no others. With relays: test_relay."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from litefs_django._litefs.certificates import issue
from litefs_django._litefs.identity import CONTROL, QUESTION, REPLICATION, peer_name
from tests.machine import SECRET

OTHER_SECRET = "of another cluster, and long enough too"


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[str | None, str | None, str | None]:
    """Who each is for the other one, and what they speak. Raises OSError."""
    ends = socket.socketpair()
    with ends[0], ends[1], ThreadPoolExecutor(1) as pool:
        for end in ends:
            end.settimeout(10)

        def serve() -> str | None:
            with server.wrap_socket(ends[1], server_side=True) as connection:
                found = peer_name(connection)
                connection.sendall(b"x")
                return found

        serving = pool.submit(serve)
        with client.wrap_socket(ends[0]) as connection:
            # With TLS 1.3 a client hears of its own refusal when it reads.
            connection.recv(1)
            return serving.result(), peer_name(connection), connection.selected_alpn_protocol()


@pytest.mark.parametrize("protocol", [REPLICATION, QUESTION, CONTROL])
def test_nodes_of_one_secret_know_each_other_by_name(protocol: str) -> None:
    one, other = issue("web1", (SECRET,)), issue("web-2.example", (SECRET,))
    assert handshake(one.connecting(protocol), other.listening()) == ("web1", "web-2.example", protocol)


def test_the_first_secret_signs_and_each_is_accepted() -> None:
    old, both, new = (issue("web1", secrets) for secrets in ((SECRET,), (OTHER_SECRET, SECRET), (OTHER_SECRET,)))
    assert both.accepted.count("BEGIN CERTIFICATE") == 2
    assert handshake(both.connecting(QUESTION), new.listening())[0] == "web1"
    assert handshake(new.connecting(QUESTION), both.listening())[0] == "web1"
    assert handshake(old.connecting(QUESTION), issue("web2", (SECRET, OTHER_SECRET)).listening())[0] == "web1"
    for client, server in ((old, new), (new, old), (both, old)):
        with pytest.raises(OSError, match=r"(?i)verify failed|alert|reset|EOF|unknown"):
            handshake(client.connecting(QUESTION), server.listening())


def test_who_speaks_nothing_that_is_known_is_nobody() -> None:
    client = issue("web1", (SECRET,)).connecting("something-else/1")
    assert handshake(client, issue("web2", (SECRET,)).listening()) == (None, None, None)


def test_a_secret_s_authority_is_the_same_everywhere_and_a_node_s_key_is_not() -> None:
    identities = [issue.__wrapped__("web1", (SECRET,)) for _ in range(2)]
    first, second = identities
    assert first.shown != second.shown
    # Serial numbers differ: what matters is that each accepts the other one.
    assert handshake(first.connecting(QUESTION), second.listening())[0] == "web1"
    assert issue("web1", (SECRET,)) is issue("web1", (SECRET,)), "one for a whole process"


def test_nothing_older_than_tls_1_3() -> None:
    identity = issue("web1", (SECRET,))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r"(?i)protocol version|alert"):
        handshake(client, identity.listening())


def test_a_key_is_not_shown() -> None:
    assert "PRIVATE KEY" in issue("web1", (SECRET,)).shown
    assert "PRIVATE KEY" not in repr(issue("web1", (SECRET,)))


def test_to_use_an_identity_takes_python_alone() -> None:
    """The supervisor has it handed over, and stays small."""
    identity = issue("web1", (SECRET,))
    code = (
        "import sys; from litefs_django._litefs.identity import Identity, QUESTION\n"
        f"identity = Identity(name='web1', shown={identity.shown!r}, accepted={identity.accepted!r})\n"
        "identity.connecting(QUESTION), identity.listening()\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
