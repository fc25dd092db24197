//! Stores that an earlier version has written.

use chrono::DateTime;
use iothub_protocol::authentication::{Authentication, Thumbprint};
use iothub_protocol::identity::Identity;
use iothub_protocol::twin::Twin;

use super::*;

/// How many migrations there were before certificates, and before twins in parts.
const BEFORE_CERTIFICATES: usize = 3;
const BEFORE_PARTS: usize = 4;

/// A store of an earlier version, in which these statements were carried out, as this version opens it.
async fn earlier(folder: &Path, migrations: usize, rows: Vec<String>) -> Store {
    let path = folder.join(FILE);
    let old = Store::open(&path, &MIGRATIONS[..migrations], Durability::Process).expect("a store");
    old.write(move |tx| rows.iter().try_for_each(|row| tx.execute(row, []).map(drop))).await.expect("written");
    old.close().await;
    open(&path).expect("it is brought up to date")
}

async fn device(store: &Store, name: &str) -> Entity {
    let id = Address::parse(name).expect("an id");
    store.read(move |connection| load(connection, &id)).await.expect("read").expect("a device")
}

fn twin() -> String {
    serde_json::to_string(&Twin::new(DateTime::UNIX_EPOCH)).expect("JSON")
}

#[tokio::test]
async fn devices_from_before_certificates_have_their_keys_and_can_change_to_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let [primary, secondary] = [1, 2].map(|byte| SharedKey::from_random([byte; 32]));
    let keys = [&primary, &secondary].map(|key| key.to_base64());
    let rows = vec![
        format!("INSERT INTO devices VALUES ('d1', 7, 8, 1, NULL, NULL, '{}', '{}')", keys[0], keys[1]),
        format!("INSERT INTO twins VALUES ('d1', '{}')", twin()),
    ];
    let store = earlier(folder.path(), BEFORE_CERTIFICATES, rows).await;
    let old = device(&store, "d1").await.identity;
    assert!(matches!(&old.authentication, Authentication::Sas { primary: kept, .. } if kept.to_base64() == keys[0]));
    assert_eq!((old.generation_id, old.revision, old.enabled), (7, 8, true));

    let thumbprint = Thumbprint::parse(&"ab".repeat(32)).expect("a thumbprint");
    let authentication = Authentication::SelfSigned { primary: None, secondary: Some(thumbprint) };
    let shown = authentication.to_json();
    let changed = Identity { authentication, ..old };
    store.write(move |tx| apply(tx, &Change::Identity(changed.clone()))).await.expect("written");
    store.close().await;
    let store = open(&folder.path().join(FILE)).expect("a store");
    assert_eq!(device(&store, "d1").await.identity.authentication.to_json(), shown);
    store.close().await;
}

#[tokio::test]
async fn certificates_of_an_earlier_version_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let (sha1, sha256) = ("0a".repeat(20), "0B".repeat(32));
    let row = |name: &str, kind: &str, prints: &str| {
        format!("INSERT INTO devices VALUES ('{name}', 7, 8, 0, 'spare', NULL, '', '', '{kind}', {prints})")
    };
    let mut rows = vec![
        row("signed", "certificateAuthority", "NULL, NULL"),
        row("own", "selfSigned", &format!("'{sha1}', '{sha256}'")),
        "INSERT INTO authorities VALUES ('factory', x'30')".to_owned(),
    ];
    rows.extend(["own", "signed"].map(|name| format!("INSERT INTO twins VALUES ('{name}', '{}')", twin())));
    let store = earlier(folder.path(), BEFORE_PARTS, rows).await;
    let own = device(&store, "own").await;
    let shown = own.identity.authentication.to_json();
    assert_eq!((&shown["type"], own.identity.enabled), (&"selfSigned".into(), false));
    let expected = serde_json::json!({"primaryThumbprint": sha1, "secondaryThumbprint": sha256});
    assert_eq!((&shown["x509Thumbprint"], &*own.twin), (&expected, &Twin::new(DateTime::UNIX_EPOCH)));
    let signed = device(&store, "signed").await.identity;
    assert!(matches!(signed.authentication, Authentication::CertificateAuthority));
    let authorities = "SELECT name FROM authorities";
    let name = store.read(|connection| connection.query_row(authorities, [], |row| row.get::<_, String>(0))).await;
    assert_eq!(name.expect("read"), "factory");
    store.close().await;
}
