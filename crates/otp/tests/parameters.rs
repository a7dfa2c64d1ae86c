//! Algorithms, digits, periods, windows and time steps.

use otp::{Algorithm, Digits, ParameterError, Parameters, Period, TimeStep, Window};
use proptest::prelude::*;

#[test]
fn algorithm_names_are_read_in_every_spelling_in_use() {
    for (algorithm, size) in Algorithm::ALL.into_iter().zip(["1", "256", "512"]) {
        for prefix in ["SHA", "SHA-", "HmacSHA", "HMAC-SHA", "HMAC-SHA-", "sha", "sha-", "hmacsha", "hmac-sha-"] {
            assert_eq!(Algorithm::parse(&format!("{prefix}{size}")), Ok(algorithm));
        }
        assert_eq!(algorithm.as_str(), format!("SHA{size}"));
        assert_eq!(Algorithm::parse(algorithm.as_str()), Ok(algorithm));
    }
    let huge = "SHA1".repeat(1 << 18);
    for other in ["", "1", "SHA", "SHA2", "SHA224", "SHA384", "SHA3-256", "SHA512/256", " SHA1", "SHA1\0", "MD5", &huge]
    {
        assert_eq!(Algorithm::parse(other), Err(ParameterError::Algorithm));
    }
    assert_eq!(Algorithm::ALL.map(Algorithm::secret_len), [20, 32, 64]);
}

#[test]
fn numbers_outside_their_range_are_refused() {
    for n in -300..=300 {
        assert_eq!(Digits::new(n).ok().map(|d| i32::from(d.get())), (6..=8).contains(&n).then_some(n));
        assert_eq!(Period::new(n).ok().map(|p| i32::from(p.get())), (15..=120).contains(&n).then_some(n));
        assert_eq!(Window::new(n).ok().map(|w| i32::from(w.get())), (0..=2).contains(&n).then_some(n));
    }
    // The numbers that would be in range if they were cut to 8 or 16 bits.
    for n in [i32::MIN, i32::MAX, 256 + 6, 65536 + 30, 65536 + 1, -65536 + 6] {
        assert_eq!(Digits::new(n), Err(ParameterError::Digits));
        assert_eq!(Period::new(n), Err(ParameterError::Period));
        assert_eq!(Window::new(n), Err(ParameterError::Window));
    }
    let Parameters { algorithm, digits, period } = Parameters::default();
    assert_eq!((algorithm, digits.get(), period.get(), Window::default().get()), (Algorithm::Sha1, 6, 30, 1));
}

#[test]
fn a_step_is_the_floor_of_time_over_period() {
    let step = |time| TimeStep::at(time, Period::THIRTY).get();
    assert_eq!([0, 29, 30, 59, 60].map(step), [0, 0, 1, 1, 2]);
    assert_eq!([-1, -30, -31].map(step), [-1, -1, -2]);
    assert_eq!(step(253402300799), 8446743359);
    assert!(TimeStep::NONE < TimeStep::at(i64::MIN, Period::new(15).unwrap()));
    assert_eq!(TimeStep::new(1).end(Period::THIRTY), 60);
    assert_eq!(TimeStep::new(-1).end(Period::THIRTY), 0);
    assert_eq!(TimeStep::new(i64::MAX).end(Period::THIRTY), i64::MAX);
    assert_eq!(TimeStep::NONE.end(Period::THIRTY), i64::MIN);
}

proptest! {
    #[test]
    fn a_step_holds_its_time(time in any::<i64>(), seconds in 15..=120) {
        let period = Period::new(seconds).unwrap();
        let step = i128::from(TimeStep::at(time, period).get());
        let (time, seconds) = (i128::from(time), i128::from(seconds));
        prop_assert!(step * seconds <= time && time < (step + 1) * seconds);
    }

    #[test]
    fn a_step_ends_where_the_next_begins(time in -1i64 << 60..1 << 60, seconds in 15..=120) {
        let period = Period::new(seconds).unwrap();
        let step = TimeStep::at(time, period);
        let end = step.end(period);
        prop_assert_eq!(TimeStep::at(end - 1, period), step);
        prop_assert_eq!(TimeStep::at(end, period).get(), step.get() + 1);
    }
}
