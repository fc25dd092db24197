//! The secret that a receiver shares, and what is signed with it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// Before the key in text.
const PREFIX: &str = "whsec_";
/// Bytes of a key, at least and at most, as the scheme has it.
const BYTES: (usize, usize) = (24, 64);
/// While a receiver goes from one to the next there are two.
const MAX_KEYS: usize = 4;

/// One key or several; an event is signed with each. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct Secret(Vec<hmac::Key>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a text is no secret. It does not show the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("there is no key; one is made by: echo whsec_$(openssl rand -base64 32)")]
    Empty,
    #[error(
        "line {0} is no key: whsec_ and 24 to 64 bytes in base64, as made by: echo whsec_$(openssl rand -base64 32)"
    )]
    Key(usize),
    #[error("there are more than {MAX_KEYS} keys")]
    TooMany,
}

impl Secret {
    /// A key a line. With several, a receiver that knows one of them is content: so it can go from one to the next.
    ///
    /// # Errors
    /// Names the line that is wrong.
    pub fn parse(text: &str) -> Result<Secret, SecretError> {
        let lines = (1..).zip(text.lines()).map(|(number, line)| (number, line.trim()));
        let keys = lines.filter(|(_, line)| !line.is_empty()).map(|(number, line)| {
            let bytes = STANDARD.decode(line.strip_prefix(PREFIX).unwrap_or(line));
            let (least, most) = BYTES;
            let bytes = bytes.ok().filter(|bytes| (least..=most).contains(&bytes.len()));
            bytes.map(|bytes| hmac::Key::new(hmac::HMAC_SHA256, &bytes)).ok_or(SecretError::Key(number))
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(SecretError::Empty),
            1..=MAX_KEYS => Ok(Secret(keys)),
            _ => Err(SecretError::TooMany),
        }
    }

    /// The header `webhook-signature` of that message, sent then, in seconds since 1970.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let signed = format!("{id}.{timestamp}.{body}");
        let signature = |key| format!("v1,{}", STANDARD.encode(hmac::sign(key, signed.as_bytes())));
        self.0.iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn a_message_is_signed_as_the_scheme_s_own_example() {
        let signature = Secret::parse(KEY).expect("a key").sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let two = Secret::parse(&format!("{KEY}\n\n {}\n", &KEY[6..])).expect("two keys").sign("a", 1, "{}");
        let (first, second) = two.split_once(' ').expect("two signatures");
        assert_eq!(first, second, "with and without the prefix it is one key");
    }

    #[test]
    fn what_is_no_key_is_told_by_its_line_and_not_shown() {
        for (text, expected) in [
            (String::new(), SecretError::Empty),
            (" \n".to_owned(), SecretError::Empty),
            ("whsec_c2hvcnQ=".to_owned(), SecretError::Key(1)),
            (format!("{KEY}\nhush!"), SecretError::Key(2)),
            (format!("{KEY}\n").repeat(5), SecretError::TooMany),
        ] {
            assert_eq!(Secret::parse(&text).map(drop), Err(expected));
            assert!(!expected.to_string().contains("hush"));
        }
        assert_eq!(format!("{:?}", Secret::parse(KEY)), "Ok(Secret(…))");
    }
}
