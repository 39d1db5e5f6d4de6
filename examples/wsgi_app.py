"""A plain WSGI application."""

from stroboscope.integrations.wsgi import Stroboscope


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(sum(i * i for i in range(20_000))).encode()]


app = Stroboscope(hello, service="shop", template=lambda environ: "/hello")
