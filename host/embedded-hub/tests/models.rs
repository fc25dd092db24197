//! Models that devices announce when they connect.

mod support;

use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet};
use serde_json::{Value, json};
use support::Service;

const THERMOSTAT: &str = "dtmi:com:example:Thermostat;1";
const CONTROLLER: &str = "dtmi:com:example:TemperatureController;2";

/// Connect as a device that announces this.
async fn announce(hub: &Service, device: &str, options: &str) {
    let mut packet = hub.connect(device).await;
    let Packet::Connect(connect) = &mut packet else { panic!("{packet:?}") };
    connect.login.as_mut().expect("a login").username.push_str(options);
    let mut link = hub.stranger().await;
    link.send(&[packet]).await;
    assert!(matches!(link.next().await, Some(Packet::ConnAck(ConnAck { code: ConnectReturnCode::Success, .. }))));
}

async fn model(hub: &Service, device: &str) -> Value {
    hub.owner(&format!("GET /twins/{device}"), &[], "").await.json()["modelId"].take()
}

#[tokio::test]
async fn a_model_is_kept_shown_and_found() {
    let hub = Service::new().await;
    announce(&hub, "d1", &format!("&model-id={THERMOSTAT}")).await;
    announce(&hub, "d2", "").await;
    let before = hub.owner("GET /twins/d1", &[], "").await.json();
    assert_eq!((&before["modelId"], model(&hub, "d2").await), (&json!(THERMOSTAT), json!("")));

    let hub = hub.restart().await;
    let after = hub.owner("GET /twins/d1", &[], "").await.json();
    assert_eq!((&after["modelId"], &after["etag"]), (&json!(THERMOSTAT), &before["etag"]));
    let find = async |model: &str| {
        let query = json!({"query": format!("SELECT deviceId, modelId FROM devices WHERE modelId = '{model}'")});
        hub.owner("POST /devices/query", &[], &query.to_string()).await.json()
    };
    assert_eq!(find(THERMOSTAT).await, json!([{"deviceId": "d1", "modelId": THERMOSTAT}]));
    assert_eq!(find("").await, json!([{"deviceId": "d2", "modelId": ""}]));

    announce(&hub, "d1", "").await;
    assert_eq!(model(&hub, "d1").await, THERMOSTAT, "who says nothing takes nothing back");
    announce(&hub, "d1", &format!("&model-id={CONTROLLER}")).await;
    assert_eq!(model(&hub, "d1").await, CONTROLLER);
    assert_eq!(find(CONTROLLER).await, json!([{"deviceId": "d1", "modelId": CONTROLLER}]));
    hub.hub.stop().await;
}
