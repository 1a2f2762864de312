"""A page in a headless Chromium, driven over the DevTools protocol: WebSockets that count, an upload and a download.
A round is printed whenever all have answered rightly. Ends when standard input does."""

import itertools, json, re, select, subprocess, sys, tempfile

from websockets.sync.client import connect

# What the page keeps: its WebSockets, and the ends of any of them.
OPEN = """
(async (count) => {
  window.ended = [];
  window.sockets = await Promise.all([...Array(count).keys()].map((number) => new Promise((ready, failed) => {
    const socket = new WebSocket(`wss://${location.host}/ws/counter`);
    socket.onopen = () => ready(socket);
    socket.onclose = (event) => { ended.push([number, event.code]); failed(new Error(`closed: ${event.code}`)); };
  })));
})"""

ROUND = """
(async (expected) => {
  const sockets = Promise.all(window.sockets.map((socket) => new Promise((answered) => {
    socket.onmessage = (message) => answered(JSON.parse(message.data).n);
    socket.send('tick');
  })));
  const sent = Uint8Array.from({length: 200000}, (_, i) => (i * 31 + expected) % 256);
  const fetched = async (path, options) => new Uint8Array(await (await fetch(path, options)).arrayBuffer());
  const [counts, echoed, big] = await Promise.all(
    [sockets, fetched('/echo', {method: 'POST', body: sent}), fetched('/big?n=500000', {cache: 'no-store'})]);
  return {
    wrong: counts.filter((n) => n !== expected),
    ended: window.ended,
    upload: echoed.length === sent.length && echoed.every((byte, i) => byte === sent[i]),
    download: big.length === 500000 && big.every((byte, i) => byte === i % 251),
    protocols: [...new Set(performance.getEntriesByType('resource').map((entry) => entry.nextHopProtocol))],
  };
})"""


class Page:
    def __init__(self, port, profile):
        self.browser = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--no-proxy-server", "--disable-background-networking", "--ignore-certificate-errors",
             f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        found = (re.search(r"ws://\S+", line) for line in self.browser.stderr)
        address = next(match for match in found if match).group()
        self.tools = connect(address, max_size=None, proxy=None)
        self.numbers, self.session = itertools.count(1), None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        assert "errorText" not in self.call("Page.navigate", url=f"https://localhost:{port}/")
        self.wait_for("Page.loadEventFired")

    def next(self):
        return json.loads(self.tools.recv(timeout=60))

    def wait_for(self, event):
        while self.next().get("method") != event:
            pass

    def call(self, method, **parameters):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.tools.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while (answer := self.next()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, function, argument):
        answer = self.call("Runtime.evaluate", expression=f"{function}({argument})", awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self):
        self.call("Browser.close")
        self.tools.close()
        self.browser.stderr.read()
        self.browser.wait(timeout=60)


def main(port, count):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        page = Page(port, profile)
        try:
            page.run(OPEN, count)
            for number in itertools.count(1):
                result = page.run(ROUND, number)
                expected = {"wrong": [], "ended": [], "upload": True, "download": True, "protocols": ["h2"]}
                assert result == expected, result
                print("round", flush=True)
                if select.select([sys.stdin], [], [], 0)[0]:
                    break
            page.close()
        finally:
            page.browser.kill()


main(*map(int, sys.argv[1:]))
