//! Devices and modules in bulk: lines of JSON in the form in which Azure's registry exports and imports them.
//!
//! ```text
//! {"id":"door-0001","status":"enabled","authentication":{"symmetricKey":{"primaryKey":"…","secondaryKey":"…"}},
//!  "tags":{"site":"A"},"properties":{"desired":{"floor":3},"reported":{}}}
//! ```
//!
//! Only `id` is needed; keys that are not there are made. A line makes a device, or with `moduleId` a module of it, which has
//! to be there by then; it changes none.

use std::io;
use std::path::Path;

use chrono::{DateTime, Utc};
use durable_store::{ClosedStore, Store, StoreError};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::{DeviceId, ModuleId};
use iothub_protocol::identity::{Identity, IdentityRequest};
use iothub_protocol::twin::{Twin, TwinPatch};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::hub::{already_exists, new_identity, not_found, too_many_modules};
use crate::indexes;
use crate::policy::random_key;
use crate::store;
pub use crate::store::Created;

pub use crate::store::IdentityRows;

/// A device or a module as a line describes it.
#[derive(Debug)]
pub struct NewIdentity {
    pub identity: Identity,
    pub twin: Twin,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    id: String,
    module_id: Option<String>,
    import_mode: Option<String>,
    tags: Option<Map<String, Value>>,
    properties: Option<Properties>,
}

#[derive(Deserialize, Default)]
struct Properties {
    desired: Option<Map<String, Value>>,
    reported: Option<Map<String, Value>>,
}

impl NewIdentity {
    /// Read a line.
    ///
    /// # Errors
    /// 400-codes for what is no such line, or what the registry or a twin would refuse.
    pub fn from_json(line: &[u8], now: DateTime<Utc>) -> Result<NewIdentity, HubError> {
        let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
        let read: Line = serde_json::from_slice(line)
            .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("this is no device: {e}")))?;
        let device = DeviceId::parse(&read.id).map_err(|e| invalid(e.to_string()))?;
        let module = read.module_id.filter(|module| !module.is_empty()).map(|module| ModuleId::parse(&module));
        let id = match module.transpose().map_err(|e| invalid(e.to_string()))? {
            None => Address::from(device),
            Some(module) => Address::of_module(device, module),
        };
        if let Some(mode) = read.import_mode.filter(|mode| !mode.eq_ignore_ascii_case("create")) {
            return Err(invalid(format!("importMode {mode:?} is not for an import, which only creates devices")));
        }
        // The rest of an identity is read as the registry's own requests are.
        let request = IdentityRequest::from_json(&id, line)?;
        let identity = new_identity(now, &id, request, [random_key(), random_key()]);
        let mut twin = Twin::new(now);
        let properties = read.properties.unwrap_or_default();
        twin.patch(&TwinPatch { tags: read.tags, desired: properties.desired.map(without_own) }, now)?;
        if let Some(reported) = properties.reported.map(without_own).filter(|reported| !reported.is_empty()) {
            twin.report(&reported, None, now)?;
        }
        Ok(NewIdentity { identity, twin })
    }
}

impl NewIdentity {
    /// As the store has it: what can be done beside its writer, who is one for all.
    ///
    /// # Errors
    /// 500-codes for what has no row, which nothing is known to be.
    pub fn rows(&self) -> Result<IdentityRows, HubError> {
        IdentityRows::new(self)
            .map_err(|e| HubError::new(ErrorCode::ServerError, format!("there is no row for it: {e}")))
    }
}

/// Without what the hub keeps beside properties.
fn without_own(mut section: Map<String, Value>) -> Map<String, Value> {
    section.retain(|key, _| !matches!(key.as_str(), "$version" | "$metadata"));
    section
}

/// A device or a module as a line. Without `with_keys`, whoever imports it gives it new ones.
fn line(new: &NewIdentity, with_keys: bool) -> Value {
    let NewIdentity { identity, twin } = new;
    let mut shown = identity.to_json(false, None, 0);
    let mut line = json!({
        "id": identity.address.device(),
        "eTag": identity.etag(),
        "tags": twin.tags,
        "properties": {"desired": twin.desired.properties, "reported": twin.reported.properties},
    });
    let own: &[&str] = match identity.address.is_module() {
        false => &["status", "statusReason"],
        true => &["moduleId", "managedBy"],
    };
    for name in own {
        line[*name] = shown[*name].take();
    }
    let mut authentication = shown["authentication"].take();
    if !with_keys && let Some(members) = authentication.as_object_mut() {
        members.remove("symmetricKey");
    }
    line["authentication"] = authentication;
    line
}

