//! The lockout policy. Times are microseconds.

use otp::lockout::{CLOCK_DOUBT, FOREVER, NEVER};
use otp::{Counter, Digits, Policy};
use proptest::prelude::*;

const SECOND: i64 = 1_000_000;

/// The defaults of pg_totp.
const DEFAULT: Policy = Policy { max_attempts: 5, lockout: 30 * SECOND, lockout_max: 3600 * SECOND, hard_limit: 100 };

/// A counter after so many failures, and the length of the lock that the last one set.
fn after(failures: i32, policy: &Policy, now: i64) -> (Counter, Option<i64>) {
    let counter = Counter { failures: failures - 1, locked_until: NEVER }.charge(policy, now);
    (counter, (counter.locked_until != NEVER).then_some(counter.locked_until.saturating_sub(now)))
}

#[test]
fn the_default_policy_failure_by_failure() {
    let now = 1_700_000_000 * SECOND;
    for failures in 1..=4 {
        assert_eq!(after(failures, &DEFAULT, now), (Counter { failures, locked_until: NEVER }, None));
    }
    for (failures, seconds) in (5..).zip([30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]) {
        assert_eq!(after(failures, &DEFAULT, now).1, Some(seconds * SECOND), "failure {failures}");
    }
    assert_eq!(after(99, &DEFAULT, now).1, Some(3600 * SECOND));
    for failures in [100, 101, i32::MAX] {
        assert_eq!(after(failures, &DEFAULT, now).0.locked_until, FOREVER);
    }
}

#[test]
fn the_odds_of_guessing_are_at_most_one_in_a_thousand() {
    let limit = |codes, digits| DEFAULT.within_odds(codes, Digits::new(digits).unwrap()).hard_limit;
    // One secret with a window of one step; then two, three, ten, twenty with two staged each and a window of two.
    assert_eq!([3, 6, 9, 30, 200].map(|codes| limit(codes, 6)), [100, 100, 100, 33, 5]);
    assert_eq!([11, 100, 101, 1000].map(|codes| limit(codes, 7)), [100, 100, 99, 10]);
    assert_eq!(limit(200, 8), 100);
    for codes in 1..=1000 {
        assert!(codes * limit(codes as usize, 6) <= 1000, "{codes} codes");
    }
    assert_eq!([0, usize::MAX].map(|codes| limit(codes, 6)), [100, 1]);
    assert_eq!(Policy { hard_limit: 7, ..DEFAULT }.within_odds(30, Digits::SIX).hard_limit, 7);
}

#[test]
fn a_hundred_guesses_take_days_and_are_the_last() {
    let (mut counter, mut now) = (Counter::CLEAR, 0);
    let mut guesses = 0;
    while counter.locked_until != FOREVER {
        now = counter.retry_at(now).unwrap_or(now);
        counter = counter.charge(&DEFAULT, now);
        guesses += 1;
    }
    assert_eq!((guesses, counter.failures), (100, 100));
    // 30 s + 60 s + … + 1920 s, then an hour each.
    assert_eq!(now, (30 * 127 + 3600 * (99 - 11)) * SECOND);
    assert!(counter.is_locked(i64::MAX));
}

#[test]
fn a_lock_runs_out_at_its_microsecond() {
    let counter = Counter { failures: 5, locked_until: 1000 };
    assert!(counter.is_locked(999) && !counter.is_locked(1000));
    assert_eq!((counter.retry_at(999), counter.retry_at(1000)), (Some(1000), None));
    assert_eq!((counter.attempts_left(&DEFAULT, 999), counter.attempts_left(&DEFAULT, 1000)), (0, 1));
    assert!(!Counter::CLEAR.is_locked(NEVER));
    assert!(Counter { failures: 0, locked_until: FOREVER }.is_locked(FOREVER));
}

#[test]
fn attempts_left_counts_down_to_the_lock() {
    let mut counter = Counter::CLEAR;
    for left in [5, 4, 3, 2, 1, 0] {
        assert_eq!(counter.attempts_left(&DEFAULT, 0), left);
        counter = counter.charge(&DEFAULT, 0);
    }
    // The hard limit may come first.
    let policy = Policy { hard_limit: 3, ..DEFAULT };
    assert_eq!(Counter::CLEAR.attempts_left(&policy, 0), 3);
    let (last, _) = after(3, &policy, 0);
    assert_eq!((last.locked_until, last.retry_at(0), last.attempts_left(&policy, 0)), (FOREVER, None, 0));
}

#[test]
fn values_outside_their_range_lock_rather_than_open() {
    for n in [0, -1, i32::MIN] {
        let policy = Policy { hard_limit: n, ..DEFAULT };
        assert_eq!(Counter::CLEAR.charge(&policy, 0).locked_until, FOREVER);
        assert_eq!(Counter::CLEAR.attempts_left(&policy, 0), 1);
        let policy = Policy { max_attempts: n, ..DEFAULT };
        assert_eq!(Counter::CLEAR.charge(&policy, 0).locked_until, DEFAULT.lockout);
        // A counter below zero is as good as a clear one.
        let counter = Counter { failures: n, locked_until: NEVER };
        assert_eq!(counter.charge(&DEFAULT, 0), Counter { failures: 1, locked_until: NEVER });
        assert_eq!(counter.attempts_left(&DEFAULT, 0), 5);
    }
    for lockout in [-1, i64::MIN] {
        let policy = Policy { lockout, lockout_max: lockout, ..DEFAULT };
        assert_eq!(after(5, &policy, 7).0.locked_until, 7);
    }
    // Less than the first lock is no cap.
    let policy = Policy { lockout_max: 1, ..DEFAULT };
    assert_eq!(after(9, &policy, 0).1, Some(DEFAULT.lockout));
}

