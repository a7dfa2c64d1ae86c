//! Parsers of `crates/otp`: base32, codes, otpauth URIs, recovery codes. And the window, which must agree with a plain search.

use otp::encoding::read_base32_only;
use otp::{
    Algorithm, Code, Digits, Encoding, OtpauthUri, Parameters, Period, ReadUri, RecoveryCode, RecoverySet, Secret,
    SecretError, TimeStep, Window, check_account, check_label, clean_account, clean_issuer, code_at_step,
    matching_step,
};
use subtle::ConstantTimeEq;

/// Dashes (property Dash) and format characters (category Cf) of Unicode, as its tables list them.
const DASHES: &str = "-\u{58a}\u{5be}\u{1400}\u{1806}\u{2010}\u{2011}\u{2012}\u{2013}\u{2014}\u{2015}\u{2053}\u{207b}\u{208b}\u{2212}\
    \u{2e17}\u{2e1a}\u{2e3a}\u{2e3b}\u{2e40}\u{2e5d}\u{301c}\u{3030}\u{30a0}\u{fe31}\u{fe32}\u{fe58}\u{fe63}\u{ff0d}\u{10d6e}\u{10ead}";
const FORMATS: [(u32, u32); 21] = [
    (0xad, 0xad),
    (0x600, 0x605),
    (0x61c, 0x61c),
    (0x6dd, 0x6dd),
    (0x70f, 0x70f),
    (0x890, 0x891),
    (0x8e2, 0x8e2),
    (0x180e, 0x180e),
    (0x200b, 0x200f),
    (0x202a, 0x202e),
    (0x2060, 0x2064),
    (0x2066, 0x206f),
    (0xfeff, 0xfeff),
    (0xfff9, 0xfffb),
    (0x110bd, 0x110bd),
    (0x110cd, 0x110cd),
    (0x13430, 0x1343f),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0001, 0xe0001),
    (0xe0020, 0xe007f),
];

fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || DASHES.contains(c)
        || FORMATS.iter().any(|(first, last)| (*first..=*last).contains(&(c as u32)))
}

const BASE32: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Five bits for each character of base32, as `0` and `1`, cut to whole bytes. `None` for any other character.
fn model_of_base32(text: &str) -> Option<(usize, Vec<u8>)> {
    let mut bits = String::new();
    for symbol in text.chars().filter(|symbol| !is_separator(*symbol)) {
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
    let padding = |c: char| c == '=' || is_separator(c);
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

/// A code is 6 to 8 ASCII digits between separators; it renders as those digits and equals only itself.
pub fn code(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let kept: String = text.chars().filter(|c| !is_separator(*c)).collect();
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
    let middle = TimeStep::new(now);
    let found = matching_step(&secret, parameters, &code, middle, window);
    assert_eq!(found.map(TimeStep::get), expected);

    let longer = Code::parse(&format!("0{}", *shown));
    let shorter = Code::parse(&shown[1..]);
    for other in [longer, shorter].into_iter().flatten() {
        assert_eq!(matching_step(&secret, parameters, &other, middle, window), None);
    }
    found.is_some()
}

/// A URI that is read has clean names, and writes a URI that reads back to the same. No name stops it: with the names left
/// out it reads the same secret and parameters.
pub fn uri(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Ok(read) = ReadUri::parse(&text) else { return false };
    assert!(text.len() <= 8192);
    assert!(read.account.as_ref().is_none_or(|name| clean_account(name).as_ref() == Some(name)));
    assert!(read.issuer.as_ref().is_none_or(|name| clean_issuer(name).as_ref() == Some(name)));
    assert!(!read.secret.as_bytes().is_empty());

    let account = read.account.unwrap_or_else(|| "user".to_owned());
    let written = OtpauthUri { issuer: read.issuer, account, secret: read.secret, parameters: read.parameters };
    let text = written.build();
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%:/?&=".contains(&byte)));
    let again = ReadUri::parse(&text).expect("a URI that we write is one that we read");
    assert_eq!((&again.issuer, again.account.as_ref()), (&written.issuer, Some(&written.account)));
    assert!(again.secret.same_as(&written.secret) && again.parameters == written.parameters);
    true
}

/// Cleaning never fails, gives a name that the rule accepts or none, and changes nothing a second time. Whatever a URI
/// has as its label, it is read.
pub fn names(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    for name in [text.as_ref(), text.split(':').next().unwrap_or("")] {
        let expected = (1..=256).contains(&name.len()) && !name.chars().any(|c| c == ':' || c.is_control());
        assert_eq!(check_label(name).is_ok(), expected);
        assert_eq!(check_account(name).is_ok(), expected && !name.starts_with(' '));
    }
    let (issuer, account) = (clean_issuer(&text), clean_account(&text));
    for name in issuer.iter().chain(&account) {
        assert!(check_label(name).is_ok());
        assert!(!name.chars().any(|c| "\u{61c}\u{200e}\u{200f}".contains(c) || ('\u{202a}'..='\u{202e}').contains(&c)));
        assert!(!name.chars().any(|c| ('\u{2066}'..='\u{2069}').contains(&c)));
    }
    if let Some(name) = &issuer {
        assert_eq!(clean_issuer(name).as_ref(), Some(name));
    }
    if let Some(name) = &account {
        assert!(check_account(name).is_ok());
        assert_eq!(clean_account(name).as_ref(), Some(name));
    }
    let label: String = text.chars().filter(|c| !"?/".contains(*c)).take(1000).collect();
    assert!(ReadUri::parse(&format!("otpauth://totp/{label}?secret={}", "A".repeat(32))).is_ok());
    account.is_some_and(|name| name == text)
}

/// Each encoding is read as the model reads it; what is surely base32 is base32, and neither of both cases nor a key in
/// hexadecimal digits.
pub fn encoding(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let read = |encoding: Encoding| encoding.read(&text).map(|secret| secret.as_bytes().to_vec());
    if text.len() > 1024 {
        for encoding in [Encoding::Base32, Encoding::Hex, Encoding::Base64, Encoding::Raw] {
            assert_eq!(read(encoding), Err(SecretError::TooLong));
        }
        return false;
    }
    assert_eq!(read(Encoding::Raw), Ok(text.as_bytes().to_vec()));

    let digits: Vec<char> = text.chars().filter(|c| !is_separator(*c)).collect();
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some((high.to_digit(16)? * 16 + low.to_digit(16)?) as u8),
        _ => None,
    });
    assert_eq!(read(Encoding::Hex).ok(), pairs.collect());

    if let Ok(bytes) = read(Encoding::Base64) {
        let symbols =
            text.chars().filter(|c| !c.is_whitespace() && (*c == '-' || !is_separator(*c)) && *c != '=').count();
        assert_eq!(bytes.len(), symbols * 3 / 4);
    }

    let letters = |test: fn(&char) -> bool| digits.iter().any(test);
    let both_cases = letters(char::is_ascii_lowercase) && letters(char::is_ascii_uppercase);
    let symbols: String = digits.iter().collect();
    let symbols = symbols.trim_end_matches('=');
    let hexadecimal = [32, 40, 64, 128].contains(&symbols.len()) && symbols.chars().all(|c| c.is_ascii_hexdigit());
    let surely = read_base32_only(&text).map(|secret| secret.as_bytes().to_vec());
    match read(Encoding::Base32) {
        Ok(_) if both_cases || hexadecimal => assert_eq!(surely, Err(SecretError::Ambiguous)),
        base32 => assert_eq!(surely, base32),
    }
    surely.is_ok()
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
