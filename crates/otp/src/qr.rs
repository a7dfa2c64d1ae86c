//! QR codes (ISO/IEC 18004) as SVG, PNG and text.
//!
//! Owns the drawing. Must never keep what it draws.
//!
//! The error correction is at least medium, and low only if the text is too long for that. It is raised if the size of the
//! code stays the same. The quiet zone has 4 modules (ISO/IEC 18004 section 6.3.8).

use std::iter::repeat_n;

use qrcodegen::{QrCode, QrCodeEcc};

/// Modules left light around the code.
const QUIET: i32 = 4;

/// Longest text looked at, in bytes: a code of version 40 holds 7089 digits, and less of anything else.
const MAX_TEXT: usize = 7089;

/// Draws an SVG image, one unit per module, without a fixed size.
///
/// # Errors
/// [`QrError::TooLong`].
pub fn svg(text: &str) -> Result<String, QrError> {
    let symbol = Symbol::encode(text)?;
    let side = symbol.side();
    let squares: String = (0..side)
        .flat_map(|y| (0..side).map(move |x| (x, y)))
        .filter(|(x, y)| symbol.is_dark(*x, *y))
        .map(|(x, y)| format!("M{x} {y}h1v1h-1z"))
        .collect();
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" shape-rendering=\"crispEdges\">\
         <path fill=\"#fff\" d=\"M0 0h{side}v{side}H0z\"/><path d=\"{squares}\"/></svg>"
    ))
}

/// Draws a PNG image of one bit per pixel. `scale` is the width of a module in pixels, 1 to 32.
///
/// # Errors
/// [`QrError::TooLong`], [`QrError::Scale`]; [`QrError::Png`] cannot be caused by any argument.
pub fn png(text: &str, scale: i32) -> Result<Vec<u8>, QrError> {
    if !(1..=32).contains(&scale) {
        return Err(QrError::Scale);
    }
    let symbol = Symbol::encode(text)?;
    let width = symbol.side() * scale;
    let rows: Vec<u8> = (0..symbol.side())
        .flat_map(|y| repeat_n(symbol.pixels(y, scale), scale.unsigned_abs() as usize).flatten())
        .collect();
    write_png(width, &rows).map_err(|_| QrError::Png)
}

/// Draws Unicode half blocks, two modules per character, for a terminal with light text on a dark background.
///
/// Blocks are the light modules, as in `qrencode -t UTF8`. Lines end with a line feed.
///
/// # Errors
/// [`QrError::TooLong`].
pub fn text(text: &str) -> Result<String, QrError> {
    let symbol = Symbol::encode(text)?;
    let mut lines = String::new();
    for y in (0..symbol.side()).step_by(2) {
        // The number of rows is odd. The row below the last is light like the quiet zone.
        lines.extend((0..symbol.side()).map(|x| match (symbol.is_dark(x, y), symbol.is_dark(x, y + 1)) {
            (false, false) => '█',
            (false, true) => '▀',
            (true, false) => '▄',
            (true, true) => ' ',
        }));
        lines.push('\n');
    }
    Ok(lines)
}

/// A QR code with its quiet zone.
struct Symbol(QrCode);

impl Symbol {
    fn encode(text: &str) -> Result<Symbol, QrError> {
        if text.len() > MAX_TEXT {
            return Err(QrError::TooLong);
        }
        QrCode::encode_text(text, QrCodeEcc::Medium)
            .or_else(|_| QrCode::encode_text(text, QrCodeEcc::Low))
            .map(Symbol)
            .map_err(|_| QrError::TooLong)
    }

    /// Modules on a side.
    fn side(&self) -> i32 {
        self.0.size() + 2 * QUIET
    }

    /// Returns whether a module is dark. Outside the code all modules are light.
    fn is_dark(&self, x: i32, y: i32) -> bool {
        self.0.get_module(x - QUIET, y - QUIET)
    }

    /// Converts a row of modules to a row of pixels: eight per byte, the leftmost in the highest bit, light ones set (PNG
    /// specification section 7.2).
    fn pixels(&self, y: i32, scale: i32) -> Vec<u8> {
        let width = self.side() * scale;
        let is_light = |x: i32| x < width && !self.is_dark(x / scale, y);
        (0..width)
            .step_by(8)
            .map(|left| (left..left + 8).fold(0, |byte, x| byte << 1 | u8::from(is_light(x))))
            .collect()
    }
}

/// Writes a square image of one bit per pixel.
fn write_png(width: i32, rows: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut image = Vec::new();
    let mut encoder = png::Encoder::new(&mut image, width.unsigned_abs(), width.unsigned_abs());
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rows)?;
    writer.finish()?;
    Ok(image)
}

/// A text that cannot be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QrError {
    /// The text is too long for a QR code.
    #[error("text is too long for a QR code")]
    TooLong,
    /// Not a scale.
    #[error("invalid scale")]
    Scale,
    /// The encoder failed.
    #[error("could not encode the PNG image")]
    Png,
}

impl QrError {
    /// Returns the accepted range, as a sentence.
    pub const fn detail(&self) -> &'static str {
        match self {
            QrError::TooLong => "A QR code holds at most 2953 bytes.",
            QrError::Scale => "The scale must be 1 to 32 pixels per module.",
            QrError::Png => "The PNG encoder failed.",
        }
    }
}
