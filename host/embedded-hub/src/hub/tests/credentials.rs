//! Who may connect, by what.

use std::sync::Arc;

use iothub_protocol::authentication::{AuthenticationRequest, Thumbprint};

use super::*;
use crate::certificate::ClientCertificate;

fn thumbprint(digit: char, size: usize) -> Thumbprint {
    Thumbprint::parse(&digit.to_string().repeat(size)).expect("a thumbprint")
}

/// Valid for an hour before and after the fixture's begin.
fn certificate(common_name: &str, authority: Option<&str>) -> ClientCertificate {
    let begin = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
    let hour = Duration::from_secs(3600);
    ClientCertificate {
        sha1: thumbprint('A', 40),
        sha256: thumbprint('b', 64),
        common_name: Some(common_name.to_owned()),
        not_before: begin - hour,
        not_after: begin + hour,
        authority: authority.map(str::to_owned),
    }
}

fn self_signed(primary: Option<Thumbprint>, secondary: Option<Thumbprint>) -> AuthenticationRequest {
    AuthenticationRequest::SelfSigned { primary, secondary }
}

impl Fixture {
    fn put_with(&mut self, device: &str, authentication: AuthenticationRequest, if_match: Option<&str>) {
        let request = IdentityRequest { authentication, ..IdentityRequest::default() };
        let if_match = if_match.map(str::to_owned);
        self.request(1, Operation::PutIdentity { id: id(device), request, if_match, keys: [key(5), key(6)] });
        assert_eq!(self.heard(), ["reply 1 ok"]);
    }

    /// Whether a device is let in with these.
    fn lets_in(&mut self, link: u64, device: &str, credentials: Credentials) -> bool {
        self.connect_as(
            link,
            ConnectRequest { address: id(device), credentials, clean_session: false, will: None, model: None },
        );
        let heard = self.heard();
        let is_in = heard.iter().any(|line| line.contains("Accepted"));
        assert_eq!(is_in, !heard.iter().any(|line| line.contains("Refused")), "{heard:?}");
        is_in
    }
}

fn shown(certificate: ClientCertificate) -> Credentials {
    Credentials { token: None, certificate: Some(Arc::new(certificate)) }
}

#[test]
fn a_certificate_is_judged_by_what_the_registry_says() {
    let (right, wrong) = (thumbprint('a', 40), thumbprint('c', 40));
    let (sha256, by_authority) = (thumbprint('B', 64), AuthenticationRequest::CertificateAuthority);
    let own = || certificate("whoever", None);
    for (name, authentication, certificate, expected) in [
        ("primary, SHA-1", self_signed(Some(right.clone()), None), own(), true),
        ("secondary, SHA-1", self_signed(Some(wrong.clone()), Some(right.clone())), own(), true),
        ("SHA-256", self_signed(Some(sha256), None), own(), true),
        ("another thumbprint", self_signed(Some(wrong), None), own(), false),
        ("no thumbprint", self_signed(None, None), own(), false),
        ("an authority does not replace it", self_signed(None, None), certificate("c", Some("root")), false),
        ("signed by an authority", by_authority.clone(), certificate("c", Some("root")), true),
        ("signed by nobody known", by_authority.clone(), certificate("c", None), false),
        ("for another device", by_authority.clone(), certificate("C", Some("root")), false),
        ("a device with keys", AuthenticationRequest::default(), certificate("c", Some("root")), false),
    ] {
        let mut hub = Fixture::new();
        hub.put_with("c", authentication, None);
        assert_eq!(hub.lets_in(1, "c", shown(certificate)), expected, "{name}");
    }
}

#[test]
fn a_module_has_a_certificate_of_its_own() {
    let own = || certificate("whoever", None);
    let by_authority = AuthenticationRequest::CertificateAuthority;
    for (name, authentication, certificate, expected) in [
        ("its thumbprint", self_signed(Some(thumbprint('a', 40)), None), own(), true),
        ("another thumbprint", self_signed(Some(thumbprint('c', 40)), None), own(), false),
        ("signed for it", by_authority.clone(), certificate("a/m", Some("root")), true),
        ("signed for its device", by_authority.clone(), certificate("a", Some("root")), false),
        ("signed for another module", by_authority.clone(), certificate("a/n", Some("root")), false),
        ("signed by nobody known", by_authority, certificate("a/m", None), false),
    ] {
        let mut hub = Fixture::new();
        hub.put_with("a/m", authentication, None);
        assert_eq!(hub.lets_in(1, "a/m", shown(certificate)), expected, "{name}");
    }
}

