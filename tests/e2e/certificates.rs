//! Devices of a host that prove themselves with a certificate, and the authorities that a hub trusts.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::back_end::BackEnd;
use crate::harness::{Certificate, FREE_PORTS, Latch, Outcome, Valid, latch, latch_json, latch_ok, plugin_folder};

/// A hub that trusts a factory, and what is needed to run devices on it.
struct Site {
    folder: TempDir,
    factory: Certificate,
    hub: Latch,
    plugins: TempDir,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let factory = Certificate::root("The Factory");
        factory.save(folder.path(), "factory");
        let hub = Latch::start(&folder.path().join("hub"), &[&["hub"], FREE_PORTS].concat());
        let site = Site { folder, factory, hub, plugins: plugin_folder(&["lock-door"]) };
        let added = latch_ok(site.hub.data(), &["hub", "ca", "add", text(&site.path("factory.pem"))]);
        assert!(added.starts_with("devices of The Factory may connect until 4096-01-01T"), "{added}");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The host alone, with all devices of the hub.
    fn run(&self, certificates: &[&str]) -> Vec<String> {
        let (devices, ca) = (self.hub.data().join("devices"), self.hub.data().join("ca.pem"));
        let args = ["run", "--connections", text(&devices), "--ca", text(&ca), "--plugins", text(self.plugins.path())];
        args.iter().chain(certificates).map(|arg| (*arg).to_owned()).collect()
    }

    fn try_to_run(&self, certificates: &[&str]) -> Outcome {
        let args = self.run(certificates);
        latch(&self.path("host"), &args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[test]
fn devices_of_a_host_connect_with_certificates_and_answer() {
    let site = Site::new();
    let certificates = site.path("certificates");
    let line = site.factory.sign_authority("line 1");
    site.factory.sign("door-1", Valid::Now).save(&certificates, "door-1");
    line.sign("door-2", Valid::Now).save(&certificates, "door-2");
    let (own, next) = (Certificate::self_signed("x", Valid::Now), Certificate::self_signed("x", Valid::Now));
    next.save(&certificates, "door-3");

    let data = site.hub.data();
    for door in ["door-1", "door-2"] {
        assert!(latch_ok(data, &["device", "create", door, "--x509-ca"]).starts_with(&format!("created {door}\n")));
    }
    let prints = [own.thumbprint(), next.thumbprint()];
    let saved = site.path("door-3.connstr");
    let create = ["device", "create", "door-3", "--x509-thumbprint", &prints[0], "--x509-thumbprint", &prints[1]];
    let identity = latch_json(data, &[&create[..], &["--save", text(&saved)]].concat());
    let shown = json!({"primaryThumbprint": prints[0], "secondaryThumbprint": prints[1]});
    let authentication = &identity["authentication"];
    assert_eq!((&authentication["type"], &authentication["x509Thumbprint"]), (&json!("selfSigned"), &shown));
    assert_eq!(fs::read_to_string(saved).expect("written"), "HostName=localhost;DeviceId=door-3;x509=true\n");

    let args = site.run(&["--certificates", text(&certificates)]);
    let host = Latch::start(&site.path("host"), &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(host.ready(), "ready devices=3 plugins=1");
    let back_end = BackEnd::of(data);
    for door in ["door-1", "door-2", "door-3"] {
        let answer = back_end.call(door, "lockDoor");
        assert_eq!((answer.status, &answer.payload["count"]), (200, &json!(1)), "{door}");
    }
    let by = |door: &str| latch_json(data, &["twin", "show", door])["authenticationType"].take();
    assert_eq!([by("door-1"), by("door-3")], [json!("certificateAuthority"), json!("selfSigned")]);
    assert!(host.stop().success());
}

#[test]
fn a_certificate_that_cannot_be_used_is_named_with_the_reason() {
    let site = Site::new();
    let certificates = site.path("certificates");
    latch_ok(site.hub.data(), &["device", "create", "door-1", "--x509-ca"]);
    let refused = |folder: &[&str], says: &str| {
        let outcome = site.try_to_run(folder);
        assert_eq!(outcome.code, Some(1), "{outcome:#?}");
        assert!(outcome.stderr.contains(says), "{says}: {outcome:#?}");
        assert!(!outcome.stderr.contains("BEGIN"), "no key is shown: {outcome:#?}");
    };
    let folder = ["--certificates", text(&certificates)];
    refused(&[], "door-1 connects with a certificate (x509=true)\nhint: name the folder with door-1.pem");
    refused(&folder, "door-1.pem");
    let (own, other) = (site.factory.sign("door-1", Valid::Now), site.factory.sign("door-1", Valid::Now));
    own.save(&certificates, "door-1");
    other.save(&certificates, "other");
    fs::rename(certificates.join("other.key"), certificates.join("door-1.key")).expect("renamed");
    refused(&folder, "the device's private key is not that of its certificate");
    fs::write(certificates.join("door-1.key"), "nonsense").expect("written");
    refused(&folder, "there is no private key in PEM");
    fs::remove_file(certificates.join("door-1.key")).expect("removed");
    refused(&folder, "door-1.key");
    site.factory.sign("door-1", Valid::InThePast).save(&certificates, "door-1");
    refused(&folder, "door-1.pem has expired on 2021-01-01T00:00:00");
}

#[test]
fn authorities_are_listed_and_removed_and_what_is_none_is_refused() {
    let site = Site::new();
    let data = site.hub.data();
    let list = || latch_json(data, &["hub", "ca", "list"]);
    let factory = &list()[0];
    assert_eq!((&factory["name"], &factory["subject"]), (&json!("factory"), &json!("The Factory")));
    assert_eq!(factory["thumbprint"].as_str().map(str::len), Some(40), "{factory}");
    let shown = latch_ok(data, &["hub", "ca", "list"]);
    assert!(shown.contains("THUMBPRINT") && shown.contains("The Factory"), "{shown}");

    Certificate::self_signed("door-1", Valid::Now).save(site.folder.path(), "door-1");
    fs::write(site.path("nonsense.pem"), "nonsense").expect("written");
    for (file, name, says) in [
        ("factory.pem", None, "remove it first"),
        ("factory.pem", Some("a b"), "a name has"),
        ("door-1.pem", None, "is not one of an authority"),
        ("nonsense.pem", None, "holds no certificate"),
        ("nowhere.pem", None, "cannot read"),
    ] {
        let file = site.path(file);
        let mut args = vec!["hub", "ca", "add", text(&file)];
        args.extend(name.into_iter().flat_map(|name| ["--name", name]));
        let outcome = latch(data, &args);
        assert!(outcome.code.is_some_and(|code| code != 0) && outcome.stderr.contains(says), "{says}: {outcome:#?}");
    }
    latch_ok(data, &["hub", "ca", "add", text(&site.path("factory.pem")), "--name", "again"]);
    assert_eq!(list().as_array().map(Vec::len), Some(2));
    assert_eq!(latch_ok(data, &["hub", "ca", "remove", "again"]), "removed again\n");
    assert_eq!(latch_ok(data, &["hub", "ca", "remove", "factory"]), "removed factory\n");
    assert_eq!(list(), Value::Array(vec![]));
    let gone = latch(data, &["hub", "ca", "remove", "factory"]);
    assert!(gone.code.is_some_and(|code| code != 0) && gone.stderr.contains("factory"), "{gone:#?}");
}
