"""Downloads against a server that breaks off, refuses, redirects and changes its mind."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.download import DownloadError, Limits, download
from telemetry.errors import InputError

DATA = bytes(range(256)) * 4000
LIMITS = Limits(timeout_s=5, tries=4, pause_s=0)


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.cuts`` holds how many bytes each of the next answers gives before the line breaks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if server.statuses:
            return self._plain(server.statuses.pop(0))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path not in server.files:
            return self._plain(404)
        return self._file(server.files[self.path])

    def _plain(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, data):
        server, begin = self.server, 0
        mark, asked = self.headers.get("If-Range"), self.headers.get("Range")
        if asked and server.ranges and mark in (None, server.mark):
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(data):
                return self._plain(416)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("Content-Type", server.kind)
        if server.mark:
            self.send_header("ETag", server.mark)
        self.end_headers()
        body = data[begin:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.redirects = {"/file": DATA}, {}
    httpd.asked, httpd.cuts, httpd.statuses = [], [], []
    httpd.ranges, httpd.mark, httpd.kind = True, '"one"', "application/octet-stream"
    httpd.handle_error = lambda *_: None
    httpd.address = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def whole(target):
    assert target.read_bytes() == DATA
    assert not list(target.parent.glob("*.part*"))


def test_a_cut_file_is_continued_where_it_broke_off(server, tmp_path):
    server.cuts = [300_000, 100_000]
    seen, pauses = [], []
    digest = download(f"{server.address}/file", tmp_path / "f", LIMITS, lambda done, total: seen.append((done, total)), pauses.append)
    assert digest == hashlib.sha256(DATA).hexdigest()
    whole(tmp_path / "f")
    assert server.asked == [("/file", None, None), ("/file", "bytes=300000-", '"one"'), ("/file", "bytes=400000-", '"one"')]
    assert seen[-1] == (len(DATA), len(DATA))
    assert pauses == [0, 0]


def test_a_later_run_continues_too_and_another_address_does_not(server, tmp_path):
    server.cuts, once = [300_000], Limits(timeout_s=5, tries=1)
    with pytest.raises(DownloadError, match=r"broke off after 300,000 of 1,024,000.*the next run resumes"):
        download(f"{server.address}/file", tmp_path / "f", once)
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part").stat().st_size == 300_000
    download(f"{server.address}/file", tmp_path / "f", once)
    assert server.asked[-1][1] == "bytes=300000-"
    whole(tmp_path / "f")
    (tmp_path / "f.part").write_bytes(b"of something else")
    server.files["/other"] = DATA
    download(f"{server.address}/other", tmp_path / "f", once)
    assert server.asked[-1] == ("/other", None, None)
    whole(tmp_path / "f")


def test_a_part_of_an_older_file_is_not_glued_to_a_newer_one(server, tmp_path):
    server.files["/file"], server.cuts = b"x" * len(DATA), [300_000]
    with pytest.raises(DownloadError):
        download(f"{server.address}/file", tmp_path / "f", Limits(timeout_s=5, tries=1))
    server.files["/file"], server.mark = DATA, '"two"'
    download(f"{server.address}/file", tmp_path / "f", LIMITS)
    assert server.asked[-1][1:] == ("bytes=300000-", '"one"')
    whole(tmp_path / "f")


def test_a_server_without_ranges_and_a_part_that_is_whole(server, tmp_path):
    server.ranges, server.cuts = False, [300_000]
    download(f"{server.address}/file", tmp_path / "f", LIMITS)
    whole(tmp_path / "f")
    server.ranges = True
    (tmp_path / "g.part").write_bytes(DATA)
    (tmp_path / "g.part.json").write_text(f'{{"address": "{server.address}/file", "mark": ""}}')
    download(f"{server.address}/file", tmp_path / "g", LIMITS)
    assert [ask[1] for ask in server.asked[-2:]] == [f"bytes={len(DATA)}-", None]
    whole(tmp_path / "g")


def test_passing_faults_are_retried_with_growing_pauses_and_lasting_ones_not(server, tmp_path):
    server.statuses, pauses = [503, 500, 429], []
    download(f"{server.address}/file", tmp_path / "f", Limits(tries=4, pause_s=2), sleep=pauses.append)
    assert pauses == [2, 4, 8]
    whole(tmp_path / "f")
    for status, words in ((404, "404"), (403, "403"), (416, "416")):
        server.statuses, pauses = [status], []
        with pytest.raises(DownloadError, match=words) as caught:
            download(f"{server.address}/file", tmp_path / "g", LIMITS, sleep=pauses.append)
        assert caught.value.missing == (status == 404)
        assert not pauses
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"503.*after 4 tries"):
        download(f"{server.address}/file", tmp_path / "g", LIMITS, sleep=pauses.append)


def test_too_large_is_refused_before_and_while_it_comes(server, tmp_path):
    small = Limits(timeout_s=5, tries=3, pause_s=0, max_bytes=1000)
    with pytest.raises(DownloadError, match="1,024,000 bytes, allowed are 1,000"):
        download(f"{server.address}/file", tmp_path / "f", small)
    assert len(server.asked) == 1
    path = tmp_path / "source"
    path.write_bytes(DATA)
    with pytest.raises(DownloadError, match="allowed are 1,000"):
        download(path.as_uri(), tmp_path / "f", small)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_silence_ends(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match="timed out"):
            download(address, tmp_path / "f", Limits(timeout_s=0.2, tries=2, pause_s=0))
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(address, tmp_path / "f", Limits(timeout_s=0.2, tries=1))


@pytest.mark.parametrize("to", ["https://127.0.0.1/file", "file:///etc/hostname", "ftp://127.0.0.1/file"])
def test_a_redirect_to_another_scheme_is_refused(server, tmp_path, to):
    server.redirects["/moved"] = to
    with pytest.raises(DownloadError, match=r"refused|not allowed"):
        download(f"{server.address}/moved", tmp_path / "f", LIMITS)
    assert len(server.asked) == 1
    server.redirects["/moved"] = "/file"
    download(f"{server.address}/moved", tmp_path / "f", LIMITS)
    whole(tmp_path / "f")


def test_other_schemes_pages_and_missing_files(server, tmp_path):
    for address in ("ftp://127.0.0.1/file", "data:,x", "/etc/hostname"):
        with pytest.raises(DownloadError, match="refused"):
            download(address, tmp_path / "f", LIMITS)
    with pytest.raises(DownloadError, match="host 'elsewhere'"):
        download("file://elsewhere/etc/hostname", tmp_path / "f", LIMITS)
    with pytest.raises(DownloadError, match="no such file") as caught:
        download((tmp_path / "none").as_uri(), tmp_path / "f", LIMITS)
    assert caught.value.missing
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="a web page"):
        download(f"{server.address}/file", tmp_path / "f", LIMITS)
    with pytest.raises(InputError, match="tries"):
        Limits(tries=0)


def test_a_local_part_is_continued(tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    address = (tmp_path / "source").as_uri()
    (tmp_path / "f.part").write_bytes(DATA[:1000])
    (tmp_path / "f.part.json").write_text(f'{{"address": "{address}", "mark": ""}}')
    seen = []
    download(address, tmp_path / "f", LIMITS, lambda done, total: seen.append(done))
    assert seen[0] == 1000
    whole(tmp_path / "f")
