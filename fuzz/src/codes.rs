//! Parsers of `crates/otp`: base32, codes, otpauth URIs, recovery codes. And the window, which must agree with a plain search.

use otp::{
    Algorithm, Code, Digits, OtpauthUri, Parameters, Period, RecoveryCode, RecoverySet, Secret, SecretError, TimeStep,
    Window, check_account, check_label, code_at_step, matching_step,
};
use subtle::ConstantTimeEq;

/// White space as defined by C's `isspace`.
const WHITE_SPACE: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];

const BASE32: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Five bits for each character of base32, as `0` and `1`, cut to whole bytes. `None` for any other character.
fn model_of_base32(text: &str) -> Option<(usize, Vec<u8>)> {
    let mut bits = String::new();
    for symbol in text.chars().filter(|symbol| !WHITE_SPACE.contains(symbol) && *symbol != '-') {
        bits.push_str(&format!("{:05b}", BASE32.find(symbol.to_ascii_uppercase())?));
    }
    let bytes = bits.as_bytes().chunks_exact(8).map(|byte| {
        let byte = str::from_utf8(byte).expect("0 and 1 are ASCII");
        u8::from_str_radix(byte, 2).expect("eight of them are a byte")
    });
    Some((bits.len() / 5, bytes.collect()))
}

/// A secret is what the model reads; its base32 form is canonical and reads back to the same bytes.
pub fn base32(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let read = Secret::from_base32(&text).map(|secret| secret.as_bytes().to_vec());
    let padding = |c: char| c == '=' || WHITE_SPACE.contains(&c);
    let expected = match model_of_base32(text.trim_end_matches(padding)) {
        _ if text.len() > 1024 => Err(SecretError::TooLong),
        None => Err(SecretError::Symbol),
        Some((0, _)) => Err(SecretError::TooShort),
        Some((symbols, _)) if [1, 3, 6].contains(&(symbols % 8)) => Err(SecretError::Incomplete),
        Some((_, bytes)) => Ok(bytes),
    };
    assert_eq!(read, expected);
    let Ok(bytes) = read else { return false };

    let secret = Secret::from_slice(&bytes);
    let canonical = secret.to_base32();
    assert_eq!(canonical.len(), (bytes.len() * 8).div_ceil(5));
    assert!(canonical.chars().all(|symbol| BASE32.contains(symbol)));
    let forms = [canonical.to_string(), canonical.to_lowercase(), format!(" {}==\n", *canonical)];
    for other_form in forms.into_iter().filter(|form| form.len() <= 1024) {
        let again = Secret::from_base32(&other_form).expect("a secret's own form is accepted");
        assert!(again.same_as(&secret) && again.to_base32() == canonical);
    }
    assert_eq!(secret.check_length(false).is_ok(), (16..=128).contains(&bytes.len()));
    assert_eq!(secret.check_length(true).is_ok(), (10..=128).contains(&bytes.len()));
    true
}

/// A code is 6 to 8 ASCII digits without white space; it renders as those digits and equals only itself.
pub fn code(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let kept: String = text.chars().filter(|c| !WHITE_SPACE.contains(c)).collect();
    let expected = text.len() <= 256 && (6..=8).contains(&kept.len()) && kept.bytes().all(|byte| byte.is_ascii_digit());
    let Ok(code) = Code::parse(&text) else {
        assert!(!expected);
        return false;
    };
    assert!(expected);
    assert_eq!(*code.render(), kept);
    assert_eq!(code.len(), kept.len());
    for digits in [6, 7, 8] {
        assert_eq!(code.has(Digits::new(digits).expect("6 to 8")), digits as usize == kept.len());
    }
    let equals = |text: &str| Code::parse(text).is_ok_and(|other| other.ct_eq(&code).into());
    assert!(equals(&kept));
    for place in 0..kept.len() {
        let mut other = kept.clone().into_bytes();
        other[place] = if other[place] == b'9' { b'0' } else { other[place] + 1 };
        assert!(!equals(str::from_utf8(&other).expect("digits are ASCII")), "place {place} does not count");
    }
    assert!(!equals(&format!("{kept}0")) && !equals(&format!("0{kept}")) && !equals(&kept[1..]));
    true
}

/// The window finds the highest step with a code and no step outside of it: what a plain search finds.
///
/// Bytes: algorithm, digits, period, window, step of the code tried; 8 of the time; the secret.
pub fn window(data: &[u8]) -> bool {
    let Some(([algorithm, digits, seconds, window, tried, time @ ..], secret)) = data.split_first_chunk::<13>() else {
        return false;
    };
    let parameters = Parameters {
        algorithm: Algorithm::ALL[usize::from(algorithm % 3)],
        digits: Digits::new(6 + i32::from(digits % 3)).expect("6 to 8"),
        period: Period::new(15 + i32::from(seconds % 106)).expect("15 to 120"),
    };
    let window = Window::new(i32::from(window % 3)).expect("0 to 2");
    let time = i64::from_be_bytes(*time);
    let secret = Secret::from_slice(secret);
    let now = time.div_euclid(i64::from(parameters.period.get()));
    let at = |step| code_at_step(&secret, parameters.algorithm, parameters.digits, TimeStep::new(step)).render();

    let shown = at(now + i64::from(tried % 9) - 4);
    assert!(shown.len() == usize::from(parameters.digits.get()) && shown.bytes().all(|digit| digit.is_ascii_digit()));
    let reach = i64::from(window.get());
    let expected = (now - reach..=now + reach).rev().find(|step| at(*step) == shown);
    let code = Code::parse(&shown).expect("a code that we show is one that we take");
    let found = matching_step(&secret, parameters, &code, time, window);
    assert_eq!(found.map(TimeStep::get), expected);

    let longer = Code::parse(&format!("0{}", *shown));
    let shorter = Code::parse(&shown[1..]);
    for other in [longer, shorter].into_iter().flatten() {
        assert_eq!(matching_step(&secret, parameters, &other, time, window), None);
    }
    found.is_some()
}

