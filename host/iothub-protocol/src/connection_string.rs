//! Connection strings: `HostName=…;DeviceId=…;SharedAccessKey=…`, or `x509=true` in place of the key.

use crate::address::Address;
use crate::id::{DeviceId, IdError};
use crate::sas::{SasError, SharedKey};

/// What a device needs to connect.
#[derive(Debug, Clone)]
pub struct DeviceConnectionString {
    pub host: HostName,
    pub device_id: DeviceId,
    pub credentials: DeviceCredentials,
}

/// What a device proves itself with.
#[derive(Debug, Clone)]
pub enum DeviceCredentials {
    Key(SharedKey),
    /// A certificate, which is given beside the string.
    X509,
}

/// What a back end needs to connect.
#[derive(Debug, Clone)]
pub struct ServiceConnectionString {
    pub host: HostName,
    pub policy: String,
    pub key: SharedKey,
}

/// A host with an optional port. What stands here also stands in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    pub name: String,
    pub port: Option<u16>,
}

/// Why a text is no connection string. Never holds a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    #[error("a connection string is pairs NAME=VALUE joined by ';'; found a part without '='")]
    Pair,
    #[error("the connection string has no {0}")]
    Missing(&'static str),
    /// With what of it looks like a host: the rest may be a key, where a `;` was forgotten.
    #[error("HostName, which begins {0:?}, is not a host name or HOST:PORT")]
    Host(String),
    #[error("DeviceId is wrong: {0}")]
    DeviceId(#[from] IdError),
    #[error("x509 is neither true nor false")]
    X509,
    #[error("the connection string has both x509=true and SharedAccessKey; a device has one of them")]
    Both,
    #[error("SharedAccessKey is wrong: {0}")]
    Key(#[from] SasError),
    #[error(
        "the connection string has {0}; only a device with its own SharedAccessKey or x509=true and no gateway is supported"
    )]
    Unsupported(&'static str),
}

impl DeviceConnectionString {
    pub fn parse(text: &str) -> Result<DeviceConnectionString, ConnectionStringError> {
        let pairs = Pairs::parse(text)?;
        // Each of these means another way to connect or to sign; to ignore one would end in a refusal hard to explain.
        let other = ["ModuleId", "GatewayHostName", "SharedAccessKeyName", "SharedAccessSignature"];
        if let Some(name) = other.into_iter().find(|name| pairs.find(name).is_some()) {
            return Err(ConnectionStringError::Unsupported(name));
        }
        let (host, device_id) = (HostName::parse(pairs.get("HostName")?)?, DeviceId::parse(pairs.get("DeviceId")?)?);
        let credentials = match (pairs.find("x509"), pairs.find("SharedAccessKey")) {
            (Some("true"), None) => DeviceCredentials::X509,
            (Some("true"), Some(_)) => return Err(ConnectionStringError::Both),
            (Some("false") | None, Some(key)) => DeviceCredentials::Key(SharedKey::parse(key)?),
            (Some("false") | None, None) => return Err(ConnectionStringError::Missing("SharedAccessKey")),
            (Some(_), _) => return Err(ConnectionStringError::X509),
        };
        Ok(DeviceConnectionString { host, device_id, credentials })
    }

    /// The key of a device that has one.
    pub fn key(&self) -> Option<&SharedKey> {
        self.credentials.key()
    }

    /// The whole string, key included: for a file with mode 0600 and nowhere else.
    pub fn reveal(&self) -> String {
        reveal(&self.host, &Address::from(&self.device_id), &self.credentials)
    }
}

/// The connection string of a device or a module, key included: for a file with mode 0600 and nowhere else.
pub fn reveal(host: &HostName, address: &Address, credentials: &DeviceCredentials) -> String {
    let module = address.module().map(|module| format!(";ModuleId={module}")).unwrap_or_default();
    let proof = match credentials {
        DeviceCredentials::Key(key) => format!("SharedAccessKey={}", key.to_base64()),
        DeviceCredentials::X509 => "x509=true".to_owned(),
    };
    format!("HostName={};DeviceId={}{module};{proof}", host.authority(), address.device())
}

impl DeviceCredentials {
    /// The key of a device that has one.
    pub fn key(&self) -> Option<&SharedKey> {
        match self {
            DeviceCredentials::Key(key) => Some(key),
            DeviceCredentials::X509 => None,
        }
    }
}

impl ServiceConnectionString {
    pub fn parse(text: &str) -> Result<ServiceConnectionString, ConnectionStringError> {
        let pairs = Pairs::parse(text)?;
        Ok(ServiceConnectionString {
            host: HostName::parse(pairs.get("HostName")?)?,
            policy: pairs.get("SharedAccessKeyName")?.to_owned(),
            key: SharedKey::parse(pairs.get("SharedAccessKey")?)?,
        })
    }

    /// The whole string, key included: for a file with mode 0600 and nowhere else.
    pub fn reveal(&self) -> String {
        let key = self.key.to_base64();
        format!("HostName={};SharedAccessKeyName={};SharedAccessKey={key}", self.host.authority(), self.policy)
    }
}

impl HostName {
    pub fn parse(text: &str) -> Result<HostName, ConnectionStringError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let wrong = || ConnectionStringError::Host(text.chars().take_while(|&c| fits(c)).take(80).collect());
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        if name.is_empty() || !name.chars().all(fits) {
            return Err(wrong());
        }
        Ok(HostName { name: name.to_owned(), port })
    }

    /// `host` or `host:port`, as it stands in the string and in tokens.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.name),
            None => self.name.clone(),
        }
    }
}

struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Pairs<'a> {
    fn parse(text: &'a str) -> Result<Pairs<'a>, ConnectionStringError> {
        let parts = text.trim().split(';').filter(|part| !part.is_empty());
        // A key ends in '=', so only the first one separates.
        let pairs = parts.map(|part| part.split_once('=').ok_or(ConnectionStringError::Pair));
        Ok(Pairs(pairs.collect::<Result<_, _>>()?))
    }

    fn find(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| *value)
    }

    fn get(&self, name: &'static str) -> Result<&'a str, ConnectionStringError> {
        self.find(name).ok_or(ConnectionStringError::Missing(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

    #[test]
    fn strings_survive_a_round_trip() {
        let device = format!("HostName=localhost:18883;DeviceId=d1;SharedAccessKey={KEY}");
        let parsed = DeviceConnectionString::parse(&device).expect("a device string");
        assert_eq!((parsed.host.port, parsed.reveal()), (Some(18883), device));
        let x509 = "HostName=localhost;DeviceId=d1;x509=true";
        let parsed = DeviceConnectionString::parse(x509).expect("a device string");
        assert_eq!((parsed.key().is_none(), parsed.reveal().as_str()), (true, x509));
        let service = format!("HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}");
        assert_eq!(ServiceConnectionString::parse(&service).expect("a service string").reveal(), service);
    }

    #[test]
    fn a_modules_string_names_it() {
        let (address, host) =
            (Address::parse("d1/m1").expect("an address"), HostName::parse("localhost").expect("a host"));
        let text = reveal(&host, &address, &DeviceCredentials::Key(SharedKey::parse(KEY).expect("a key")));
        assert_eq!(text, format!("HostName=localhost;DeviceId=d1;ModuleId=m1;SharedAccessKey={KEY}"));
        assert_eq!(DeviceConnectionString::parse(&text).err(), Some(ConnectionStringError::Unsupported("ModuleId")));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_key_is_shown() {
        let error = |text: &str| DeviceConnectionString::parse(text).expect_err(text);
        assert_eq!(error("nonsense"), ConnectionStringError::Pair);
        assert_eq!(error("HostName=h;DeviceId=d"), ConnectionStringError::Missing("SharedAccessKey"));
        assert_eq!(
            error(&format!("HostName=h;DeviceId=d;SharedAccessKey={KEY};x509=true")),
            ConnectionStringError::Both
        );
        assert_eq!(error("HostName=h;DeviceId=d;x509=yes"), ConnectionStringError::X509);
        assert_eq!(error("HostName=h;x509=true"), ConnectionStringError::Missing("DeviceId"));
        for other in ["ModuleId=m", "GatewayHostName=g", "SharedAccessKeyName=device"] {
            let text = format!("HostName=h;DeviceId=d;SharedAccessKey={KEY};{other}");
            assert!(matches!(error(&text), ConnectionStringError::Unsupported(_)), "{other}");
        }
        assert_eq!(error("HostName=h:x;DeviceId=d;SharedAccessKey=k"), ConnectionStringError::Host("h".into()));
        for text in ["HostName=h;DeviceId=d;SharedAccessKey=hush!", "HostName=h,DeviceId=d,SharedAccessKey=hush"] {
            assert!(!error(text).to_string().contains("hush"), "{text}");
        }
        let parsed = DeviceConnectionString::parse(&format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}"));
        assert!(!format!("{parsed:?}").contains("c2Vj"));
    }
}
