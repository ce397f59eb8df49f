"""What the tests of the examples share."""

import http.server
import threading
import time
from functools import partial

import pytest

import erc_tiny
from erc.data import SOURCES


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return erc_tiny.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tokenizer():
    return erc_tiny.tokenizer()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data on this machine, and a closed port instead of the internet."""
    monkeypatch.delenv("SPCL_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(SOURCES["MELD"].__dict__, "url", "http://127.0.0.1:9")
    return tmp_path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder's files. Sends ten digits slowly as /slow, without the last five as /cut, never as /silent."""

    def do_GET(self):
        name = self.path.strip("/")
        if name not in ("slow", "cut", "silent"):
            return super().do_GET()
        if name == "silent":
            self.server.ended.wait(20)
            return
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        for byte in b"0123456789"[: 5 if name == "cut" else 10]:
            self.wfile.write(bytes([byte]))
            if name == "slow":
                time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder, and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        running.ended = threading.Event()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.ended.set()
        running.shutdown()
        thread.join()
