//! Every way in which a request fails, with etcd's gRPC code and exact text. The only such table: clients recognise an
//! error by its text, so a wrong letter here makes it unknown to them.

use daymark_raft::{ChangeError, ProposeError, TransferError};
use daymark_storage::StorageError;
use daymark_storage::mvcc::ReadError;

/// gRPC status codes, by their numbers on the wire.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident, $code:ident, $text:expr;)*) => {
        /// Why a request is refused or failed. Deterministic variants may come out of apply; the same on every member.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Error {
            $($(#[$doc])* $name,)*
            /// A method that Daymark does not serve (yet); holds the path.
            UnknownMethod(String),
            /// The message could not be decoded; holds the decoder's words.
            Malformed(String),
            /// The message is larger than the receive limit: size, limit.
            MessageTooLarge(usize, usize),
            /// The answer is larger than receivers accept: size as far as it was built, limit.
            ResponseTooLarge(usize, usize),
            /// The message is larger than the receive limit once it is decompressed: limit.
            InflatedTooLarge(usize),
            /// One answer needs more memory than one may take; holds the bound.
            AnswerTooLarge(usize),
            /// All answers under way need more memory than there is for them; holds the bound.
            AnswersTooLarge(usize),
            /// Compressed with something that is not supported; holds its name.
            Compression(String),
            /// A file that the member does not need could not be written or read; holds the facts.
            File(String),
            /// Something failed inside of the lock or election service: whatever it was leaves with code `Unknown`, as in
            /// etcd, where these services are clients of the others.
            Inner(Box<Error>),
            /// The caller broke gRPC's framing; holds what is wrong. Ends its call and nothing else.
            Protocol(String),
            /// The member is failing; holds the facts. Always followed by its stop.
            Internal(String),
        }

        impl Error {
            /// The gRPC code that goes on the wire.
            pub fn code(&self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                    Self::UnknownMethod(_) | Self::Compression(_) => Code::Unimplemented,
                    Self::Inner(_) | Self::File(_) => Code::Unknown,
                    Self::Malformed(_) | Self::Protocol(_) | Self::Internal(_) => Code::Internal,
                    Self::MessageTooLarge(..)
                    | Self::InflatedTooLarge(_)
                    | Self::ResponseTooLarge(..)
                    | Self::AnswerTooLarge(_)
                    | Self::AnswersTooLarge(_) => Code::ResourceExhausted,
                }
            }

            /// The error that a text of another member means; none if it is not one with a text of its own.
            pub fn of_text(text: &str) -> Option<Self> {
                $(if text == $text {
                    return Some(Self::$name);
                })*
                None
            }

            /// The text that goes on the wire.
            pub fn text(&self) -> std::borrow::Cow<'static, str> {
                match self {
                    $(Self::$name => $text.into(),)*
                    Self::UnknownMethod(path) => unknown_method(path).into(),
                    Self::Malformed(what) => format!("grpc: error unmarshalling request: {what}").into(),
                    Self::MessageTooLarge(size, limit) => {
                        format!("grpc: received message larger than max ({size} vs. {limit})").into()
                    }
                    Self::InflatedTooLarge(limit) => {
                        format!("grpc: received message after decompression larger than max {limit}").into()
                    }
                    Self::ResponseTooLarge(size, limit) => {
                        format!("grpc: trying to send message larger than max ({size} vs. {limit})").into()
                    }
                    Self::Compression(name) => {
                        format!("grpc: Decompressor is not installed for grpc-encoding \"{name}\"").into()
                    }
                    Self::AnswerTooLarge(limit) => format!(
                        "daymark: the answer needs more than {limit} bytes of memory: ask for less, with a limit or with \
                         RangeStream"
                    )
                    .into(),
                    Self::AnswersTooLarge(limit) => format!(
                        "daymark: the answers under way need more than {limit} bytes of memory: try again later, or ask \
                         for less"
                    )
                    .into(),
                    Self::Inner(error) => error.text(),
                    Self::File(what) | Self::Protocol(what) | Self::Internal(what) => what.clone().into(),
                }
            }
        }
    };
}

