"""The tests' application for Python: `app` for an ASGI server, `wsgi` for a WSGI server.

Every request that arrives is written down as a line of the file $NOTES, then answered with its method, target and
body, and with the process that answered."""

import os

NOTES = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
PROCESS = str(os.getpid())


def answer(method, target, body):
    os.write(NOTES, f"{method} {target}\n".encode())
    return f"{method} {target} {body}\n".encode()


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    text = answer(scope["method"], scope["path"], body.decode())
    headers = [(b"x-process", PROCESS.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def wsgi(environ, start_response):
    body = environ["wsgi.input"].read().decode()
    text = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], body)
    start_response("200 OK", [("X-Process", PROCESS), ("Content-Length", str(len(text)))])
    return [text]
