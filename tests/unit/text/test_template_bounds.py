"""Hostile chat templates: none gets out of the sandbox, hangs the server or eats its memory."""

from __future__ import annotations

import threading

import pytest

from forge.errors import InvalidRequest
from forge.text.template import ChatTemplate

DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(1000) %}{% set ns.x = ? %}{% endfor %}"
LONG = "{% set s = 'a' * 900000 %}{% set t = 'a' * 900000 %}{% for i in range(1000) %}{% set y = ? %}{% endfor %}"
NEST = "{% set ns = namespace(x=['ab']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for c in 'a' * 60000000 %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
        "{% for i in range(99999) %}{% set x %}" + "x" * 10_000 + "{% endset %}{% endfor %}",
        "{% set x = 'x' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% for x in [[0] * 90000] * 90000 recursive %}{% if x is iterable %}{{ loop(x) }}{% endif %}{% endfor %}",
        LONG.replace("?", "s.find('ab')"),
        LONG.replace("?", "s.count('ab')"),
        LONG.replace("?", "s.split('b')"),
        LONG.replace("?", "s.split('a')"),
        LONG.replace("?", "s[1:]"),
        LONG.replace("?", "s == t"),
        LONG.replace("?", "'ab' in s"),
        LONG.replace("?", "s is eq(t)"),
        LONG.replace("?", "'ab' is in(s)"),
        LONG.replace("?", "[s] == [t]"),
        DOUBLE.replace("?", "ns.x ~ ns.x"),
        DOUBLE.replace("?", "ns.x + ns.x"),
        DOUBLE.replace("?", "ns.x * 2"),
        DOUBLE.replace("?", "ns.x | replace('a', 'aa')"),
        DOUBLE.replace("?", "ns.x.replace('a', 'aa')"),
        DOUBLE.replace("?", "[ns.x, ns.x] | join"),
        DOUBLE.replace("?", "''.join([ns.x, ns.x])"),
        DOUBLE.replace("?", "'{}{}'.format(ns.x, ns.x)"),
        DOUBLE.replace("?", "'%s%s' % (ns.x, ns.x)"),
        DOUBLE.replace("?", "'%s%s' | format(ns.x, ns.x)"),
        DOUBLE.replace("'ab'", "['ab']").replace("?", "ns.x + ns.x"),
        DOUBLE.replace("'ab'", "9").replace("?", "ns.x * ns.x"),
        DOUBLE.replace("'ab'", "9").replace("?", "ns.x ** 9"),
        NEST + "{{ ns.x }}",
        NEST + "{{ ns.x ~ '' }}",
        NEST + "{{ ns.x | string }}",
        NEST + "{{ ns.x | upper }}",
        NEST + "{{ ns.x | tojson }}",
        NEST + "{{ '%s' % ns.x }}",
        NEST + "{{ '{}'.format(ns.x) }}",
        NEST + "{{ ns }}",
        "{{ [[0] * 90000] * 90000 | sum(start=[]) }}",
        "{{ (['a' * 1000000] * 100000) | join }}",
        "{{ ('a' * 1000000) | list | join('b' * 1000000) }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ 10 ** (10 ** 8) }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x'.center(10 ** 9) }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ ('\t' * 1000000).expandtabs(9999) }}",
        "{{ ('\n' * 1000000) | indent(9999, blank=true) }}",
        "{{ ('\n' * 1000000) | indent('x' * 9999, blank=true) }}",
        "{{ [1] | batch(10 ** 9, 'x') | list }}",
        "{{ [[1]] | tojson(indent=10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ 'x'.encode().center(10 ** 9) }}",
        "{{ (5).to_bytes(10 ** 9, 'big') }}",
        "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    ],
)
def test_a_template_that_would_hang_or_eat_memory_is_stopped(source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template"):
        ChatTemplate(source).render([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__.mro() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ '{0.__class__.__init__}'.format(messages) }}{{ ().__class__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ lipsum(5) }}",
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{% for x in 7 %}{% endfor %}",
    ],
)
def test_what_is_out_of_a_templates_reach_is_a_clear_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template"):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_every_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ i % 10 }}{% endfor %}")
    expected = "0123456789" * 9000
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(template.render([]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4
    assert [template.render([]) for _ in range(12)] == [expected] * 12