errors! {
    EmptyKey, InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound, InvalidArgument, "etcdserver: key not found";
    ValueProvided, InvalidArgument, "etcdserver: value is provided";
    LeaseProvided, InvalidArgument, "etcdserver: lease is provided";
    TooManyOps, InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey, InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion, InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption, InvalidArgument, "etcdserver: invalid sort option";
    Compacted, OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision, OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NoSpace, ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    RequestTooLarge, InvalidArgument, "etcdserver: request is too large";
    /// On the wire `Unknown`, although the client library's table says `ResourceExhausted`.
    TooManyRequests, Unknown, "etcdserver: too many requests";
    /// Ours: etcd has no bound.
    TooManyWatchers, ResourceExhausted, "daymark: too many watchers: cancel some, or spread them over connections and members";
    Corrupt, DataLoss, "etcdserver: corrupt cluster";
    LeaseNotFound, NotFound, "etcdserver: requested lease not found";
    LeaseExists, FailedPrecondition, "etcdserver: lease already exists";
    LeaseTtlTooLarge, OutOfRange, "etcdserver: too large lease TTL";
    NotPrimaryLessor, Unknown, "not a primary lessor";
    WatchCanceled, Canceled, "etcdserver: watch canceled";
    NoLeader, Unavailable, "etcdserver: no leader";
    NotLeader, FailedPrecondition, "etcdserver: not leader";
    LeaderChanged, Unavailable, "etcdserver: leader changed";
    NotCapable, FailedPrecondition, "etcdserver: not capable";
    Stopped, Unavailable, "etcdserver: server stopped";
    TimedOut, Unavailable, "etcdserver: request timed out";
    TimedOutByLeaderLoss, Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimedOutByConnection, Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    /// As etcd's library says it, without its prefix.
    PasswordTooLong, Unknown, "bcrypt: password length exceeds 72 bytes";
    TokenVerifyOnly, Unknown, "auth: token signing attempted with verify-only key";
    /// RangeStream with another order than ascending keys.
    StreamSortOrder, Unimplemented, "RangeStream does not support custom sort orders";
    /// RangeStream with bounds on revisions.
    StreamRevisionFilters, Unimplemented, "RangeStream does not support revision filters";
    /// Nobody is a candidate.
    ElectionNoLeader, Unknown, "election: no leader";
    /// The leader key is not there any more, or another one.
    ElectionNotLeader, Unknown, "election: not leader";
    LeaderMissing, Unknown, "\"leader\" field must be provided";
    /// The key of a lock has gone while it waited for its turn.
    SessionExpired, Unknown, "mutex: session is expired";
    RootUserMissing, FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleMissing, FailedPrecondition, "etcdserver: root user does not have root role";
    UserExists, FailedPrecondition, "etcdserver: user name already exists";
    UserNameEmpty, InvalidArgument, "etcdserver: user name is empty";
    UserNotFound, FailedPrecondition, "etcdserver: user name not found";
    RoleExists, FailedPrecondition, "etcdserver: role name already exists";
    RoleNameEmpty, InvalidArgument, "etcdserver: role name is empty";
    RoleNotFound, FailedPrecondition, "etcdserver: role name not found";
    /// An unknown user or a wrong password: callers are not told which.
    AuthenticationFailed, InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven, InvalidArgument, "etcdserver: permission not given";
    PermissionDenied, PermissionDenied, "etcdserver: permission denied";
    RoleNotGranted, FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted, FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled, FailedPrecondition, "etcdserver: authentication is not enabled";
    InvalidAuthToken, Unauthenticated, "etcdserver: invalid auth token";
    InvalidAuthManagement, InvalidArgument, "etcdserver: invalid auth management";
    OldAuthRevision, InvalidArgument, "etcdserver: revision of auth store is old";
    /// Has no entry in etcd's table of codes.
    NoPasswordUser, Unknown, "auth: authentication failed, password was given for no password user";
    Canceled, Canceled, "context canceled";
    DeadlineExceeded, DeadlineExceeded, "context deadline exceeded";
    /// Ours: etcd waits for ever.
    SlowBody, DeadlineExceeded, "daymark: the body of the request did not arrive within a minute: send it at once";
    ReflectionNothingAsked, InvalidArgument, "daymark: a reflection request must ask something";
    MemberUrlsInvalid, InvalidArgument, "etcdserver: given member URLs are invalid";
    MemberNotFound, NotFound, "etcdserver: member not found";
    /// An id is made of the addresses and the second: only the same addresses in the same second give it twice.
    MemberExists, FailedPrecondition, "etcdserver: member ID already exist";
    LearnerNotReady, FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners, FailedPrecondition, "etcdserver: too many learner members in cluster";
    /// A change of members while too few have answered for a while.
    Unhealthy, Unavailable, "etcdserver: unhealthy cluster";
    NotForLearners, FailedPrecondition, "etcdserver: rpc not supported for learner";
    /// Has no entry in etcd's table of codes.
    TransferTimedOut, Unknown, "etcdserver: request timed out, leader transfer took too long";
    MemberNotLearner, FailedPrecondition, "etcdserver: can only promote a learner member";
    PeerUrlsExist, FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// On the wire `Unknown`, although the client library's table says `FailedPrecondition`.
    NotEnoughStartedMembers, Unknown, "etcdserver: re-configuration failed due to not enough started members";
    BadLeaderTransferee, FailedPrecondition, "etcdserver: bad leader transferee";
    UnknownAction, Unknown, "etcdserver: unknown method";
    ClusterVersionUnavailable, FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    WrongDowngradeVersionFormat, InvalidArgument, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTargetVersion, InvalidArgument, "etcdserver: invalid downgrade target version";
    /// Ours: etcd begins a job that only an older program could end.
    DowngradeImpossible, FailedPrecondition, "daymark: no earlier version of Daymark can read this data: to go back to etcd, restore a snapshot with etcdutl";
    /// Ours: a snapshot would leave the member without room.
    NoRoomForFile, ResourceExhausted, "daymark: the disk has not enough room to make a snapshot: free some, or back up with less history after a compaction";
}

