//! Pax extended headers: `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.

/// One record: its key and its value.
pub(crate) type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits the body of an extended header into its records.
pub(crate) fn records(mut body: &[u8]) -> Result<Vec<Record<'_>>, &'static str> {
    let mut found = vec![];
    while !body.is_empty() && body[0] != 0 {
        let space = body
            .iter()
            .take(20)
            .position(|&b| b == b' ')
            .ok_or("an extended header has no length")?;
        let len = number(&body[..space]).ok_or("an extended header has a malformed length")?;
        let len = usize::try_from(len).map_err(|_| "an extended header is too long")?;
        if len <= space + 1 || len > body.len() || body[len - 1] != b'\n' {
            return Err("an extended header has a wrong length");
        }
        let record = &body[space + 1..len - 1];
        let equals = record
            .iter()
            .position(|&b| b == b'=')
            .ok_or("an extended header has no value")?;
        found.push((&record[..equals], &record[equals + 1..]));
        body = &body[len..];
    }
    Ok(found)
}

/// Appends one record.
pub(crate) fn push(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    // The length's own digits count; adding them may add one more digit.
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    body.extend_from_slice(len.to_string().as_bytes());
    body.push(b' ');
    body.extend_from_slice(key);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

/// An unsigned decimal number, and nothing else.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time in seconds with an optional fraction, as nanoseconds.
pub(crate) fn time_ns(text: &[u8]) -> Option<i128> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let seconds = number(parts.next()?)?;
    let mut nanos = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for i in 0..9 {
            nanos = nanos * 10 + fraction.get(i).map_or(0, |d| u32::from(d - b'0'));
        }
    }
    let ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some(if negative { -ns } else { ns })
}

/// The shortest text that [`time_ns`] reads back as the same time.
pub(crate) fn time_text(ns: i128) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let text = format!("{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_at_every_digit_boundary() {
        for n in [
            0, 1, 2, 3, 4, 5, 80, 85, 90, 91, 92, 93, 94, 95, 980, 985, 990, 991, 992, 993, 994, 10_000,
        ] {
            let value = vec![b'x'; n];
            let mut body = vec![];
            push(&mut body, b"user.k", &value);
            push(&mut body, b"next", b"a=b\nc");
            let read = records(&body).unwrap();
            assert_eq!(
                read,
                vec![(&b"user.k"[..], &value[..]), (&b"next"[..], &b"a=b\nc"[..])]
            );
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"5",
            b"5 a=b",
            b"999 a=b\n",
            b"6 aab\n",
            b" a=b\n",
            b"-1 a=b\n",
            b"3 =\n",
        ] {
            assert!(records(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_round_trip() {
        for ns in [
            0,
            1,
            -1,
            1_500_000_000,
            -1_500_000_000,
            1_700_000_000_123_456_789,
            i128::from(i64::MAX),
        ] {
            assert_eq!(time_ns(time_text(ns).as_bytes()), Some(ns));
        }
        assert_eq!(time_ns(b"12.3456789012345"), Some(12_345_678_901));
        assert_eq!(time_ns(b"1.2.3"), None);
        assert_eq!(time_ns(b""), None);
    }
}
