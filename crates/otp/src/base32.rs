//! Base32 of RFC 4648 section 6 over wiped buffers: strict out, forgiving in.
//!
//! Owns the alphabet and the separators people type. Must never decide how many symbols a caller accepts.

use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

/// Upper-case text without padding.
pub(crate) fn encode(bytes: &[u8]) -> Zeroizing<String> {
    // The whole length at once: growing would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(BASE32_NOPAD.encode_len(bytes.len())));
    BASE32_NOPAD.encode_append(bytes, &mut text);
    text
}

/// The five-bit symbols of a text. Case does not matter; white space and dashes are left out. `None` for any other character.
pub(crate) fn symbols(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut symbols = Zeroizing::new(Vec::with_capacity(text.len()));
    for byte in text.bytes().filter(|byte| !is_separator(*byte)) {
        symbols.push(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a',
            b'2'..=b'7' => byte - b'2' + 26,
            _ => return None,
        });
    }
    Some(symbols)
}

/// The whole bytes in a run of symbols. Bits after the last whole byte are dropped.
///
/// Written here because the decoder of `data_encoding` refuses such bits unless its table is built at run time.
pub(crate) fn join(symbols: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(symbols.len() * 5 / 8));
    let (mut buffer, mut bits) = (0u16, 0u32);
    for symbol in symbols {
        // At most 7 + 5 bits wait; the ones already taken leave at the top.
        buffer = buffer << 5 | u16::from(*symbol);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
        }
    }
    bytes
}

/// What people put between the characters.
const fn is_separator(byte: u8) -> bool {
    byte == b'-' || is_white_space(byte)
}

/// ASCII white space as C's `isspace` has it: Rust's own leaves out the vertical tab.
pub(crate) const fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}
