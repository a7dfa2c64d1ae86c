//! One page each. A user meets them in this order: password, code, enroll, recovery_codes, devices, device; the desk:
//! desk, unlock, reset.

pub mod code;
pub mod desk;
pub mod device;
pub mod devices;
pub mod enroll;
mod fresh;
pub mod password;
pub mod recovery_codes;
pub mod reset;
pub mod unlock;

// What all of them use.
use axum::Form;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::answer::{Answer, Failure, judged, refused_proof};
use crate::layout::{Field, Wrong, button_to, page, proof, table};
use crate::session::{Session, Token, Visitor};
use crate::{App, layout};

/// The user that the desk deals with, in an address.
type Member = Path<String>;

/// The fields of all forms and addresses. One that is missing is empty, and refused like one that is wrong.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Typed {
    user: String,
    password: String,
    code: String,
    device: String,
    name: String,
    proof: String,
    sure: String,
    new_codes: String,
    prefix: String,
    after: String,
}