#[test]
fn a_lock_that_no_right_clock_can_have_set_is_none() {
    let counter = Counter { failures: 7, locked_until: DEFAULT.lockout_max + CLOCK_DOUBT + 1 };
    assert_eq!(counter.believed(&DEFAULT, 0), Counter { failures: 7, locked_until: NEVER });
    assert_eq!(counter.believed(&DEFAULT, 1), counter);
    let forever = Counter { failures: 100, locked_until: FOREVER };
    assert_eq!(forever.believed(&DEFAULT, NEVER), forever);
}

fn policy() -> impl Strategy<Value = Policy> {
    let time = || prop_oneof![0..=100_000 * SECOND, any::<i64>()];
    (prop_oneof![-2..=20, any::<i32>()], time(), time(), prop_oneof![-2..=120, any::<i32>()]).prop_map(
        |(max_attempts, lockout, lockout_max, hard_limit)| Policy { max_attempts, lockout, lockout_max, hard_limit },
    )
}

fn counter() -> impl Strategy<Value = Counter> {
    (prop_oneof![0..=120, any::<i32>()], prop_oneof![Just(NEVER), Just(FOREVER), any::<i64>()])
        .prop_map(|(failures, locked_until)| Counter { failures, locked_until })
}

proptest! {
    #[test]
    fn a_charge_follows_the_rule(policy in policy(), counter in counter(), now in any::<i64>()) {
        let charged = counter.charge(&policy, now);
        // The rule of the design in numbers that cannot overflow.
        let failures = (i128::from(counter.failures).max(0) + 1).min(i128::from(i32::MAX));
        let first = i128::from(policy.max_attempts).max(1);
        let lock = if failures >= i128::from(policy.hard_limit) {
            i128::from(FOREVER)
        } else if failures >= first {
            let lockout = i128::from(policy.lockout).max(0);
            let doubled = lockout << (failures - first).min(64);
            i128::from(now) + doubled.min(lockout.max(i128::from(policy.lockout_max)))
        } else {
            i128::from(NEVER)
        };
        let expected = lock.min(i128::from(FOREVER)).max(i128::from(counter.locked_until));
        prop_assert_eq!(i128::from(charged.failures), failures);
        prop_assert_eq!(i128::from(charged.locked_until), expected);
    }

    #[test]
    fn a_charge_never_helps(policy in policy(), counter in counter(), now in any::<i64>()) {
        let charged = counter.charge(&policy, now);
        prop_assert!(charged.failures >= counter.failures);
        prop_assert!(charged.locked_until >= counter.locked_until);
        prop_assert!(charged.is_locked(now) || !counter.is_locked(now));
    }

    #[test]
    fn a_lock_just_set_is_believed_also_where_now_is_older(
        policy in policy(), failures in 1..120, now in 0..=i64::MAX / 4, older in 0..=CLOCK_DOUBT,
    ) {
        let (counter, _) = after(failures, &policy, now);
        prop_assert_eq!(counter.believed(&policy, now - older), counter);
    }

    #[test]
    fn nobody_waits_for_longer_than_the_longest_lock(policy in policy(), counter in counter(), now in any::<i64>()) {
        let believed = counter.believed(&policy, now);
        prop_assert_eq!(believed.failures, counter.failures);
        let longest = i128::from(policy.lockout.max(policy.lockout_max).max(0)) + i128::from(CLOCK_DOUBT);
        if let Some(end) = believed.retry_at(now) {
            prop_assert!(i128::from(end) - i128::from(now) <= longest);
            prop_assert_eq!(believed, counter);
        }
    }

    #[test]
    fn more_failures_never_lock_for_less(policy in policy(), failures in 0..i32::MAX - 1, now in any::<i64>()) {
        let (fewer, _) = after(failures, &policy, now);
        let (more, _) = after(failures + 1, &policy, now);
        prop_assert!(more.locked_until >= fewer.locked_until);
    }

    #[test]
    fn attempts_left_are_the_guesses_to_the_next_lock(
        max_attempts in 1..=20, hard_limit in 1..=100, failures in 0..=120, lockout in 1..=SECOND,
    ) {
        let policy = Policy { max_attempts, lockout, lockout_max: lockout, hard_limit };
        let mut counter = Counter { failures, locked_until: NEVER };
        for left in (1..=counter.attempts_left(&policy, 0)).rev() {
            prop_assert_eq!(counter.attempts_left(&policy, 0), left);
            counter = counter.charge(&policy, 0);
        }
        prop_assert_eq!(counter.attempts_left(&policy, 0), 0);
    }

    #[test]
    fn locked_no_attempts_and_a_time_to_retry_go_together(
        policy in policy(), counter in counter(), now in any::<i64>(),
    ) {
        let locked = counter.is_locked(now);
        prop_assert_eq!(counter.attempts_left(&policy, now) == 0, locked);
        let ends = locked && counter.locked_until != FOREVER;
        prop_assert_eq!(counter.retry_at(now), ends.then_some(counter.locked_until));
    }
}
