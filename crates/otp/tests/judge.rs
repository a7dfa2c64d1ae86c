//! The judgement of one attempt.

use otp::judge::{Guess, judge_guess};
use otp::lockout::{FOREVER, NEVER};
use otp::{Counter, Judgement, Policy, TimeStep, Verdict, judge};
use proptest::prelude::*;

const POLICY: Policy = Policy { max_attempts: 3, lockout: 10, lockout_max: 100, hard_limit: 10 };

fn step(n: i64) -> TimeStep {
    TimeStep::new(n)
}

#[test]
fn locked_changes_nothing_whatever_the_code_is() {
    for locked_until in [1001, FOREVER] {
        let counter = Counter { failures: 3, locked_until };
        for matched in [None, Some(step(5)), Some(step(50))] {
            let judgement = judge(counter, &POLICY, 1000, step(9), matched, None);
            assert_eq!(judgement, Judgement { verdict: Verdict::Locked, counter, burnt: step(9) });
        }
    }
}

#[test]
fn a_wrong_code_is_charged_and_burns_nothing() {
    let mut counter = Counter::CLEAR;
    for (failures, newly_locked) in [(1, false), (2, false), (3, true)] {
        let judgement = judge(counter, &POLICY, 1000, step(9), None, Some(step(4)));
        let locked_until = if newly_locked { 1010 } else { NEVER };
        let expected = Counter { failures, locked_until };
        let verdict = Verdict::Wrong { newly_locked };
        assert_eq!(judgement, Judgement { verdict, counter: expected, burnt: step(9) });
        counter = judgement.counter;
    }
    // A lock that has run out does not hide that the next one is new.
    let judgement = judge(counter, &POLICY, 1010, step(9), None, None);
    assert_eq!(judgement.verdict, Verdict::Wrong { newly_locked: true });
    assert_eq!(judgement.counter, Counter { failures: 4, locked_until: 1030 });
}

#[test]
fn a_code_counts_once() {
    let counter = Counter { failures: 2, locked_until: NEVER };
    let accepted = judge(counter, &POLICY, 0, step(9), Some(step(10)), None);
    assert_eq!(accepted, Judgement { verdict: Verdict::Accepted, counter: Counter::CLEAR, burnt: step(10) });
    for matched in [8, 9, 10] {
        let again = judge(counter, &POLICY, 0, accepted.burnt, Some(step(matched)), None);
        assert_eq!(again, Judgement { verdict: Verdict::Replayed, counter, burnt: step(10) });
    }
}

#[test]
fn the_floor_refuses_what_may_have_been_accepted_elsewhere() {
    let verdict = |matched, floor| {
        judge(Counter::CLEAR, &POLICY, 0, TimeStep::NONE, Some(step(matched)), Some(step(floor))).verdict
    };
    assert_eq!(verdict(9, 10), Verdict::Replayed);
    assert_eq!(verdict(10, 10), Verdict::Replayed);
    assert_eq!(verdict(11, 10), Verdict::Accepted);
}

#[test]
fn step_zero_and_the_steps_before_it_count() {
    for matched in [-1, 0, i64::MIN + 1] {
        let judgement = judge(Counter::CLEAR, &POLICY, 0, TimeStep::NONE, Some(step(matched)), None);
        assert_eq!((judgement.verdict, judgement.burnt), (Verdict::Accepted, step(matched)));
    }
}

#[test]
fn a_guess_is_judged_alike_whatever_it_is_a_guess_of() {
    let counter = Counter { failures: 2, locked_until: NEVER };
    let charged = Counter { failures: 3, locked_until: 10 };
    for (guess, expected) in [
        (Guess::NoMatch, (Verdict::Wrong { newly_locked: true }, charged)),
        (Guess::Used, (Verdict::Replayed, counter)),
        (Guess::Spent, (Verdict::Replayed, charged)),
        (Guess::Fresh, (Verdict::Accepted, Counter::CLEAR)),
    ] {
        assert_eq!(judge_guess(counter, &POLICY, 0, guess), expected);
        assert_eq!(judge_guess(charged, &POLICY, 9, guess), (Verdict::Locked, charged));
    }
}

proptest! {
    /// Many attempts one after the other: no step is accepted twice, nothing is free, no guess is heard while locked.
    #[test]
    fn any_history_keeps_the_promises(
        attempts in prop::collection::vec((0i64..30, prop::option::of(0i64..40)), 1..200),
        floor in prop::option::of(0i64..20),
    ) {
        let (mut counter, mut burnt, mut now) = (Counter::CLEAR, TimeStep::NONE, 0);
        let floor = floor.map(step);
        for (wait, matched) in attempts {
            now += wait;
            let before = (counter, burnt);
            let judgement = judge(counter, &POLICY, now, burnt, matched.map(step), floor);
            (counter, burnt) = (judgement.counter, judgement.burnt);
            match judgement.verdict {
                Verdict::Locked => prop_assert!(before == (counter, burnt) && counter.is_locked(now)),
                Verdict::Replayed => {
                    prop_assert!(before == (counter, burnt));
                    prop_assert!(matched.map(step) <= Some(burnt).max(floor));
                }
                Verdict::Wrong { newly_locked } => {
                    prop_assert!(matched.is_none() && burnt == before.1);
                    prop_assert_eq!(counter, before.0.charge(&POLICY, now));
                    prop_assert_eq!(newly_locked, counter.is_locked(now));
                }
                Verdict::Accepted => {
                    prop_assert!(burnt > before.1 && Some(burnt) > floor);
                    prop_assert_eq!((Some(burnt), counter), (matched.map(step), Counter::CLEAR));
                }
            }
        }
    }

    #[test]
    fn no_value_panics(
        failures in any::<i32>(), locked_until in any::<i64>(), now in any::<i64>(), burnt in any::<i64>(),
        matched in any::<Option<i64>>(), floor in any::<Option<i64>>(), max_attempts in any::<i32>(),
        lockout in any::<i64>(), lockout_max in any::<i64>(), hard_limit in any::<i32>(),
    ) {
        let policy = Policy { max_attempts, lockout, lockout_max, hard_limit };
        judge(Counter { failures, locked_until }, &policy, now, step(burnt), matched.map(step), floor.map(step));
    }
}
