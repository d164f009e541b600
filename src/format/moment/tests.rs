use super::*;
use proptest::prelude::*;

/// 2026-11-20T17:45:12.345678Z
const NOW: i64 = 1_795_196_712_345_678;

fn parse(text: &str) -> Result<Moment> {
    Moment::parse_time(text, Timestamp::from_micros(NOW))
}

/// `expect` is a time as it prints, `latest`, or the beginning of what is wrong with the text.
#[track_caller]
fn check(text: &str, expect: &str) {
    let seen = match parse(text) {
        Ok(Moment::Latest) => "latest".to_string(),
        Ok(Moment::At(time)) => time.to_string(),
        Ok(Moment::Txid(..)) => panic!("{text} is a time"),
        Err(e) => e.to_string(),
    };
    if expect.ends_with('Z') || expect == "latest" {
        assert_eq!(seen, expect, "{text}");
    } else {
        assert!(
            seen.starts_with(&format!("{text:?} {expect}")),
            "{text}: {seen}"
        );
    }
}

#[test]
fn a_time_means_the_end_of_the_smallest_unit_that_it_names() {
    check("2024-02", "2024-02-29T23:59:59.999999Z");
    check("2023-02", "2023-02-28T23:59:59.999999Z");
    check("2024-12", "2024-12-31T23:59:59.999999Z");
    check("2024-01-01", "2024-01-01T23:59:59.999999Z");
    check("2024-01-01T10Z", "2024-01-01T10:59:59.999999Z");
    check("2024-01-01T10:30Z", "2024-01-01T10:30:59.999999Z");
    check("2024-01-01T10:00:00Z", "2024-01-01T10:00:00.999999Z");
    check("2024-01-01T10:00:00.5Z", "2024-01-01T10:00:00.599999Z");
    check("2024-01-01T10:00:00.500Z", "2024-01-01T10:00:00.500999Z");
    check("2024-01-01T10:00:00.500000Z", "2024-01-01T10:00:00.500000Z");
    check(
        "2024-01-01T10:00:00.1234567891234Z",
        "2024-01-01T10:00:00.123456Z",
    );
}

#[test]
fn what_has_no_zone_is_utc_and_an_offset_counts() {
    check("2024-01-01T00:00:00", "2024-01-01T00:00:00.999999Z");
    check("2024-01-01t00:00:00z", "2024-01-01T00:00:00.999999Z");
    check("2024-01-01 00:00:00Z", "2024-01-01T00:00:00.999999Z");
    check("2024-01-01T00:00:00+02:00", "2023-12-31T22:00:00.999999Z");
    check("2024-01-01T00:00:00-02:30", "2024-01-01T02:30:00.999999Z");
    check(
        "2024-01-01T00:00:00.000001+0200",
        "2023-12-31T22:00:00.000001Z",
    );
    check("2024-01-01T00:00:00+02", "2023-12-31T22:00:00.999999Z");
    check("2024-01-01T00:00:00-00:00", "2024-01-01T00:00:00.999999Z");
    check("2024-01-01T10+05:30", "2024-01-01T05:29:59.999999Z");
    check("2024-01-01T10:30-05", "2024-01-01T15:30:59.999999Z");
}

#[test]
fn a_dash_may_stand_for_a_colon_in_the_time_of_day() {
    check("2026-11-20T17-45-12.345678Z", "2026-11-20T17:45:12.345678Z");
    check("2026-11-20T17-45-12", "2026-11-20T17:45:12.999999Z");
    check("2026-11-20T17-45Z", "2026-11-20T17:45:59.999999Z");
    check("2026-11-20T17-45", "2026-11-20T17:45:59.999999Z");
    check("2026-11-20T17-45-12-05:00", "2026-11-20T22:45:12.999999Z");
    check("2026-11-20T17-45-12-05-00", "2026-11-20T22:45:12.999999Z");
    check("2026-11-20T17-45-12.5+05-30", "2026-11-20T12:15:12.599999Z");
    check("2026-11-20T17:45-05:00", "2026-11-20T22:45:59.999999Z");
    // Neither 17:05:00 nor 17 o'clock at -05:00.
    check("2026-11-20T17-05:00", "is no moment: say");
    check("2026-11-20T17:45-05-12", "is no moment: say");
}

#[test]
fn the_punctuation_may_be_left_out() {
    check("20240101", "2024-01-01T23:59:59.999999Z");
    check("20240101T000000Z", "2024-01-01T00:00:00.999999Z");
    check("20240101T000000.25Z", "2024-01-01T00:00:00.259999Z");
    check("20240101T0000", "2024-01-01T00:00:59.999999Z");
    check("20240101T00Z", "2024-01-01T00:59:59.999999Z");
    check("20240101T000000-0500", "2024-01-01T05:00:00.999999Z");
    check("2024-01-01T000000Z", "2024-01-01T00:00:00.999999Z");
    check("202401", "is no moment: say");
}

