//! Whole lists, page by page: what a client does that starts up and wants to know everything under a prefix. Each list is
//! looked at for completeness: its pages must hold as many keys as its first one has announced, in order.

use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use daymark_api::etcdserverpb::RangeRequest;
use http::request::Parts;
use prost::Message;

use crate::{
    driver::{Caller, Done, Operation},
    h2_client::{CallError, frame},
};

/// Lists of one range.
pub struct Lists {
    /// The range, with the size of a page as its limit.
    pub template: RangeRequest,
    /// A list without keys counts as an error.
    pub must_exist: bool,
}

/// A page as far as it is looked at; decoding skips the rest.
#[derive(Clone, PartialEq, Message)]
struct Page {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    keys: Vec<Key>,
    #[prost(bool, tag = "3")]
    more: bool,
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Key {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

impl Operation for Lists {
    type Client = Parts;

    async fn open(&self, _number: u32, caller: &mut Caller) -> Result<Parts, CallError> {
        Ok(caller.head("/etcdserverpb.KV/Range"))
    }

    async fn perform(&self, head: &mut Parts, caller: &mut Caller, _op: u64) -> Result<Done, CallError> {
        let (mut request, mut done, mut announced) = (self.template.clone(), Done::default(), 0);
        loop {
            let answer = caller.unary(head, frame(&request)).await?;
            done.bytes += answer.len() as u64;
            let page = Page::decode(answer).map_err(|_| CallError::Protocol("range answer cannot be decoded"))?;
            if request.revision == 0 {
                let header = page.header.ok_or(CallError::Protocol("range answered without a header"))?;
                (request.revision, announced) = (header.revision, page.count);
            }
            done.keys += page.keys.len() as u64;
            let starts_behind = page.keys.first().is_none_or(|first| first.key >= request.key);
            if !starts_behind || !page.keys.is_sorted_by(|left, right| left.key < right.key) {
                return Err(CallError::Protocol("list out of order"));
            }
            match page.keys.last() {
                Some(last) if page.more => request.key = successor(&last.key),
                None if page.more => return Err(CallError::Protocol("empty page, and more behind it")),
                _ => break,
            }
        }
        if done.keys != announced.unsigned_abs() {
            return Err(CallError::Protocol("list with more or fewer keys than announced"));
        }
        if self.must_exist && done.keys == 0 {
            return Err(CallError::Protocol("key does not exist"));
        }
        Ok(done)
    }
}

/// The first key behind this one.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.put_u8(0);
    next.freeze()
}
