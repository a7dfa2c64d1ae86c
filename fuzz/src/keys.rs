//! Parsers of `crates/seal`: sealed secrets, wrapped data keys, master key files.

use std::sync::LazyLock;

use seal::{Context, DataKey, Fingerprint, KeyFileError, KeyId, MasterKey, MasterKeys, Rule};
use zeroize::Zeroizing;

/// The keys, the nonce and the place of the tests of `crates/seal`, so that the documented example is in the corpus.
static MASTER: LazyLock<MasterKey> =
    LazyLock::new(|| MasterKey::from_bytes(Zeroizing::new(std::array::from_fn(|n| n as u8))));
static DATA_KEY: LazyLock<DataKey> =
    LazyLock::new(|| DataKey::from_random(Zeroizing::new(std::array::from_fn(|n| 32 + n as u8))));
const ID: KeyId = KeyId::new(7);
const NONCE: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const SECRET: Context =
    Context::Secret { user_id: "alice", device: "phone", secret_id: 42, algorithm: "SHA1", digits: 6, period: 30 };
const RECOVERY_CODES: Context = Context::RecoveryCodes { user_id: "alice", set_id: 42, count: 10 };

/// Only the sealed bytes open, and only for this place; edited bytes do not.
pub fn sealed(data: &[u8]) -> bool {
    assert_eq!(seal::key_id(data).is_ok(), data.len() >= 5 + 12 + 16 && data[0] == 1);
    let mut accepted = false;
    for context in [SECRET, RECOVERY_CODES] {
        if let Ok(plaintext) = seal::open(&DATA_KEY, ID, &context, data) {
            let nonce = data[5..17].try_into().expect("12 bytes");
            assert_eq!(seal::seal(&DATA_KEY, ID, nonce, &context, &plaintext).as_deref(), Ok(data));
            assert!(!accepted, "what opens for one purpose opens for no other");
            accepted = true;
        }
    }

    let genuine = seal::seal(&DATA_KEY, ID, NONCE, &SECRET, b"12345678901234567890").expect("short enough");
    let edited = edit(&genuine, data);
    assert_eq!(seal::open(&DATA_KEY, ID, &SECRET, &edited).is_ok(), edited == genuine);
    if let Ok(other) = seal::key_id(&edited).map(KeyId::get).map(KeyId::new)
        && other != ID
    {
        assert!(seal::open(&DATA_KEY, other, &SECRET, &edited).is_err());
    }

    moved(data);
    accepted
}

/// What is sealed for a user and a device opens for no other, no matter where the border between their names is.
fn moved(names: &[u8]) {
    let names = String::from_utf8_lossy(&names[..names.len().min(8)]);
    let place =
        |user_id, device| Context::Secret { user_id, device, secret_id: 42, algorithm: "SHA1", digits: 6, period: 30 };
    let borders: Vec<_> = names.char_indices().map(|(border, _)| names.split_at(border)).collect();
    let Some(&(user_id, device)) = borders.get(borders.len() / 2) else { return };
    let sealed = seal::seal(&DATA_KEY, ID, NONCE, &place(user_id, device), b"1234567890").expect("short enough");
    for (other_user, _) in &borders {
        for (_, other_device) in &borders {
            let opens = seal::open(&DATA_KEY, ID, &place(other_user, other_device), &sealed).is_ok();
            assert_eq!(opens, (*other_user, *other_device) == (user_id, device));
        }
    }
}

/// A wrapped key that opens is what wrapping it gives, only under this master key and this number.
pub fn data_key(data: &[u8]) -> bool {
    let unwrapped = DataKey::unwrap(&MASTER, ID, data);
    let accepted = unwrapped.is_ok();
    if let Ok(key) = unwrapped {
        let nonce = data[1..13].try_into().expect("12 bytes");
        assert_eq!(key.wrap(&MASTER, ID, nonce).as_deref(), Ok(data));
        assert!(DataKey::unwrap(&MASTER, KeyId::new(8), data).is_err());
    }
    let genuine = DATA_KEY.wrap(&MASTER, ID, NONCE).expect("32 bytes are short enough");
    let edited = edit(&genuine, data);
    assert_eq!(DataKey::unwrap(&MASTER, ID, &edited).is_ok(), edited == genuine);
    accepted
}

