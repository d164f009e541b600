use super::*;
use crate::error::ErrorKind;
use crate::error::ErrorKind::{Invalid, Refused, Unavailable};
use aws_sdk_s3::operation::put_object::PutObjectError;

fn server() -> Server {
    Server {
        bucket: "bucket".to_owned(),
        region: "us-east-1".to_owned(),
        host: "minio:9000".to_owned(),
    }
}

fn answer(status: u16, code: &str) -> Answer {
    Answer {
        status,
        code: Some(code.to_owned()).filter(|code| !code.is_empty()),
        is_foreign: code.is_empty(),
        ..Answer::default()
    }
}

#[track_caller]
fn check_asked(action: Action, failure: Failure, expect: (ErrorKind, &str)) -> Error {
    let server = server();
    let error = Asked::new(action, "s3://bucket/app/x", &server).explain(failure);
    let sentence = error.to_string();
    let seen = (error.kind(), sentence.as_str());
    let (kind, why) = expect;
    let whole = format!("{action} s3://bucket/app/x: {why}");
    assert_eq!(seen, (kind, whole.as_str()));
    error
}

#[track_caller]
fn check(failure: Failure, expect: (ErrorKind, &str)) -> Error {
    check_asked(Action::Put, failure, expect)
}

#[track_caller]
fn check_answer(status: u16, code: &str, expect: (ErrorKind, &str)) {
    check(Failure::Answered(answer(status, code)), expect);
}

