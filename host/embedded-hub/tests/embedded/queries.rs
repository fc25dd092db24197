//! `/devices/query` as back ends see it: rows, pages, item types, refusals.

use serde_json::{Value, json};

use super::{Fixture, header};

/// One page: its rows, what they are, and the token of the next one.
struct Page {
    rows: Vec<Value>,
    item_type: String,
    token: Option<String>,
}

async fn page(hub: &Fixture, query: &str, size: usize, token: Option<&str>) -> Page {
    let size = format!("x-ms-max-item-count: {size}");
    let token = token.map(|token| format!("x-ms-continuation: {token}"));
    let headers: Vec<&str> = [Some(size.as_str()), token.as_deref()].into_iter().flatten().collect();
    let key = hub.hub.policy_key("service").expect("a policy");
    let token = key.sign("localhost", Some("service"), chrono::Utc::now() + std::time::Duration::from_secs(60));
    let authorization = format!("Authorization: {token}");
    let headers = [&[authorization.as_str()], headers.as_slice()].concat();
    let body = json!({"query": query}).to_string();
    // The head comes in small letters, which would spoil a token and a type.
    let (status, head, body) = hub.raw_as_sent("POST /devices/query?api-version=2021-04-12", &headers, &body).await;
    assert_eq!(status, 200, "{query}: {body}");
    let rows = serde_json::from_str(&body).expect("an array");
    let item_type = header(&head, "x-ms-item-type").expect("a type").to_owned();
    Page { rows, item_type, token: header(&head, "x-ms-continuation").map(str::to_owned) }
}

async fn rows(hub: &Fixture, query: &str) -> Value {
    let page = page(hub, query, 1000, None).await;
    assert_eq!(page.token, None, "{query}");
    Value::Array(page.rows)
}

