//! Runs of the simulation that every change must pass: seeds, repeatability, and a planted bug that the net must catch.

use std::process::Command;

fn simulate(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_weft-sim")).args(arguments).output().expect("it runs");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn seeds_hold() {
    let (held, told) = simulate(&["sweep", "--from", "1", "--to", "6", "--minutes", "1"]);
    assert!(held, "{told}see one again: cargo run -p weft-simulations -- replay SEED --minutes 1");
}

#[test]
fn gateways_hold() {
    let arguments = ["sweep", "--from", "1", "--to", "3", "--minutes", "1", "--scenario", "gateways"];
    let (held, told) = simulate(&arguments);
    assert!(held, "{told}see one again: cargo run -p weft-simulations -- replay SEED --minutes 1 --scenario gateways");
}

#[test]
fn a_seed_repeats_itself() {
    for seed in ["7", "8"] {
        let run = || simulate(&["run", "--seed", seed, "--minutes", "1", "--trace"]).1;
        let (first, second) = (run(), run());
        let differs = first.lines().zip(second.lines()).find(|(a, b)| a != b);
        assert!(first == second, "seed {seed}: {differs:?}");
    }
}

#[test]
fn a_disk_that_lies_is_caught() {
    let arguments =
        ["sweep", "--from", "1", "--to", "12", "--minutes", "2", "--faults", "power,blackout", "--bug", "lying-disk"];
    let (held, told) = simulate(&arguments);
    assert!(!held, "disks acknowledged what they had not flushed, and nothing broke: {told}");
}
