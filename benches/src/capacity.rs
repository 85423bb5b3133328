//! What a corpus takes on a cluster: on paper, and by a simulation of what hands out the pieces, with workers that die.
//!
//! The paper knows means: how long a unit takes when it is lost now and then, how much that costs. The simulation has what the
//! mean leaves out: pieces that end together or not, machines that are slow, a last piece that the others wait for. Where
//! both say the same, the paper can be trusted; its tests are in this file.

use std::{cmp::Reverse, collections::BinaryHeap, collections::VecDeque};

/// What is done, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Tokens of the corpus.
    pub tokens: f64,
    /// How many values a token has for each name.
    pub width: f64,
    /// How many names.
    pub names: f64,
    /// Machines.
    pub machines: usize,
    /// Tokens a second that a machine computes.
    pub computes: f64,
    /// Bytes a second that a machine writes.
    pub writes: f64,
    /// Bytes of an object at most.
    pub object: f64,
    /// Pieces for each machine.
    pub pieces: usize,
    /// Mean time until a machine is lost, in seconds.
    pub lifetime: f64,
    /// From then until another is there.
    pub replaced: f64,
    /// From the start of a process until it computes.
    pub start: f64,
    /// How much slower or faster than the mean machines are: evenly between 1 - this and 1 + this.
    pub spread: f64,
    /// The share of machines that take twice as long.
    pub slow: f64,
    /// Whether a piece that was lost goes on where it was; else it begins at its first unit, as where everything is written at the
    /// end.
    pub keeps: bool,
}

/// Bytes of a value in bf16.
const VALUE: f64 = 2.0;
/// Beside a token's values: its id in eight bytes, its text and position in four each.
const BESIDE: f64 = 16.0;
/// Texts are that long, in the mean.
const TOKENS_A_TEXT: f64 = 500.0;
/// A text's line in `index.jsonl`, and a file's entry in `manifest.json`.
const INDEX_LINE: f64 = 95.0;
/// The same.
const MANIFEST_ENTRY: f64 = 145.0;

