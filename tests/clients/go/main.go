// Exercises a server through etcd's own Go client. Prints "ok NAME" for each check and ends with 1 at the first that
// fails. Argument: the stage (basic, maintenance, auth, tls or tls-auth). Environment: ENDPOINT; for TLS also CA, CERT, KEY.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

type check struct {
	name string
	run  func(ctx context.Context) error
}

func main() {
	stages := map[string][]check{
		"basic": {
			{"kv", kv}, {"range-stream", rangeStream}, {"txn", txn}, {"watch", watch}, {"watch-resume", watchResume},
			{"watch-compacted", watchCompacted}, {"lease", lease}, {"keepalive", keepAlive}, {"mutex", mutex},
			{"election", election}, {"stm", stm}, {"cluster", cluster},
		},
		"maintenance": {{"maintenance", maintenance}},
		"auth": {
			{"login", login}, {"permissions", permissions}, {"wrong-password", wrongPassword}, {"no-user", noUser},
			{"auth-management", management}, {"token-renewal", tokenRenewal},
		},
		"tls":      {{"tls-kv", tlsKv}, {"tls-without-certificate", tlsWithoutCertificate}},
		"tls-auth": {{"tls-login", tlsLogin}, {"certificate-identity", certificateIdentity}},
	}
	for _, c := range stages[os.Args[1]] {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := c.run(ctx); err != nil {
			fmt.Printf("FAILED %s: %v\n", c.name, err)
			os.Exit(1)
		}
		cancel()
		fmt.Println("ok", c.name)
	}
}

func open(config clientv3.Config) (*clientv3.Client, error) {
	config.Endpoints = []string{os.Getenv("ENDPOINT")}
	config.DialTimeout = 5 * time.Second
	config.Logger = zap.NewNop()
	return clientv3.New(config)
}

// with runs a check on a client of its own.
func with(config clientv3.Config, run func(*clientv3.Client) error) error {
	client, err := open(config)
	if err != nil {
		return err
	}
	defer client.Close()
	return run(client)
}

func plain(run func(*clientv3.Client) error) error { return with(clientv3.Config{}, run) }

func want(what string, got, expected any) error {
	if fmt.Sprint(got) != fmt.Sprint(expected) {
		return fmt.Errorf("%s is %v instead of %v", what, got, expected)
	}
	return nil
}

// first returns the first error that there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func kv(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		for i := range 5 {
			if _, err := c.Put(ctx, fmt.Sprintf("go/kv/%d", i), fmt.Sprint("value ", i)); err != nil {
				return err
			}
		}
		old, err := c.Put(ctx, "go/kv/0", "new", clientv3.WithPrevKV())
		if err != nil {
			return err
		}
		all, err := c.Get(ctx, "go/kv/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(2))
		if err != nil {
			return err
		}
		past, err := c.Get(ctx, "go/kv/0", clientv3.WithRev(old.PrevKv.ModRevision))
		if err != nil {
			return err
		}
		_, future := c.Get(ctx, "go/kv/0", clientv3.WithRev(all.Header.Revision+100))
		deleted, err := c.Delete(ctx, "go/kv/", clientv3.WithPrefix(), clientv3.WithPrevKV())
		if err != nil {
			return err
		}
		return first(
			want("previous value", string(old.PrevKv.Value), "value 0"), want("count", all.Count, 5), want("more", all.More, true),
			want("first key", string(all.Kvs[0].Key), "go/kv/4"), want("past value", string(past.Kvs[0].Value), "value 0"),
			want("future", errors.Is(future, rpctypes.ErrFutureRev), true), want("deleted", deleted.Deleted, 5),
			want("previous pairs", len(deleted.PrevKvs), 5),
		)
	})
}

func rangeStream(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		for i := range 30 {
			if _, err := c.Put(ctx, fmt.Sprintf("go/stream/%02d", i), "v"); err != nil {
				return err
			}
		}
		parts, err := c.GetStream(ctx, "go/stream/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		all, err := clientv3.GetStreamToGetResponse(parts)
		if err != nil {
			return err
		}
		return first(want("keys", len(all.Kvs), 30), want("count", all.Count, 30))
	})
}

