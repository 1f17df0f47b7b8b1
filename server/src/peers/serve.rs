//! Answers what other members ask. A question arrives on the thread "raft", which must not wait, and is answered by the
//! first net thread, like a client's.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use daymark_raft::{CallReply, Calls};
use tokio::sync::{Semaphore, mpsc};

use super::{Introduction, PeerReply, PeerRequest, wire};
use crate::error::Error;
use crate::limits;
use crate::services::Door;
use crate::views::Views;

/// The end of raft: takes questions and passes them on.
pub struct PeerCalls {
    views: Arc<Views>,
    questions: mpsc::Sender<Question>,
}

/// A question on its way to a net thread.
pub struct Question {
    request: PeerRequest,
    reply: CallReply,
}

/// Both ends. What does not fit between them is refused.
pub fn calls(views: Arc<Views>) -> (Arc<PeerCalls>, mpsc::Receiver<Question>) {
    let (questions, asked) = mpsc::channel(limits::PEER_QUESTIONS_MAX);
    (Arc::new(PeerCalls { views, questions }), asked)
}

impl Calls for PeerCalls {
    fn serve(&self, from: u64, request: Bytes, reply: CallReply) {
        match wire::decode_request(request) {
            // Dropped where the net thread has gone or has too much to do: the caller is told that it was not served.
            Ok(request) => drop(self.questions.try_send(Question { request, reply })),
            Err(why) => tracing::warn!(member = format!("{from:x}"), why, "a member's question cannot be read"),
        }
    }

    fn ask(&self, request: Bytes, reply: CallReply) {
        if wire::is_introduction_asked(request) {
            let list = self.views.members.load();
            let introduction = Introduction {
                cluster_id: self.views.cluster_id,
                members: list.members.clone(),
                removed: list.removed.iter().copied().collect(),
            };
            reply.send(wire::encode_introduction(&introduction));
        }
    }

    fn is_removed(&self, member_id: u64) -> bool {
        self.views.members.load().removed.contains(&member_id)
    }
}

/// Answers questions until raft has gone. One of the member's net threads runs it, beside [`Door::run`].
pub async fn run(door: Rc<Door>, mut asked: mpsc::Receiver<Question>) {
    let room = Arc::new(Semaphore::new(limits::PEER_QUESTIONS_MAX));
    while let Some(Question { request, reply }) = asked.recv().await {
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let door = door.clone();
        tokio::task::spawn_local(async move {
            let answer = door.answer_member(request).await.unwrap_or_else(PeerReply::Refused);
            if let PeerReply::Refused(Error::Internal(facts)) = &answer {
                (door.member().on_fatal)(facts);
            }
            reply.send(wire::encode_reply(&answer));
            drop(permit);
        });
    }
}
