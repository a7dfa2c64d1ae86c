//! One page each. A user meets them in this order: password, code, enroll, recovery_codes, devices, device; the desk: desk, reset.

pub mod code;
pub mod desk;
pub mod device;
pub mod devices;
pub mod enroll;
pub mod password;
pub mod recovery_codes;
pub mod reset;

// What all of them use.
use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::App;
use crate::answer::{Answer, Failure, Judged};
use crate::layout::{Field, form, ok, page, proof};
use crate::session::{self, Session, Token, Visitor};

/// A device, in an address or a form.
#[derive(Deserialize)]
pub struct Named {
    #[serde(default)]
    device: String,
}
