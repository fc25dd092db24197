//! What can go wrong with a call.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use iothub_protocol::error::HubError;
use rustls::CertificateError;

/// Why a call brought no result.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The hub answered with an error.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The hub did not answer.
    #[error("{host}: {problem}")]
    Transport {
        /// Host and port, as in the connection string.
        host: String,
        problem: Problem,
    },
    /// The hub's answer is not what the API promises.
    #[error("the answer to {call} {reason}")]
    Decode { call: String, reason: String },
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(#[source] reqwest::Error),
}

/// Why one try of a call brought no result, and what that means for another one.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: ServiceError,
    pub(crate) kind: FailureKind,
    /// The wait that the hub asks for.
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// 429: the hub has too much to do, and did not carry it out.
    Throttled,
    /// There was no connection, so that nothing was sent.
    NotSent,
    /// It was sent, and no answer came, or not all of it.
    Lost,
    /// 503. Perhaps it was carried out.
    Unavailable,
    /// Another 5xx. Perhaps it was carried out.
    Broken,
    /// Any other answer. It is the hub's last word.
    Refused,
}

/// Why a hub did not answer, told apart where people do different things about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Nothing listens there.
    Refused,
    /// The name is not known.
    UnknownHost,
    /// The certificate is not from a CA that is trusted here.
    UntrustedCertificate {
        detail: String,
    },
    /// TLS failed otherwise.
    Tls {
        detail: String,
    },
    TimedOut,
    Other {
        detail: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Refused => f.write_str("connection refused, nothing listens there"),
            Problem::UnknownHost => f.write_str("the host name cannot be resolved"),
            Problem::UntrustedCertificate { detail } => {
                write!(f, "its certificate is not from a CA that is trusted here ({detail})")
            }
            Problem::Tls { detail } => write!(f, "TLS failed: {detail}"),
            Problem::TimedOut => f.write_str("no answer in time"),
            Problem::Other { detail } => f.write_str(detail),
        }
    }
}

impl Problem {
    pub(crate) fn of(error: &reqwest::Error) -> Problem {
        if error.is_dns() {
            return Problem::UnknownHost;
        }
        let mut deepest = error.to_string();
        let mut next: Option<&(dyn Error + 'static)> = error.source();
        while let Some(cause) = next {
            deepest = cause.to_string();
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return Problem::of_tls(tls);
            }
            let io_error = cause.downcast_ref::<io::Error>();
            if io_error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                return Problem::Refused;
            }
            next = match io_error.and_then(io::Error::get_ref) {
                // Its `source` would step over what it wraps.
                Some(wrapped) => Some(wrapped),
                None => cause.source(),
            };
        }
        if error.is_timeout() { Problem::TimedOut } else { Problem::Other { detail: deepest } }
    }

    fn of_tls(error: &rustls::Error) -> Problem {
        let detail = error.to_string();
        match error {
            // Two CAs of the same name, as two data folders have them, differ by key only: a bad signature.
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Problem::UntrustedCertificate { detail }
            }
            _ => Problem::Tls { detail },
        }
    }
}