impl Created {
    /// In the hub's words, unless it was made.
    pub fn refusal(self, id: &Address) -> Option<HubError> {
        match self {
            Created::Made => None,
            Created::IsThere => Some(already_exists(id)),
            Created::NoDevice => Some(not_found(&id.device().into())),
            Created::TooManyModules => Some(too_many_modules(id)),
        }
    }
}

/// The store of a hub that does not run.
pub struct OfflineHub {
    store: Store,
}

impl OfflineHub {
    /// Open `hub.db` in a data folder that belongs to this process alone; it is made if it is not there.
    pub async fn open(data: &Path) -> Result<OfflineHub, StoreError> {
        let path = data.join(store::FILE);
        let open = tokio::task::spawn_blocking(move || store::open_for_bulk(&path));
        let store = open.await.expect("opening a store does not panic")?;
        store.write(store::expect_bulk).await?;
        Ok(OfflineHub { store })
    }

    /// Make devices and modules of [rows](NewIdentity::rows); says of each what became of it. They survive a loss of power once
    /// the store is closed. A few calls at once keep its writer busy; they come in order.
    pub fn import(
        &self,
        new: Vec<IdentityRows>,
    ) -> impl Future<Output = Result<Vec<Created>, StoreError>> + Send + use<> {
        self.store.write(move |tx| new.iter().map(|new| new.create(tx)).collect())
    }

    /// As [`HubHandle::indexes`](crate::HubHandle::indexes).
    pub async fn indexes(&self) -> Result<Vec<String>, HubError> {
        Ok(indexes::all(&self.store).await?.into_iter().map(|index| index.path.to_string()).collect())
    }

    /// As [`HubHandle::add_index`](crate::HubHandle::add_index).
    pub async fn add_index(&self, path: &str) -> Result<bool, HubError> {
        indexes::add(&self.store, path).await
    }

    /// As [`HubHandle::remove_index`](crate::HubHandle::remove_index).
    pub async fn remove_index(&self, path: &str) -> Result<bool, HubError> {
        indexes::remove(&self.store, path).await
    }

    pub async fn close(self) {
        self.store.close().await;
    }
}

/// The store of a hub, to be read: whether or not the hub runs, and it may be another process.
pub struct HubReader {
    store: ClosedStore,
}

/// What an export has lines of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    pub devices: u64,
    pub modules: u64,
}

/// Why an export ended.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever takes the lines could not.
    #[error("cannot write the export: {0}")]
    Io(#[from] io::Error),
}

impl HubReader {
    /// Open `hub.db` in a data folder. Blocks, as all that this type does.
    pub fn open(data: &Path) -> Result<HubReader, StoreError> {
        Ok(HubReader { store: ClosedStore::open(&data.join(store::FILE), store::MIGRATIONS)? })
    }

    /// How many devices and modules there are.
    pub fn count(&self) -> Result<Exported, StoreError> {
        let counts = self.store.read(store::counts)?;
        Ok(Exported { devices: counts.total as u64, modules: counts.modules as u64 })
    }

    /// Give each device as a line, in order of ids, and then each module, all as they are at one moment.
    pub fn export(
        &self,
        with_keys: bool,
        mut each: impl FnMut(String) -> io::Result<()>,
    ) -> Result<Exported, ExportError> {
        let mut exported = Exported::default();
        let written = self.store.read(|connection| {
            store::each_identity(connection, |new| {
                let count = match new.identity.address.is_module() {
                    false => &mut exported.devices,
                    true => &mut exported.modules,
                };
                *count += 1;
                each(line(&new, with_keys).to_string())
            })
        });
        written??;
        Ok(exported)
    }