func txn(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		inner := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision("go/txn/b"), "=", 0)},
			[]clientv3.Op{clientv3.OpPut("go/txn/b", "2")}, nil)
		answer, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Version("go/txn/a"), "=", 0)).
			Then(clientv3.OpPut("go/txn/a", "1"), inner, clientv3.OpGet("go/txn/", clientv3.WithPrefix())).Commit()
		if err != nil {
			return err
		}
		_, twice := c.Txn(ctx).Then(clientv3.OpPut("x", "1"), clientv3.OpPut("x", "2")).Commit()
		return first(want("succeeded", answer.Succeeded, true), want("responses", len(answer.Responses), 3),
			want("keys seen inside", answer.Responses[2].GetResponseRange().Count, 2),
			want("two puts of a key", errors.Is(twice, rpctypes.ErrDuplicateKey), true))
	})
}

func watch(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		events := c.Watch(ctx, "go/watch/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
		if created := <-events; !created.Created {
			return fmt.Errorf("not created: %+v", created)
		}
		if _, err := c.Put(ctx, "go/watch/a", "1"); err != nil {
			return err
		}
		if _, err := c.Delete(ctx, "go/watch/a"); err != nil {
			return err
		}
		put, deleted := (<-events).Events[0], (<-events).Events[0]
		if err := c.RequestProgress(ctx); err != nil {
			return err
		}
		progress := <-events
		return first(want("created", put.IsCreate(), true), want("deleted", deleted.Type, clientv3.EventTypeDelete),
			want("previous value", string(deleted.PrevKv.Value), "1"), want("progress", progress.IsProgressNotify(), true))
	})
}

// A watcher that comes back with the revision after the last one it saw misses nothing and sees nothing twice.
func watchResume(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		last := int64(0)
		for i := range 10 {
			put, err := c.Put(ctx, "go/resume", fmt.Sprint(i))
			if err != nil {
				return err
			}
			if i == 3 {
				last = put.Header.Revision
			}
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var seen []string
		for answer := range c.Watch(ctx, "go/resume", clientv3.WithRev(last+1)) {
			if answer.Err() != nil {
				return answer.Err()
			}
			for _, event := range answer.Events {
				seen = append(seen, string(event.Kv.Value))
			}
			if len(seen) >= 6 {
				break
			}
		}
		return want("events", seen, "[4 5 6 7 8 9]")
	})
}

func watchCompacted(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		var revisions []int64
		for i := range 4 {
			put, err := c.Put(ctx, "go/compacted", fmt.Sprint(i))
			if err != nil {
				return err
			}
			revisions = append(revisions, put.Header.Revision)
		}
		if _, err := c.Compact(ctx, revisions[2], clientv3.WithCompactPhysical()); err != nil {
			return err
		}
		answer := <-c.Watch(ctx, "go/compacted", clientv3.WithRev(revisions[0]))
		return first(want("canceled", answer.Canceled, true), want("compact revision", answer.CompactRevision, revisions[2]),
			want("error", errors.Is(answer.Err(), rpctypes.ErrCompacted), true))
	})
}

func lease(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		granted, err := c.Grant(ctx, 60)
		if err != nil {
			return err
		}
		if _, err := c.Put(ctx, "go/lease/a", "1", clientv3.WithLease(granted.ID)); err != nil {
			return err
		}
		left, err := c.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
		if err != nil {
			return err
		}
		if _, err := c.Revoke(ctx, granted.ID); err != nil {
			return err
		}
		gone, err := c.Get(ctx, "go/lease/a")
		if err != nil {
			return err
		}
		_, unknown := c.Put(ctx, "go/lease/b", "1", clientv3.WithLease(granted.ID))
		return first(want("granted", left.GrantedTTL, 60), want("keys", len(left.Keys), 1), want("keys after the revoke", gone.Count, 0),
			want("unknown lease", errors.Is(unknown, rpctypes.ErrLeaseNotFound), true))
	})
}

// A lease outlives its time to live while it is kept alive, and its keys go when that ends.
func keepAlive(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		granted, err := c.Grant(ctx, 2)
		if err != nil {
			return err
		}
		if _, err := c.Put(ctx, "go/alive", "1", clientv3.WithLease(granted.ID)); err != nil {
			return err
		}
		keeping, stop := context.WithCancel(ctx)
		defer stop()
		answers, err := c.KeepAlive(keeping, granted.ID)
		if err != nil {
			return err
		}
		for start := time.Now(); time.Since(start) < 5*time.Second; {
			if answer := <-answers; answer == nil {
				return errors.New("the keepalive ended")
			}
		}
		alive, err := c.Get(ctx, "go/alive")
		if err != nil {
			return err
		}
		stop()
		gone := <-c.Watch(ctx, "go/alive")
		return first(want("keys while alive", alive.Count, 1), want("event", gone.Events[0].Type, clientv3.EventTypeDelete))
	})
}

