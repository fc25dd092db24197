//! What the tests of rehearsals have in common.

use embedded_hub::rehearsal::RehearsalSettings;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use serde_json::Value;

use crate::support::{PATIENCE, Reply, Service};

pub(crate) async fn limited(rehearsal: RehearsalSettings) -> Service {
    Service::rehearsing(rehearsal, tempfile::tempdir().expect("a folder")).await
}

/// A request of the hub's owner.
pub(crate) async fn rest(hub: &Service, request: &str, body: &str) -> Reply {
    hub.owner(&format!("{request}?api-version=2021-04-12"), &[], body).await
}

/// The bad days under way.
pub(crate) fn bad_days(hub: &Service) -> Vec<Value> {
    let shown = hub.hub.handle.rehearsal().to_json();
    shown["badDays"].as_array().expect("an array").clone()
}

/// Until the only bad day under way has gone wrong so often.
pub(crate) async fn until_count(hub: &Service, count: u64) {
    let reached = async {
        while bad_days(hub).first().is_none_or(|day| day["count"] != count) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("in time");
}

/// A message of `d1` with QoS 1.
pub(crate) fn message(packet_id: u16) -> Packet {
    let publish = Publish::new("devices/d1/messages/events/", QoS::AtLeastOnce, "{}");
    Packet::Publish(Publish { pkid: packet_id, ..publish })
}

pub(crate) fn twin_get(rid: u32) -> Packet {
    Packet::Publish(Publish::new(format!("$iothub/twin/GET/?$rid={rid}"), QoS::AtMostOnce, " "))
}
