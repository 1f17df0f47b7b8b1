//! Elections that the server keeps: candidates queue up under a name, the first leads and shows a value to everybody.

use bytes::Bytes;
use daymark_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse, election_client::ElectionClient,
};
use tonic::{Streaming, transport::Channel};

use crate::{
    channel::{ANSWER_BYTES_MAX, Pool},
    error::Result,
    retry,
};

/// Elections.
#[derive(Clone, Debug)]
pub struct Election {
    pool: Pool,
}

impl Election {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Waits for leadership of `name`, however long that takes: dropping the call gives the place in the queue back. The
    /// leader stays as long as `lease` lives; 0 lets the server grant one of 60 seconds, which nobody keeps alive.
    pub async fn campaign(
        &self,
        name: impl Into<Bytes>,
        lease: i64,
        value: impl Into<Bytes>,
    ) -> Result<CampaignResponse> {
        let request = CampaignRequest { name: name.into(), lease, value: value.into() };
        Ok(client(self.pool.next()).campaign(self.pool.request(request)).await?.into_inner())
    }

    /// Shows another value, as long as the leader is still the one that [`Election::campaign`] returned.
    pub async fn proclaim(&self, leader: LeaderKey, value: impl Into<Bytes>) -> Result<ProclaimResponse> {
        let request = self.pool.request(ProclaimRequest { leader: Some(leader), value: value.into() });
        retry::once(&self.pool, client(self.pool.next()).proclaim(request)).await
    }

    /// Gives leadership up; a success also if it was lost before.
    pub async fn resign(&self, leader: LeaderKey) -> Result<ResignResponse> {
        let request = self.pool.request(ResignRequest { leader: Some(leader) });
        retry::once(&self.pool, client(self.pool.next()).resign(request)).await
    }

    /// Who leads now, and its value.
    pub async fn leader(&self, name: impl Into<Bytes>) -> Result<LeaderResponse> {
        let message = LeaderRequest { name: name.into() };
        retry::read(&self.pool, |channel| {
            let request = self.pool.request(message.clone());
            async move { client(channel).leader(request).await }
        })
        .await
    }

    /// Who leads now, and every change from then on. Does not resume by itself: who needs that observes again.
    pub async fn observe(&self, name: impl Into<Bytes>) -> Result<Observer> {
        let request = self.pool.request(LeaderRequest { name: name.into() });
        Ok(Observer { answers: client(self.pool.next()).observe(request).await?.into_inner() })
    }
}

/// Follows one election; ends when dropped.
#[derive(Debug)]
pub struct Observer {
    answers: Streaming<LeaderResponse>,
}

impl Observer {
    /// The next leader, or the next value of the present one. `None` when the server has ended the stream.
    pub async fn next(&mut self) -> Result<Option<LeaderResponse>> {
        Ok(self.answers.message().await?)
    }
}

fn client(channel: Channel) -> ElectionClient<Channel> {
    ElectionClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}
