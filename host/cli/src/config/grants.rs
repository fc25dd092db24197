//! `[plugins.NAME.grants]`: what a plugin may do beyond its device. Nothing, unless it stands here.

use std::net::IpAddr;

use plugin_runtime::{AddressGrant, ClockGrant, DeviceGlob, Grants};

use super::document::{Entry, Section};
use super::plugins;

pub(super) fn read(section: &Section<'_>) -> Grants {
    let environment = section.get("environment").map(|entry| environment(&entry)).unwrap_or_default();
    let addresses = section.get("addresses").iter().flat_map(Entry::each).filter_map(|entry| address(&entry)).collect();
    let folder = section.get("folder").and_then(|entry| Some(entry.sources().path(entry.text()?)));
    let clock = section.get("clock").and_then(|entry| clock(&entry)).unwrap_or_default();
    let randomness = section.get("randomness").and_then(|entry| entry.boolean()).unwrap_or_default();
    let peers = section.get("peers").iter().flat_map(Entry::each).filter_map(|entry| peer(&entry)).collect();
    Grants { environment, addresses, folder, clock, randomness, peers }
}

/// A pattern for ids of devices on this host. Ranges in braces would be thousands of patterns.
fn peer(entry: &Entry<'_>) -> Option<DeviceGlob> {
    let parsed = match entry.text()? {
        text if text.contains(['{', '}']) => {
            Err("a pattern has * for any text and ? for one character, and no braces".to_owned())
        }
        text => DeviceGlob::parse(text).map_err(|error| error.to_string()),
    };
    parsed.map_err(|error| entry.mistake(error)).ok()
}

fn environment(entry: &Entry<'_>) -> std::collections::BTreeMap<String, String> {
    let environment = plugins::settings(entry);
    for variable in entry.table() {
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) {
            variable.mistake("the name of a variable is not empty and has no '='");
        }
        if environment.get(variable.key).is_some_and(|value| value.contains('\0')) {
            variable.entry.mistake("the value of a variable has no zero byte");
        }
    }
    environment
}

fn clock(entry: &Entry<'_>) -> Option<ClockGrant> {
    let clock = match entry.text()? {
        "call-start" => Some(ClockGrant::CallStart),
        "coarse" => Some(ClockGrant::Coarse),
        "real" => Some(ClockGrant::Real),
        _ => None,
    };
    if clock.is_none() {
        entry.mistake("expected \"call-start\", \"coarse\" or \"real\"");
    }
    clock
}

fn address(entry: &Entry<'_>) -> Option<AddressGrant> {
    parse_address(entry.text()?).map_err(|error| entry.mistake(error)).ok()
}

/// `10.0.0.0/8:443`, `192.168.1.5:502`, `[fd00::]/8:443`, `127.0.0.1:*`.
fn parse_address(text: &str) -> Result<AddressGrant, String> {
    let expected = "expected ADDRESS:PORT, as \"10.0.0.0/8:443\", \"192.168.1.5:502\", \"[::1]:80\", or \"127.0.0.1:*\" \
                    for every port; names are not looked up";
    let (network, port) = text.rsplit_once(':').ok_or(expected)?;
    let port = match port {
        "*" => None,
        port => Some(port.parse().ok().filter(|&port: &u16| port > 0).ok_or(expected)?),
    };
    let (address, prefix) = match network.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (network, None),
    };
    let bracketed = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let network: IpAddr = bracketed.unwrap_or(address).parse().map_err(|_| expected)?;
    if network.is_ipv6() != bracketed.is_some() {
        return Err("an IPv6 address stands in brackets, as \"[fd00::]/8:443\", an IPv4 address does not".to_owned());
    }
    let bits = if network.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok().filter(|prefix| *prefix <= bits));
    let prefix = prefix.ok_or_else(|| format!("the number after the slash is from 0 to {bits}"))?;
    let whole = masked(network, prefix);
    if whole != network {
        return Err(format!(
            "the network is larger than the address says; write {whole}/{prefix}, or leave out /{prefix}"
        ));
    }
    Ok(AddressGrant { network, prefix, port })
}

/// With zeroes after the first `prefix` bits.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_networks_with_ports() {
        let grant = |network: &str, prefix, port| {
            Ok(AddressGrant { network: network.parse().expect("an address"), prefix, port })
        };
        for (text, expected) in [
            ("10.0.0.0/8:443", grant("10.0.0.0", 8, Some(443))),
            ("192.168.1.5:502", grant("192.168.1.5", 32, Some(502))),
            ("127.0.0.1:*", grant("127.0.0.1", 32, None)),
            ("0.0.0.0/0:*", grant("0.0.0.0", 0, None)),
            ("[::1]:80", grant("::1", 128, Some(80))),
            ("[fd00::]/8:443", grant("fd00::", 8, Some(443))),
            ("[::]/0:443", grant("::", 0, Some(443))),
        ] {
            assert_eq!(parse_address(text), expected, "{text}");
            let shown = parse_address(text).map(|grant| grant.to_string()).expect("a grant");
            assert_eq!(parse_address(&shown), parse_address(text), "{shown}");
        }
        for (text, expected) in [
            ("example.com:443", "names are not looked up"),
            ("10.0.0.1", "expected ADDRESS:PORT"),
            ("10.0.0.1:0", "expected ADDRESS:PORT"),
            ("10.0.0.1:65536", "expected ADDRESS:PORT"),
            ("10.0.0.0/33:1", "from 0 to 32"),
            ("[::]/129:1", "from 0 to 128"),
            ("10.0.0.1/8:443", "write 10.0.0.0/8"),
            ("::1:80", "in brackets"),
            ("[127.0.0.1]:80", "in brackets"),
            ("", "expected ADDRESS:PORT"),
        ] {
            let error = parse_address(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
