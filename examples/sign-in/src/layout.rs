//! The frame of every page, and its fields. No scripts; a screen reader meets title, heading, error, form, in this order.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::session::Session;

/// A page. An error is in its title too, and comes before the form: what went wrong, and what to do.
pub fn page(status: StatusCode, title: &str, who: Option<&Session>, error: Option<&str>, content: Markup) -> Response {
    let body = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { @if error.is_some() { "Error: " } (title) " - Example" }
                link rel="stylesheet" href="/style.css";
            }
            body {
                @if let Some(session) = who.filter(|it| it.is_full()) {
                    header {
                        nav aria-label="Pages" {
                            a href="/" { "Devices" } " " a href="/recovery-codes" { "Recovery codes" } " "
                            @if session.desk { a href="/desk" { "Help desk" } }
                        }
                        form method="post" action="/sign-out" { button { "Sign out " (session.member) } }
                    }
                }
                main {
                    h1 { (title) }
                    @if let Some(text) = error { p #error role="alert" { (text) } }
                    (content)
                }
            }
        }
    };
    (status, body).into_response()
}

pub fn ok(title: &str, who: &Session, content: Markup) -> Response {
    page(StatusCode::OK, title, Some(who), None, content)
}

/// A page with a form that was refused, or was not sent yet.
pub fn form(title: &str, who: &Session, error: Option<&str>, content: Markup) -> Response {
    let status = if error.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    page(status, title, Some(who), error, content)
}

/// A page that has a sentence and nothing else.
pub fn message(status: StatusCode, title: &str, text: &str) -> Response {
    page(status, title, None, Some(text), html! { p { a href="/" { "To the first page" } } })
}

/// A field of a form, with its label.
#[derive(Default)]
pub struct Field<'a> {
    pub name: &'a str,
    pub label: &'a str,
    pub hint: &'a str,
    /// What browsers and password managers may fill in; empty: nothing.
    pub fills: &'a str,
    /// The cursor is here when the page opens.
    pub first: bool,
    /// The error of the page is about this field.
    pub wrong: bool,
}

impl Field<'_> {
    pub fn text(&self, value: &str) -> Markup {
        self.show("text", None, value)
    }

    pub fn password(&self) -> Markup {
        self.show("password", None, "")
    }

    /// Digits of an app, for which a phone shows its keypad.
    pub fn digits(&self) -> Markup {
        self.show("text", Some("numeric"), "")
    }

    fn show(&self, kind: &str, mode: Option<&str>, value: &str) -> Markup {
        let hint = format!("{}-hint", self.name);
        let fills = if self.fills.is_empty() { "off" } else { self.fills };
        html! {
            label for=(self.name) { (self.label) }
            p .hint id=(hint) { (self.hint) }
            input id=(self.name) name=(self.name) type=(kind) inputmode=[mode] value=(value) autocomplete=(fills) required
                autocapitalize="none" spellcheck="false" maxlength="200" autofocus[self.first]
                aria-describedby={ @if self.wrong { "error " } (hint) } aria-invalid=[self.wrong.then_some("true")];
        }
    }
}

/// The field of every form that changes a device: what was typed goes to pg_totp, which judges it.
pub fn proof(first: bool, wrong: bool) -> Markup {
    let hint = "A code works once. If you have used it to sign in, wait for the next one.";
    let label = "Code of a device that you have, or a recovery code";
    Field { name: "proof", label, hint, first, wrong, ..Field::default() }.text("")
}
