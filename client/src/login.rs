//! The login of a client: fetches a token when there is none and a new one when the server does not take it any more. At
//! most one login is under way, however many calls wait for it. Never shows the password or the token.

use std::sync::Mutex;

use daymark_api::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use tonic::metadata::{Ascii, MetadataValue};

use crate::{
    channel::Pool,
    config::Credentials,
    error::{ClientError, Result},
    retry,
};

/// Whoever asks without a token while authentication is off is welcome, and later is told so.
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
const BUSY: &str = "etcdserver: too many requests";

/// Which token a call was sent with: a number that grows with every login.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// The token of a client that logs in.
#[derive(Debug)]
pub(crate) struct Login {
    credentials: Credentials,
    token: Mutex<Token>,
    /// Held by the one that logs in.
    under_way: tokio::sync::Mutex<()>,
}

#[derive(Clone, Default)]
struct Token {
    /// 0: none has been asked for.
    generation: u64,
    /// Absent while authentication is off.
    value: Option<MetadataValue<Ascii>>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({})", self.generation)
    }
}

impl Login {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, token: Mutex::default(), under_way: tokio::sync::Mutex::default() }
    }

    /// What calls carry now.
    pub(crate) fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.now().value
    }

    /// Logs in if nobody has done so yet; which token is in use.
    pub(crate) async fn ensure(&self, pool: &Pool) -> Result<Generation> {
        let generation = self.now().generation;
        if generation == 0 {
            self.renew(pool, Generation(0)).await?;
        }
        Ok(Generation(self.now().generation))
    }

    /// Logs in again because the token of generation `refused` was not taken, unless somebody else has done so meanwhile.
    pub(crate) async fn renew(&self, pool: &Pool, refused: Generation) -> Result<()> {
        let _turn = self.under_way.lock().await;
        let generation = self.now().generation;
        if generation != refused.0 {
            return Ok(());
        }
        let value = self.authenticate(pool).await?;
        *self.token.lock().expect("nobody panics while holding it") = Token { generation: generation + 1, value };
        Ok(())
    }

    async fn authenticate(&self, pool: &Pool) -> Result<Option<MetadataValue<Ascii>>> {
        let mut attempt = 0;
        loop {
            let Credentials { user, password } = &self.credentials;
            let message = AuthenticateRequest { name: user.clone(), password: password.clone() };
            let call = async { AuthClient::new(pool.next()).authenticate(message).await };
            match retry::once(pool, call).await {
                Ok(answer) => return token_value(&answer.token).map(Some),
                Err(ClientError::Refused { message, .. }) if message == NOT_ENABLED => return Ok(None),
                Err(error) if attempt < pool.config().read_retries && may_pass(&error) => {
                    attempt += 1;
                    tokio::time::sleep(pool.backoff(attempt)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn now(&self) -> Token {
        self.token.lock().expect("nobody panics while holding it").clone()
    }
}

/// A login changes nothing that a second one could spoil.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unavailable(_) => true,
        ClientError::Refused { message, .. } => message == BUSY,
        _ => false,
    }
}

fn token_value(token: &str) -> Result<MetadataValue<Ascii>> {
    let value = MetadataValue::try_from(token).map_err(|_| ClientError::Protocol("a token that is no header"))?;
    let mut value: MetadataValue<Ascii> = value;
    // Keeps it out of debug output.
    value.set_sensitive(true);
    Ok(value)
}

/// Whether the server has refused a call before it did anything, because of its token: a new one may help.
pub(crate) fn is_token_refused(error: &ClientError) -> bool {
    const TEXTS: [&str; 3] = [
        "etcdserver: invalid auth token",
        "etcdserver: revision of auth store is old",
        // Sent without a token while authentication was off.
        "etcdserver: user name is empty",
    ];
    match error {
        ClientError::Refused { message, .. } => TEXTS.contains(&message.as_str()),
        // Watches are refused in words that hold the same ones.
        ClientError::WatchCanceled(reason) => TEXTS.iter().any(|text| reason.ends_with(text)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_new_token_helps_against_refused_ones_only() {
        let refused = |code, text: &str| ClientError::Refused { code, message: text.to_owned() };
        assert!(is_token_refused(&refused(Code::Unauthenticated, "etcdserver: invalid auth token")));
        assert!(is_token_refused(&refused(Code::InvalidArgument, "etcdserver: revision of auth store is old")));
        let watch = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
        assert!(is_token_refused(&ClientError::WatchCanceled(watch.to_owned())));
        assert!(!is_token_refused(&refused(Code::PermissionDenied, "etcdserver: permission denied")));
        assert!(!is_token_refused(&ClientError::Unavailable("etcdserver: invalid auth token".to_owned())));
    }

    #[test]
    fn neither_password_nor_token_is_shown() {
        let login = Login::new(Credentials { user: "alice".into(), password: "hunter2".into() });
        *login.token.lock().expect("free") = Token { generation: 1, value: token_value("s3cret.1").ok() };
        let shown = format!("{login:?} {:?}", login.token());
        assert!(shown.contains("alice") && !shown.contains("hunter2") && !shown.contains("s3cret"), "{shown}");
    }
}
