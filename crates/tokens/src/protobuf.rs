//! The wire format of Protocol Buffers.
//!
//! Owns varints and lengths. Must never know what a field means. Written here because a generated reader copies secrets into
//! buffers that are not wiped, and has `Debug`.

/// The value of a field.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// An integer.
    Number(u64),
    /// Bytes, text, or a message.
    Bytes(&'a [u8]),
    /// A kind that is not needed.
    Other,
}

/// Calls `field` for each field of a message, with its number. `None` for a message that is cut off or malformed.
pub(crate) fn fields<'a>(mut message: &'a [u8], mut field: impl FnMut(u64, Value<'a>) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let tag = number(&mut message)?;
        let value = match tag & 7 {
            0 => Value::Number(number(&mut message)?),
            1 => take(&mut message, 8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(number(&mut message)?).ok()?;
                Value::Bytes(take(&mut message, length)?)
            }
            5 => take(&mut message, 4).map(|_| Value::Other)?,
            _ => return None,
        };
        field(tag >> 3, value)?;
    }
    Some(())
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = message.split_at_checked(length)?;
    *message = rest;
    Some(taken)
}

/// Reads a varint of at most ten bytes. Bits above the 64th are dropped.
fn number(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let [byte] = *take(message, 1)? else { return None };
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
