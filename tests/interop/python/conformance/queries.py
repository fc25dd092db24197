"""The query language by azure-iot-hub's `query_iot_hub`, with its tokens in the caller's hands."""

from uuid import uuid4

from azure.iot.hub.models import QuerySpecification, Twin

from suite import Suite

from support import create_device, equal, query, raw_rows, refused, registry

suite = Suite()


def fleet(fresh, count):
    """Devices with a number each, and the condition that finds them."""
    mark = str(uuid4())
    ids = [fresh() for _ in range(count)]
    for number, device_id in enumerate(ids):
        create_device(device_id)
        registry.update_twin(device_id, Twin(tags={"mark": mark, "n": number}))
    return ids, f"tags.mark = '{mark}'"


def page(text, token=None, size=None):
    return registry.query_iot_hub(QuerySpecification(query=text), token, size)


@suite.case("rows are twins", "SELECT * has the item type Twin and rows that the SDK makes twins of.")
def twins(fresh):
    ids, where = fleet(fresh, 1)
    result = page(f"SELECT * FROM devices WHERE {where}")
    equal((result.type, result.continuation_token), ("Twin", None))
    equal([(twin.device_id, twin.tags["n"]) for twin in result.items], [(ids[0], 0)])


@suite.case("pages follow each other", "x-ms-max-item-count is a page's size, x-ms-continuation leads on.")
def pages(fresh):
    ids, where = fleet(fresh, 5)
    rows, sizes = query(f"SELECT * FROM devices WHERE {where}", 2)
    equal(sizes, [2, 2, 1])
    equal(sorted(row.device_id for row in rows), sorted(ids))


@suite.case("a token can be used again", "The same token gives the same page.")
def again(fresh):
    _, where = fleet(fresh, 4)
    text = f"SELECT * FROM devices WHERE {where}"
    token = page(text, None, "2").continuation_token
    first, second = ([twin.device_id for twin in page(text, token, "2").items] for _ in range(2))
    equal(first, second)
    equal(len(first), 2)


@suite.case("a token belongs to its query", "A token of another query, or none of the hub's, is 400.")
def foreign(fresh):
    _, where = fleet(fresh, 3)
    token = page(f"SELECT * FROM devices WHERE {where}", None, "2").continuation_token
    for wrong_text, wrong_token in (("SELECT * FROM devices", token), (f"SELECT * FROM devices WHERE {where}", "junk")):
        body = refused(400, page, wrong_text, wrong_token)
        assert "ErrorCode:ArgumentInvalid" in body, body


@suite.case("a count is a raw row", "COUNT() answers one row of the item type Raw.")
def count(fresh):
    _, where = fleet(fresh, 3)
    equal(raw_rows(f"SELECT COUNT() AS n FROM devices WHERE {where} AND tags.n > 0"), [{"n": 2}])


@suite.case("an empty text is no query", "A query that is empty or null is 400.")
def empty(fresh):
    for text in ("", None):
        assert "ErrorCode:" in refused(400, page, text)


@suite.case("a query has its place in the error", "What does not parse is 400 with a text of the hub's.")
def wrong(fresh):
    body = refused(400, page, "SELECT * FROM devices WHERE tags.a ==")
    assert "ErrorCode:" in body, body


suite.run()
