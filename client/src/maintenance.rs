//! State and alarms of members. Calls that change a member are the operator's, see the command line tool.

use bytes::Bytes;
use daymark_api::etcdserverpb::{
    AlarmRequest, AlarmResponse, SnapshotRequest, StatusRequest, StatusResponse, alarm_request::AlarmAction,
    maintenance_client::MaintenanceClient,
};
use tonic::Response;

use crate::{
    channel::Pool,
    error::{ClientError, Result},
    retry,
};

/// State and alarms of single members.
#[derive(Clone, Debug)]
pub struct Maintenance {
    pool: Pool,
}

impl Maintenance {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// The state of the member behind one configured endpoint. Not repeated: it is about that member only.
    pub async fn status(&self, endpoint: &str) -> Result<StatusResponse> {
        let channel = self.pool.to(endpoint)?;
        let attempt = || async {
            let request = self.pool.request(StatusRequest {});
            retry::once(&self.pool, MaintenanceClient::new(channel.clone()).status(request)).await
        };
        retry::with_token(&self.pool, attempt).await
    }

    /// The whole state of the member behind one configured endpoint, as a file of etcd's form with its checksum behind it:
    /// `each` gets one piece after the other, with the number of bytes that follow, and may end it. Returns the version of
    /// the member's storage, empty if it does not say. Not repeated.
    pub async fn snapshot(
        &self,
        endpoint: &str,
        mut each: impl FnMut(Bytes, u64) -> std::io::Result<()>,
    ) -> Result<String> {
        let channel = self.pool.to(endpoint)?;
        let begin = || async {
            // A refusal may come with the first message only.
            let call = async {
                let request = self.pool.request(SnapshotRequest {});
                let mut stream = MaintenanceClient::new(channel.clone()).snapshot(request).await?.into_inner();
                let first = stream.message().await?;
                Ok(Response::new((first, stream)))
            };
            retry::once(&self.pool, call).await
        };
        let (mut next, mut stream) = retry::with_token(&self.pool, begin).await?;
        let mut version = String::new();
        while let Some(piece) = next {
            if version.is_empty() {
                version = piece.version;
            }
            each(piece.blob, piece.remaining_bytes).map_err(|error| ClientError::Local(error.to_string()))?;
            next = stream.message().await?;
        }
        Ok(version)
    }

    /// All active alarms of the cluster.
    pub async fn alarm_list(&self) -> Result<AlarmResponse> {
        let message = AlarmRequest { action: AlarmAction::Get.into(), ..Default::default() };
        retry::read(&self.pool, |channel| {
            let request = self.pool.request(message);
            async move { MaintenanceClient::new(channel).alarm(request).await }
        })
        .await
    }
}