impl From<TransferError> for Error {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::NotLeader => Self::NotLeader,
            TransferError::NotVoter { .. } | TransferError::NoTarget => Self::BadLeaderTransferee,
            TransferError::TimedOut => Self::TransferTimedOut,
            TransferError::Stopped => Self::Stopped,
        }
    }
}

impl From<ChangeError> for Error {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotLeader => Self::NotLeader,
            ChangeError::Unfit => Self::MemberNotFound,
            ChangeError::LeaderChanged => Self::LeaderChanged,
            ChangeError::Stale | ChangeError::Busy | ChangeError::TimedOut => Self::TimedOut,
            ChangeError::Stopped => Self::Stopped,
        }
    }
}

impl Error {
    /// As it leaves the lock and election services. What this member fails with itself stays as it is.
    pub fn inside(self) -> Self {
        match self {
            Self::Internal(_) | Self::Inner(_) => self,
            error => Self::Inner(Box::new(error)),
        }
    }
}

fn unknown_method(path: &str) -> String {
    match path.trim_start_matches('/').split_once('/') {
        Some((service, method)) => format!("unknown method {method} for service {service}"),
        None => format!("malformed method name: \"{path}\""),
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted => Self::Compacted,
            ReadError::Future => Self::FutureRevision,
            ReadError::Storage(error) => error.into(),
        }
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NoLeader => Self::NoLeader,
            ProposeError::LeaderChanged => Self::LeaderChanged,
            ProposeError::TimedOut => Self::TimedOut,
            ProposeError::ConnectionLost => Self::TimedOutByConnection,
            ProposeError::TooManyRequests => Self::TooManyRequests,
            ProposeError::Stopped => Self::Stopped,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl std::error::Error for Error {}
