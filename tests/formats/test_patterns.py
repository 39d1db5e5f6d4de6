"""Patterns mean what they mean in Go, and no pattern takes long."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stroboscope.errors import PatternError
from stroboscope.formats import patterns
from stroboscope.formats._syntax import PATTERN_CAP
from stroboscope.formats.patterns import Pattern

HELPER = Path(__file__).parents[1] / "helpers/matching.go"
Answer = list[bool] | None
InGo = Callable[[str, list[str]], Answer]


@pytest.fixture(scope="module")
def in_go(go: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InGo]:
    """Whether a pattern matches texts by Go's regexp; None where Go refuses it."""
    program = tmp_path_factory.mktemp("go") / "matching"
    subprocess.run([go, "build", "-o", program, HELPER], check=True, timeout=110)
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answered = process.stdin, process.stdout

        def ask(pattern: str, texts: list[str]) -> Answer:
            asked.write(json.dumps({"Pattern": pattern, "Texts": texts}) + "\n")
            asked.flush()
            answer: Answer = json.loads(answered.readline())
            return answer

        yield ask


def ours(pattern: str, texts: list[str]) -> Answer:
    try:
        made = Pattern(pattern)
    except PatternError:
        return None
    return [made.found_in(text) for text in texts]


TEXTS = [
    *(
        "",
        "a",
        "b",
        "ab",
        "aab",
        "abc",
        "a\n",
        "\na",
        "a\nb",
        "A",
        "AB",
        "\u017f",
        "K",
        "k",
    ),
    *("/checkout", "/items/{id}", "main.(*T).f", "app.py", "<=100ms", "5xx", "a b"),
    *("é", "É", "ß", "日本", "_", "0", "09", "a.b", "a-b", "]", "[", "\\", "a{2}", "-"),
]
WRITTEN = [
    *("", "a", "^a", "a$", "^$", "a|b", "a||b", "(a|b)*c", "a*", "a+?", "a??", "a{2}"),
    *("a{2,}", "a{0,1}b", "{", "a{", "a{,2}", "a{2", "a{x}", "/items/{id}", "x{0}a"),
    *("[a-c]", "[^a]", "[]a]", "[^]a]", "[a-]", "[-a]", "[a-c-e]", "[[:alpha:]]"),
    *("[[:^alpha:]]", "[[:nope:]]", "[[:alpha:", "[[]", "[\\]]", "[\\d_]", "[\\D]"),
    *("[\\pL]", "[^\\PL]", "\\pL", "\\PL", "\\p{Lu}", "\\p{^Lu}", "\\P{^L}", "\\pZ"),
    *("\\d", "\\D", "\\w+", "\\W", "\\s", "\\S", ".", "(?s).", "(?s:.)$", "a.b"),
    *(
        "(?i)ab",
        "(?i)K",
        "(?i)[k]",
        "(?i)\u017f",
        "(?i)É",
        "(?i:a)b",
        "a(?i)b",
        "(?-i)a",
    ),
    *("(?i-s)A", "(?m)^b", "(?m)a$", "^b", "\\Aa", "a\\z", "a\\Z", "\\ba\\b", "\\Bb"),
    *("\\B", "\\b", "(?:a)", "(?P<n>a)", "(?<n>a)", "(?'n'a)", "(?=a)", "(?!a)"),
    *("(a)\\1", "\\0", "\\012", "\\12", "\\8", "\\x41", "\\x{41}", "\\x{110000}"),
    *("\\x", "\\xg", "\\Qa.b\\E", "\\Qa{2}", "\\E", "\\_", "\\-", "\\é", "\\", "\\C"),
    *(
        "a**",
        "a*+",
        "a+*",
        "a?{2}",
        "*",
        "+a",
        "a|*",
        "(*)",
        "^*",
        "$+",
        "\\b+",
        "(",
        ")",
    ),
    *("a)", "(a", "[", "[a", "[b-a]", "(?", "(?i", "(?)", "(?z)", "a{1001}", "a{2,1}"),
    *(
        "(a{100}){11}",
        "(a{100}){10}",
        "((a{10}){10}){10}",
        "a{1000}",
        "(?U)a+",
        "(|a)+b",
    ),
    *("(a*)*b", "(a|aa)+$", "([a-z]+)*\\d", "\\t\\n\\f\\r\\v\\a", "[\\b]", "[\\Q]"),
    *(
        "[a\\-z]",
        "[+--]",
        "[--a]",
        "日+",
        "[日-本]",
        "<=100ms",
        "^5xx$",
        "(?i)[^a]",
        "(?-)a",
    ),
]


