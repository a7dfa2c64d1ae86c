//! Whether the time of a comparison reveals what was compared: the method of dudect (Reparaz, Balasch, Verbauwhede 2017).
//!
//! Each subject has two classes of input that take turns at random; Welch's t shows whether their times differ, over all
//! samples and over those below some percentiles, since interrupts fall on both classes alike. |t| above 4.5 is a hint,
//! above 10 a leak. Prints one line per subject: name, samples, median nanoseconds of both classes, the largest |t|.
//!
//! Run by bench/constant_time.py. Argument: samples per subject.

use std::hint::black_box;
use std::time::Instant;

use otp::{Code, Parameters, RecoveryCode, RecoverySet, Secret, TimeStep, Window, code_at_step, matching_step};
use subtle::ConstantTimeEq;

const NOW: i64 = 1_893_499_200;
const PERCENTILES: [f64; 7] = [1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5];

fn main() {
    let samples = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(200_000);
    let secret = Secret::from_slice(b"12345678901234567890");
    let parameters = Parameters::default();
    let at = |offset| {
        let step = TimeStep::new(TimeStep::at(NOW, parameters.period).get() + offset);
        code_at_step(&secret, parameters.algorithm, parameters.digits, step).render().to_string()
    };
    let changed = |place: usize| {
        let mut digits = at(0).into_bytes();
        digits[place] = b'0' + (digits[place] - b'0' + 1) % 10;
        String::from_utf8(digits).expect("digits are ASCII")
    };
    let code = |text: &str| Code::parse(text).expect("six digits");
    let search = |code: &Code| {
        black_box(matching_step(&secret, parameters, code, TimeStep::at(NOW, parameters.period), Window::default()));
    };
    let codes = |name: &str, a: String, b: String| measure(name, samples, [code(&a), code(&b)], search);

    codes("code: same input twice (noise)", changed(0), changed(0));
    codes("code: wrong in the first digit, in the last", changed(0), changed(5));
    codes("code: wrong, right", changed(0), at(0));
    codes("code: right in the lowest step of the window, in the highest", at(-1), at(1));

    let right = code(&at(0));
    let compare = |code: &Code| {
        black_box(right.ct_eq(code));
    };
    let inputs = [changed(0), changed(5)].map(|text| code(&text));
    measure("code, the comparison alone: wrong in the first digit, in the last", samples, inputs, compare);

    let recovery_code = |n: u8| RecoveryCode::from_random([n; 15]);
    let set = RecoverySet::from_codes(&std::array::from_fn::<_, 20, _>(|n| recovery_code(n as u8))).expect("20 codes");
    let find = |code: &RecoveryCode| {
        black_box(set.find(code));
    };
    measure("recovery code: the first of 20, the last", samples, [0, 19].map(recovery_code), find);
    measure("recovery code: one of the set, no one", samples, [7, 200].map(recovery_code), find);

    let differs = |place: usize| {
        let mut bytes = *b"12345678901234567890";
        bytes[place] ^= 1;
        Secret::from_slice(&bytes)
    };
    let same = |other: &Secret| {
        black_box(secret.same_as(other));
    };
    measure("secret: differs in the first byte, in the last", samples, [differs(0), differs(19)], same);

    // What a comparison with an early exit looks like to this measurement.
    let naive = |other: &Secret| {
        black_box(naive_equal(secret.as_bytes(), other.as_bytes()));
    };
    measure("early exit: differs in the first byte, in the last", samples, [differs(0), differs(19)], naive);
}

#[inline(never)]
fn naive_equal(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).all(|(a, b)| black_box(a) == black_box(b))
}

fn measure<T>(name: &str, samples: usize, inputs: [T; 2], run: impl Fn(&T)) {
    let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..samples + samples / 10 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let class = (random >> 33) as usize & 1;
        let input = black_box(&inputs[class]);
        let start = Instant::now();
        run(input);
        let time = start.elapsed().as_nanos() as f64;
        if n >= samples / 10 {
            times[class].push(time); // the first ones warm up
        }
    }
    let mut all = times.concat();
    all.sort_by(f64::total_cmp);
    let t = PERCENTILES.map(|percentile| {
        let limit = all[((all.len() - 1) as f64 * percentile) as usize];
        let [a, b] = [0, 1].map(|class: usize| moments(times[class].iter().copied().filter(|time| *time <= limit)));
        welch(a, b).abs()
    });
    let [a, b] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!("{name}\t{samples}\t{a:.0}\t{b:.0}\t{:.1}", t.into_iter().fold(0.0, f64::max));
}

/// Number, mean and variance.
fn moments(times: impl Iterator<Item = f64> + Clone) -> (f64, f64, f64) {
    let count = times.clone().count() as f64;
    let mean = times.clone().sum::<f64>() / count;
    (count, mean, times.map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0))
}

fn welch((n, mean, variance): (f64, f64, f64), (m, other, spread): (f64, f64, f64)) -> f64 {
    let error = (variance / n + spread / m).sqrt();
    if error > 0.0 { (mean - other) / error } else { 0.0 }
}
