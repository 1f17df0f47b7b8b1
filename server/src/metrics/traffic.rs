//! Metrics of the traffic between members, under etcd's names. Counted by raft.

use daymark_raft::{PeerTraffic, round_trip_bounds};
use prometheus::proto::MetricType;

use super::{Families, HistogramSample, Sample, histogram_metric, label};

/// What went between this member and the others.
pub(super) fn families(families: &mut Families, s: &Sample) {
    let local = format!("{:x}", s.member_id);
    let failures = s.peers.iter().map(|peer| peer.heartbeat_failures).sum();
    families.counter("etcd_server_heartbeat_send_failures_total", "heartbeats not sent", failures);

    let ids: Vec<(String, &PeerTraffic)> = s.peers.iter().map(|peer| (format!("{:x}", peer.member_id), peer)).collect();
    let mut between = |name: &str, help: &str, kind, value: fn(&PeerTraffic) -> f64| {
        let rows = ids.iter().map(|(id, peer)| (vec![("Local", &*local), ("Remote", &**id)], value(peer)));
        families.labelled(name, help, kind, rows);
    };
    between("etcd_network_active_peers", "members with an open connection", MetricType::GAUGE, |peer| {
        f64::from(u8::from(peer.is_active))
    });
    between(
        "etcd_network_disconnected_peers_total",
        "losses of the last open connection",
        MetricType::COUNTER,
        |peer| peer.losses as f64,
    );
    let mut one_way = |name: &str, help: &str, way: &'static str, value: fn(&PeerTraffic) -> u64| {
        let rows = ids.iter().map(|(id, peer)| (vec![(way, &**id)], value(peer) as f64));
        families.labelled(name, help, MetricType::COUNTER, rows);
    };
    one_way("etcd_network_peer_sent_bytes_total", "bytes sent to members", "To", |peer| peer.sent_bytes);
    one_way("etcd_network_peer_sent_failures_total", "sends that failed", "To", |peer| peer.sent_failures);
    one_way("etcd_network_peer_received_bytes_total", "bytes received", "From", |peer| peer.received_bytes);
    let help = "connections of members that broke";
    one_way("etcd_network_peer_received_failures_total", help, "From", |peer| peer.received_failures);

    let round_trips = ids.iter().map(|(id, peer)| histogram_metric(&round_trips(peer), vec![label("To", id)]));
    let (name, help) = ("etcd_network_peer_round_trip_time_seconds", "round trips of heartbeats");
    families.add(name, help, MetricType::HISTOGRAM, round_trips.collect());
}

fn round_trips(peer: &PeerTraffic) -> HistogramSample {
    let mut count = 0;
    let cumulative = round_trip_bounds().into_iter().zip(peer.round_trips).map(|(bound, in_bucket)| {
        count += in_bucket;
        (bound.as_secs_f64(), count)
    });
    let cumulative = cumulative.collect();
    let count = peer.round_trips.iter().sum();
    HistogramSample { cumulative, count, sum: peer.round_trip_sum.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn peers_are_shown_under_etcd_s_names() {
        let mut traffic = PeerTraffic {
            member_id: 0xcd,
            sent_bytes: 7,
            received_bytes: 8,
            sent_failures: 1,
            heartbeat_failures: 2,
            is_active: true,
            losses: 3,
            round_trip_sum: Duration::from_millis(5),
            ..PeerTraffic::default()
        };
        traffic.round_trips[1] = 4;
        traffic.round_trips[16] = 1;
        let sample = move || Sample {
            member_id: 0xab,
            members: vec![0xab, 0xcd],
            peers: vec![traffic.clone()],
            ..Sample::default()
        };
        let text = Metrics::new(1, Arc::new(sample)).text();
        for line in [
            "etcd_network_active_peers{Local=\"ab\",Remote=\"cd\"} 1",
            "etcd_network_disconnected_peers_total{Local=\"ab\",Remote=\"cd\"} 3",
            "etcd_network_peer_sent_bytes_total{To=\"cd\"} 7",
            "etcd_network_peer_received_bytes_total{From=\"cd\"} 8",
            "etcd_network_peer_sent_failures_total{To=\"cd\"} 1",
            "etcd_network_peer_round_trip_time_seconds_bucket{To=\"cd\",le=\"0.0001\"} 0",
            "etcd_network_peer_round_trip_time_seconds_bucket{To=\"cd\",le=\"0.0002\"} 4",
            "etcd_network_peer_round_trip_time_seconds_count{To=\"cd\"} 5",
            "etcd_server_heartbeat_send_failures_total 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
    }
}