#[test]
fn seconds_since_1970_are_a_time_too() {
    check("@0", "1970-01-01T00:00:00.999999Z");
    check("@1704067200", "2024-01-01T00:00:00.999999Z");
    check("@1704067200.5", "2024-01-01T00:00:00.599999Z");
    check("@1704067200.123456", "2024-01-01T00:00:00.123456Z");
    check("@253402300799", "9999-12-31T23:59:59.999999Z");
    for wrong in [
        "@",
        "@-1",
        "@1.",
        "@.5",
        "@1704067200000",
        "@9999999999999999999999",
        "@1e9",
    ] {
        check(wrong, "is no moment: it needs seconds since 1970");
    }
}

#[test]
fn so_long_ago_is_exactly_so_long_before_now() {
    check("5m-ago", "2026-11-20T17:40:12.345678Z");
    check("0s-ago", "2026-11-20T17:45:12.345678Z");
    check("1h30m-ago", "2026-11-20T16:15:12.345678Z");
    check("2d-ago", "2026-11-18T17:45:12.345678Z");
    check("1w1d1h1m1s-ago", "2026-11-12T16:44:11.345678Z");
    check("99999999d-ago", "0001-01-01T00:00:00.000000Z");
    for wrong in [
        "-ago",
        "5-ago",
        "m-ago",
        "5m1h-ago",
        "5m5m-ago",
        "-5m-ago",
        "5M-ago",
        "5m-ago ",
        "1.5h-ago",
        "99999999999999999999s-ago",
        "9999999999999w-ago",
        "5m",
    ] {
        check(wrong, "is no moment: say");
    }
}

#[test]
fn words_mean_the_last_commit_or_the_end_of_yesterday() {
    for word in ["latest", "now", "today"] {
        check(word, "latest");
    }
    check("yesterday", "2026-11-19T23:59:59.999999Z");
    check("tomorrow", "is no moment: say");
    check("NOW", "is no moment: say");
}

#[test]
fn a_date_or_time_that_no_calendar_or_clock_has_is_refused_as_such() {
    for wrong in [
        "2024-02-30",
        "2023-02-29",
        "2024-13",
        "2024-00-01",
        "2024-01-01T24:00:00Z",
        "2024-01-01T10:60Z",
        "2024-01-01T10:00:61Z",
        "2024-01-01T10:00:00+24:00",
        "2024-01-01T10:00:00+01:60",
    ] {
        check(wrong, "is no moment: the calendar");
    }
    check("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z");
    check("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:59.999999Z");
    check("9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59.999999Z");
    check("0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00.000000Z");
}

#[test]
fn what_is_no_time_is_refused_with_the_forms_that_would_do() {
    for wrong in [
        "",
        " ",
        "2024",
        "2024-1-1",
        "24-01-01",
        "2024-01-01T",
        "2024-01-01Z",
        "2024-01-01T1",
        "2024-01-01T10:",
        "2024-01-01T10:3",
        "2024-01-01T10:00:00.Z",
        "2024-01-01T10:00:00,5Z",
        "2024-01-01T10.5Z",
        "2024-01-01T10:00:00+2",
        "2024-01-01T10:00:00ZZ",
        "2024-01-01T10:00:00Z ",
        "2024-01T10Z",
        "2024-01-",
        "01/02/2024",
        "+2024-01-01",
        "\u{0662}\u{0660}24-01-01",
        "app",
        "1c",
    ] {
        check(
            wrong,
            "is no moment: say a time such as 2024-01-01T10:30:00Z, ",
        );
    }
}

#[test]
fn only_words_that_move_are_relative() {
    for text in ["now", "latest", "today", "yesterday", "5m-ago"] {
        assert!(Moment::is_relative(text), "{text}");
    }
    for text in ["2024-01-01", "@5", "x-ago", ""] {
        assert!(!Moment::is_relative(text), "{text}");
    }
}

