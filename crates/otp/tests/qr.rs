//! QR codes, read back by another library.

use otp::{QrError, qr};

const URI: &str = "otpauth://totp/Example%20Corp:alice%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\
                   &issuer=Example%20Corp&algorithm=SHA1&digits=6&period=30";

/// Dark modules by row, quiet zone included.
type Modules = Vec<Vec<bool>>;

/// What a reader sees at five pixels per module, after checking that the outer four modules are light.
fn scan(modules: &Modules) -> String {
    let side = modules.len();
    assert!(modules.iter().all(|row| row.len() == side));
    let edge = |n: usize| n < 4 || n >= side - 4;
    for (y, row) in modules.iter().enumerate() {
        assert!(row.iter().enumerate().all(|(x, dark)| !dark || !(edge(x) || edge(y))), "quiet zone");
    }
    // The corner of the finder pattern touches it.
    assert!(modules[4][4]);
    let mut image =
        rqrr::PreparedImage::prepare_from_greyscale(
            side * 5,
            side * 5,
            |x, y| {
                if modules[y / 5][x / 5] { 0 } else { 255 }
            },
        );
    let grids = image.detect_grids();
    assert_eq!(grids.len(), 1);
    grids[0].decode().unwrap().1
}

fn svg_modules(svg: &str) -> Modules {
    let side: usize = svg.split('"').nth(3).unwrap().split(' ').nth(2).unwrap().parse().unwrap();
    let mut modules = vec![vec![false; side]; side];
    let path = svg.rsplit_once("<path d=\"").unwrap().1.split_once("\"/></svg>").unwrap().0;
    for square in path.split_terminator("h1v1h-1z") {
        let (x, y) = square.strip_prefix('M').unwrap().split_once(' ').unwrap();
        modules[y.parse::<usize>().unwrap()][x.parse::<usize>().unwrap()] = true;
    }
    modules
}

/// The modules of a PNG image, each of them checked to be `scale` pixels wide and high.
fn png_modules(bytes: &[u8], scale: usize) -> Modules {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Grayscale, png::BitDepth::One));
    assert_eq!(info.width, info.height);
    let dark = |x: usize, y: usize| data[y * info.line_size + x / 8] >> (7 - x % 8) & 1 == 0;
    let width = info.width as usize;
    assert_eq!(width % scale, 0);
    for (x, y) in (0..width * width).map(|n| (n % width, n / width)) {
        assert_eq!(dark(x, y), dark(x / scale * scale, y / scale * scale));
    }
    let side = width / scale;
    (0..side).map(|y| (0..side).map(|x| dark(x * scale, y * scale)).collect()).collect()
}

fn text_modules(text: &str) -> Modules {
    let mut modules = Modules::new();
    for line in text.split_terminator('\n') {
        let halves = line.chars().map(|c| match c {
            '█' => (false, false),
            '▀' => (false, true),
            '▄' => (true, false),
            ' ' => (true, true),
            _ => panic!("another character"),
        });
        let (upper, lower) = halves.unzip();
        modules.extend([upper, lower]);
    }
    // The half line below the last module row.
    assert_eq!(modules.pop().map(|row: Vec<bool>| row.contains(&true)), Some(false));
    modules
}

#[test]
fn every_form_scans_to_the_text() {
    for text in [URI, "A", "12345", "Zoë €", &"x".repeat(1000), &"é".repeat(300)] {
        let expected = svg_modules(&qr::svg(text).unwrap());
        assert_eq!(scan(&expected), text);
        assert_eq!(png_modules(&qr::png(text, 3).unwrap(), 3), expected);
        assert_eq!(text_modules(&qr::text(text).unwrap()), expected);
    }
}

#[test]
fn every_scale_draws_the_same_modules() {
    let expected = svg_modules(&qr::svg(URI).unwrap());
    for scale in 1..=32 {
        assert_eq!(png_modules(&qr::png(URI, scale).unwrap(), scale as usize), expected, "scale {scale}");
    }
    for scale in [i32::MIN, -1, 0, 33, i32::MAX] {
        assert_eq!(qr::png(URI, scale), Err(QrError::Scale));
    }
}

#[test]
fn error_correction_falls_to_low_only_where_it_must() {
    // ISO/IEC 18004 table 7, version 40, byte mode: 2331 bytes at medium, 2953 at low. The level stands in the format
    // information left of the upper left finder, masked with 10: medium is 00, low is 01.
    let level = |text: &str| {
        let modules = svg_modules(&qr::svg(text).unwrap());
        (!modules[4 + 8][4], modules[4 + 8][4 + 1])
    };
    assert_eq!(level(&"x".repeat(2331)), (false, false));
    assert_eq!(level(&"x".repeat(2332)), (false, true));
    assert_eq!(level(&"x".repeat(2953)), (false, true));
}

#[test]
fn a_text_too_long_is_refused() {
    for text in ["x".repeat(2954), "x".repeat(1 << 20), "1".repeat(7090), "é".repeat(1477)] {
        assert_eq!(qr::svg(&text), Err(QrError::TooLong));
        assert_eq!(qr::png(&text, 1), Err(QrError::TooLong));
        assert_eq!(qr::text(&text), Err(QrError::TooLong));
    }
    assert!(qr::svg(&"1".repeat(7089)).is_ok());
}
