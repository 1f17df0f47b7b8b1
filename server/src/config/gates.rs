//! Feature gates: etcd's names, defaults and stages, and which of them change anything here.

use super::values::parse_bool;

/// One gate. The number is its place in [`GATES`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    CompactHashCheck,
    FastLeaseKeepAlive,
    InitialCorruptCheck,
    LeaseCheckpoint,
    LeaseCheckpointPersist,
    PriorityRequest,
    SetMemberLocalAddr,
    StopGrpcServiceOnDefrag,
    TxnModeWriteWithSharedBuffer,
}

/// What is known of a gate.
#[derive(Debug)]
pub struct Spec {
    pub name: &'static str,
    pub default: bool,
    /// `ALPHA` or `BETA`, as metrics show it.
    pub stage: &'static str,
    /// Why it changes nothing here; `None`: it does.
    pub no_effect: Option<&'static str>,
}

const ALPHA: &str = "ALPHA";
const BETA: &str = "BETA";

/// Every gate, in the order of [`Gate`].
pub const GATES: [Spec; 9] = [
    spec("CompactHashCheck", false, ALPHA, None),
    spec("FastLeaseKeepAlive", true, BETA, Some("a keepalive never waits for the log here")),
    spec("InitialCorruptCheck", false, ALPHA, None),
    spec("LeaseCheckpoint", false, ALPHA, None),
    spec("LeaseCheckpointPersist", false, ALPHA, Some("checkpoints are always kept, as in etcd since 3.6")),
    spec("PriorityRequest", false, ALPHA, None),
    spec("SetMemberLocalAddr", false, ALPHA, Some("there is one member: nobody to connect to")),
    spec("StopGRPCServiceOnDefrag", false, ALPHA, Some("Defragment has nothing to do and stops nothing")),
    spec("TxnModeWriteWithSharedBuffer", true, BETA, Some("reads of a transaction never copy a buffer here")),
];

const fn spec(name: &'static str, default: bool, stage: &'static str, no_effect: Option<&'static str>) -> Spec {
    Spec { name, default, stage, no_effect }
}

/// Which gates are open.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FeatureGates([bool; GATES.len()]);

impl Default for FeatureGates {
    fn default() -> Self {
        Self(GATES.map(|gate| gate.default))
    }
}

impl FeatureGates {
    /// Reads `Name=true,Other=false`. A gate that is named wins over `AllAlpha` and `AllBeta`, whatever their order.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut named = [None; GATES.len()];
        let mut groups = [None; 2];
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('=') else {
                return Err(format!("missing bool value for {}", part.trim()));
            };
            let (name, value) = (name.trim(), value.trim());
            let open = parse_bool(value).ok_or(format!("invalid value of {name}={value}: must be true or false"))?;
            match name {
                "AllAlpha" => groups[0] = Some(open),
                "AllBeta" => groups[1] = Some(open),
                _ => match GATES.iter().position(|gate| gate.name == name) {
                    Some(position) => named[position] = Some(open),
                    None => return Err(format!("unrecognized feature gate: {name}")),
                },
            }
        }
        let of = |position: usize| {
            let gate = &GATES[position];
            named[position].or(groups[usize::from(gate.stage == BETA)]).unwrap_or(gate.default)
        };
        Ok(Self(std::array::from_fn(of)))
    }

    /// Whether a gate is open.
    pub fn open(&self, gate: Gate) -> bool {
        self.0[gate as usize]
    }

    /// Every gate with its state.
    pub fn all(&self) -> impl Iterator<Item = (&'static Spec, bool)> {
        GATES.iter().zip(self.0)
    }

    /// What contradicts itself, in etcd's words.
    pub fn check(&self) -> Result<(), String> {
        if self.open(Gate::LeaseCheckpointPersist) && !self.open(Gate::LeaseCheckpoint) {
            return Err(
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint".into()
            );
        }
        Ok(())
    }

    /// A sentence for each gate that was moved and changes nothing here.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let moved = self.all().filter(|(gate, open)| *open != gate.default);
        moved.filter_map(|(gate, _)| Some(format!("feature gate {} has no effect: {}", gate.name, gate.no_effect?)))
    }
}

/// The lines of `--help`.
pub fn help() -> String {
    let mut text =
        String::from("  AllAlpha=true|false (ALPHA - default=false)\n  AllBeta=true|false (BETA - default=false)\n");
    for gate in &GATES {
        let note = gate.no_effect.map(|why| format!(" - without effect: {why}")).unwrap_or_default();
        text.push_str(&format!("  {}=true|false ({} - default={}){note}\n", gate.name, gate.stage, gate.default));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_gates_is_that_of_their_names() {
        for (gate, name) in [
            (Gate::CompactHashCheck, "CompactHashCheck"),
            (Gate::FastLeaseKeepAlive, "FastLeaseKeepAlive"),
            (Gate::InitialCorruptCheck, "InitialCorruptCheck"),
            (Gate::LeaseCheckpoint, "LeaseCheckpoint"),
            (Gate::LeaseCheckpointPersist, "LeaseCheckpointPersist"),
            (Gate::PriorityRequest, "PriorityRequest"),
            (Gate::SetMemberLocalAddr, "SetMemberLocalAddr"),
            (Gate::StopGrpcServiceOnDefrag, "StopGRPCServiceOnDefrag"),
            (Gate::TxnModeWriteWithSharedBuffer, "TxnModeWriteWithSharedBuffer"),
        ] {
            assert_eq!(GATES[gate as usize].name, name);
            assert_eq!(FeatureGates::default().open(gate), GATES[gate as usize].default);
        }
    }

    #[test]
    fn a_named_gate_wins_over_its_group() {
        let gates = FeatureGates::parse("PriorityRequest=false, AllAlpha = true ,AllBeta=0,").expect("gates");
        assert!(gates.open(Gate::LeaseCheckpoint) && !gates.open(Gate::PriorityRequest));
        assert!(!gates.open(Gate::FastLeaseKeepAlive));
        assert_eq!(FeatureGates::parse(""), Ok(FeatureGates::default()));
    }

    #[test]
    fn what_is_wrong_is_said_in_etcds_words() {
        for (text, words) in [
            ("X=true", "unrecognized feature gate: X"),
            ("AllBeta", "missing bool value for AllBeta"),
            ("AllBeta=x", "invalid value of AllBeta=x"),
        ] {
            let error = FeatureGates::parse(text).expect_err(text);
            assert!(error.starts_with(words), "{text}: {error}");
        }
        let alone = FeatureGates::parse("LeaseCheckpointPersist=true").expect("well formed");
        assert!(alone.check().expect_err("alone").contains("requires enabling feature gate LeaseCheckpoint"));
    }

    #[test]
    fn only_moved_gates_without_effect_are_warned_of() {
        let warnings = |text: &str| FeatureGates::parse(text).expect("gates").warnings().count();
        assert_eq!(warnings(""), 0);
        assert_eq!(warnings("PriorityRequest=true"), 0);
        assert_eq!(warnings("StopGRPCServiceOnDefrag=true,FastLeaseKeepAlive=true"), 1);
    }
}
