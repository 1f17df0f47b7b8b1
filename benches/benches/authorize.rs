//! What it costs to look at a caller: from the token to the answer of the rules, with few permissions and with many.

use criterion::{Criterion, criterion_group, criterion_main};
use daymark_api::authpb::{Permission, permission::Type};
use daymark_api::etcdserverpb as pb;
use daymark_server::auth::authorize;
use daymark_server::auth::table::AuthTable;
use daymark_server::auth::token::{TokenSpec, Tokens};
use daymark_server::command::Identity;
use daymark_server::limits;
use daymark_server::request::Request;
use std::hint::black_box;

const TOKEN: &str = "abcdefghijklmnop.1";

/// Root, and bob with a role of that many prefixes.
fn table(prefixes: usize) -> AuthTable {
    let user = |name: &str| pb::AuthUserAddRequest { name: name.into(), ..Default::default() };
    let mut table = AuthTable::default();
    table.add_user(&user("root")).expect("new");
    table.add_user(&user("bob")).expect("new");
    table.grant_role("root", "root").expect("needs no record");
    let key_permission = (0..prefixes)
        .map(|n| Permission {
            perm_type: Type::Readwrite as i32,
            key: format!("/registry/{n:06}/").into(),
            range_end: format!("/registry/{n:06}0").into(),
        })
        .collect();
    let role = daymark_api::authpb::Role { name: "r".into(), key_permission };
    let users = ["root", "bob"].map(|name| table.user(name.as_bytes()).expect("there").record().clone());
    let mut table = AuthTable::restore(false, table.revision(), users.into(), vec![role]);
    table.grant_role("bob", "r").expect("both exist");
    table.enable().expect("root is root");
    table
}

fn look(table: &AuthTable, tokens: &Tokens, request: &Request) -> bool {
    let verified = tokens.identify(TOKEN.as_bytes(), table.revision(), 1).expect("a token");
    let who = Identity { user: verified.user, auth_revision: verified.auth_revision };
    authorize::request(table, Some(&who), request).is_ok()
}

fn authorize_requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authorize");
    for prefixes in [1, 100, 100_000] {
        let table = table(prefixes);
        let tokens = Tokens::new(TokenSpec::default(), limits::SIMPLE_TOKEN_TTL);
        tokens.assign_simple(TOKEN, "bob");
        let key = format!("/registry/{:06}/pods/one", prefixes / 2);
        let put = Request::Put(pb::PutRequest { key: key.into(), ..Default::default() });
        assert!(look(&table, &tokens, &put));
        group.bench_function(format!("put, {prefixes} permissions"), |bencher| {
            bencher.iter(|| look(black_box(&table), black_box(&tokens), black_box(&put)));
        });
    }
    group.finish();
}

criterion_group!(benches, authorize_requests);
criterion_main!(benches);