func mutex(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		var sessions [2]*concurrency.Session
		var mutexes [2]*concurrency.Mutex
		for i := range sessions {
			session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
			if err != nil {
				return err
			}
			defer session.Close()
			sessions[i], mutexes[i] = session, concurrency.NewMutex(session, "go/mutex")
		}
		if err := mutexes[0].Lock(ctx); err != nil {
			return err
		}
		held := mutexes[1].TryLock(ctx)
		waited := make(chan error, 1)
		go func() { waited <- mutexes[1].Lock(ctx) }()
		if err := mutexes[0].Unlock(ctx); err != nil {
			return err
		}
		return first(want("second lock", errors.Is(held, concurrency.ErrLocked), true), <-waited, mutexes[1].Unlock(ctx))
	})
}

func election(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
		if err != nil {
			return err
		}
		defer session.Close()
		candidate := concurrency.NewElection(session, "go/election")
		if err := candidate.Campaign(ctx, "me"); err != nil {
			return err
		}
		leader, err := candidate.Leader(ctx)
		if err != nil {
			return err
		}
		if err := first(candidate.Proclaim(ctx, "still me"), candidate.Resign(ctx)); err != nil {
			return err
		}
		_, none := candidate.Leader(ctx)
		return first(want("leader", string(leader.Kvs[0].Value), "me"), want("after resigning", none, concurrency.ErrElectionNoLeader))
	})
}

// Ten goroutines add to one key; software transactional memory loses no increment.
func stm(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		done := make(chan error)
		for range 10 {
			go func() {
				_, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
					s.Put("go/stm", s.Get("go/stm")+"x")
					return nil
				}, concurrency.WithAbortContext(ctx))
				done <- err
			}()
		}
		for range 10 {
			if err := <-done; err != nil {
				return err
			}
		}
		sum, err := c.Get(ctx, "go/stm")
		if err != nil {
			return err
		}
		return want("sum", string(sum.Kvs[0].Value), "xxxxxxxxxx")
	})
}

func maintenance(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		endpoint := os.Getenv("ENDPOINT")
		state, err := c.Status(ctx, endpoint)
		if err != nil {
			return err
		}
		hash, err := c.HashKV(ctx, endpoint, 0)
		if err != nil {
			return err
		}
		snapshot, err := c.SnapshotWithVersion(ctx)
		if err != nil {
			return err
		}
		size, buffer := 0, make([]byte, 1<<16)
		for {
			n, err := snapshot.Snapshot.Read(buffer)
			size += n
			if err != nil {
				break
			}
		}
		alarms, err := c.AlarmList(ctx)
		if err != nil {
			return err
		}
		_, err = c.Defragment(ctx, endpoint)
		return first(err, want("version", state.Version, "3.7.1"), want("leader", state.Leader, state.Header.MemberId),
			want("hash revision", hash.HashRevision, hash.Header.Revision), want("alarms", len(alarms.Alarms), 0),
			want("snapshot size modulo 512", size%512, 32))
	})
}

func cluster(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		members, err := c.MemberList(ctx)
		if err != nil {
			return err
		}
		_, unknown := c.MemberRemove(ctx, 12345)
		return first(want("members", len(members.Members), 1), want("unknown member", unknown, rpctypes.ErrMemberNotFound))
	})
}

func as(name, password string) clientv3.Config {
	return clientv3.Config{Username: name, Password: password}
}