#[test]
fn a_txid_may_be_named_with_its_generation() {
    #[track_caller]
    fn check(text: &str, generation: Option<&str>, txid: u64) {
        let generation = generation.map(|id| id.parse().unwrap());
        let expect = Moment::Txid(generation, Txid::new(txid).unwrap());
        assert_eq!(Moment::parse_txid(text).unwrap(), expect);
    }
    check("1c", None, 28);
    check("000000000000001C", None, 28);
    check("00000001-9f3c2a7b-1c", Some("00000001-9f3c2a7b"), 28);
    check(
        "00000001-9f3c2a7b-000000000000001c",
        Some("00000001-9f3c2a7b"),
        28,
    );
    for wrong in [
        "",
        "0",
        "-1c",
        "00000001-1c",
        "00000001-9f3c2a7b",
        "00000001-9f3c2a7b-",
        "00000001-9f3c2a7b-0",
        "00000001-9f3c2a7b-00000000000000001",
        "now",
    ] {
        let error = Moment::parse_txid(wrong).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{wrong:?} is no txid: say")),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn every_form_in_which_a_time_prints_means_that_time(micros in any::<i64>()) {
        let time = Timestamp::from_micros(micros);
        for text in [time.to_string(), time.file_name(), time.compact()] {
            prop_assert_eq!(parse(&text).unwrap(), Moment::At(time), "{}", text);
        }
    }

    #[test]
    fn a_time_at_an_offset_is_the_one_that_the_calendar_says(
        micros in 0_i64..4_000_000_000_000_000,
        offset in -1439_i64..1440,
    ) {
        let local = Timestamp::from_micros(micros + offset * 60_000_000).civil();
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
        let text = format!("{}{sign}{hours:02}:{minutes:02}", local.strftime("%FT%T.%6f"));
        let expect: jiff::Timestamp = text.parse().unwrap();
        prop_assert_eq!(expect.as_microsecond(), micros);
        prop_assert_eq!(parse(&text).unwrap(), Moment::At(Timestamp::from_micros(micros)));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in any::<String>()) {
        let is_understood = parse(&text).is_ok() || Moment::parse_txid(&text).is_ok();
        prop_assert!(text.is_ascii() || !is_understood);
    }

    #[test]
    fn no_text_that_looks_like_a_time_does_either(
        text in "[@0-9]{0,5}[-0-9]{0,6}[Tt ]?[-:0-9]{0,9}[.0-9]{0,8}[-+Zz:0-9wdhmsago\u{20ac}]{0,8}"
    ) {
        if let Ok(Moment::At(time)) = parse(&text) {
            prop_assert!(time <= Timestamp::from_micros(i64::MAX));
            prop_assert_eq!(parse(&time.to_string()).unwrap(), Moment::At(time));
        }
    }
}

#[test]
fn what_may_be_a_time_or_a_txid_is_one_of_them() {
    for (text, expect) in [
        ("2024-01-01", "2024-01-01T23:59:59.999999Z"),
        ("20240101", "2024-01-01T23:59:59.999999Z"),
        ("2024-01", "2024-01-31T23:59:59.999999Z"),
        ("@1704067200", "2024-01-01T00:00:00.999999Z"),
        ("1704067200", "2024-01-01T00:00:00.999999Z"),
        ("1704067200.5", "2024-01-01T00:00:00.599999Z"),
        ("5m-ago", "2026-11-20T17:40:12.345678Z"),
        ("yesterday", "2026-11-19T23:59:59.999999Z"),
        ("latest", "latest"),
        ("1c", "txid 1c"),
        ("2024", "txid 2024"),
        ("0000000020240101", "txid 20240101"),
        ("0000001704067200", "txid 1704067200"),
        ("0123456789", "txid 123456789"),
        ("deadbeef01", "txid deadbeef01"),
        (
            "00000001-9f3c2a7b-000000000000001c",
            "txid 1c of 00000001-9f3c2a7b",
        ),
        ("20240231", "\"20240231\" is no moment: the calendar"),
        ("@x", "\"@x\" is no moment: it needs seconds since 1970"),
        ("home", "\"home\" is neither a time nor a txid: say "),
        ("0", "\"0\" is neither a time nor a txid: say "),
        ("", "\"\" is neither a time nor a txid: say "),
        ("app-1c", "\"app-1c\" is neither a time nor a txid: say "),
    ] {
        let seen = match Moment::parse(text, Timestamp::from_micros(NOW)) {
            Ok(Moment::Latest) => "latest".to_owned(),
            Ok(Moment::At(time)) => time.to_string(),
            Ok(Moment::Txid(None, txid)) => format!("txid {:x}", txid.get()),
            Ok(Moment::Txid(Some(id), txid)) => format!("txid {:x} of {id}", txid.get()),
            Err(e) => {
                assert_eq!(e.kind(), crate::error::ErrorKind::Invalid, "{text}");
                e.to_string()
            }
        };
        assert!(seen.starts_with(expect), "{text}: {seen}");
    }
}