    /// A consistent copy of the whole store in the new file `path`.
    pub fn backup(&self, path: &Path) -> Result<(), StoreError> {
        self.store.backup(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<NewIdentity, HubError> {
        NewIdentity::from_json(line.as_bytes(), DateTime::UNIX_EPOCH)
    }

    #[test]
    fn what_is_exported_is_imported_the_same() {
        let whole = r#"{"id":"d1","eTag":"MQ==","status":"disabled","statusReason":"lost","importMode":"create",
            "authentication":{"type":"sas","symmetricKey":{"primaryKey":"MTIzNDU2Nzg5MDEyMzQ1Ng==","secondaryKey":"MTIzNDU2Nzg5MDEyMzQ1Nw=="}},
            "tags":{"site":"A"},"properties":{"desired":{"n":1,"$version":4,"$metadata":{}},"reported":{"m":{"k":2}}}}"#;
        let device = read(whole).expect("a device");
        let (twin, identity) = (&device.twin, &device.identity);
        assert_eq!((identity.enabled, identity.status_reason.as_deref()), (false, Some("lost")));
        let exported = line(&device, true);
        assert_eq!(exported["authentication"]["symmetricKey"]["primaryKey"], "MTIzNDU2Nzg5MDEyMzQ1Ng==");
        let made = line(&read(r#"{"id":"d2"}"#).expect("a device"), true);
        assert_eq!(made["authentication"]["symmetricKey"]["secondaryKey"].as_str().map(str::len), Some(44));
        assert_eq!((&twin.tags["site"], &twin.desired.properties["n"]), (&json!("A"), &json!(1)));
        assert_eq!(Value::Object(twin.reported.properties.clone()), json!({"m": {"k": 2}}));
        let again = read(&exported.to_string()).expect("its own line");
        assert_eq!(line(&again, true)["authentication"], exported["authentication"]);
        assert_eq!(again.twin, device.twin);
        assert!(!line(&device, false).to_string().contains("MTIz"), "no keys");
    }

    #[test]
    fn a_module_has_a_line_of_its_own() {
        let whole = r#"{"id":"d1","moduleId":"m1","managedBy":"ops","tags":{"a":1},"properties":{"desired":{"n":1}}}"#;
        let module = read(whole).expect("a module");
        assert_eq!(module.identity.address, Address::parse("d1/m1").expect("an address"));
        let exported = line(&module, true);
        assert_eq!((&exported["id"], &exported["moduleId"]), (&json!("d1"), &json!("m1")));
        assert!(exported["managedBy"] == "ops" && exported.get("status").is_none(), "{exported}");
        let again = read(&exported.to_string()).expect("its own line");
        assert_eq!((again.twin, again.identity.managed_by.as_deref()), (module.twin, Some("ops")));
        assert!(read(r#"{"id":"d1","moduleId":""}"#).is_ok_and(|new| !new.identity.address.is_module()));
    }

    #[test]
    fn certificates_go_out_and_come_in_with_and_without_keys() {
        let (sha1, sha256) = ("0a".repeat(20), "0B".repeat(32));
        let prints = json!({"primaryThumbprint": sha1, "secondaryThumbprint": sha256});
        let none = json!({"primaryThumbprint": null, "secondaryThumbprint": null});
        for (kind, prints) in [("selfSigned", &prints), ("certificateAuthority", &none)] {
            let authentication = json!({"type": kind, "x509Thumbprint": prints});
            let given = json!({"id": "d1", "authentication": authentication}).to_string();
            let device = read(&given).expect("a device");
            for with_keys in [true, false] {
                let exported = line(&device, with_keys);
                let again = line(&read(&exported.to_string()).expect("its own line"), true);
                for line in [&exported, &again] {
                    let shown = &line["authentication"];
                    assert_eq!((&shown["type"], &shown["x509Thumbprint"]), (&json!(kind), prints), "{line}");
                }
                assert_eq!(again["authentication"]["symmetricKey"], json!({"primaryKey": null, "secondaryKey": null}));
            }
        }
    }

    #[test]
    fn a_wrong_line_is_refused_with_its_reason() {
        for (line, text) in [
            ("", "this is no device"),
            ("[]", "this is no device"),
            (r#"{"deviceId":"d1"}"#, "missing field `id`"),
            (r#"{"id":"a/b"}"#, "contains '/'"),
            (r#"{"id":"d1","moduleId":"a/b"}"#, "a module id contains '/'"),
            (r#"{"id":"d1","importMode":"delete"}"#, "only creates"),
            (r#"{"id":"d1","status":"off"}"#, "neither enabled nor disabled"),
            (r#"{"id":"d1","tags":{"a b":1}}"#, "contains ' '"),
            (r#"{"id":"d1","tags":[]}"#, "this is no device"),
            (r#"{"id":"d1","properties":{"reported":{"a.b":1}}}"#, "contains '.'"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.message.contains(text), "{line}: {error}");
        }
    }
}
