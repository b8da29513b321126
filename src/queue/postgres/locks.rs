//! Advisory locks, each held to the end of its transaction. The first number is ours in the database, the second says
//! what is locked; a user's lock is one of 2^32 numbers, and two users that share one only wait for each other.

use std::fmt::Write as _;

/// Excludes the other changes of ended deliveries: operators' actions, and deleting what is old.
pub(super) const LOCK_CHANGES: &str = "SELECT pg_advisory_xact_lock(2003, -1);";

/// Excludes other processes that become replicas: two would choose the same slot.
pub(super) const LOCK_REPLICAS: &str = "SELECT pg_advisory_xact_lock(2003, -4);";

/// The first number of users' locks: not that of the others, which are few.
const USERS: i32 = 2004;

/// The text that locks these users: in order, so that no two transactions wait for each other.
pub(super) fn lock_users(users: impl Iterator<Item = i64>) -> String {
    let mut numbers: Vec<i32> = users.map(lock_number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut text = String::new();
    for number in numbers {
        // Writing into a String does not fail.
        let _written = write!(text, "SELECT pg_advisory_xact_lock({USERS}, {number});");
    }
    text
}

fn lock_number(user: i64) -> i32 {
    let bytes = user.to_be_bytes();
    let half = |at: usize| i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    half(0) ^ half(4)
}