/// `d00` to `d19`: one in four without a site, the others at A, B or C, on floors 0 to 4.
async fn fleet(hub: &Fixture) {
    let items: Vec<Value> = (0..20)
        .map(|n| {
            let mut tags = json!({"floor": n % 5, "odd-name": {"x/y": n}});
            if n % 4 < 3 {
                tags["site"] = json!(["A", "B", "C"][n % 4]);
            }
            json!({"id": format!("d{n:02}"), "importMode": "create", "tags": tags})
        })
        .collect();
    let (status, _, answer) = hub.rest("POST /devices", &[], &Value::from(items).to_string()).await;
    assert_eq!(status, 200, "{answer}");
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["deviceId"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn a_token_outlives_a_restart_and_edits() {
    let hub = Fixture::new().await;
    fleet(&hub).await;
    let query = "SELECT * FROM devices WHERE tags.floor != 4";
    let first = page(&hub, query, 6, None).await;
    assert_eq!(ids(&first.rows), ["d00", "d01", "d02", "d03", "d05", "d06"]);
    assert_eq!(first.item_type, "Twin");

    // The device where the page ended goes, so does one of it; one that comes next leaves the answer, one joins it.
    for gone in ["d06", "d00"] {
        assert_eq!(hub.rest(&format!("DELETE /devices/{gone}"), &["If-Match: *"], "").await.0, 204);
    }
    for (id, floor) in [("d07", 4), ("d09", 0), ("d02", 4)] {
        let patch = json!({"tags": {"floor": floor}}).to_string();
        assert_eq!(hub.rest(&format!("PATCH /twins/{id}"), &["If-Match: *"], &patch).await.0, 200);
    }
    let hub = hub.restart().await;
    let second = page(&hub, query, 4, first.token.as_deref()).await;
    assert_eq!(ids(&second.rows), ["d08", "d09", "d10", "d11"]);
    let third = page(&hub, query, 1000, second.token.as_deref()).await;
    assert_eq!(ids(&third.rows), ["d12", "d13", "d15", "d16", "d17", "d18"]);
    assert_eq!(third.token, None);
    // The same token again is the same page again.
    assert_eq!(page(&hub, query, 4, first.token.as_deref()).await.rows, second.rows);
    hub.hub.stop().await;
}

#[tokio::test]
async fn groups_come_in_pages_that_outlive_a_restart() {
    let hub = Fixture::new().await;
    fleet(&hub).await;
    let query = "SELECT tags.site AS site, COUNT() AS n, SUM(tags.floor) AS floors FROM devices GROUP BY tags.site";
    let whole = json!([
        {"n": 5, "floors": 10}, {"site": "A", "n": 5, "floors": 10}, {"site": "B", "n": 5, "floors": 10},
        {"site": "C", "n": 5, "floors": 10},
    ]);
    assert_eq!(rows(&hub, query).await, whole);
    let first = page(&hub, query, 2, None).await;
    assert_eq!((json!(first.rows), first.item_type.as_str()), (json!([whole[0], whole[1]]), "Raw"));

    // A group that comes before the token's is not given any more, one after it is.
    for (id, site) in [("d19", "AA"), ("d18", "0")] {
        let patch = json!({"tags": {"site": site}}).to_string();
        assert_eq!(hub.rest(&format!("PATCH /twins/{id}"), &["If-Match: *"], &patch).await.0, 200);
    }
    let hub = hub.restart().await;
    let second = page(&hub, query, 2, first.token.as_deref()).await;
    assert_eq!(second.rows, [json!({"site": "AA", "n": 1, "floors": 4}), whole[2].clone()]);
    let third = page(&hub, query, 2, second.token.as_deref()).await;
    assert_eq!(third.rows, [json!({"site": "C", "n": 4, "floors": 7})]);
    assert_eq!(third.token, None);

    let top = "SELECT TOP 3 tags.floor, COUNT() AS n FROM devices GROUP BY tags.floor";
    let first = page(&hub, top, 2, None).await;
    assert_eq!(first.rows, [json!({"floor": 0, "n": 4}), json!({"floor": 1, "n": 4})]);
    let second = page(&hub, top, 2, first.token.as_deref()).await;
    assert_eq!((second.rows, second.token), (vec![json!({"floor": 2, "n": 4})], None));
    hub.hub.stop().await;
}

#[tokio::test]
async fn what_the_documentation_shows_works() {
    let hub = Fixture::new().await;
    fleet(&hub).await;
    for (query, expected) in [
        ("SELECT COUNT() as totalNumberOfDevices FROM devices", json!([{"totalNumberOfDevices": 20}])),
        ("select count() from devices where is_defined(tags.site)", json!([{"$1": 15}])),
        (
            "SELECT DeviceId, Status FROM devices WHERE status = 'enabled' AND connectionState = 'Disconnected' AND \
             tags.site NIN ['A', 'B'] AND tags.floor >= 3",
            json!([{"deviceId": "d14", "status": "enabled"}, {"deviceId": "d18", "status": "enabled"}]),
        ),
        ("SELECT TOP 1 tags.[[odd-name]].[[x/y]] AS n FROM devices WHERE deviceId = 'd07'", json!([{"n": 7}])),
        (
            "SELECT deviceId FROM devices WHERE STARTSWITH(deviceId, 'd1') AND tags.floor * 2 % 8 = 0 AND tags.site = 'A'",
            json!([]),
        ),
        (
            "SELECT deviceId FROM devices WHERE STARTSWITH(devices.deviceId, 'd1') AND tags.floor * 2 % 8 = 0 AND \
          NOT tags.site = 'B'",
            json!([{"deviceId": "d10"}, {"deviceId": "d14"}]),
        ),
        (
            "SELECT AVG(tags.floor) AS mean, MIN(deviceId) AS first, MAX(tags.floor) AS most FROM devices",
            json!([{"mean": 2, "first": "d00", "most": 4}]),
        ),
        ("SELECT * FROM devices.modules", json!([])),
        ("SELECT COUNT() AS n FROM devices.modules", json!([{"n": 0}])),
    ] {
        assert_eq!(rows(&hub, query).await, expected, "{query}");
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn the_rows_of_jobs_are_filtered_and_paged() {
    let hub = Fixture::new().await;
    fleet(&hub).await;
    for (job, condition) in [("first", "deviceId IN ['d00', 'd01', 'd02']"), ("second", "tags.floor = 1")] {
        let job_body = json!({
            "type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {"seen": true}},
            "queryCondition": condition, "maxExecutionTimeInSeconds": 300,
        });
        let (status, _, answer) = hub.rest(&format!("PUT /jobs/v2/{job}"), &[], &job_body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        let id = iothub_protocol::id::JobId::parse(job).expect("an id");
        hub.hub.jobs.ended(&id).await.expect("an end");
    }
    let query = "SELECT * FROM devices.jobs WHERE devices.jobs.status = 'completed' AND \
                 devices.jobs.createdTimeUtc > '2016-09-01' AND devices.jobs.jobType = 'scheduleUpdateTwin'";
    let first = page(&hub, query, 4, None).await;
    assert_eq!((ids(&first.rows), first.item_type.as_str()), (vec!["d00", "d01", "d02", "d01"], "DeviceJob"));
    assert_eq!(first.rows[0]["outcome"], json!({"deviceMethodResponse": null}));
    let hub = hub.restart().await;
    let second = page(&hub, query, 4, first.token.as_deref()).await;
    assert_eq!((ids(&second.rows), second.token), (vec!["d06", "d11", "d16"], None));
    for (query, expected) in [
        ("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'second' AND deviceId IN ['d06', 'd02']", vec!["d06"]),
        ("SELECT TOP 2 * FROM devices.jobs WHERE devices.jobs.deviceId = 'd01'", vec!["d01", "d01"]),
        ("SELECT TOP 1 * FROM devices.jobs", vec!["d00"]),
        ("SELECT * FROM devices.jobs WHERE status = 'failed' OR IS_DEFINED(devices.jobs.error)", vec![]),
    ] {
        assert_eq!(ids(&page(&hub, query, 100, None).await.rows), expected, "{query}");
    }
    hub.hub.stop().await;
}

#[tokio::test]
async fn a_query_that_is_none_says_where() {
    let hub = Fixture::new().await;
    fleet(&hub).await;
    let token = page(&hub, "SELECT * FROM devices", 1, None).await.token.expect("a token");
    let groups = page(&hub, "SELECT tags.site FROM devices GROUP BY tags.site", 1, None).await.token.expect("a token");
    for (query, token, says) in [
        ("SELECT * FROM devices ORDER BY deviceId", None, "Line 1:23 Unexpected character at input 'ORDER'"),
        ("SELECT * FROM twins", None, "Line 1:15 "),
        ("SELECT jobId FROM devices.jobs", None, "FROM devices.jobs allows SELECT * only"),
        ("SELECT COUNT() FROM devices.jobs", None, "FROM devices.jobs allows SELECT * only"),
        ("SELECT * FROM devices.jobs WHERE tags.site = 'A'", None, "the device's twin"),
        ("SELECT * FROM devices WHERE tags.site = 'A'", Some(&token), "belongs to another query"),
        ("SELECT tags.floor FROM devices GROUP BY tags.floor", Some(&groups), "belongs to another query"),
    ] {
        let headers = token.map(|token| format!("x-ms-continuation: {token}"));
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let (status, head, answer) =
            hub.rest("POST /devices/query", &headers, &json!({"query": query}).to_string()).await;
        assert_eq!((status, header(&head, "iothub-errorcode")), (400, Some("argumentinvalid")), "{query}: {answer}");
        assert!(answer.contains(says), "{query}: {answer}");
        assert!(answer.contains("ErrorCode:ArgumentInvalid;"), "{answer}");
    }
    hub.hub.stop().await;
}
