//! Sizes and durations as people write and read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `512M`, `1.5G`, `4096`: bytes, in powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let factor: f64 = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 1.0,
        "K" => 1024.0,
        "M" => 1048576.0,
        "G" => 1073741824.0,
        "T" => 1099511627776.0,
        _ => return Err(format!("unknown unit '{unit}': use K, M, G or T")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "expected a size such as 512M".to_owned())?;
    let bytes = number * factor;
    // f64 holds whole numbers exactly up to 2^53, which is more than any machine's memory or disk.
    if !(1.0..9e15).contains(&bytes) {
        return Err("the size is out of range".to_owned());
    }
    Ok(bytes as u64)
}

/// `30s`, `1.5m`, `2h`, `500ms`, or seconds without a unit: milliseconds.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => return Err(format!("unknown unit '{unit}': use ms, s, m or h")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "expected a duration such as 30s".to_owned())?;
    let milliseconds = (number * factor).ceil();
    if !(1.0..=1e12).contains(&milliseconds) {
        return Err("the duration is out of range".to_owned());
    }
    Ok(milliseconds as u64)
}

/// Bytes with a unit, three digits or so.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 99.95 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A size that may not be known.
pub fn size_or_dash(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), size)
}

/// Milliseconds with two digits below one hundred.
pub fn milliseconds(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2} ms")
    } else {
        format!("{value:.0} ms")
    }
}

/// How long ago, in the largest unit that fits.
pub fn age(unix_ms: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    // A clock set back makes "in the future" possible; it is shown as now.
    let seconds = now.saturating_sub(u128::from(unix_ms)) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A count with its noun.
pub fn count(number: usize, noun: &str, plural: &str) -> String {
    format!("{number} {}", if number == 1 { noun } else { plural })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("10kb"), Ok(10240));
        for wrong in ["", "M", "-1", "1X", "0", "1e3", "99999999T", "1.2.3"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_without_a_unit_are_seconds() {
        assert_eq!(parse_duration_ms("30"), Ok(30_000));
        assert_eq!(parse_duration_ms("1.5m"), Ok(90_000));
        assert_eq!(parse_duration_ms("20ms"), Ok(20));
        for wrong in ["", "s", "-1s", "1d", "0"] {
            assert!(parse_duration_ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1_048_570), "1.0 MiB");
        assert_eq!(size(300 << 20), "300 MiB");
        assert_eq!(milliseconds(0.4567), "0.46 ms");
        assert_eq!(milliseconds(1234.5), "1234 ms");
        assert_eq!(age(0).chars().last(), Some('d'));
        assert_eq!(age(u64::MAX), "0s");
    }
}
