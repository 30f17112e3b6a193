"""A relay to a server on the loopback, which loses answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE = 1 << 16


class Relay:
    """Passes everything on, but for the answer to every so manieth request with some text in it:
    the server has it and the client never hears of it, since the connection ends there."""

    def __init__(self, port: int, text: bytes) -> None:
        self._to, self._text = port, text
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.every = 0
        """Which answers are lost; 0: none."""
        self.lost = 0
        """How many were."""
        self._seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        """Requests one way; answers go the other in a thread of their own."""
        is_heard = threading.Event()
        is_heard.set()
        answers = (server, client, is_heard)
        threading.Thread(target=self._answer, args=answers, daemon=True).start()
        with suppress(OSError):
            while piece := client.recv(_PIECE):
                self._seen += self._text in piece
                if self.every and self._text in piece and self._seen % self.every == 0:
                    self.lost += 1
                    is_heard.clear()
                server.sendall(piece)
        server.close()

    def _answer(
        self, server: socket.socket, client: socket.socket, is_heard: threading.Event
    ) -> None:
        with suppress(OSError):
            while piece := server.recv(_PIECE):
                if not is_heard.is_set():
                    break
                client.sendall(piece)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def relayed(port: int, text: bytes) -> Iterator[Relay]:
    """A relay to a port as long as the block lasts."""
    relay = Relay(port, text)
    try:
        yield relay
    finally:
        relay.close()
