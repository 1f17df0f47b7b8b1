//! How messages with secrets are printed: without them, so that no log line or error can hold a password or a token.

use std::fmt::{Debug, Formatter, Result};

use crate::{authpb, etcdserverpb};

impl Debug for authpb::User {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("User");
        shown.field("name", &self.name).field("roles", &self.roles).field("options", &self.options);
        shown.finish_non_exhaustive()
    }
}

impl Debug for etcdserverpb::AuthUserAddRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut shown = f.debug_struct("AuthUserAddRequest");
        shown.field("name", &self.name).field("options", &self.options).finish_non_exhaustive()
    }
}

impl Debug for etcdserverpb::AuthUserChangePasswordRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("AuthUserChangePasswordRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Debug for etcdserverpb::AuthenticateRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("AuthenticateRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Debug for etcdserverpb::AuthenticateResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("AuthenticateResponse").field("header", &self.header).finish_non_exhaustive()
    }
}
