//! Which patches run together.

use models::Site;

use super::{budget::Costs, places::Begin, places::Resolved};
use crate::{Error, Result};

/// Positions that a run may compute in vain, so that it need not be two: about what reading the weights once more costs.
const IN_VAIN: i64 = 64;

/// Positions of all rows of a batch, from which on more of them only take more memory.
const ENOUGH: u64 = 4096;

/// Patches that change the same sites from the same start, each with the first position that it computes.
struct Group<'a> {
    begin: Begin,
    sites: &'a [Site],
    members: Vec<(i64, usize)>,
}

/// Patches that start together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Batch {
    pub(super) begin: Begin,
    /// The sites that any of them changes.
    pub(super) sites: Vec<Site>,
    /// The first position that is computed.
    pub(super) first: i64,
    /// Which patches.
    pub(super) members: Vec<usize>,
    /// Bytes that each of them takes.
    pub(super) bytes: u64,
}

/// Batches of all patches that change something, in the order of their starts. `latest` is the last position that a run may begin
/// at; of `budget` bytes, `held` are taken. Besides its own sites each run changes, or reads, those of `others`. With `alone`, no two
/// patches are made together.
pub(super) fn batches(
    patches: &[&Resolved],
    others: &[Site],
    costs: &Costs,
    latest: i64,
    alone: bool,
    (held, budget): (u64, u64),
) -> Result<Vec<Batch>> {
    // Whether a site is changed can decide how its block is computed.
    let mut groups: Vec<Group> = Vec::new();
    for (index, patch) in patches.iter().enumerate() {
        let Some(first) = patch.first else { continue };
        let member = (first.min(latest), index);
        match groups.iter_mut().find(|group| group.begin == patch.begin && group.sites == patch.sites) {
            Some(group) => group.members.push(member),
            None => groups.push(Group { begin: patch.begin, sites: &patch.sites, members: vec![member] }),
        }
    }
    let mut batches = Vec::new();
    for Group { begin, sites, mut members } in groups {
        members.sort_unstable();
        let mut rest = members.into_iter().peekable();
        while let Some((first, index)) = rest.next() {
            let row = costs.run(first, &[sites, others].concat());
            let fitting = budget.saturating_sub(held) / row.max(1);
            if fitting == 0 {
                return Err(Error::MemoryBudget { needed: held + row, budget });
            }
            let positions = ((costs.length - first) * costs.pairs).max(1) as u64;
            let most = if alone { 1 } else { fitting.min(ENOUGH / positions).max(1) as usize };
            let mut batch = Batch { begin, sites: sites.to_vec(), first, members: vec![index], bytes: row };
            let mut in_vain = 0;
            while let Some((_, index)) = rest.next_if(|(next, _)| {
                in_vain += (next - first) * costs.pairs;
                batch.members.len() < most && in_vain <= IN_VAIN
            }) {
                batch.members.push(index);
            }
            batches.push(batch);
        }
    }
    Ok(batches)
}