#[test]
fn a_certificate_counts_only_while_it_is_valid() {
    let hour = Duration::from_secs(3600);
    for authentication in [self_signed(Some(thumbprint('a', 40)), None), AuthenticationRequest::CertificateAuthority] {
        let mut hub = Fixture::new();
        hub.put_with("c", authentication, None);
        let made = certificate("c", Some("root"));
        let early = ClientCertificate { not_before: made.not_before + 2 * hour, ..made.clone() };
        let late = ClientCertificate { not_after: made.not_after - 2 * hour, ..made.clone() };
        assert!(!hub.lets_in(1, "c", shown(early)));
        assert!(!hub.lets_in(2, "c", shown(late)));
        assert!(hub.lets_in(3, "c", shown(made)));
        hub.advance(3600);
        let heard = hub.heard();
        assert!(heard.iter().any(|line| line.contains("has expired")), "{heard:?}");
        assert_eq!(hub.events.last().copied(), Some("disconnected"));
    }
}

#[test]
fn a_token_is_judged_before_a_certificate() {
    let mut hub = Fixture::new();
    hub.put_with("c", self_signed(Some(thumbprint('a', 40)), None), None);
    let certificate = Some(Arc::new(certificate("c", Some("root"))));
    let expiry = hub.now.wall + Duration::from_secs(60);
    let by_policy = key(8).sign("localhost/devices/c", Some(POLICY), expiry);
    for (token, certificate, device, expected) in [
        (None, &None, "a", false),
        (None, &None, "c", false),
        (Some(hub.token("a", 1)), &certificate, "a", true),
        (Some(hub.token("c", 5)), &certificate, "c", false),
        (Some("anything".to_owned()), &certificate, "c", false),
        (Some(by_policy), &None, "c", true),
        (None, &certificate, "c", true),
        (None, &certificate, "unknown", false),
    ] {
        let credentials = Credentials { token: token.clone(), certificate: certificate.clone() };
        assert_eq!(hub.lets_in(1, device, credentials), expected, "{device} {token:?}");
        hub.link(1, LinkInput::Closed { graceful: true });
    }
}

#[test]
fn a_policy_needs_the_right_and_a_token_that_covers_the_device() {
    for (rights, resource, expected) in [
        (Rights::DEVICE_CONNECT, "localhost", true),
        (Rights::DEVICE_CONNECT, "localhost:8883/devices", true),
        (Rights::DEVICE_CONNECT, "localhost/devices/a", true),
        (Rights::DEVICE_CONNECT, "localhost/devices/ab", false),
        (Rights::DEVICE_CONNECT, "localhost/messages", false),
        (Rights::SERVICE_CONNECT, "localhost/devices/a", false),
        (Rights::REGISTRY_WRITE, "localhost", false),
    ] {
        let mut hub = Fixture::new();
        hub.hub.policies[0].rights = rights;
        let expiry = hub.now.wall + Duration::from_secs(60);
        for byte in [8, 9] {
            let token = key(byte).sign(resource, Some(POLICY), expiry);
            assert_eq!(hub.lets_in(1, "a", with_token(token)), expected, "{resource}");
            hub.link(1, LinkInput::Closed { graceful: true });
        }
        let unknown = key(8).sign(resource, Some("nobody"), expiry);
        assert!(!hub.lets_in(2, "a", with_token(unknown)));
    }
}

#[test]
fn an_update_takes_the_place_of_all_that_was() {
    let mut hub = Fixture::new();
    assert!(hub.lets_in(1, "a", with_token(hub.token("a", 1))));
    hub.link(1, LinkInput::Closed { graceful: true });
    hub.heard();
    hub.put_with("a", AuthenticationRequest::default(), Some("*"));
    assert!(!hub.lets_in(2, "a", with_token(hub.token("a", 1))), "its keys are new");
    assert!(hub.lets_in(3, "a", with_token(hub.token("a", 6))));
    hub.link(3, LinkInput::Closed { graceful: true });
    hub.heard();
    hub.put_with("a", self_signed(Some(thumbprint('a', 40)), None), Some("*"));
    assert!(!hub.lets_in(4, "a", with_token(hub.token("a", 6))));
    assert!(hub.lets_in(5, "a", shown(certificate("a", None))), "by certificate now");
}

#[test]
fn a_request_over_https_is_told_why_its_certificate_is_not_the_devices() {
    let mut hub = Fixture::new();
    hub.put_with("c", self_signed(Some(thumbprint('c', 40)), None), None);
    let credentials = shown(certificate("c", None));
    let (token, lock) = (1, Duration::from_secs(60));
    hub.hub.handle(
        hub.now,
        Input::Request {
            reply: 2,
            operation: Operation::ReceiveMessage { id: device_id("c"), credentials, token, lock },
        },
    );
    let outcome = hub.hub.take_outcome();
    let answers: Vec<_> = outcome.gated.into_iter().collect();
    let [Output::Reply(2, Err(error))] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(error.code, ErrorCode::IotHubUnauthorized);
    let expected = format!(
        "Thumbprint does not match configuration: Thumbprint: SHA1Hash={}, SHA2Hash={}; Configuration: \
         PrimaryThumbprint={}, SecondaryThumbprint=",
        thumbprint('A', 40),
        thumbprint('b', 64),
        thumbprint('c', 40)
    );
    assert_eq!(error.message, expected);
}
