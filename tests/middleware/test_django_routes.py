"""Django's routes as people read them, whatever they are written in."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from django.conf import UserSettingsHolder, global_settings, settings
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.urls.resolvers import RegexPattern
from django.utils.functional import lazystr
from hypothesis import given
from hypothesis import strategies as st

from stroboscope.labels.sets import LabelTable
from stroboscope.middleware.routes import django_template, tamed


@pytest.mark.parametrize(
    ("route", "template"),
    [
        ("items/<int:id>/", "items/<int:id>/"),
        (r"^articles/(?P<year>[0-9]{4})/$", "articles/<year>/"),
        (r"^articles/(\d+)/(?P<slug>[\w-]+)\Z", "articles/<var>/<slug>/".rstrip("/")),
        ("shop/^items/(?P<n>[)(]+)$", "shop/items/<n>"),
        (r"^a/(?P<x>(?:b|c)+(d)*)/e$", "a/<x>/e"),
        (r"^x/(?:page-(?P<p>\d+)/)?$", "x/(page-<p>/)?"),
        (r"^(?:new|old)/z$", "(new|old)/z"),
        (r"^(?i:a)b(?=c)c$", "bc"),
        (r"^a\.html$", "a.html"),
        (r"^a\d+/[^/]+/$", r"a\d+/[^/]+/"),
        (r"^(?P<x>a)?/b", "<x>/b"),
        ("^broken/(?P<x>", "broken/<x>"),
        ("^broken\\", "broken\\"),
        ("", ""),
    ],
)
def test_groups_become_names_and_anchors_go(route: str, template: str) -> None:
    """Named and unnamed groups, nested ones, classes with brackets, both syntaxes."""
    assert tamed(route) == template


@given(st.text("()[]<>?P:^$\\\\ab|+*{}3/", max_size=60))
def test_any_route_gives_a_bounded_template(route: str) -> None:
    """No route breaks it, and what becomes a label has at most 128 bytes."""
    template = tamed(route)

    label = LabelTable().intern_leniently({"endpoint": "/" + template})["endpoint"]
    assert len(label.encode()) <= 128


def view(request: object) -> None: ...


def resolved(pattern: URLPattern | URLResolver, url: str) -> str | None:
    """The template Django's own resolver leads to."""
    root = URLResolver(RegexPattern(r"^/"), [pattern])
    match = root.resolve(url)
    # The real root is not part of a route either.
    match.route = match.route.removeprefix("^/")
    return django_template(SimpleNamespace(resolver_match=match))


@pytest.fixture
def django_defaults() -> Iterator[None]:
    """Django's default settings for one test: `configure` would bind the process."""
    before = settings._wrapped
    settings._wrapped = UserSettingsHolder(global_settings)
    yield
    settings._wrapped = before


@pytest.mark.usefixtures("django_defaults")
def test_templates_of_djangos_own_resolver() -> None:
    """Nested includes of both syntaxes, and a lazily made route."""
    years = [re_path(r"^(?P<year>[0-9]{4})/$", view), re_path(r"^by/(\w+)/$", view)]
    shop = path("shop/<slug:shop>/", include((years, "shop"), namespace="s"))

    assert resolved(shop, "/shop/secret/2026/") == "/shop/<slug:shop>/<year>/"
    assert resolved(shop, "/shop/secret/by/secret/") == "/shop/<slug:shop>/by/<var>/"
    lazy = path(lazystr("utilisateurs/<int:n>"), view)
    assert resolved(lazy, "/utilisateurs/7") == "/utilisateurs/<int:n>"


def test_an_unresolved_request_has_no_template() -> None:
    """A 404 has no route, whatever is missing on the way to it."""
    for request in (None, SimpleNamespace(), SimpleNamespace(resolver_match=None)):
        assert django_template(request) is None
