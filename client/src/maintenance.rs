//! State and alarms of members. Calls that change a member are the operator's, see the command line tool.

use daymark_api::etcdserverpb::{
    AlarmRequest, AlarmResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
    maintenance_client::MaintenanceClient,
};

use crate::{channel::Pool, error::Result, retry};

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
