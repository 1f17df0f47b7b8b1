//! Which call is repeated: reads that no member could serve, on the next connection; and any call that was refused because
//! of its token, once with a new one, as nothing has happened. Another write is attempted once, because nobody but the
//! caller knows whether doing it twice is harmless.

use std::future::Future;

use tonic::{Response, Status, transport::Channel};

use crate::{
    channel::Pool,
    error::{ClientError, Result},
    login::is_token_refused,
};

/// Calls on the next connection, and again on the following ones while the answer is "unavailable".
pub(crate) async fn read<T, F, Fut>(pool: &Pool, call: F) -> Result<T>
where
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = std::result::Result<Response<T>, Status>>,
{
    let mut attempt = 0;
    loop {
        match write(pool, &call).await {
            Err(ClientError::Unavailable(_)) if attempt < pool.config().read_retries => {
                attempt += 1;
                tokio::time::sleep(pool.backoff(attempt)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Calls on the next connection.
pub(crate) async fn write<T, F, Fut>(pool: &Pool, call: F) -> Result<T>
where
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = std::result::Result<Response<T>, Status>>,
{
    with_token(pool, || once(pool, call(pool.next()))).await
}

/// One attempt by a client that has logged in, and one more with another token if this one was refused.
pub(crate) async fn with_token<T, F, Fut>(pool: &Pool, attempt: F) -> Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let Some(login) = pool.login() else { return attempt().await };
    let used = login.ensure(pool).await?;
    match attempt().await {
        Err(error) if is_token_refused(&error) => {
            login.renew(pool, used).await?;
            attempt().await
        }
        outcome => outcome,
    }
}

/// One attempt, within the configured time.
pub(crate) async fn once<T>(
    pool: &Pool,
    call: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    let outcome = match pool.config().request_timeout {
        Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| ClientError::TimedOut(limit))?,
        None => call.await,
    };
    Ok(outcome?.into_inner())
}
