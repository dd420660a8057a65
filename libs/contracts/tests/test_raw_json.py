import msgspec

from parley_contracts.parts import Text
from parley_contracts.prompts import Params, ResponseFormat, Tool
from parley_contracts.turns import TurnDelta, decode_log_entry

ID = "0" * 26


def test_a_tools_schema_crosses_the_bus_untouched_and_an_absent_one_stays_absent() -> None:
    tools = (Tool(name="a", parameters=msgspec.Raw(b'{"x": 1.50}')), Tool(name="b"))
    params = Params(tools=tools, response_format=ResponseFormat(kind="json_object"))
    received = msgspec.json.decode(msgspec.json.encode(params), type=Params)
    assert received == params
    assert received.logit_bias is None
    assert received.tools is not None
    assert bytes(received.tools[0].parameters or b"") == b'{"x": 1.50}'
    assert received.tools[1].parameters is None


def test_logprobs_cross_the_bus_untouched_and_absent_ones_stay_absent() -> None:
    parts = (Text("a"), Text("b", msgspec.Raw(b'{"content": [1.50]}')))
    received = decode_log_entry(TurnDelta(turn_id=ID, attempt=1, n=0, parts=parts).encode())
    assert isinstance(received, TurnDelta)
    assert received.parts == parts
    assert isinstance(received.parts[0], Text)
    assert received.parts[0].logprobs is None
