//! The frame of every page, and its fields. No scripts; a screen reader meets title, heading, error, form, in this
//! order.

use axum::http::{StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::session::Session;

/// What is wrong with a form that was sent.
pub struct Wrong {
    /// What went wrong, and what to do.
    pub text: String,
    /// The names of the fields that it is about. The cursor is in the first of them.
    pub about: &'static [&'static str],
    /// Seconds to wait.
    pub wait: Option<i32>,
}

impl Wrong {
    pub fn new(text: &str, about: &'static [&'static str]) -> Self {
        Self { text: text.to_owned(), about, wait: None }
    }
}

/// A page. An error is in its title and its status too, and comes before the form.
pub fn page<'a>(title: &str, who: impl Into<Option<&'a Session>>, wrong: &Option<Wrong>, content: Markup) -> Response {
    let body = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { @if wrong.is_some() { "Error: " } (title) " - Example" }
                link rel="stylesheet" href="/style.css";
            }
            body {
                @if let Some(session) = who.into().filter(|it| it.is_full()) {
                    header {
                        nav aria-label="Pages" {
                            a href="/" { "Devices" } " " a href="/recovery-codes" { "Recovery codes" } " "
                            @if session.sees_desk { a href="/desk" { "Help desk" } }
                        }
                        form method="post" action="/sign-out" { button { "Sign out " (session.member) } }
                    }
                }
                main {
                    h1 { (title) }
                    @if let Some(wrong) = wrong { p #error role="alert" { (wrong.text) } }
                    (content)
                }
            }
        }
    };
    match wrong.as_ref().map(|it| it.wait) {
        None => body.into_response(),
        Some(None) => (StatusCode::UNPROCESSABLE_ENTITY, body).into_response(),
        Some(Some(wait)) => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, wait.to_string())], body).into_response(),
    }
}

/// A page that has a sentence and nothing else.
pub fn message(status: StatusCode, title: &str, text: &str) -> Response {
    let way_on = html! { p { a href="/" { "To the first page" } } };
    (status, page(title, None, &Some(Wrong::new(text, &[])), way_on)).into_response()
}

/// A field of a form, with its label.
#[derive(Default)]
pub struct Field<'a> {
    pub name: &'a str,
    pub label: &'a str,
    pub hint: &'a str,
    /// What browsers and password managers fill in. Such as `one-time-code`, for which a phone shows its digits.
    pub fills: &'a str,
    pub value: &'a str,
    /// The cursor is here when the page opens.
    pub first: bool,
}

impl Field<'_> {
    pub fn show(&self, wrong: &Option<Wrong>) -> Markup {
        let about = wrong.as_ref().map_or(&[][..], |it| it.about);
        let first = about.first().map_or(self.first, |it| *it == self.name);
        let is_wrong = about.contains(&self.name);
        let kind = if self.fills == "current-password" { "password" } else { "text" };
        let digits = (self.fills == "one-time-code").then_some("numeric");
        let hint = format!("{}-hint", self.name);
        html! {
            label for=(self.name) { (self.label) }
            p .hint id=(hint) { (self.hint) }
            input id=(self.name) name=(self.name) type=(kind) inputmode=[digits] value=(self.value) required
                autocomplete=(if self.fills.is_empty() { "off" } else { self.fills }) autocapitalize="none"
                spellcheck="false" autofocus[first]
                aria-invalid=[is_wrong.then_some("true")] aria-describedby={ @if is_wrong { "error " } (hint) };
        }
    }
}

/// The field of every form that changes a device: what was typed goes to pg_totp, which judges it.
pub fn proof(first: bool, wrong: &Option<Wrong>) -> Markup {
    let hint = "A code works once. If you have used it to sign in, wait for the next one.";
    let label = "Code of a device that you have, or a recovery code";
    Field { name: "proof", label, hint, first, ..Field::default() }.show(wrong)
}

/// A button that leads to a page of a device.
pub fn button_to(page: &str, device: &str, text: &str) -> Markup {
    html! { form action=(page) { input type="hidden" name="device" value=(device); button { (text) " " (device) } } }
}

pub fn table(columns: [&str; 4], rows: Markup) -> Markup {
    html! { table { tr { @for name in columns { th scope="col" { (name) } } } (rows) } }
}

pub fn codes(codes: Vec<&str>) -> Markup {
    html! { ol .codes { @for code in codes { li { (code) } } } }
}