/// Bytes after edits of three bytes each: what to do, where, with which byte.
fn edit(genuine: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    for &[what, place, byte] in edits.as_chunks().0.iter().take(8) {
        let place = usize::from(place).min(bytes.len().saturating_sub(1));
        match what % 5 {
            0 if !bytes.is_empty() => bytes[place] = byte,
            1 if !bytes.is_empty() => bytes[place] ^= byte,
            2 => bytes.truncate(place),
            3 => bytes.insert(place, byte),
            _ => bytes.push(byte),
        }
    }
    bytes
}

/// A key file is what the model reads: the same keys in the same order, or the same first line that breaks a rule.
pub fn key_file(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let names = |keys: Result<MasterKeys, KeyFileError>| {
        keys.map(|keys| keys.iter().map(MasterKey::fingerprint).collect::<Vec<_>>())
    };
    let file = names(MasterKeys::from_file_text(&text));
    assert_eq!(file, model_of_key_file(&text, false));
    let environment = names(MasterKeys::from_env_text(&text));
    assert_eq!(environment, model_of_key_file(&text, true));

    for error in [&file, &environment].into_iter().filter_map(|read| read.as_ref().err()) {
        assert_eq!(error.to_string(), format!("line {}: {}", error.line, error.rule.as_str()));
    }
    let Ok(keys) = MasterKeys::from_file_text(&text) else { return false };
    assert_eq!(Some(keys.current().fingerprint()), keys.iter().next().map(MasterKey::fingerprint));
    for key in keys.iter() {
        assert_eq!(keys.find(&key.fingerprint()).map(MasterKey::fingerprint), Some(key.fingerprint()));
    }
    true
}

/// Line by line: what is before `#`, without white space around it, is blank or a key.
fn model_of_key_file(text: &str, commas: bool) -> Result<Vec<Fingerprint>, KeyFileError> {
    let mut keys = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let line = line.split('#').next().unwrap_or("");
        for key in line.split(|c| commas && c == ',').map(str::trim_ascii).filter(|key| !key.is_empty()) {
            let error = |rule| KeyFileError { line: number + 1, rule };
            if !key.is_ascii() {
                return Err(error(Rule::NotAscii));
            }
            if key.len() != 64 || !key.chars().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error(Rule::Form));
            }
            let key = key.to_ascii_lowercase();
            if key == key[..1].repeat(64) {
                return Err(error(Rule::RepeatedDigit));
            }
            if keys.contains(&key) {
                return Err(error(Rule::Duplicate));
            }
            keys.push(key);
        }
    }
    let byte = |key: &str, n: usize| u8::from_str_radix(&key[2 * n..2 * n + 2], 16).expect("two hexadecimal digits");
    let name =
        |key: &String| MasterKey::from_bytes(Zeroizing::new(std::array::from_fn(|n| byte(key, n)))).fingerprint();
    if keys.is_empty() { Err(KeyFileError { line: 0, rule: Rule::NoKey }) } else { Ok(keys.iter().map(name).collect()) }
}

/// A fingerprint is 16 hexadecimal digits, shown in lower case.
pub fn fingerprint(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let expected = text.len() == 16 && text.chars().all(|digit| digit.is_ascii_hexdigit());
    let Ok(fingerprint) = Fingerprint::parse(&text) else {
        assert!(!expected);
        return false;
    };
    assert!(expected);
    assert_eq!(fingerprint.to_string(), text.to_ascii_lowercase());
    assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Ok(fingerprint));
    true
}
