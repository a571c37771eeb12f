//! Seeds: a few fixed ones, one to be looked at again, or one after another for as long as one
//! likes.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::action::{Action, Random};
use crate::driver::{Counts, Soak};

/// What every run of the suite goes through: the first three seeds found that have, between them,
/// everything in it that can happen.
const SEEDS: [u64; 3] = [18692, 15643, 18624];
const STEPS: u64 = 25;

/// Steps of each seed of a long run: a failing one is not long to replay.
const LONG_STEPS: u64 = 60;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| {
        panic!("{variable}={text:?}: expected a whole number");
    }))
}

/// Runs a seed, and says how to run it again when something is wrong.
#[track_caller]
fn soak(seed: u64, steps: u64) -> Counts {
    println!("seed {seed}, {steps} steps");
    let begun = Instant::now();
    let mut random = Random::new(seed);
    let mut soak = Soak::start(&mut random);
    if let Err(why) = soak.run(&mut random, steps) {
        panic!(
            "seed {seed}: {why}\nagain: PAPA_SOAK_SEED={seed} PAPA_SOAK_STEPS={steps} cargo test -p papa-manager --test soak seeds"
        );
    }
    let counts = std::mem::take(&mut soak.counts);
    println!("seed {seed}: well, {:.0?}, {counts:?}", begun.elapsed());
    counts
}

#[test]
fn the_usual_seeds_have_everything_in_them() {
    let mut kinds = HashSet::new();
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let few_descriptors = Soak::draw_few_descriptors(&mut random);
        for _ in 0..STEPS {
            let action = Action::draw(&mut random);
            // Without a low limit it does nothing.
            if few_descriptors || !matches!(action, Action::Exhaust) {
                kinds.insert(std::mem::discriminant(&action));
            }
        }
    }
    assert_eq!(kinds.len(), Action::KINDS, "other seeds are needed");
}

#[test]
fn seeds_cost_nothing() {
    let first = number("PAPA_SOAK_SEED");
    let steps = number("PAPA_SOAK_STEPS");
    let Some(seconds) = number("PAPA_SOAK_SECONDS") else {
        let seeds = first.map_or(SEEDS.to_vec(), |seed| vec![seed]);
        for seed in seeds {
            soak(seed, steps.unwrap_or(STEPS));
        }
        return;
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    // New ones every time; each says its number.
    let today = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut seed = first.unwrap_or_else(|| today.map_or(1, |since| since.as_secs()));
    let mut all = Counts::default();
    let mut seeds = 0;
    while Instant::now() < deadline {
        all.add(&soak(seed, steps.unwrap_or(LONG_STEPS)));
        seeds += 1;
        seed += 1;
    }
    println!("{seeds} seeds: well, {all:?}");
}
