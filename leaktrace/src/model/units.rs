//! Numbers for people: sizes, counts, rates, times.

/// `0 B`, `999 B`, `1.2 MiB`: at most four digits.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in UNITS.into_iter().skip(1) {
        // Rounded first, so that 1023.96 KiB becomes 1.0 MiB and not 1024.0 KiB.
        if (scaled * 10.0).round() / 10.0 < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    format!("{scaled:.1} {unit}")
}

/// `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 block`, `2 blocks`.
pub fn counted(value: u64, noun: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(value))
}

/// `+1.1 MiB/s`, `-3 B/s`, `±0`.
pub fn rate(bytes_per_second: f64) -> String {
    let size = bytes_per_second.abs().round() as u64;
    match (size, bytes_per_second > 0.0) {
        (0, _) => "±0".to_owned(),
        (_, true) => format!("+{}/s", bytes(size)),
        (_, false) => format!("-{}/s", bytes(size)),
    }
}

/// `250µs`, `9.8s`, `1m30s`, `2h05m`, `3d04h`.
pub fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        _ if ns < 1_000 => format!("{ns}ns"),
        _ if ns < 1_000_000 => format!("{}µs", ns / 1_000),
        0 => format!("{}ms", ns / 1_000_000),
        1..60 => format!("{}.{}s", seconds, ns / 100_000_000 % 10),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// `2026-11-20 12:00:00 UTC`.
pub fn wall_time(ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => format!("{ns} ns"),
    }
}

/// `20261120T120000Z`: sorts by time and suits file names.
pub fn file_time(ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(time) => time.strftime("%Y%m%dT%H%M%SZ").to_string(),
        Err(_) => ns.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_never_1024_of_a_unit() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_258_291, "1.2 MiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn counts_have_separators() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(3456), "3,456");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "block"), "1 block");
        assert_eq!(counted(2000, "block"), "2,000 blocks");
    }

    #[test]
    fn rates_carry_their_sign() {
        assert_eq!(rate(1_153_434.0), "+1.1 MiB/s");
        assert_eq!(rate(-3.0), "-3 B/s");
        assert_eq!(rate(0.2), "±0");
        assert_eq!(rate(f64::NAN), "±0");
    }

    #[test]
    fn durations_show_two_units_at_most() {
        for (ns, text) in [
            (5, "5ns"),
            (250_000, "250µs"),
            (120_000_000, "120ms"),
            (9_870_000_000, "9.8s"),
            (90_000_000_000, "1m30s"),
            (7_500_000_000_000, "2h05m"),
            (273_600_000_000_000, "3d04h"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn wall_time_is_utc() {
        assert_eq!(wall_time(1_763_640_000_000_000_000), "2025-11-20 12:00:00 UTC");
    }
}
