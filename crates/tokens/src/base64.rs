//! Base64 of RFC 4648 section 4, over wiped buffers.
//!
//! Owns what is dropped before it is decoded. Must never leave a copy behind.

use data_encoding::BASE64_NOPAD;
use zeroize::Zeroizing;

/// Decodes a text. ASCII white space anywhere and padding at the end do not matter. `None` for any other character, or a part
/// of a byte.
pub(crate) fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let symbols = text.bytes().filter(|byte| !byte.is_ascii_whitespace());
    let mut kept = Zeroizing::new(Vec::with_capacity(text.len()));
    kept.extend(symbols);
    while kept.last() == Some(&b'=') {
        kept.pop();
    }
    let mut bytes = Zeroizing::new(vec![0; BASE64_NOPAD.decode_len(kept.len()).ok()?]);
    let length = BASE64_NOPAD.decode_mut(&kept, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}
