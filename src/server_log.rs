//! Lines in the server log. They survive a ROLLBACK, which the audit rows do not.
//!
//! One line per event, `totp: event=… key="value" …`. The statement and its context are left out, since the statement
//! has the code. The client gets nothing. Values are quoted, and everything but printable ASCII is escaped, so that no
//! user id can forge a line.
//!
//! Owns the form of a line. Must never write the statement, or send anything to the client.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Write;

use pgrx::pg_sys;

/// Puts a value in double quotes. Escapes quotes, backslashes, and everything but printable ASCII.
pub fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

/// A log line under construction, or nothing if `log_min_messages` leaves such lines out.
pub struct Line(Option<String>);

impl Line {
    /// Begins the line of an event.
    pub fn new(event: &str) -> Self {
        // SAFETY: a look at settings.
        let is_wanted = unsafe { pg_sys::message_level_is_interesting(pg_sys::LOG_SERVER_ONLY as c_int) };
        Self(is_wanted.then(|| format!("totp: event={event}")))
    }

    /// Returns whether it will be written.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Adds a quoted value.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.add(|line| write!(line, " {key}={}", quoted(value)))
    }

    /// Adds a number.
    pub fn number(self, key: &str, value: i64) -> Self {
        self.add(|line| write!(line, " {key}={value}"))
    }

    /// Adds bytes as hexadecimal digits.
    pub fn hex(self, key: &str, bytes: &[u8]) -> Self {
        self.add(|line| {
            write!(line, " {key}=")?;
            bytes.iter().try_for_each(|byte| write!(line, "{byte:02x}"))
        })
    }

    /// Adds a boolean.
    pub fn flag(self, key: &str, value: bool) -> Self {
        self.add(|line| write!(line, " {key}={value}"))
    }

    fn add(mut self, write: impl FnOnce(&mut String) -> std::fmt::Result) -> Self {
        // Writing to a String cannot fail.
        let _ = self.0.as_mut().map(write);
        self
    }

    /// Writes the line to the server log, and only there.
    pub fn write(self) {
        if let Some(text) = self.0.and_then(|line| CString::new(line).ok()) {
            write_server_only(&text);
        }
    }
}

unsafe extern "C-unwind" {
    // Left out of pgrx's bindings, which offer no way to hide the statement.
    fn errfinish(filename: *const c_char, lineno: c_int, funcname: *const c_char);
}

fn write_server_only(text: &CStr) {
    let _without = WithoutContext::begin();
    // SAFETY: the calls of C's ereport(), in their order: errstart says whether the line is wanted, errfinish ends
    // it. The text is passed as an argument of a constant format.
    unsafe {
        if pg_sys::errstart_cold(pg_sys::LOG_SERVER_ONLY as c_int, std::ptr::null()) {
            pg_sys::errmsg_internal(c"%s".as_ptr(), text.as_ptr());
            pg_sys::errhidestmt(true);
            pg_sys::ffi::pg_guard_ffi_boundary(|| errfinish(c"server_log.rs".as_ptr(), 0, c"totp".as_ptr()));
        }
    }
}

/// While it lives, nobody adds where a message comes from. `errhidecontext` would leave it out after it was written.
struct WithoutContext(*mut pg_sys::ErrorContextCallback);

impl WithoutContext {
    fn begin() -> Self {
        // SAFETY: a global of this process, which has one thread. Who catches an error gives it the value of its own PG_TRY.
        unsafe {
            let stack = pg_sys::error_context_stack;
            pg_sys::error_context_stack = std::ptr::null_mut();
            Self(stack)
        }
    }
}

impl Drop for WithoutContext {
    fn drop(&mut self) {
        // SAFETY: as above. What the stack names lives as long as its own callers, who are above this one.
        unsafe { pg_sys::error_context_stack = self.0 };
    }
}