impl Plan {
    /// Bytes that are written for a token.
    pub fn bytes_a_token(&self) -> f64 {
        self.names * self.width * VALUE + BESIDE
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> f64 {
        self.tokens * self.bytes_a_token()
    }

    /// Tokens a second of a machine: computing and writing overlap, and the slower is the limit.
    pub fn rate(&self) -> f64 {
        self.computes.min(self.writes / self.bytes_a_token())
    }

    /// Whether writing is the limit.
    pub fn writing_limits(&self) -> bool {
        self.writes / self.bytes_a_token() < self.computes
    }

    /// Objects, one a unit.
    pub fn units(&self) -> usize {
        (self.bytes() / self.object).ceil() as usize
    }

    /// Seconds of a unit on a machine of mean speed.
    pub fn unit(&self) -> f64 {
        self.tokens / self.units() as f64 / self.rate()
    }

    /// Bytes of `index.jsonl`.
    pub fn index(&self) -> f64 {
        self.tokens / TOKENS_A_TEXT * INDEX_LINE
    }

    /// Bytes of `manifest.json`.
    pub fn manifest(&self) -> f64 {
        self.units() as f64 * MANIFEST_ENTRY
    }

    /// Seconds in which a merge reads the headers of all objects: sixteen at a time, from a store that answers after 30 ms.
    pub fn merge(&self) -> f64 {
        self.units() as f64 / 16.0 * 0.03
    }

    /// Seconds of all machines together if nothing is ever lost, no machine is slow and all end together.
    pub fn ideal(&self) -> f64 {
        self.tokens / self.rate() / self.machines as f64
    }

    /// What work that takes `seconds`, and is lost whole when a machine is, takes in the mean, with `again` from the loss until
    /// the work begins anew: (1 / l + again) (e^(l seconds) - 1), where l is one over the lifetime.
    pub fn with_losses(&self, seconds: f64, again: f64) -> f64 {
        (self.lifetime + again) * (seconds / self.lifetime).exp_m1()
    }

    /// Machine time of all units in the mean, with those that are lost and done again, on machines of mean speed.
    fn work(&self) -> f64 {
        if self.keeps {
            self.units() as f64 * self.with_losses(self.unit(), self.replaced + self.begin())
        } else {
            let piece = self.start + self.units() as f64 / self.all_pieces() as f64 * self.unit();
            self.all_pieces() as f64 * (self.with_losses(piece, self.replaced) - self.begin())
        }
    }

    /// The start of a process in the mean; it can be lost, too.
    fn begin(&self) -> f64 {
        self.with_losses(self.start, self.replaced)
    }

    /// How long it takes in the mean.
    pub fn expected(&self) -> f64 {
        let machines = self.machines as f64;
        let slow = self.slow * machines;
        // The largest of n numbers from 0 to 1 is n / (n + 1) in the mean, and of numbers from -1 to 1 (n - 1) / (n + 1).
        let largest = |n: f64| n / (n + 1.0);
        if self.all_pieces() <= self.machines {
            // The slowest machine ends last.
            let least = |n: f64| 1.0 - self.spread * ((n - 1.0) / (n + 1.0)).max(0.0);
            let some = 1.0 - (1.0 - self.slow).powf(machines);
            let longest = some * 2.0 / least(slow) + (1.0 - some) / least(machines);
            return self.begin() + self.work() / machines * longest;
        }
        // When the last piece has been handed out, each machine is somewhere in its own, in the mean in the middle. The last to
        // end has nearly all of it left, and is a slow one if there are some.
        let speed = 1.0 - self.slow / 2.0;
        let shared = self.work() / machines / speed + self.pieces as f64 * self.begin();
        let last = largest(machines).max(2.0 * largest(slow));
        shared + (last - 0.5) * shared / self.pieces as f64
    }

    /// Pieces of all machines.
    pub fn all_pieces(&self) -> usize {
        (self.machines * self.pieces).min(self.units())
    }
}

/// What happened in a simulated run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    /// Seconds until the last piece was done.
    pub makespan: f64,
    /// Machines that were lost.
    pub losses: usize,
    /// Machine time that computed what was then lost, over all that computed.
    pub lost: f64,
    /// Machine time without a piece at the end, over all: waiting for stragglers.
    pub waited: f64,
    /// Units that were done, which is all of them.
    pub units: usize,
}

/// A piece: how many units are left, of how many.
#[derive(Clone, Copy)]
struct Piece {
    left: usize,
    all: usize,
}

struct Machine {
    speed: f64,
    /// When it is lost.
    dies: f64,
    piece: Option<Piece>,
    /// When the unit began that it is at work on.
    since: f64,
    /// It starts a process; what is lost then is no unit.
    starting: bool,
    /// When it had nothing to do any more.
    idle: Option<f64>,
}

