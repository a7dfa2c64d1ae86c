//! TOTP: the window.

use otp::{
    Algorithm, Code, Digits, Parameters, Period, Secret, TimeStep, Window, code_at_step, matching_pair, matching_step,
};
use proptest::prelude::*;
use subtle::ConstantTimeEq;

/// The last second of the year 9999.
const YEAR_9999: i64 = 253402300799;

fn seed() -> Secret {
    Secret::from_slice(b"12345678901234567890")
}

#[test]
fn of_two_steps_with_one_code_the_higher_counts() {
    // Found by search: both steps have the code 911617.
    let (low, high) = (TimeStep::new(910737), TimeStep::new(910738));
    let code = Code::parse("911617").ok().unwrap();
    for step in [low, high] {
        let computed = code_at_step(&seed(), Algorithm::Sha1, Digits::SIX, step);
        assert!(bool::from(computed.ct_eq(&code)));
    }
    let found = |step: i64, window| {
        matching_step(&seed(), Parameters::default(), &code, TimeStep::new(step), Window::new(window).unwrap())
    };
    assert_eq!(found(910736, 1), Some(low));
    assert_eq!(found(910737, 0), Some(low));
    assert_eq!(found(910737, 1), Some(high));
    assert_eq!(found(910738, 1), Some(high));
    assert_eq!(found(910736, 2), Some(high));
    assert_eq!(found(910740, 2), Some(high));
    assert_eq!(found(910741, 2), None);
}

#[test]
fn a_code_of_another_length_matches_nothing() {
    let step = TimeStep::at(59, Period::THIRTY);
    for n in 6..=8 {
        let code = code_at_step(&seed(), Algorithm::Sha1, Digits::new(n).unwrap(), step);
        for digits in 6..=8 {
            let parameters = Parameters { digits: Digits::new(digits).unwrap(), ..Parameters::default() };
            let found = matching_step(&seed(), parameters, &code, step, Window::new(2).unwrap());
            assert_eq!(found, (n == digits).then_some(step));
        }
    }
}

#[test]
fn step_zero_and_the_steps_before_it_match() {
    for step in -3..=3 {
        let code = code_at_step(&seed(), Algorithm::Sha1, Digits::SIX, TimeStep::new(step));
        let found = matching_step(&seed(), Parameters::default(), &code, TimeStep::new(step), Window::new(1).unwrap());
        assert_eq!(found, Some(TimeStep::new(step)));
    }
}

#[test]
fn the_ends_of_time_do_no_harm() {
    let code = Code::parse("123456").ok().unwrap();
    for time in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
        for period in [15, 120] {
            let parameters = Parameters { period: Period::new(period).unwrap(), ..Parameters::default() };
            matching_step(&seed(), parameters, &code, TimeStep::new(time), Window::new(2).unwrap());
            matching_pair(&seed(), parameters, [&code, &code], TimeStep::at(time, parameters.period), 60);
        }
    }
}

fn parameters() -> impl Strategy<Value = Parameters> {
    (prop::sample::select(Algorithm::ALL.to_vec()), 6..=8, 15..=120).prop_map(|(algorithm, digits, period)| {
        Parameters { algorithm, digits: Digits::new(digits).unwrap(), period: Period::new(period).unwrap() }
    })
}

proptest! {
    #[test]
    fn exactly_the_steps_of_the_window_match(
        key in prop::collection::vec(any::<u8>(), 1..=128), parameters in parameters(),
        time in prop_oneof![-YEAR_9999..=YEAR_9999, any::<i64>()], offset in -4i64..=4, reach in 0i64..=2,
    ) {
        let secret = Secret::from_slice(&key);
        let code_of = |step| code_at_step(&secret, parameters.algorithm, parameters.digits, TimeStep::new(step));
        let now = TimeStep::at(time, parameters.period).get();
        let code = code_of(now + offset);
        // The rule of RFC 6238 section 5.2, written as a search from above.
        let expected = (now - reach..=now + reach).rev().find(|step| code_of(*step).ct_eq(&code).into());
        let found = matching_step(&secret, parameters, &code, TimeStep::new(now), Window::new(reach as i32).unwrap());
        prop_assert_eq!(found.map(TimeStep::get), expected);
        prop_assert!(offset.abs() > reach || found >= Some(TimeStep::new(now + offset)));
    }
}

/// The codes of two steps of the seed, the first of them `step`.
fn pair_at(step: i64) -> [Code; 2] {
    [step, step + 1].map(|step| code_at_step(&seed(), Algorithm::Sha1, Digits::SIX, TimeStep::new(step)))
}

fn found_pair(codes: &[Code; 2], now: i64, reach: u8) -> Option<i64> {
    let [first, second] = codes;
    matching_pair(&seed(), Parameters::default(), [first, second], TimeStep::new(now), reach).map(TimeStep::get)
}

#[test]
fn a_pair_is_found_at_the_edges_of_its_reach_and_not_beyond() {
    for (first, found) in [(-21, false), (-20, true), (0, true), (19, true), (20, false)] {
        assert_eq!(found_pair(&pair_at(1000 + first), 1000, 20), found.then_some(1001 + first), "{first}");
    }
    assert_eq!(found_pair(&pair_at(1000), 1000, 0), None, "two steps do not fit into one");
}

#[test]
fn only_two_steps_in_a_row_in_their_order_are_a_pair() {
    let at = |step: i64| code_at_step(&seed(), Algorithm::Sha1, Digits::SIX, TimeStep::new(step));
    for (first, second) in [(1000, 1000), (1000, 1002), (1001, 1000), (1000, 999)] {
        assert_eq!(found_pair(&[at(first), at(second)], 1000, 20), None, "{first}, {second}");
    }
    // Found by search, as above: these two steps in a row have one code.
    assert_eq!(found_pair(&pair_at(910737), 910737, 20), Some(910738));
}

#[test]
fn a_pair_of_codes_of_another_length_matches_nothing() {
    let eight =
        [1000, 1001].map(|step| code_at_step(&seed(), Algorithm::Sha1, Digits::new(8).unwrap(), TimeStep::new(step)));
    assert_eq!(found_pair(&eight, 1000, 20), None);
}

#[test]
fn of_a_million_random_pairs_none_fits() {
    // Codes of steps far away are as good as random ones, and a million of them is the promise.
    let keyed: Vec<Code> = (0..1001).map(|step| pair_at(50_000 + 2 * step)).map(|[code, _]| code).collect();
    let now = TimeStep::new(1000);
    let mut found = 0;
    for first in &keyed[..1000] {
        for second in &keyed[..1000] {
            found += i32::from(matching_pair(&seed(), Parameters::default(), [first, second], now, 20).is_some());
        }
    }
    assert_eq!(found, 0);
}
