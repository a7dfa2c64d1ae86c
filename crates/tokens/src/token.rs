//! One token of a document.
//!
//! Owns what is read of it, and which problems leave its secret usable. Must never show a secret: no `Debug`.

use std::collections::BTreeMap;

use otp::{Algorithm, Digits, ParameterError, Parameters, Period, Secret, SecretError, check_account};

use crate::error::ReadError;
use crate::problem::Problem;

/// Most tokens of a document: what a row costs in memory is more than the few bytes that can make one.
pub const MAX_TOKENS: usize = 200_000;
/// Longest id of a user in bytes.
const MAX_USER: usize = 256;
/// Largest drift in steps.
const MAX_DRIFT: i64 = 60;

/// A token, as far as it could be read.
///
/// It has a secret exactly if it can be imported. One with a secret and a problem needs a decision first.
#[derive(Default)]
pub struct Token {
    /// Its serial number.
    pub serial: Option<String>,
    /// Who made it, or who the account is with.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Its user, as the document calls the user.
    pub user_id: Option<String>,
    /// The shared secret. There are parameters if it is there.
    pub secret: Option<Secret>,
    /// Algorithm, digits, and period.
    pub parameters: Option<Parameters>,
    /// How many steps its clock is fast; negative if it is slow.
    pub drift: i32,
    /// When it expires, in Unix seconds.
    pub expires_at: Option<i64>,
    /// What is wrong with it.
    pub problem: Option<Problem>,
}

impl Token {
    /// Makes a token that is only a problem.
    pub(crate) fn bad(problem: Problem) -> Token {
        Token { problem: Some(problem), ..Token::default() }
    }

    /// Keeps the first problem.
    pub(crate) fn note(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
    }

    /// Keeps the result of reading the rest of the token. A problem leaves no secret.
    pub(crate) fn settle(&mut self, read: Result<(), Problem>) {
        if let Err(problem) = read {
            self.problem = Some(problem);
            self.secret = None;
        }
    }

    /// Takes the secret, if its length is right. A weak one is noted.
    pub(crate) fn take_secret(&mut self, secret: Secret) -> Result<(), Problem> {
        match secret.check_length(false) {
            Ok(()) => {}
            Err(SecretError::Weak) => self.note(SecretError::Weak.into()),
            Err(error) => return Err(error.into()),
        }
        self.secret = Some(secret);
        Ok(())
    }

    /// Takes the drift.
    pub(crate) fn take_drift(&mut self, steps: i64) -> Result<(), Problem> {
        self.drift = i32::try_from(steps).ok().filter(|_| steps.abs() <= MAX_DRIFT).ok_or(Problem::Drift)?;
        Ok(())
    }

    /// Reads a serial number, a manufacturer, or a model. Empty text is none.
    pub(crate) fn label(&mut self, text: Option<&str>) -> Option<String> {
        let text = text.map(str::trim).filter(|text| !text.is_empty())?;
        if check_account(text).is_err() {
            self.note(Problem::Name);
            return None;
        }
        Some(text.to_owned())
    }

    /// Reads the id of a user. Empty text is none.
    pub(crate) fn user(&mut self, text: Option<&str>) -> Option<String> {
        let text = text.map(str::trim).filter(|text| !text.is_empty())?;
        if text.len() > MAX_USER || text.contains(char::is_control) {
            self.note(Problem::Name);
            return None;
        }
        Some(text.to_owned())
    }
}

/// Makes parameters of numbers that may not be there.
pub(crate) fn parameters(
    algorithm: Algorithm,
    digits: Option<i64>,
    period: Option<i64>,
) -> Result<Parameters, ParameterError> {
    let number = |number: i64| i32::try_from(number).unwrap_or(-1); // outside every range
    Ok(Parameters {
        algorithm,
        digits: digits.map_or(Ok(Digits::SIX), |digits| Digits::new(number(digits)))?,
        period: period.map_or(Ok(Period::THIRTY), |period| Period::new(number(period)))?,
    })
}

/// The tokens of a document read so far.
pub(crate) struct Tokens<'a> {
    read: Vec<Token>,
    between: &'a mut dyn FnMut(),
}

impl Tokens<'_> {
    /// Begins. `between` is called before each token.
    pub(crate) fn new(between: &mut dyn FnMut()) -> Tokens<'_> {
        Tokens { read: Vec::new(), between }
    }

    /// Lets the caller stop, by unwinding.
    pub(crate) fn between(&mut self) {
        (self.between)();
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, token: Token) -> Result<(), ReadError> {
        if self.read.len() == MAX_TOKENS {
            return Err(ReadError::TooManyTokens);
        }
        self.read.push(token);
        Ok(())
    }

    /// Returns them. Notes serial numbers that several have: who imports by serial number would replace one by the other.
    pub(crate) fn finish(mut self) -> Vec<Token> {
        let mut seen = BTreeMap::new();
        let mut twice = Vec::new();
        for (place, token) in self.read.iter().enumerate().filter(|(_, token)| token.secret.is_some()) {
            let Some(serial) = &token.serial else { continue };
            if let Some(before) = seen.insert(serial, place) {
                twice.extend([before, place]);
            }
        }
        for place in twice {
            self.read[place].note(Problem::SerialTwice);
        }
        self.read
    }
}