func login(ctx context.Context) error {
	return with(as("alice", "alice's password"), func(c *clientv3.Client) error {
		if _, err := c.Put(ctx, "alice/go", "1"); err != nil {
			return err
		}
		mine, err := c.Get(ctx, "alice/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		return want("key", string(mine.Kvs[0].Key), "alice/go")
	})
}

func permissions(ctx context.Context) error {
	return with(as("alice", "alice's password"), func(c *clientv3.Client) error {
		_, put := c.Put(ctx, "bob/go", "1")
		_, get := c.Get(ctx, "", clientv3.WithFromKey())
		_, list := c.UserList(ctx)
		watched := <-c.Watch(ctx, "bob/", clientv3.WithPrefix())
		denied := rpctypes.ErrPermissionDenied
		return first(want("put", put, denied), want("get", get, denied), want("user list", list, denied),
			want("watch is canceled", watched.Canceled, true))
	})
}

func wrongPassword(ctx context.Context) error {
	_, err := open(as("alice", "wrong"))
	return want("error", err, rpctypes.ErrAuthFailed)
}

func noUser(ctx context.Context) error {
	return plain(func(c *clientv3.Client) error {
		_, err := c.Get(ctx, "alice/go")
		return want("error", err, rpctypes.ErrUserEmpty)
	})
}

func management(ctx context.Context) error {
	return with(as("root", "root's password"), func(c *clientv3.Client) error {
		_, role := c.RoleAdd(ctx, "go-role")
		_, grant := c.RoleGrantPermission(ctx, "go-role", "go/", clientv3.GetPrefixRangeEnd("go/"), clientv3.PermissionType(clientv3.PermRead))
		_, user := c.UserAdd(ctx, "go-user", "first")
		_, given := c.UserGrantRole(ctx, "go-user", "go-role")
		_, changed := c.UserChangePassword(ctx, "go-user", "second")
		if err := first(role, grant, user, given, changed); err != nil {
			return err
		}
		reads := func(c *clientv3.Client) error {
			_, get := c.Get(ctx, "go/x")
			_, put := c.Put(ctx, "go/x", "1")
			return first(get, want("put", put, rpctypes.ErrPermissionDenied))
		}
		if err := with(as("go-user", "second"), reads); err != nil {
			return err
		}
		shown, err := c.UserGet(ctx, "go-user")
		if err != nil {
			return err
		}
		_, gone := c.UserDelete(ctx, "go-user")
		_, gone2 := c.RoleDelete(ctx, "go-role")
		_, unknown := c.UserGet(ctx, "go-user")
		return first(want("roles", shown.Roles, "[go-role]"), gone, gone2, want("unknown user", unknown, rpctypes.ErrUserNotFound))
	})
}

// The client fetches a new token by itself when the one it has is refused: here, because the user's password changed.
func tokenRenewal(ctx context.Context) error {
	return with(as("alice", "alice's password"), func(c *clientv3.Client) error {
		if _, err := c.Put(ctx, "alice/go", "before"); err != nil {
			return err
		}
		change := func(root *clientv3.Client) error {
			_, err := root.UserChangePassword(ctx, "alice", "alice's password")
			return err
		}
		if err := with(as("root", "root's password"), change); err != nil {
			return err
		}
		_, err := c.Put(ctx, "alice/go", "after")
		return err
	})
}

func pool() (*x509.CertPool, error) {
	pem, err := os.ReadFile(os.Getenv("CA"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return roots, err
}

// certified is a configuration with the authority and the client's own certificate.
func certified(config clientv3.Config) (clientv3.Config, error) {
	roots, err := pool()
	if err != nil {
		return config, err
	}
	own, err := tls.LoadX509KeyPair(os.Getenv("CERT"), os.Getenv("KEY"))
	config.TLS = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}
	return config, err
}

func tlsKv(ctx context.Context) error {
	config, err := certified(clientv3.Config{})
	if err != nil {
		return err
	}
	return with(config, func(c *clientv3.Client) error {
		if _, err := c.Put(ctx, "go/tls", "1"); err != nil {
			return err
		}
		got, err := c.Get(ctx, "go/tls")
		if err != nil {
			return err
		}
		return want("value", string(got.Kvs[0].Value), "1")
	})
}

// A password counts more than the name in the certificate.
func tlsLogin(ctx context.Context) error {
	config, err := certified(as("root", "root's password"))
	if err != nil {
		return err
	}
	return with(config, func(c *clientv3.Client) error {
		_, err := c.Put(ctx, "anything", "1")
		return err
	})
}

// Without a token the common name of the certificate is the user.
func certificateIdentity(ctx context.Context) error {
	config, err := certified(clientv3.Config{})
	if err != nil {
		return err
	}
	return with(config, func(c *clientv3.Client) error {
		_, mine := c.Put(ctx, "alice/go", "1")
		_, other := c.Put(ctx, "bob/go", "1")
		return first(mine, want("put for bob", other, rpctypes.ErrPermissionDenied))
	})
}

func tlsWithoutCertificate(ctx context.Context) error {
	roots, err := pool()
	if err != nil {
		return err
	}
	return with(clientv3.Config{TLS: &tls.Config{RootCAs: roots}}, func(c *clientv3.Client) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if _, err := c.Get(ctx, "go/tls"); err == nil {
			return errors.New("a client without a certificate was served")
		}
		return nil
	})
}
