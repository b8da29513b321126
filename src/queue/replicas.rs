//! The replicas that share a store, in the shapes that `--json` and the API print.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;

/// A replica that has been silent for longer is not alive: by then it begins no attempt.
pub(super) const SILENT: Duration = Duration::from_secs(5);

/// What a replica tells the others of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// The SHA-256 of what must be the same everywhere, in hex.
    pub config_sha256: String,
    /// Where its admin listener is.
    pub admin: Option<String>,
}

/// One of the replicas that share a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// `queue.replica`.
    pub name: String,
    /// Its number in the ids that it gives.
    pub slot: i16,
    /// The number of its start.
    pub incarnation: i32,
    /// The version of the program.
    pub release: String,
    /// The version of the tables that it knows.
    pub schema: i32,
    /// When it has started.
    pub started_at: UnixMillis,
    /// How long ago it proved that it lives.
    pub last_beat_ms: u64,
    /// Whether that is not too long ago.
    pub live: bool,
    /// How many deliveries it is making, or about to make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// The SHA-256 of its accounts, targets and logins.
    pub config_sha256: String,
    /// Whether that is the one that most live replicas have.
    pub same_config: bool,
    /// Where its admin listener is.
    pub admin: Option<String>,
}

/// How many live replicas have acted on all that operators did until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How many live.
    pub replicas: u64,
    /// How many of them have acted on it.
    pub seen: u64,
}

/// Marks the live replicas whose configuration is another than that of the most, of equally many that of the oldest.
pub(super) fn mark_same(replicas: &mut [Replica]) {
    let known = |replica: &&Replica| replica.live && !replica.config_sha256.is_empty();
    let count = |config: &str| replicas.iter().filter(known).filter(|other| other.config_sha256 == config).count();
    let most = replicas.iter().filter(known).max_by_key(|one| (count(&one.config_sha256), -one.incarnation));
    let Some(most) = most.map(|one| one.config_sha256.clone()) else { return };
    for replica in replicas.iter_mut() {
        replica.same_config = replica.config_sha256.is_empty() || replica.config_sha256 == most;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(incarnation: i32, config: &str, live: bool) -> Replica {
        Replica {
            name: incarnation.to_string(),
            slot: 0,
            incarnation,
            release: String::new(),
            schema: 1,
            started_at: UnixMillis(0),
            last_beat_ms: 0,
            live,
            held: None,
            config_sha256: config.to_owned(),
            same_config: true,
            admin: None,
        }
    }

    #[test]
    fn the_configuration_that_most_live_replicas_have_is_the_right_one() {
        let same = |replicas: &[(&str, bool)]| {
            let numbered = replicas.iter().zip(1..).map(|((config, live), number)| replica(number, config, *live));
            let mut replicas: Vec<_> = numbered.collect();
            mark_same(&mut replicas);
            replicas.iter().map(|replica| replica.same_config).collect::<Vec<_>>()
        };
        assert_eq!(same(&[("a", true), ("b", true), ("b", true)]), [false, true, true]);
        assert_eq!(same(&[("a", true), ("b", true)]), [true, false], "of two, that of the older one");
        assert_eq!(same(&[("b", false), ("b", false), ("a", true)]), [false, false, true], "the dead do not count");
        assert_eq!(same(&[("", true), ("a", true)]), [true, true], "not told yet");
        assert_eq!(same(&[]), [true; 0]);
    }
}
