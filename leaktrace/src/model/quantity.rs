//! Reads sizes, counts and durations that people write, on the command line and in files. Printing them is `units`' work.
use std::time::Duration;

/// The longest duration that is taken.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Reads a size in bytes: `4096`, `4k`, `4KiB`, `1M`, `1.5MiB`, `2G`. Units are powers of 1024.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: a size is a number with B, K, M, G or T (1024s), such as 64K or 1MiB"
            ));
        }
    };
    scaled(number, 1u64 << shift).ok_or_else(|| {
        format!("{text:?} is not a size: give a number with an optional unit, such as 4096, 64K or 1.5MiB")
    })
}

/// Reads a count: `5000`, `100k`, `2M`. Units are powers of 1000.
pub fn count(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}: a count is a number with k, M or G (1000s), such as 100k or 2M"
            ));
        }
    };
    scaled(number, scale).ok_or_else(|| {
        format!("{text:?} is not a count: give a number with an optional unit, such as 5000, 100k or 2M")
    })
}

/// Reads a count that must be at least 1.
pub fn positive_count(text: &str) -> Result<u64, String> {
    match count(text)? {
        0 => Err("must be at least 1".to_owned()),
        value => Ok(value),
    }
}

/// Reads the size of the unwind tables: what the kernel's map of them can have.
pub fn unwind_bytes(text: &str) -> Result<u64, String> {
    match size_bytes(text)? {
        bytes @ 0x10_0000..=0x1_0000_0000 => Ok(bytes),
        _ => Err("must be from 1M to 4G".to_owned()),
    }
}

/// Reads a duration: `500ms`, `10s`, `1m30s`, `2h`; a plain number counts seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let out_of_range = || format!("{text:?} is out of range: at most 100 years");
    let value = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| out_of_range())?,
        Err(_) => humantime::parse_duration(text).map_err(|_| {
            format!(
                "{text:?} is not a duration: give seconds or a number with a unit, such as 500ms, 10s or 1m30s"
            )
        })?,
    };
    // A clock cannot be set for times much later than that.
    if value > LONGEST { Err(out_of_range()) } else { Ok(value) }
}

/// Reads a duration that must not be zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than 0".to_owned()),
        value => Ok(value),
    }
}

/// Reads a share of one processor core: `5%`, `0.5%`, `5`; `off` is 0.
pub fn share(text: &str) -> Result<f64, String> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("off") {
        return Ok(0.0);
    }
    let number = trimmed.strip_suffix('%').unwrap_or(trimmed).trim_end();
    let plain = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    match number.parse::<f64>() {
        Ok(percent) if plain && percent <= 10_000.0 => Ok(percent / 100.0),
        _ => {
            Err(format!("{text:?} is not a share: give a percentage of one core, such as 5% or 0.5%, or off"))
        }
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// `number` times `scale`; fractions are allowed only where the result has none.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let (whole, fraction) = number.split_once('.')?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let denominator = 10u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
    if scale == 1 && part != 0 {
        return None;
    }
    whole.checked_mul(scale)?.checked_add(u64::try_from(part / u128::from(denominator)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_whatever_the_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("1M", 1 << 20),
            ("1 MiB", 1 << 20),
            ("1.5M", 3 << 19),
            (".5k", 512),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_wrong_size_is_refused_with_an_example() {
        for text in ["", "k", "-1", "1X", "1.5", "1.", "99999999999T", "1e3", "0x10"] {
            let error = size_bytes(text).unwrap_err();
            assert!(error.contains("such as"), "{text}: {error}");
        }
    }

    #[test]
    fn counts_are_powers_of_1000() {
        assert_eq!(count("2M"), Ok(2_000_000));
        assert_eq!(count("100k"), Ok(100_000));
        assert_eq!(count("7"), Ok(7));
        assert!(count("2Mi").is_err());
        assert!(positive_count("0").is_err());
    }

    #[test]
    fn a_share_is_a_percentage_of_one_core() {
        for (text, value) in
            [("5%", 0.05), ("5", 0.05), ("0.5 %", 0.005), ("0", 0.0), ("off", 0.0), ("250%", 2.5)]
        {
            assert!((share(text).unwrap() - value).abs() < 1e-12, "{text}");
        }
        for text in ["", "%", "-1%", "1e3", "inf", "five", "20000%"] {
            assert!(share(text).unwrap_err().contains("such as 5%"), "{text}");
        }
    }

    #[test]
    fn unwind_tables_have_a_least_and_a_largest_size() {
        assert_eq!(unwind_bytes("64M"), Ok(64 << 20));
        assert!(unwind_bytes("1023k").is_err() && unwind_bytes("5G").is_err());
    }

    #[test]
    fn a_plain_number_is_seconds() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
    }

    #[test]
    fn a_wrong_duration_is_refused() {
        for text in ["", "-1", "nan", "inf", "1e300", "ten", "5 parsecs"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["1e19", "1.8e19", "3153600001", "101years", "18446744073709551615"] {
            assert!(duration(text).unwrap_err().contains("at most 100 years"), "{text}");
        }
        assert!(std::time::Instant::now().checked_add(LONGEST).is_some());
        assert!(positive_duration("0s").is_err());
    }
}
