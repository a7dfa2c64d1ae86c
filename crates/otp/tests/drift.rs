//! Drift: what is learned from accepted codes, and how it is stored.

use otp::{Drift, Period, TimeStep};
use proptest::prelude::*;

/// The drift after codes were accepted at these offsets from the middle of the window.
fn after(drift: Drift, offsets: &[i64]) -> Drift {
    offsets.iter().fold(drift, |drift, offset| {
        let now = TimeStep::new(1000);
        drift.learn(drift.of_token(now).plus(*offset), now)
    })
}

fn steps(drift: Drift, offsets: &[i64]) -> i64 {
    after(drift, offsets).steps()
}

fn set(steps: i64) -> Drift {
    Drift::of_steps(steps).unwrap()
}

#[test]
fn three_codes_in_a_row_at_one_offset_move_it_by_one_step() {
    assert_eq!(steps(Drift::NONE, &[1, 1]), 0);
    assert_eq!(steps(Drift::NONE, &[1, 1, 1]), 1);
    assert_eq!(steps(Drift::NONE, &[2, 2, 2]), 1, "one step, whatever the offset");
    assert_eq!(steps(Drift::NONE, &[1, 1, 1, 1, 1]), 1, "it counts from the start again");
    assert_eq!(steps(Drift::NONE, &[1, 1, 1, 1, 1, 1]), 2);
}

#[test]
fn other_offsets_between_them_begin_the_count_again() {
    for between in [0, -1, 2] {
        assert_eq!(steps(Drift::NONE, &[1, 1, between, 1]), 0, "{between}");
        assert_eq!(steps(Drift::NONE, &[1, 1, between, 1, 1]), 0, "{between}");
        assert_eq!(steps(Drift::NONE, &[1, 1, between, 1, 1, 1]), 1, "{between}");
    }
}

#[test]
fn a_code_of_an_older_window_teaches_nothing() {
    for beyond in [3, -3, 40, i64::MAX, i64::MIN] {
        assert_eq!(after(set(8), &[1, 1, beyond]), set(8), "{beyond}");
    }
}

#[test]
fn what_was_learned_never_moves_back() {
    assert_eq!(after(Drift::NONE, &[-1; 30]).steps(), 0);
    let learned = after(Drift::NONE, &[1, 1, 1, 1, 1, 1]);
    assert_eq!((learned.steps(), after(learned, &[-1; 30]).steps()), (2, 2));
}

#[test]
fn what_was_set_moves_both_ways() {
    assert_eq!(steps(set(-5), &[-1, -1, -1]), -6);
    assert_eq!(steps(set(-5), &[1, 1, 1]), -4);
    assert_eq!(steps(set(8), &[-1, -1, -1]), 7);
    assert_eq!(steps(set(1), &[-1, -1, -1, -1, -1, -1]), -1, "over zero too");
}

#[test]
fn it_ends_at_sixty_steps() {
    assert_eq!(steps(set(60), &[1; 30]), 60);
    assert_eq!(steps(set(-60), &[-1; 30]), -60);
    assert_eq!(steps(set(59), &[1; 30]), 60);
    for steps in [61, -61, i64::MAX, i64::MIN] {
        assert_eq!(Drift::of_steps(steps), None);
    }
}

#[test]
fn a_token_that_was_measured_and_had_not_drifted_may_fall_behind() {
    assert_eq!(steps(set(0), &[-1, -1, -1]), -1);
}

#[test]
fn the_stored_form_is_the_documented_one() {
    assert_eq!(Drift::NONE.to_stored(), 0);
    assert_eq!(set(8).to_stored(), 0x01_00_00_08);
    assert_eq!(set(-2).to_stored(), 0x01_00_00_fe);
    assert_eq!(after(Drift::NONE, &[1, 1]).to_stored(), 0x00_02_01_00);
    assert_eq!(after(set(-2), &[-1]).to_stored(), 0x01_01_ff_fe);
}

#[test]
fn what_no_drift_is_stored_as_is_none() {
    for stored in [61, 0x80, 0x00_03_01_00, 0x00_01_03_00, 0x02_00_00_08, 1 << 32, -1, i64::MIN, i64::MAX] {
        assert_eq!(Drift::from_stored(stored), Drift::NONE, "{stored:#x}");
    }
}

#[test]
fn another_period_keeps_the_seconds() {
    let [fifteen, thirty, sixty] = [15, 30, 60].map(|seconds| Period::new(seconds).unwrap());
    assert_eq!(set(8).in_period(thirty, sixty), set(4));
    assert_eq!(set(-7).in_period(thirty, sixty), set(-3));
    assert_eq!(set(50).in_period(thirty, fifteen), set(60), "no further than the most");
    assert_eq!(after(set(8), &[1, 1]).in_period(thirty, thirty), set(8), "the codes in a row do not count on");
}

proptest! {
    #[test]
    fn every_drift_reads_back(offsets in prop::collection::vec(-2i64..=2, 0..400), start in -60i64..=60) {
        let drift = after(Drift::of_steps(start).unwrap(), &offsets);
        prop_assert!(drift.steps().abs() <= 60);
        prop_assert_eq!(Drift::from_stored(drift.to_stored()), drift);
    }

    #[test]
    fn no_stored_number_and_no_step_does_harm(stored: i64, accepted: i64, now: i64) {
        let drift = Drift::from_stored(stored);
        let learned = drift.learn(TimeStep::new(accepted), TimeStep::new(now));
        prop_assert!((learned.steps() - drift.steps()).abs() <= 1);
        prop_assert!(drift == Drift::NONE || drift.to_stored() == stored);
    }
}