/// Seconds, in an order.
#[derive(Clone, Copy, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Runs the plan once: pieces wait in a queue, a machine that is free takes the first, and one that is lost puts back what it
/// had, without the units that are done. The same seed, the same outcome.
pub fn simulate(plan: &Plan, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    // 1 - [0, 1) is never zero.
    let lifetime = |random: &mut fastrand::Rng| -plan.lifetime * (1.0 - random.f64()).ln();
    let (units, pieces) = (plan.units(), plan.all_pieces());
    // Piece k does the units k, k + pieces, ...
    let sizes = (0..pieces).map(|piece| (units - piece).div_ceil(pieces));
    let mut waiting: VecDeque<Piece> = sizes.map(|all| Piece { left: all, all }).collect();
    let mut machines: Vec<Machine> = (0..plan.machines)
        .map(|_| {
            let even = 1.0 + plan.spread * (2.0 * random.f64() - 1.0);
            let speed = if random.f64() < plan.slow { even / 2.0 } else { even };
            Machine { speed, dies: lifetime(&mut random), piece: None, since: 0.0, starting: false, idle: None }
        })
        .collect();
    let mut events: BinaryHeap<Reverse<(Moment, usize)>> =
        (0..plan.machines).map(|i| Reverse((Moment(0.0), i))).collect();
    let mut outcome = Outcome::default();
    let (mut computed, mut lost) = (0.0, 0.0);
    while outcome.units < units {
        let Some(Reverse((Moment(now), number))) = events.pop() else { break };
        let machine = &mut machines[number];
        if now >= machine.dies {
            outcome.losses += 1;
            if let Some(mut piece) = machine.piece.take() {
                if !machine.starting {
                    lost += now - machine.since;
                }
                if !plan.keeps {
                    let done = piece.all - piece.left;
                    outcome.units -= done;
                    // All of it was done here: whoever takes a piece begins at its first unit.
                    let seconds = done as f64 * plan.unit() / machine.speed;
                    (computed, lost) = (computed - seconds, lost + seconds);
                    piece.left = piece.all;
                }
                waiting.push_back(piece);
                // Somebody who has nothing to do takes it at once.
                if let Some(free) = machines.iter().position(|other| other.idle.is_some()) {
                    machines[free].idle = None;
                    events.push(Reverse((Moment(now), free)));
                }
            }
            let machine = &mut machines[number];
            machine.dies = now + plan.replaced + lifetime(&mut random);
            machine.idle = None;
            events.push(Reverse((Moment(now + plan.replaced), number)));
            continue;
        }
        match machine.piece {
            Some(_) if machine.starting => machine.starting = false,
            Some(piece) => {
                computed += now - machine.since;
                outcome.units += 1;
                outcome.makespan = now;
                machine.piece = (piece.left > 1).then_some(Piece { left: piece.left - 1, ..piece });
            }
            None => {}
        }
        if machine.piece.is_none() {
            machine.piece = waiting.pop_front();
            machine.starting = machine.piece.is_some();
            if machine.piece.is_none() {
                // It is woken by a piece that comes back; its own end does not matter meanwhile.
                machine.idle = Some(now);
                continue;
            }
        }
        machine.since = now;
        let takes = if machine.starting { plan.start } else { plan.unit() / machine.speed };
        events.push(Reverse((Moment((now + takes).min(machine.dies)), number)));
    }
    let waited: f64 = machines.iter().filter_map(|machine| machine.idle).map(|since| outcome.makespan - since).sum();
    outcome.waited = waited / (outcome.makespan * plan.machines as f64);
    outcome.lost = lost / (computed + lost);
    outcome
}

