//! What the headers of a gateway request say about its call: the token, a time limit, and metadata under the prefix that
//! etcd's gateway passes on.

use std::time::Duration;

use ::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;

use super::super::dispatch::Status;
use crate::error::Code;
use crate::request::Context;

/// Headers that begin with it are metadata of the call.
const PREFIX: &str = "grpc-metadata-";

/// The metadata of one call.
pub(crate) struct Metadata {
    pub context: Context,
    pub timeout: Option<Duration>,
}

impl Metadata {
    /// Reads the headers of a request whose transport has told what is in `context`. The gateway asks in the name of its
    /// callers: what certificate they have does not count.
    pub fn read(headers: &HeaderMap, context: Context) -> Result<Self, Status> {
        let mut metadata = Self { context: Context { certificate_name: None, ..context }, timeout: None };
        let (mut token, mut authorization) = (None, None);
        if let Some(value) = headers.get("grpc-timeout") {
            metadata.timeout = parse_timeout(value.as_bytes())?;
        }
        for (name, value) in headers {
            let key = match name.as_str() {
                "authorization" => "authorization",
                name => match name.strip_prefix(PREFIX) {
                    Some(key) => key,
                    None => continue,
                },
            };
            let value = value.as_bytes();
            if key.ends_with("-bin") {
                // No such metadata means anything here, but etcd refuses what is not base64.
                check_binary(name.as_str(), value)?;
                continue;
            }
            if !value.iter().all(|byte| matches!(byte, 0x20..=0x7e)) && key != name.as_str() {
                continue;
            }
            let text = || String::from_utf8_lossy(value).into_owned();
            match key {
                "token" => token = token.or(Some(value)),
                "authorization" => authorization = authorization.or(Some(value)),
                "hasleader" => metadata.context.requires_leader |= value == b"true",
                "client-api-version" => drop(metadata.context.client_api_version.get_or_insert_with(|| Ok(text()))),
                _ => {}
            }
        }
        metadata.context.token = token
            .or(authorization)
            .map(|value| Bytes::copy_from_slice(value.strip_prefix(b"Bearer ").unwrap_or(value)));
        Ok(metadata)
    }
}

fn invalid(text: String) -> Status {
    Status::new(Code::InvalidArgument, text)
}

/// A number and a unit; nothing or zero is no limit.
fn parse_timeout(value: &[u8]) -> Result<Option<Duration>, Status> {
    let parse = || {
        let (count, unit) = std::str::from_utf8(value).ok()?.split_at_checked(value.len().checked_sub(1)?)?;
        let count: i64 = count.parse().ok()?;
        // Less than nothing is over at once.
        let count = u64::try_from(count).unwrap_or(0);
        let limit = match unit {
            "H" => Duration::from_secs(count.saturating_mul(3600)),
            "M" => Duration::from_secs(count.saturating_mul(60)),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        };
        Some(limit)
    };
    if value.is_empty() {
        return Ok(None);
    }
    let limit = parse().ok_or_else(|| invalid(format!("invalid grpc-timeout: {}", String::from_utf8_lossy(value))))?;
    let is_negative = value.first() == Some(&b'-');
    Ok(Some(limit).filter(|limit| is_negative || !limit.is_zero()))
}

fn check_binary(name: &str, value: &[u8]) -> Result<(), Status> {
    let engine = if value.len().is_multiple_of(4) { &STANDARD } else { &STANDARD_NO_PAD };
    let fault = match engine.decode(value) {
        Ok(_) => return Ok(()),
        Err(fault) => fault,
    };
    let place = match fault {
        base64::DecodeError::InvalidByte(place, _) | base64::DecodeError::InvalidLastSymbol(place, _) => place,
        _ => value.len(),
    };
    let text = format!("invalid binary header {}: illegal base64 data at input byte {place}", canonical(name));
    Err(invalid(text))
}

/// A header's name with capitals, as it is usually written.
fn canonical(name: &str) -> String {
    let mut is_first = true;
    let capital = |character: char| {
        let shown = if is_first { character.to_ascii_uppercase() } else { character };
        is_first = character == '-';
        shown
    };
    name.chars().map(capital).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::http::{HeaderName, HeaderValue};

    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Result<Metadata, Status> {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
        });
        let context = Context { certificate_name: Some(Arc::from("cn")), ..Context::default() };
        Metadata::read(&headers.collect(), context)
    }

    #[test]
    fn tokens_and_metadata_reach_the_call() {
        for (headers, token) in [
            (&[("authorization", "abc")][..], "abc"),
            (&[("authorization", "Bearer abc")], "abc"),
            (&[("grpc-metadata-authorization", "abc")], "abc"),
            (&[("authorization", "abc"), ("grpc-metadata-token", "first")], "first"),
        ] {
            let metadata = read(headers).expect("metadata");
            assert_eq!(metadata.context.token.as_deref(), Some(token.as_bytes()), "{headers:?}");
            assert_eq!(metadata.context.certificate_name, None, "a gateway has no certificate to show");
        }
        let metadata = read(&[
            ("token", "not passed on"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-client-api-version", "3.7"),
        ]);
        let context = metadata.expect("metadata").context;
        assert_eq!((context.token, context.requires_leader), (None, true));
        assert_eq!(context.client_api_version, Some(Ok("3.7".into())));
        let context = read(&[("grpc-metadata-token", "tök")]).expect("metadata").context;
        assert_eq!(context.token, None, "only printable ASCII is metadata");
    }

    #[test]
    fn time_limits_are_read_as_written() {
        for (value, wanted) in [
            ("", None),
            ("0S", None),
            ("2H", Some(7_200_000)),
            ("3M", Some(180_000)),
            ("5S", Some(5000)),
            ("7m", Some(7)),
            ("-1S", Some(0)),
        ] {
            let metadata = read(&[("grpc-timeout", value)]).expect("a time limit");
            assert_eq!(metadata.timeout, wanted.map(Duration::from_millis), "{value}");
        }
        for value in ["5", "S", "5x", "S5", "1.5S", "ü"] {
            let status = read(&[("grpc-timeout", value)]).err().expect("refused");
            assert_eq!((status.code, &*status.text), (3, &*format!("invalid grpc-timeout: {value}")));
        }
    }

    #[test]
    fn binary_metadata_must_be_base64() {
        assert!(read(&[("grpc-metadata-x-bin", "AAE=")]).is_ok());
        assert!(read(&[("grpc-metadata-x-bin", "AAE")]).is_ok());
        let status = read(&[("grpc-metadata-x-bin", "!!")]).err().expect("refused");
        assert_eq!(status.text, "invalid binary header Grpc-Metadata-X-Bin: illegal base64 data at input byte 0");
    }
}