/// A URI that is read has valid names, and writes a URI that reads back to the same.
pub fn uri(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    for name in [text.as_ref(), text.split(':').next().unwrap_or("")] {
        let expected = (1..=256).contains(&name.len()) && !name.chars().any(|c| c == ':' || c.is_control());
        assert_eq!(check_label(name).is_ok(), expected);
        assert_eq!(check_account(name).is_ok(), expected && !name.starts_with(' '));
    }
    let Ok(read) = OtpauthUri::parse(&text) else { return false };
    assert!(text.len() <= 8192);
    assert_eq!(check_label(&read.account), Ok(()));
    assert!(read.issuer.as_deref().is_none_or(|issuer| check_label(issuer).is_ok()));
    assert!(!read.secret.as_bytes().is_empty());

    let written = read.build();
    assert!(written.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%:/?&=".contains(&byte)));
    if check_account(&read.account).is_ok() {
        let again = OtpauthUri::parse(&written).expect("a URI that we write is one that we read");
        assert_eq!((&again.issuer, &again.account), (&read.issuer, &read.account));
        assert!(again.secret.same_as(&read.secret) && again.parameters == read.parameters);
        assert_eq!(*again.build(), *written);
    }
    true
}

/// A recovery code is 24 characters of base32; each form of it has one hash, and its neighbors have others.
pub fn recovery_code(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let expected = match model_of_base32(&text) {
        Some((24, bytes)) if text.len() <= 256 => Some(bytes),
        _ => None,
    };
    let read = RecoveryCode::parse(&text);
    assert_eq!(read.is_ok(), expected.is_some());
    let (Ok(code), Some(bytes)) = (read, expected) else { return false };

    let bytes: [u8; 15] = bytes.try_into().expect("24 characters are 15 bytes");
    let rendered = code.render();
    assert_eq!(rendered.len(), 27);
    assert!(rendered.split('-').all(|group| group.len() == 6 && group.chars().all(|symbol| BASE32.contains(symbol))));
    let hash = RecoveryCode::from_random(bytes).hash();
    assert_eq!(code.hash(), hash);
    for other_form in [rendered.to_string(), rendered.to_lowercase(), rendered.replace('-', " ")] {
        assert_eq!(RecoveryCode::parse(&other_form).map(|code| code.hash()), Ok(hash));
    }

    let mut neighbour = bytes;
    neighbour[usize::from(bytes[0]) % 15] ^= 1;
    let set = RecoverySet::from_codes(&[RecoveryCode::from_random(neighbour), code]).expect("two are a set");
    assert_eq!(set.find(&RecoveryCode::from_random(bytes)), Some(1));
    let set = RecoverySet::from_codes(&[RecoveryCode::from_random(neighbour)]).expect("one is a set");
    assert_eq!(set.find(&RecoveryCode::from_random(bytes)), None);
    true
}

/// A set is 1 to 20 hashes and nothing else, and is stored as it was read.
pub fn recovery_set(data: &[u8]) -> bool {
    let Ok(set) = RecoverySet::from_bytes(data) else {
        assert!(!data.len().is_multiple_of(32) || data.is_empty() || data.len() > 20 * 32);
        return false;
    };
    assert_eq!(set.to_bytes(), data);
    assert_eq!(set.len() * 32, data.len());
    assert!((1..=20).contains(&set.len()));
    // Nobody can find a code with these bytes as its hash.
    assert_eq!(set.find(&RecoveryCode::from_random([0; 15])), None);
    true
}

/// A text has a QR code in each form, of one size, or in none.
pub fn qr(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Ok(lines) = otp::qr::text(&text) else {
        assert!(text.len() > 1000);
        assert!(otp::qr::svg(&text).is_err() && otp::qr::png(&text, 1).is_err());
        return false;
    };
    let side = lines.lines().next().map_or(0, |line| line.chars().count());
    assert!((21 + 8..=177 + 8).contains(&side) && side % 4 == 1);
    assert!(lines.lines().all(|line| line.chars().count() == side) && lines.lines().count() == side.div_ceil(2));
    assert!(otp::qr::svg(&text).is_ok_and(|svg| svg.contains(&format!("viewBox=\"0 0 {side} {side}\""))));
    let scale = 1 + (text.len() % 4) as i32;
    let image = otp::qr::png(&text, scale).expect("what has one form has each");
    let width = (side as u32 * scale as u32).to_be_bytes();
    assert_eq!((&image[..8], &image[16..20], &image[20..24]), (&b"\x89PNG\r\n\x1a\n"[..], &width[..], &width[..]));
    for scale in [i32::MIN, -1, 0, 33, i32::MAX] {
        assert!(otp::qr::png(&text, scale).is_err());
    }
    true
}
