//! Base32 of RFC 4648 section 6 over wiped buffers: strict output, lenient input.
//!
//! Owns the alphabet. Must never decide how many symbols a caller accepts.

use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

use crate::separators::is_separator;

/// Encodes as upper-case text without padding.
pub(crate) fn encode(bytes: &[u8]) -> Zeroizing<String> {
    // Allocates the whole length at once: growing would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(BASE32_NOPAD.encode_len(bytes.len())));
    BASE32_NOPAD.encode_append(bytes, &mut text);
    text
}

/// Reads the five-bit symbols of a text. Ignores case and separators. `None` for any other character.
pub(crate) fn symbols(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut symbols = Zeroizing::new(Vec::with_capacity(text.len()));
    for c in text.chars().filter(|c| !is_separator(*c)) {
        symbols.push(match c {
            'A'..='Z' => c as u8 - b'A',
            'a'..='z' => c as u8 - b'a',
            '2'..='7' => c as u8 - b'2' + 26,
            _ => return None,
        });
    }
    Some(symbols)
}

/// Joins symbols to whole bytes. Drops bits after the last whole byte.
///
/// Written here because the decoder of `data_encoding` refuses such bits unless its table is built at run time.
pub(crate) fn join(symbols: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(symbols.len() * 5 / 8));
    let (mut buffer, mut bits) = (0u16, 0u32);
    for symbol in symbols {
        // At most 7 + 5 bits are pending. The bits already taken are shifted out at the top.
        buffer = buffer << 5 | u16::from(*symbol);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
        }
    }
    bytes
}
