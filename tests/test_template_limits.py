"""Chat templates whose harm lies within one call of Python's own code: the child process ends, not ours; and what the child costs harmless ones."""
from __future__ import annotations

import contextlib
import os
import time

import pytest
from llamina.engine.errors import FormatError
from llamina.engine.text import template_service
from llamina.engine.text.chat_template import ChatTemplate
from test_chat_template import SPM, USER

resource = pytest.importorskip("resource", reason="memory is measured by a module that POSIX has")

ROWS = "{% set b = [''] * 690000 %}"
WORDS = "{% set a = 'x' * 1000 * 4000 %}"
INSIDE = {
    "rfind": "{{ ('a'*800000).rfind('ab'+'a'*400000) }}",
    "rindex": "{{ ('a'*800000).rindex('ab'+'a'*400000) }}",
    "rsplit": "{{ ('a'*800000).rsplit('ab'+'a'*400000) | length }}",
    "rpartition": "{{ ('a'*800000).rpartition('ab'+'a'*400000) | length }}",
    "strip": "{{ ('a'*1000000).strip('b'*900000+'a') | length }}",
    "trim": "{{ ('a'*1000000) | trim('b'*900000+'a') | length }}",
    "in": ROWS + "{% for i in range(4000) %}" + "{% if 'y' in b %}x{% endif %}" * 20 + "{% endfor %}",
    "select in": ROWS + "{{ (['y']*390000) | select('in', b) | list | length }}",
    "reject in": ROWS + "{{ (['y']*390000) | reject('in', b) | list | length }}",
    "comparison of lists": ROWS + "{% set c = b + [] %}{% for i in range(100000) %}{% if b <= c %}{% endif %}{% endfor %}",
    "comparison of texts": WORDS + "{% set b = a[1:] ~ 'y' %}{% set a = a[1:] ~ 'x' %}{% for i in range(100000) %}{% if a == b %}{% endif %}{% endfor %}",
    "slices": WORDS + "{% for i in range(100000) %}{% if a[1:] %}{% endif %}{% endfor %}",
    "backward slices": WORDS + "{% for i in range(100000) %}{% set q = a[::-1] %}{% endfor %}",
    "isupper": "{% set a = 'X'*1000*4000 %}{% for i in range(100000) %}{% set x = a.isupper() %}{% endfor %}",
    "find": WORDS + "{% for i in range(100000) %}{% set x = a.find('xy') %}{% endfor %}",
    "list index": ROWS + "{% for i in range(100000) %}{% set x = b.count('y') %}{% endfor %}",
    "unique": "{{ range(90000) | map('string') | unique | list | length }}" * 40,
    "kept slices": "{% set a = 'x' * 4000000 %}" + "".join(f"{{% set b{n} = a[1:] %}}" for n in range(400)),
    "kept slices of lists": "{% set a = ['x'] * 600000 %}" + "".join(f"{{% set b{n} = a[1:] %}}" for n in range(400)),
    "group keys": "{{ (range(90000) | list) | groupby('real') | length }}" * 20,
}


@pytest.mark.skipif(os.name == "nt", reason="CPU time is limited by a timer that POSIX has")
@pytest.mark.parametrize("name", INSIDE)
def test_work_within_one_call_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python's own code does between two looks at the budget: the child process ends, not this one."""
    monkeypatch.setattr(template_service.child, "seconds", 0.4)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(FormatError):
        ChatTemplate.from_metadata({"tokenizer.chat_template": INSIDE[name]}, SPM).render([USER])
    assert time.monotonic() - start < 60 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert ChatTemplate("{{ messages[0].content }}", SPM).render([{"content": "next"}]) == "next"


@pytest.mark.parametrize("source", ["\ud800", "{{ '\ud800' }}", "{% if '\udfff' %}x{% endif %}"])
def test_surrogates_in_a_template(source: str) -> None:
    with pytest.raises(FormatError, match="model.gguf: the chat template is not valid Unicode"):
        ChatTemplate.from_metadata({"tokenizer.chat_template": source}, SPM)
