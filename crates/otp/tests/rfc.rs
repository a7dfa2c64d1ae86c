//! The published values of RFC 4226 appendix D and RFC 6238 appendix B.

use otp::{Algorithm, Digits, Parameters, Period, Secret, TimeStep, Window, code_at_step, matching_step};

/// The appendix of RFC 6238 cuts this text at the length of each hash.
const SEED: &[u8; 64] = b"1234567890123456789012345678901234567890123456789012345678901234";

#[test]
fn rfc_4226_appendix_d() {
    let decimal = [
        1284755224u32,
        1094287082,
        137359152,
        1726969429,
        1640338314,
        868254676,
        1918287922,
        82162583,
        673399871,
        645520489,
    ];
    let hotp = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"];
    let secret = Secret::from_slice(&SEED[..20]);
    for ((counter, decimal), hotp) in (0..).zip(decimal).zip(hotp) {
        for digits in 6..=8 {
            let code = code_at_step(&secret, Algorithm::Sha1, Digits::new(digits).unwrap(), TimeStep::new(counter));
            let expected = format!("{decimal:010}").split_off(10 - digits as usize);
            assert_eq!(*code.render(), expected, "counter {counter}, {digits} digits");
        }
        let code = code_at_step(&secret, Algorithm::Sha1, Digits::SIX, TimeStep::new(counter));
        assert_eq!(*code.render(), hotp);
    }
}

#[test]
fn rfc_6238_appendix_b() {
    let values = [
        (59, ["94287082", "46119246", "90693936"]),
        (1111111109, ["07081804", "68084774", "25091201"]),
        (1111111111, ["14050471", "67062674", "99943326"]),
        (1234567890, ["89005924", "91819424", "93441116"]),
        (2000000000, ["69279037", "90698825", "38618901"]),
        (20000000000, ["65353130", "77737706", "47863826"]),
    ];
    let mut checked = 0;
    for (time, codes) in values {
        for (algorithm, expected) in Algorithm::ALL.into_iter().zip(codes) {
            let secret = Secret::from_slice(&SEED[..algorithm.secret_len()]);
            let parameters = Parameters { algorithm, digits: Digits::new(8).unwrap(), period: Period::THIRTY };
            let step = TimeStep::at(time, parameters.period);
            let code = code_at_step(&secret, algorithm, parameters.digits, step);
            assert_eq!(*code.render(), expected, "{algorithm:?} at {time}");
            assert_eq!(matching_step(&secret, parameters, &code, step, Window::new(0).unwrap()), Some(step));
            checked += 1;
        }
    }
    assert_eq!(checked, 18);
}
