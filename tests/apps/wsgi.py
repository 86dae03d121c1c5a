"""An application for gunicorn."""

import os


def app(environ, start_response):
    body = ("worker=%s of gunicorn\n" % os.environ["WORKER_ID"]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
