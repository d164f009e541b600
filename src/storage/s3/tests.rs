//! What servers say that no good one says: canned answers to the real client. That the store keeps
//! its contract, `tests/it/s3.rs` shows, with a server that keeps objects.

use super::*;
use crate::config::location::{Credentials, Secret};
use crate::error::ErrorKind::{self, Corrupt, Invalid, NotFound, Refused, Unavailable};
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers each request, of which it gets the first line, with what it returns.
type Script = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A store on a server that answers so, and the first lines of what it is asked.
async fn store(
    bucket: &str,
    script: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (Arc<S3Store>, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = S3Location {
        bucket: bucket.to_owned(),
        prefix: "app".to_owned(),
        region: None,
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        force_path_style: Some(true),
        checksums: true,
        credentials: Some(Credentials {
            access_key_id: "key".to_owned(),
            secret_access_key: Secret::new("secret".to_owned()),
        }),
    };
    let script: Script = Arc::new(script);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, script.clone(), log.clone()));
        }
    });
    (S3Store::new(place), asked)
}

/// Answers one request, and ends the connection.
async fn answer(mut stream: TcpStream, script: Script, log: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let complete = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).to_ascii_lowercase();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        (body.len() >= length).then_some(())
    };
    while complete(&request).is_none() {
        match stream.read(&mut buffer).await.unwrap() {
            0 => return,
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let line = text.lines().next().unwrap().to_owned();
    let line = line.trim_end_matches(" HTTP/1.1");
    let answer = script(line);
    log.lock().unwrap().push(line.to_owned());
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

fn says(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

fn refuses(status: &str, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    says(status, "", &body)
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

async fn read(answer: String) -> Result<Bytes> {
    let (store, _) = store("bucket", move |_| answer.clone()).await;
    store.get_range("x", 10, 4).await
}

#[tokio::test]
async fn a_read_is_of_exactly_the_range_or_an_error() {
    let range = |range: &str| format!("Content-Range: bytes {range}\r\n");
    let part = "206 Partial Content";
    let fine = says(part, &range("10-13/20"), "abcd");
    assert_eq!(&read(fine).await.unwrap()[..], b"abcd");
    for (answer, kind, sentence) in [
        (
            says(part, &range("10-11/12"), "ab"),
            Corrupt,
            "it has 12 bytes, expected 4 from 10 on",
        ),
        (
            says(part, &range("10-11/*"), "ab"),
            Corrupt,
            "the server says that it is shorter",
        ),
        (
            says(part, &range("0-3/20"), "abcd"),
            Corrupt,
            "app/x, 4 bytes from 10 on: the server sends bytes 0-3/20",
        ),
        (
            says("200 OK", "", "abcdabcdabcd"),
            Corrupt,
            "the server sends the whole object",
        ),
        (
            says(part, &range("10-13/20"), "abcde"),
            Corrupt,
            "the server sends more",
        ),
        (
            says(part, &range("10-13/20"), "ab"),
            Unavailable,
            "is broken: it ended after 2 of 4 bytes",
        ),
        (
            says("416 Range Not Satisfiable", &range("*/5"), ""),
            Corrupt,
            "it has 5 bytes, expected 4 from 10 on",
        ),
        (
            refuses("416 Range Not Satisfiable", "InvalidRange"),
            Corrupt,
            "the server says that it is shorter",
        ),
        (
            refuses("404 Not Found", "NoSuchKey"),
            NotFound,
            "read s3://bucket/app/x: there is no such object",
        ),
        (
            says("404 Not Found", "", "<!DOCTYPE html><html></html>"),
            Refused,
            "does not answer as an S3 server does (status 404)",
        ),
    ] {
        assert_fails(read(answer).await, kind, sentence);
    }
    let (whole, _) = store("bucket", |_| says("200 OK", "", "abcd")).await;
    assert_eq!(
        &whole.get_range("x", 0, 4).await.unwrap()[..],
        b"abcd",
        "the range is all there is"
    );
}

/// A page with these keys.
fn page(keys: &[&str], more: &str) -> String {
    says("200 OK", "", &page_body(keys, more))
}

fn page_body(keys: &[&str], more: &str) -> String {
    let time = "2026-11-20T17:45:12.000Z";
    let keys: String = keys
        .iter()
        .map(|key| {
            format!(
                "<Contents><Key>{key}</Key><Size>1</Size><LastModified>{time}</LastModified>\
                 </Contents>"
            )
        })
        .collect();
    format!("<?xml version=\"1.0\"?><ListBucketResult>{keys}{more}</ListBucketResult>")
}

#[tokio::test]
async fn a_listing_that_cannot_be_true_is_an_error() {
    for (answer, kind, sentence) in [
        (
            page(&["app/a"], "<KeyCount>2</KeyCount>"),
            Unavailable,
            "its number of keys is not the one that it says",
        ),
        (
            page(&["other/a"], ""),
            Unavailable,
            "\"other/a\" lies elsewhere",
        ),
        (
            page(&["app/a"], "<IsTruncated>true</IsTruncated>"),
            Unavailable,
            "there is more, and it does not say where",
        ),
        (
            page(
                &["app/a"],
                "<NextContinuationToken>same</NextContinuationToken>",
            ),
            Unavailable,
            "there is more, and it does not say where",
        ),
        (
            says(
                "200 OK",
                "",
                &page_body(&["app/a"], "").replace("<Size>1</Size>", ""),
            ),
            Unavailable,
            "a has no size or no time",
        ),
        (
            says("200 OK", "", "<?xml version=\"1.0\"?><ListBucketRes"),
            Unavailable,
            "is broken",
        ),
        (
            says("200 OK", "", "<html>Hello</html>"),
            Refused,
            "does not answer as an S3 server does (status 200); correct the endpoint",
        ),
        (
            says("200 OK", "", ""),
            Refused,
            "does not answer as an S3 server does (status 200)",
        ),
        (
            says("502 Bad Gateway", "", "<html>nginx</html>"),
            Unavailable,
            "failed (status 502, no S3 error code)",
        ),
    ] {
        let (store, _) = store("bucket", move |_| answer.clone()).await;
        assert_fails(store.list("", None).await, kind, sentence);
    }
    // What is not ours to name is passed over.
    let marker = page(&["app/", "app/a/", "app/b"], "");
    let (store, _) = store("bucket", move |_| marker.clone()).await;
    let listed = store.list("", None).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].key, "b");
    assert_eq!(listed[0].modified.compact(), "20261120T174512.000000Z");
}

#[tokio::test]
async fn s3_express_is_asked_for_folders_only_and_its_listing_put_in_order() {
    let (store, asked) = store("bucket--use1-az4--x-s3", |_| {
        page(&["app/a/3", "app/a/1", "app/a/20", "app/a/2"], "")
    })
    .await;
    let listed = store.list("a/2", Some("a/2")).await.unwrap();
    let keys: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["a/20"]);
    let listed = store.list("a/", Some("a/1")).await.unwrap();
    let keys: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["a/2", "a/20", "a/3"]);
    let asked = asked.lock().unwrap();
    let mut lists = asked.iter().filter(|line| !line.ends_with("?session"));
    assert!(
        lists.all(|line| line.ends_with("?list-type=2&prefix=app%2Fa%2F")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_server_that_deletes_one_at_a_time_is_asked_so() {
    for refusal in [
        refuses("501 Not Implemented", "NotImplemented"),
        refuses("400 Bad Request", "MissingContentMD5"),
    ] {
        let (store, asked) = store("bucket", move |line| match line.starts_with("POST") {
            true => refusal.clone(),
            false => says("204 No Content", "", ""),
        })
        .await;
        let keys = ["a".to_owned(), "b".to_owned()];
        store.delete(&keys).await.unwrap();
        let mut asked = asked.lock().unwrap().clone();
        asked[1..].sort();
        assert_eq!(
            asked[1..],
            [
                "DELETE /bucket/app/a?x-id=DeleteObject",
                "DELETE /bucket/app/b?x-id=DeleteObject"
            ]
        );
    }
}

#[tokio::test]
async fn a_deletion_that_failed_for_one_key_failed() {
    for (code, kind, sentence) in [
        (
            "AccessDenied",
            Refused,
            "delete s3://bucket/app/b: 127.0.0.1",
        ),
        (
            "InternalError",
            Unavailable,
            "failed (status 200, InternalError",
        ),
        ("SlowDown", Unavailable, "asks to slow down"),
    ] {
        let body = format!(
            "<DeleteResult><Error><Key>app/a</Key><Code>NoSuchKey</Code></Error>\
             <Error><Key>app/b</Key><Code>{code}</Code></Error></DeleteResult>"
        );
        let (store, _) = store("bucket", move |_| says("200 OK", "", &body)).await;
        let keys = ["a".to_owned(), "b".to_owned()];
        assert_fails(store.delete(&keys).await, kind, sentence);
    }
}

#[tokio::test]
async fn a_server_that_knows_no_unfinished_uploads_has_none() {
    for refusal in ["405 Method Not Allowed", "501 Not Implemented"] {
        let (store, _) = store("bucket", move |_| refuses(refusal, "NotImplemented")).await;
        let now = Timestamp::from_micros(0);
        assert_eq!(store.abort_unfinished("", now).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_put_tells_the_date_of_its_answer() {
    let answer = says("200 OK", "Date: Fri, 20 Nov 2026 17:45:12 GMT\r\n", "");
    let (store, _) = store("bucket", move |_| answer.clone()).await;
    let put = store.put("a", Body::Bytes(Bytes::new())).await.unwrap();
    let date = answer::http_date("Fri, 20 Nov 2026 17:45:12 GMT");
    assert!(date.is_some());
    assert_eq!(put, Put::Created { date });
}

#[tokio::test]
async fn the_store_has_the_date_of_its_last_answer_whatever_it_was_and_time_passes_for_it() {
    let date = |second: u64| format!("Date: Fri, 20 Nov 2026 17:45:{second} GMT\r\n");
    let (store, _) = store("bucket", move |line| match line.split_once(' ') {
        Some(("PUT", _)) => says("412 Precondition Failed", &date(30), ""),
        _ if line.contains("list-type=2") => says("200 OK", &date(12), &page_body(&[], "")),
        // Without a date.
        _ => refuses("404 Not Found", "NoSuchKey"),
    })
    .await;
    let below = store.below("replica");
    assert_eq!((store.date(), below.date()), (None, None));
    let start = Timestamp::parse_compact("20261120T174500.000000Z").unwrap();
    // In seconds: what a Date is exact to.
    let seen = || {
        let seconds =
            |date: Option<Timestamp>| (date.unwrap().micros() - start.micros()) / 1_000_000;
        (seconds(store.date()), seconds(below.date()))
    };
    below.list("", None).await.unwrap();
    assert_eq!(seen(), (12, 12));
    store.put("a", Body::Bytes(Bytes::new())).await.unwrap();
    assert_eq!(seen(), (30, 30));
    store.get_range("a", 0, 1).await.unwrap_err();
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(20)).await;
    assert_eq!(seen(), (50, 50));
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_is_invalid_and_not_asked_again() {
    let (store, _) = store("bucket", |_| String::new()).await;
    let mut place = store.bucket.place.clone();
    place.endpoint = Some("http://127.0.0.1:99999".to_owned());
    let listed = S3Store::new(place).list("", None).await;
    assert_fails(listed, Invalid, "was not a valid URI");
}

#[tokio::test]
async fn the_region_of_a_bucket_is_the_one_that_its_server_says() {
    let there = "x-amz-bucket-region: eu-west-1\r\n";
    for (answer, expect) in [
        (says("200 OK", there, ""), "eu-west-1"),
        (says("301 Moved Permanently", there, ""), "eu-west-1"),
        (says("403 Forbidden", there, ""), "eu-west-1"),
        (says("200 OK", "", ""), "eu-north-1"),
        (says("403 Forbidden", "", ""), "eu-north-1"),
    ] {
        let (store, asked) = store("bucket", move |_| answer.clone()).await;
        let named = aws_config::Region::from_static("eu-north-1");
        let found = client::look_up(&store.bucket.place, named).await.unwrap();
        assert_eq!(found.as_ref(), expect);
        assert_eq!(asked.lock().unwrap()[..], ["HEAD /bucket/"]);
    }
}

#[tokio::test]
async fn a_put_of_a_file_is_watched_piece_by_piece() {
    let (store, _) = store("bucket", |_| says("200 OK", "", "")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let watch = watch::Watch::default();
    let connected = store.connected().await.unwrap();
    let body = aws_sdk_s3::primitives::ByteStream::from_path(file.path());
    let request = connected.client.put_object().bucket("bucket").key("a");
    let request = request.body(body.await.unwrap()).customize();
    request.interceptor(watch.clone()).send().await.unwrap();
    let pieces = watch.moved().pieces;
    assert!(pieces > 16, "{pieces} pieces");
}
