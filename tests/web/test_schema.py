"""The API's own description, turned against it: whatever is sent, no answer is a 5xx."""

import collections

import pytest
from hypothesis import HealthCheck, given, settings

from tests.web.engine import Fake

pytest.importorskip("schemathesis", reason="pip install 'lamina[dev]'")

FEW = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

NEEDED = ("model", "messages", "prompt")


def operations(app):
    import schemathesis

    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})
    return [found.ok() for found in schema.get_all_operations()]


def send(cases, statuses):
    from schemathesis.checks import not_a_server_error

    @FEW
    @given(case=cases)
    def sent(case):
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "support"
        answered = case.call(headers={"host": "localhost"})
        statuses[answered.status_code] += 1
        case.validate_response(answered, checks=[not_a_server_error])
        if isinstance(case.body, dict):  # most that is optional is refused, so without it too
            case.body = {k: v for k, v in case.body.items() if k in NEEDED}
            answered = case.call(headers={"host": "localhost"})
            statuses[answered.status_code] += 1
            case.validate_response(answered, checks=[not_a_server_error])

    sent()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nothing_that_is_sent_breaks_it(make):
    from schemathesis import GenerationMode

    world = make(Fake())
    found = collections.defaultdict(collections.Counter)
    checked = operations(world.client.app)
    assert {operation.path for operation in checked} >= {"/v1/chat/completions", "/v1/models"}
    for operation in checked:
        send(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), found[operation.path])
        if operation.body:  # any text is a path
            wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            send(wrong, found[operation.path])
    for path, statuses in found.items():
        assert not [status for status in statuses if status >= 500], (path, statuses)
    assert found["/v1/chat/completions"][200] > 0, found
    assert found["/v1/completions"][200] > 0, found
    assert found["/v1/chat/completions"][400] > 5, found
    assert not any("bug" in record for record in world.records)
