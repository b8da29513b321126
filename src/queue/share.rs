//! This process's share of what all live replicas may do together.

/// A place among the live replicas. They divide a limit without asking each other: each takes its part by its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    rank: u32,
    live: u32,
}

impl Share {
    /// Of the only process there is.
    pub const WHOLE: Self = Self { rank: 0, live: 1 };

    /// The share of the replica with this rank, from 0, among `live` replicas.
    pub fn new(rank: u32, live: u32) -> Self {
        Self { rank, live: live.max(1) }
    }

    /// How many replicas live.
    pub fn live(self) -> u32 {
        self.live
    }

    /// This replica's part of `whole`: the parts of all add up to it. 0 where there is too little for everybody.
    pub fn of(self, whole: usize) -> usize {
        let (rank, live) = (self.rank as usize, self.live as usize);
        whole / live + usize::from(rank < whole % live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_whole() {
        for live in 1..=7 {
            for whole in 0..40 {
                let parts: Vec<_> = (0..live).map(|rank| Share::new(rank, live).of(whole)).collect();
                assert_eq!(parts.iter().sum::<usize>(), whole, "{parts:?}");
                assert!(parts.iter().max() <= parts.iter().min().map(|least| least + 1).as_ref(), "{parts:?}");
            }
        }
        assert_eq!(Share::WHOLE.of(16), 16);
    }
}
