//! What people and programs put between the characters of a code, a recovery code, or base32, as Unicode has it.
//!
//! Owns the three kinds: white space, dashes, and format characters. Must never drop a letter, a digit, or a control
//! character that is no white space.

/// Returns whether the character is dropped wherever it is.
pub(crate) fn is_separator(c: char) -> bool {
    match c {
        ' ' | '-' => true,
        c if c.is_ascii() => c.is_ascii_whitespace() || c == '\x0b',
        c => c.is_whitespace() || is_dash(c) || is_format(c),
    }
}

/// Returns whether the character is white space or a format character: what base64, which has a dash, drops.
pub(crate) fn is_blank(c: char) -> bool {
    c != '-' && is_separator(c) && !is_dash(c)
}

/// Property Dash of Unicode 17.
const fn is_dash(c: char) -> bool {
    matches!(
        c,
        '-' | '\u{58a}' | '\u{5be}' | '\u{1400}' | '\u{1806}' | '\u{2010}'
            ..='\u{2015}'
                | '\u{2053}'
                | '\u{207b}'
                | '\u{208b}'
                | '\u{2212}'
                | '\u{2e17}'
                | '\u{2e1a}'
                | '\u{2e3a}'
                | '\u{2e3b}'
                | '\u{2e40}'
                | '\u{2e5d}'
                | '\u{301c}'
                | '\u{3030}'
                | '\u{30a0}'
                | '\u{fe31}'
                | '\u{fe32}'
                | '\u{fe58}'
                | '\u{fe63}'
                | '\u{ff0d}'
                | '\u{10d6e}'
                | '\u{10ead}'
    )
}

/// General category Cf (format) of Unicode 17: zero-width characters, the byte order mark, marks of direction.
const fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
            | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'
            | '\u{e0020}'..='\u{e007f}'
    )
}
