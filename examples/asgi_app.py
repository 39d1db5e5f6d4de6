"""A plain ASGI application."""

from stroboscope.integrations.asgi import Stroboscope


async def hello(scope, receive, send):
    if scope["type"] == "http":
        body = str(sum(i * i for i in range(20_000))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


app = Stroboscope(hello, service="shop", template=lambda scope: "/hello")
