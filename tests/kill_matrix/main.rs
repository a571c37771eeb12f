//! The kill matrix: at every place that matters somebody stands still and somebody is killed there,
//! and nothing is lost.
//!
//! Each cell has one process stop itself exactly at a place (`papa_test_hooks::failpoint`), kills
//! keeper, kernel, manager, or the kernel and then the keeper, lets go on who is left, waits until
//! everything is there again, and checks the promise (`papa_harness::whole`): workers and their start
//! times, every line once and in order, every exit once, no visitor turned away, no zombie, no
//! descriptor too many, a clean `papactl doctor`.
//!
//! `PAPA_MATRIX_ONLY=TEXT` tries only the cells whose `PLACE/VICTIM` contains it; `UPDATE_MATRIX=1`
//! writes the table anew.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used)]

mod cell;
mod drive;
mod lost;
mod places;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

use cell::{Bench, Victim};
use papa_harness::whole::Role;
use places::{Drive, PLACES};
use table::Outcome;

/// Cells that are tried at the same time, each in an installation of its own: most of a cell is
/// waiting.
const AT_ONCE: usize = 3;

type Cell = (usize, usize);

#[test]
fn a_kill_at_any_place_costs_nothing() {
    if !cfg!(debug_assertions) {
        return papa_harness::skipped("a release build has no places to stop at");
    }
    let only = std::env::var("PAPA_MATRIX_ONLY").ok();
    let wanted = |(row, column): &Cell| {
        let name = format!("{}/{}", PLACES[*row], Victim::ALL[*column]);
        only.as_ref().is_none_or(|only| name.contains(only))
    };
    // Neighbours in the table share what they need, so a bench takes them one after the other.
    let cells: Vec<Cell> = (0..PLACES.len())
        .flat_map(|row| (0..Victim::ALL.len()).map(move |column| (row, column)))
        .filter(|(row, column)| {
            !PLACES[*row].alone || Victim::ALL[*column] == Victim::One(Role::Manager)
        })
        .filter(wanted)
        .collect();
    assert!(!cells.is_empty(), "PAPA_MATRIX_ONLY names no cell");
    let begun = Instant::now();
    let queue = Mutex::new(cells.into_iter());
    let outcomes: Mutex<BTreeMap<Cell, Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| work(&queue, &outcomes));
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    println!("{} cells in {:?}", outcomes.len(), begun.elapsed());
    let tried: BTreeSet<usize> = outcomes.keys().map(|(row, _)| *row).collect();
    let rows: Vec<_> = tried
        .into_iter()
        .map(|row| {
            let cell = |column| outcomes.get(&(row, column)).cloned();
            (PLACES[row], (0..Victim::ALL.len()).map(cell).collect())
        })
        .collect();
    let table = table::render(&rows);
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|((row, column), outcome)| match outcome {
            Outcome::Held => None,
            Outcome::Failed(wrong) => Some(format!(
                "{}/{}:\n  {}",
                PLACES[*row],
                Victim::ALL[*column],
                wrong.join("\n  ")
            )),
        })
        .collect();
    if only.is_none() && (failed.is_empty() || std::env::var_os("UPDATE_MATRIX").is_some()) {
        table::settle(&table);
    }
    assert!(failed.is_empty(), "{table}\n{}", failed.join("\n"));
}

fn work(queue: &Mutex<impl Iterator<Item = Cell>>, outcomes: &Mutex<BTreeMap<Cell, Outcome>>) {
    let directory = tempfile::tempdir().unwrap();
    let lost_directory = tempfile::tempdir().unwrap();
    let mut bench: Option<Bench> = None;
    loop {
        let Some((row, column)) = queue.lock().unwrap().next() else {
            return;
        };
        let (place, victim) = (&PLACES[row], Victim::ALL[column]);
        let begun = Instant::now();
        let result = if place.drive == Drive::BothDie {
            lost::cell(lost_directory.path(), place, victim)
        } else {
            let there = bench.get_or_insert_with(|| Bench::start(directory.path()));
            let mut result = there.cell(place, victim);
            if let Err(wrong) = &mut result {
                wrong.push(format!("kept in {}", there.whole.keep().display()));
                bench = None;
            }
            result
        };
        let outcome = result.map_or_else(Outcome::Failed, |()| Outcome::Held);
        println!(
            "{place}/{victim}: {} in {:?}",
            match &outcome {
                Outcome::Held => "ok".to_owned(),
                Outcome::Failed(wrong) => format!("FAILED {}", wrong.join("; ")),
            },
            begun.elapsed()
        );
        outcomes.lock().unwrap().insert((row, column), outcome);
    }
}