/// What several runs with different seeds have in the mean, with the shortest and the longest.
pub fn mean(plan: &Plan, runs: u64) -> (Outcome, f64, f64) {
    let all: Vec<Outcome> = (0..runs).map(|seed| simulate(plan, seed)).collect();
    let of = |field: fn(&Outcome) -> f64| all.iter().map(field).sum::<f64>() / runs as f64;
    let mean = Outcome {
        makespan: of(|run| run.makespan),
        losses: of(|run| run.losses as f64).round() as usize,
        lost: of(|run| run.lost),
        waited: of(|run| run.waited),
        units: plan.units(),
    };
    let shortest = all.iter().map(|run| run.makespan).fold(f64::INFINITY, f64::min);
    let longest = all.iter().map(|run| run.makespan).fold(0.0, f64::max);
    (mean, shortest, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Machines that are alike and live for ever.
    fn calm() -> Plan {
        Plan {
            tokens: 1e7,
            width: 768.0,
            names: 3.0,
            machines: 8,
            computes: 1000.0,
            writes: 1e9,
            object: 16e6,
            pieces: 4,
            lifetime: 1e15,
            replaced: 300.0,
            start: 0.0,
            spread: 0.0,
            slow: 0.0,
            keeps: true,
        }
    }

    #[test]
    fn the_arithmetic_is_that_of_the_names() {
        let plan = Plan { tokens: 1e9, object: 256.0 * 1024.0 * 1024.0, ..calm() };
        assert_eq!(plan.bytes_a_token(), 3.0 * 768.0 * 2.0 + 16.0);
        assert_eq!(plan.bytes(), 4.624e12);
        assert_eq!(plan.units(), 17_226);
        assert_eq!((plan.index(), plan.manifest(), plan.merge().round()), (190e6, 2_497_770.0, 32.0));
        assert!(!plan.writing_limits());
        assert_eq!(Plan { computes: 1e6, ..plan }.rate(), 1e9 / 4624.0);
    }

    #[test]
    fn machines_that_are_alike_and_live_take_the_ideal_time() {
        let plan = calm();
        let outcome = simulate(&plan, 0);
        // The units do not divide by the pieces: a piece has one more than another.
        let most = plan.units().div_ceil(plan.all_pieces()) * plan.pieces;
        assert!(outcome.makespan >= plan.ideal() && outcome.makespan <= most as f64 * plan.unit() * 1.000_001);
        assert_eq!((outcome.losses, outcome.lost, outcome.units), (0, 0.0, plan.units()));
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let plan = Plan { lifetime: 500.0, spread: 0.2, slow: 0.1, start: 5.0, ..calm() };
        assert_eq!(simulate(&plan, 3), simulate(&plan, 3));
        assert_ne!(simulate(&plan, 3), simulate(&plan, 4));
    }

    #[test]
    fn one_machine_takes_what_the_formula_says() {
        // A unit every 16 s, a machine every 100 s: a unit is lost one time in seven.
        let plan = Plan { machines: 1, pieces: 1, computes: 216.0, tokens: 7e6, lifetime: 100.0, start: 3.0, ..calm() };
        assert!((plan.unit() - 16.0).abs() < 0.1, "{}", plan.unit());
        let (outcome, ..) = mean(&plan, 2000);
        let ratio = outcome.makespan / plan.expected();
        assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
        // Lost is e^x - 1 - x of e^x - 1, for x = 0.16.
        let x: f64 = plan.unit() / plan.lifetime;
        let expected = (x.exp_m1() - x) / x.exp_m1();
        assert!((outcome.lost - expected).abs() < 0.01, "{} for {expected}", outcome.lost);
    }

    #[test]
    fn many_machines_end_when_the_formula_says() {
        let even = Plan { tokens: 1e8, lifetime: 40_000.0, start: 10.0, spread: 0.2, pieces: 8, ..calm() };
        let slow = Plan { slow: 0.02, machines: 256, tokens: 3e8, object: 4e6, ..even };
        let dying = Plan { lifetime: 2000.0, ..slow };
        for plan in [even, Plan { machines: 64, object: 4e6, ..even }, slow, dying, Plan { pieces: 1, ..slow }] {
            let (outcome, ..) = mean(&plan, 20);
            let ratio = outcome.makespan / plan.expected();
            assert!((ratio - 1.0).abs() < 0.06, "{ratio} for {plan:?}");
        }
    }

    #[test]
    fn one_piece_a_machine_waits_for_the_slowest() {
        let one = Plan { pieces: 1, slow: 0.25, machines: 32, object: 2e6, ..calm() };
        let many = Plan { pieces: 8, ..one };
        let ((one, ..), (many, ..)) = (mean(&one, 20), mean(&many, 20));
        assert!(one.waited > 0.3 && many.waited < 0.15, "{one:?} {many:?}");
        assert!(one.makespan > 1.4 * many.makespan);
    }

    #[test]
    fn without_units_a_long_piece_is_hardly_ever_done() {
        // 2000 s of work on a machine that lives for 1000.
        let keeps = Plan { machines: 1, pieces: 1, tokens: 2e6, object: 1e6, lifetime: 1000.0, ..calm() };
        let plan = Plan { keeps: false, ..keeps };
        let ((outcome, ..), (kept, ..)) = (mean(&plan, 1000), mean(&keeps, 1000));
        let ratio = outcome.makespan / plan.expected();
        assert!((ratio - 1.0).abs() < 0.06, "{ratio}");
        assert!(outcome.makespan > 3.0 * kept.makespan);
        // Of e^2 - 1 lifetimes, 2 are kept.
        assert!((outcome.lost - 0.55).abs() < 0.05, "{}", outcome.lost);
    }
}