@pytest.mark.parametrize("pattern", WRITTEN)
def test_a_pattern_means_what_it_means_in_go(in_go: InGo, pattern: str) -> None:
    """It finds the same, and is refused where Go refuses it."""
    assert ours(pattern, TEXTS) == in_go(pattern, TEXTS)


PIECES = [
    *("a", "b", "c", ".", "^", "$", "|", "(", "(?:", "(?i)", "(?m)", "(?s)", ")", "*"),
    *(
        "+",
        "?",
        "{2}",
        "{1,3}",
        "{0,}",
        "[ab]",
        "[^a]",
        "[a-c",
        "]",
        "\\b",
        "\\B",
        "\\d",
    ),
    *(
        "\\w",
        "\\W",
        "\\pL",
        "\n",
        "A",
        "K",
        "\\n",
        "\\x61",
        "-",
        "é",
        "\\A",
        "\\z",
        "[[:word:]]",
    ),
]


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.lists(st.text("abcABCK-_ \né0", max_size=8), min_size=1, max_size=5),
)
@example("(?i)k", ["K"])
@example("(^|b)a", ["ca", "ba"])
@example("(a|ab)(c|bcd)$", ["abcd"])
def test_any_pattern_finds_what_go_finds(
    in_go: InGo, pattern: str, texts: list[str]
) -> None:
    """Put together from pieces, good and bad ones, over any text."""
    assert ours(pattern, texts) == in_go(pattern, texts)


#: The 1000 first binary digits of something irregular.
MIXED = "".join("ab"[digit == "1"] for digit in f"{7**400:b}"[:1000])


@given(st.text(max_size=40))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    """With our error, never another one."""
    with contextlib.suppress(PatternError):
        Pattern(text).found_in("some text to look at")


EVIL = [
    *("(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*)*x", "(.*a){12}", ".*.*.*.*.*.*x"),
    *("(a?){30}a{30}", "([a-zA-Z]+)*$", "(a{1,30}){1,30}$", "(?i)(k|s|a)*z"),
]


@pytest.mark.parametrize("pattern", EVIL)
def test_no_pattern_takes_long(pattern: str) -> None:
    """Those that take `re` for ever: some seconds at most for a thousand long names."""
    names = [f"{'a' * 900}!{number}" for number in range(1000)]
    made = Pattern(pattern)
    began_s = time.thread_time()

    with contextlib.suppress(PatternError):
        for name in names:
            made.found_in(name)

    assert time.thread_time() - began_s < 8


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that needs more than its share is refused on the way, and says so."""
    monkeypatch.setattr(patterns, "WORK_CAP", 1000)
    made = Pattern("(a|b)*a(a|b){100}z")

    with pytest.raises(PatternError, match="too costly"):
        made.found_in(MIXED)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known moves are forgotten at their cap, and the answer stays right."""
    monkeypatch.setattr(patterns, "MOVES_CAP", 50)
    made = Pattern("(a|b)*a(a|b){8}$")

    for end in range(900, 1000):
        assert made.found_in(MIXED[:end]) is (MIXED[end - 9] == "a")
    assert sum(map(len, made._moves)) <= 200


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a" * (PATTERN_CAP + 1), "longer than 1000"),
        ("(a{30}){30}" * 60, "too large"),
        ("(" * 200 + ")" * 200, "nested too deeply"),
        ("[z-a]", "bad range"),
        ("(?=a)", "unsupported group"),
        ("a{2,1}", "bad repetition"),
        ("\\8", "unknown escape"),
    ],
)
def test_a_refusal_says_why(pattern: str, why: str) -> None:
    """In one line, without the whole pattern."""
    with pytest.raises(PatternError, match=why) as refused:
        Pattern(pattern)

    assert len(str(refused.value)) < 100


def test_the_gil_is_given_up_on_the_way() -> None:
    """Long work breathes: the application beside it does not stand still."""
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    Pattern("(a|b)*a(a|b){50}z", breathe).found_in(MIXED)

    assert breaths > 500