#[test]
fn wrong_credentials_are_refused_with_the_place_for_right_ones() {
    check_answer(
        403,
        "InvalidAccessKeyId",
        (
            Refused,
            "minio:9000 knows no such access key; set access-key-id and secret-access-key in the \
             config, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
    );
    check_answer(
        403,
        "SignatureDoesNotMatch",
        (
            Refused,
            "minio:9000 says that the secret access key is not the access key's; set access-key-id \
             and secret-access-key in the config, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
    );
    check_answer(
        400,
        "ExpiredToken",
        (
            Refused,
            "the session token of the credentials has expired; get new credentials",
        ),
    );
    check_answer(
        400,
        "InvalidToken",
        (
            Refused,
            "minio:9000 does not accept the session token of the credentials; get new credentials",
        ),
    );
    check(
        Failure::NoCredentials("neither here nor there".to_owned()),
        (
            Refused,
            "no credentials were found (neither here nor there); set access-key-id and \
             secret-access-key in the config, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
    );
}

#[test]
fn what_is_denied_names_the_permission_that_it_takes() {
    for (action, permission) in [
        (Action::Put, "s3:PutObject"),
        (Action::Read, "s3:GetObject"),
        (Action::List, "s3:ListBucket"),
        (Action::Delete, "s3:DeleteObject"),
        (
            Action::Abort,
            "s3:ListBucketMultipartUploads and s3:AbortMultipartUpload",
        ),
    ] {
        let mut denied = answer(403, "AccessDenied");
        denied.message = Some("You shall\n not pass ".to_owned());
        let why = format!(
            "minio:9000 denies it to these credentials (status 403, AccessDenied: You shall not \
             pass); allow them {permission} in bucket \"bucket\", or give others"
        );
        check_asked(action, Failure::Answered(denied), (Refused, &why));
    }
    // One of the keys of a deletion; and the answer to a HEAD.
    for (denied, said) in [
        (answer(200, "AccessDenied"), "status 200, AccessDenied"),
        (answer(403, ""), "status 403, no S3 error code"),
    ] {
        let why = format!(
            "minio:9000 denies it to these credentials ({said}); allow them s3:DeleteObject in \
             bucket \"bucket\", or give others"
        );
        check_asked(Action::Delete, Failure::Answered(denied), (Refused, &why));
    }
}

#[test]
fn a_wrong_region_is_refused_with_the_right_one() {
    for (status, code) in [
        (301, "PermanentRedirect"),
        (400, "AuthorizationHeaderMalformed"),
        (400, "IllegalLocationConstraintException"),
        (301, ""),
        (400, ""),
    ] {
        let mut elsewhere = answer(status, code);
        elsewhere.region = Some("eu-west-1".to_owned());
        let expect = "the bucket \"bucket\" lies in region eu-west-1, not in us-east-1; set region \
                      to eu-west-1";
        check(Failure::Answered(elsewhere), (Refused, expect));
    }
    check_answer(
        301,
        "PermanentRedirect",
        (
            Refused,
            "the bucket \"bucket\" does not lie in region us-east-1 (status 301, \
             PermanentRedirect); set region to the one that it lies in",
        ),
    );
    // The header alone is no complaint.
    let mut ours = answer(400, "EntityTooLarge");
    ours.region = Some("us-east-1".to_owned());
    check(
        Failure::Answered(ours),
        (
            Refused,
            "minio:9000 refuses it (status 400, EntityTooLarge)",
        ),
    );
}

#[test]
fn a_missing_bucket_is_named_with_its_server() {
    let expect = (
        Refused,
        "there is no bucket \"bucket\" at minio:9000; create it, or correct its name",
    );
    check_answer(404, "NoSuchBucket", expect);
    let mut unknown = answer(404, "");
    unknown.is_foreign = false;
    check_asked(Action::LookUp, Failure::Answered(unknown), expect);
}

#[test]
fn clocks_that_differ_are_both_named() {
    let mut skewed = answer(403, "RequestTimeTooSkewed");
    check(
        Failure::Answered(skewed.clone()),
        (
            Refused,
            "the clock here and that of minio:9000 differ too much; set the clock",
        ),
    );
    skewed.signed_at = signing_time("20261120T174512Z");
    skewed.date = http_date("Fri, 20 Nov 2026 18:45:12 GMT");
    check(
        Failure::Answered(skewed),
        (
            Refused,
            "the clock here says 2026-11-20T17:45:12.000000Z, that of minio:9000 \
             2026-11-20T18:45:12.000000Z; set the clock",
        ),
    );
}

#[test]
fn who_cannot_be_trusted_or_speaks_no_s3_is_refused() {
    check(
        Failure::Certificate("invalid peer certificate: UnknownIssuer".to_owned()),
        (
            Refused,
            "the certificate of minio:9000 does not verify (invalid peer certificate: \
             UnknownIssuer); correct the endpoint, or add the server's CA to those of the system",
        ),
    );
    let expect = "minio:9000 does not answer as an S3 server does (status 404); correct the \
                  endpoint";
    check_answer(404, "", (Refused, expect));
    check(
        Failure::Unusable("no such thing as a URL".to_owned()),
        (Invalid, "no such thing as a URL"),
    );
    assert!(is_xml(b"\n<?xml version=\"1.0\"?><ListBucketResult/>"));
    assert!(is_xml(b"<ListBucketResult/>"));
    for page in [
        "<!DOCTYPE html>\n<HTML></HTML>",
        "<?xml version=\"1.0\"?><html></html>",
        "{}",
        "",
        " OK",
    ] {
        assert!(!is_xml(page.as_bytes()), "{page}");
    }
}

#[test]
fn what_the_server_cannot_do_is_refused_with_its_words() {
    check_answer(
        501,
        "NotImplemented",
        (
            Refused,
            "minio:9000 cannot do that (status 501, NotImplemented); if it does not know upload \
             checksums, set checksums to false",
        ),
    );
    let mut wordy = answer(400, "Odd");
    wordy.message = Some("x".repeat(1000));
    let error = check(
        Failure::Answered(wordy),
        (
            Refused,
            &format!(
                "minio:9000 refuses it (status 400, Odd: {})",
                "x".repeat(200)
            ),
        ),
    );
    assert_eq!(error.wait(), Duration::ZERO);
}

#[test]
fn what_passes_by_itself_is_to_be_tried_again() {
    for (status, code) in [
        (500, "InternalError"),
        (200, "InternalError"),
        (502, ""),
        (504, "GatewayTimeout"),
        (507, "XMinioStorageFull"),
        (408, "RequestTimeout"),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "IncompleteBody"),
        (400, "XAmzContentSHA256Mismatch"),
        (409, "ConditionalRequestConflict"),
        (409, "OperationAborted"),
        (404, "NoSuchUpload"),
        (307, "TemporaryRedirect"),
    ] {
        let said = match code {
            "" => "no S3 error code",
            code => code,
        };
        let why = format!("minio:9000 failed (status {status}, {said})");
        check_answer(status, code, (Unavailable, &why));
    }
    check(
        Failure::Unanswered("Connection refused (os error 111)".to_owned()),
        (
            Unavailable,
            "no answer from minio:9000: Connection refused (os error 111)",
        ),
    );
    check(
        Failure::NoSource("timed out after 5s".to_owned()),
        (
            Unavailable,
            "the source of the credentials gave none: timed out after 5s",
        ),
    );
    check(
        Failure::Broken("it ended after 5 of 10 bytes".to_owned()),
        (
            Unavailable,
            "the answer of minio:9000 is broken: it ended after 5 of 10 bytes",
        ),
    );
}

/// A request of 8 MiB of which a piece moves each minute, so many times; then comes the answer, or
/// nothing.
async fn send(pieces: u64, is_answered: bool) -> (Result<(), Failure>, Duration) {
    let server = server();
    let asked = Asked::new(Action::Put, "x", &server);
    let watch = Watch::default();
    let request = async {
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_secs(60)).await;
            watch.note();
        }
        match is_answered {
            true => Ok::<_, SdkError<PutObjectError>>(()),
            false => std::future::pending().await,
        }
    };
    let start = tokio::time::Instant::now();
    let done = asked.while_it_moves(8 << 20, &watch, request).await;
    (done, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_request_may_take_any_time_while_it_moves() {
    let day = 24 * 60;
    assert!(send(day, true).await.0.is_ok());
    let (failed, took) = send(day, false).await;
    let why = "nothing moved for 138s".to_owned();
    assert_eq!(failed, Err(Failure::Unanswered(why)));
    let silence = took - Duration::from_secs(day * 60);
    assert_eq!(silence.as_secs(), 138);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_carries_nothing_is_given_up_after_ten_seconds() {
    let server = server();
    let asked = Asked::new(Action::Read, "x", &server);
    let start = tokio::time::Instant::now();
    let never = std::future::pending::<Result<(), SdkError<PutObjectError>>>();
    assert!(asked.within(never).await.is_err());
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[test]
fn who_asks_to_slow_down_is_left_alone_for_as_long_as_it_says_up_to_a_bound() {
    for (status, code) in [
        (503, "SlowDown"),
        (200, "SlowDown"),
        (503, ""),
        (429, "TooManyRequests"),
    ] {
        for (retry_after, wait) in [(None, 1), (Some(5), 5), (Some(3600), 10)] {
            let mut throttled = answer(status, code);
            throttled.retry_after = retry_after.map(Duration::from_secs);
            let why = format!("minio:9000 asks to slow down{}", throttled.said());
            let error = check(Failure::Answered(throttled), (Unavailable, &why));
            assert_eq!(error.wait(), Duration::from_secs(wait), "{code}");
        }
    }
}

#[test]
fn the_region_stands_in_the_body_where_no_header_has_it() {
    let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>";
    assert_eq!(element(body, "Region"), Some("eu-west-1"));
    assert_eq!(element(body, "Endpoint"), None);
    assert_eq!(element("<Region>eu", "Region"), None);
}

#[test]
fn the_last_cause_is_told_and_what_it_was_that_timed_out() {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let tcp = Wrapped("tcp", Some(Box::new(refused)));
    assert_eq!(
        root(&Wrapped("connect", Some(Box::new(tcp)))),
        "connection refused"
    );
    let timer = Wrapped("timed out", None);
    assert_eq!(
        root(&Wrapped("connect took 3 s.", Some(Box::new(timer)))),
        "connect took 3 s"
    );
}

#[derive(Debug)]
struct Wrapped(&'static str, Option<Box<dyn Source>>);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Source for Wrapped {
    fn source(&self) -> Option<&(dyn Source + 'static)> {
        self.1.as_deref()
    }
}
