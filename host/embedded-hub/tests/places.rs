//! How many clients there may be, and what the hub keeps of those that it does not know.

mod support;

use rumqttc::mqttbytes::v4::Packet;
use support::{PATIENCE, Service};
use tokio::io::AsyncReadExt as _;

/// What comes after all places are taken is closed without a word.
async fn is_turned_away(hub: &Service) -> bool {
    let mut stream = hub.tcp().await;
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("in time");
    matches!(read, Ok(0) | Err(_))
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_the_others_stay() {
    let hub = Service::with_room_for(3, 3).await;
    let (mut first, second) = (hub.device("d1").await, hub.device("d2").await);
    let third = hub.device("d3").await;
    assert!(is_turned_away(&hub).await);
    assert!(is_turned_away(&hub).await);
    first.send(&[Packet::PingReq]).await;
    assert_eq!(first.next().await, Some(Packet::PingResp));
    drop((second, third));
    let free = async {
        while hub.hub.handle.counts().await.expect("numbers").connected > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("in time");
    assert_eq!(hub.owner("GET /devices/d1", &[], "").await.status, 200, "the places are those of both listeners");
    hub.device("d4").await;
    hub.hub.stop().await;
}

#[tokio::test]
async fn who_says_nothing_takes_only_the_places_of_the_unknown() {
    let hub = Service::with_room_for(100, 1).await;
    let mut known = hub.device("d1").await;
    let silent = hub.tcp().await;
    known.send(&[Packet::PingReq]).await;
    assert_eq!(known.next().await, Some(Packet::PingResp));
    assert_eq!(hub.owner("GET /devices/d1", &[], "").await.status, 200, "the other listener has places of its own");
    let (next, ()) = tokio::join!(hub.device("d2"), async { drop(silent) });
    drop(next);
    hub.hub.stop().await;
}

#[tokio::test]
async fn what_a_stranger_sends_is_not_looked_at() {
    let hub = Service::new().await;
    let large = vec![b'x'; 2 * 1024 * 1024];
    let owner = format!("Authorization: {}", hub.token("iothubowner"));
    let forged = format!("{}0", owner.replace("skn=iothubowner", "skn=service"));
    let device = "Authorization: SharedAccessSignature sr=localhost&sig=AAAA&se=9999999999";
    for request in ["POST /devices", "PUT /devices/d1", "POST /devices/query", "PUT /jobs/v2/j1", "PATCH /twins/d1"] {
        for headers in [&[][..], &[forged.as_str()], &[device], &[device, "Content-Type: text/plain"]] {
            let reply = hub.plain(request, headers, &large).await;
            assert_eq!((reply.status, reply.error().as_str()), (401, "IotHubUnauthorized"), "{request} {headers:?}");
        }
        assert_eq!(hub.plain(request, &[&owner], &large).await.error(), "MessageTooLarge", "{request}");
    }
    hub.hub.stop().await;
}
