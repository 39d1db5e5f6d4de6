"""Every test of the surface runs over ASGI and over WSGI."""

import pytest
from asking import Ask, ask_asgi, ask_wsgi


@pytest.fixture(params=[ask_asgi, ask_wsgi], ids=["asgi", "wsgi"])
def ask(request: pytest.FixtureRequest) -> Ask:
    made: Ask = request.param
    return made
