//! That the server is S3 where it matters, asked by the AWS SDK; its faults are shown in `s3.rs`.

use super::{ACCESS_KEY_ID, Call, Fault, REGION, SECRET_ACCESS_KEY, Server, Stop, Verb};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use bytes::Bytes;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A server with one empty bucket `tests`, and a client that tries once.
struct Bucket {
    root: TempDir,
    server: Server,
    client: Client,
}

impl Bucket {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("tests")).unwrap();
        let server = Server::start(root.path());
        let client = client(&server, ACCESS_KEY_ID, SECRET_ACCESS_KEY);
        Self {
            root,
            server,
            client,
        }
    }

    /// Puts it if it is not there; the code of the error.
    async fn put(&self, key: &str, body: &'static str) -> Result<(), String> {
        let put = self.client.put_object().bucket("tests").key(key);
        let put = put.if_none_match("*").body(Bytes::from(body).into());
        put.send().await.map(drop).map_err(code)
    }

    async fn get(&self, key: &str) -> Result<Bytes, String> {
        let get = self.client.get_object().bucket("tests").key(key);
        let body = get.send().await.map_err(code)?.body;
        let body = body.collect().await.map_err(|_| "body".to_owned())?;
        Ok(body.into_bytes())
    }
}

fn client(server: &Server, access_key_id: &str, secret: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .credentials_provider(Credentials::new(access_key_id, secret, None, None, "test"))
        .region(Region::new(REGION))
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

fn code<E: ProvideErrorMetadata>(error: E) -> String {
    error.code().unwrap_or("no answer").to_owned()
}

#[tokio::test]
async fn an_object_is_a_file_and_put_once() {
    let bucket = Bucket::new();
    bucket.put("a/b", "first").await.unwrap();
    let second = bucket.put("a/b", "second").await.unwrap_err();
    assert_eq!(second, "PreconditionFailed");
    assert_eq!(bucket.get("a/b").await.unwrap(), "first");
    assert_eq!(
        fs::read(bucket.root.path().join("tests/a/b")).unwrap(),
        b"first"
    );

    bucket.server.set(|s| s.ignores_if_none_match = true);
    bucket.put("a/b", "third").await.unwrap();
    assert_eq!(bucket.get("a/b").await.unwrap(), "third");
    for absent in ["a", "a/b/c", "d"] {
        assert_eq!(
            bucket.get(absent).await.unwrap_err(),
            "NoSuchKey",
            "{absent}"
        );
    }
    let counts = bucket.server.counts();
    assert_eq!(counts.calls[&Verb::Put], 3);
    assert_eq!(counts.calls[&Verb::Get], 5);
    assert!(counts.received > 500 && counts.sent > 500, "{counts:?}");
}

#[tokio::test]
async fn who_signs_wrongly_or_asks_elsewhere_is_refused() {
    let bucket = Bucket::new();
    let list = async |client: &Client, bucket: &str| {
        let list = client.list_objects_v2().bucket(bucket);
        list.send().await.map(drop).map_err(code)
    };
    let refused = async |id: &str, secret: &str| {
        list(&client(&bucket.server, id, secret), "tests")
            .await
            .unwrap_err()
    };
    let unknown = refused("AKIAOTHER", SECRET_ACCESS_KEY).await;
    assert_eq!(unknown, "InvalidAccessKeyId");
    let wrong = refused(ACCESS_KEY_ID, "wrong").await;
    assert_eq!(wrong, "SignatureDoesNotMatch");
    let missing = list(&bucket.client, "missing").await.unwrap_err();
    assert_eq!(missing, "NoSuchBucket");

    list(&bucket.client, "tests").await.unwrap();
    bucket.server.set(|s| s.clock_ahead = 3600);
    let skewed = list(&bucket.client, "tests").await.unwrap_err();
    assert_eq!(skewed, "RequestTimeTooSkewed");
    bucket.server.set(|s| s.any_clock = true);
    list(&bucket.client, "tests").await.unwrap();
    bucket.server.set(|s| s.region = Some("eu-central-1"));
    let elsewhere = list(&bucket.client, "tests").await.unwrap_err();
    assert_eq!(elsewhere, "AuthorizationHeaderMalformed");
}

#[tokio::test]
async fn a_listing_comes_in_pages() {
    let bucket = Bucket::new();
    for key in ["a/1", "a/2", "a-", "b/c/1", "b/c/2", "d"] {
        bucket.put(key, "").await.unwrap();
    }
    let mut seen = Vec::new();
    let mut pages = bucket
        .client
        .list_objects_v2()
        .bucket("tests")
        .delimiter("/")
        .max_keys(1)
        .into_paginator()
        .send();
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        assert_eq!(page.key_count(), Some(1));
        seen.extend(page.contents().iter().map(|o| o.key().unwrap().to_owned()));
        let folders = page.common_prefixes().iter();
        seen.extend(folders.map(|f| f.prefix().unwrap().to_owned()));
    }
    assert_eq!(seen, ["a-", "a/", "b/", "d"]);
    let doomed = ["a/1", "a", "nothing"].map(|key| {
        let object = ObjectIdentifier::builder().key(key);
        object.build().unwrap()
    });
    let doomed = Delete::builder().set_objects(Some(doomed.to_vec()));
    let delete = bucket.client.delete_objects().bucket("tests");
    let deleted = delete.delete(doomed.build().unwrap()).send().await.unwrap();
    assert_eq!(deleted.deleted().len(), 3);
    assert_eq!(bucket.get("a/1").await.unwrap_err(), "NoSuchKey");
    assert_eq!(bucket.get("a/2").await.unwrap(), "");
}

#[tokio::test]
async fn an_upload_in_parts_is_listed_until_it_ends_and_does_not_overwrite() {
    let bucket = Bucket::new();
    let begin = async || {
        let create = bucket.client.create_multipart_upload().bucket("tests");
        let id = create.key("k").send().await.unwrap();
        let id = id.upload_id().unwrap().to_owned();
        let part = bucket.client.upload_part().bucket("tests").key("k");
        let part = part.upload_id(&id).part_number(1);
        let part = part.body(Bytes::from("part").into()).send().await.unwrap();
        (id, part.e_tag().unwrap().to_owned())
    };
    let end = async |(id, tag): &(String, String)| {
        let part = CompletedPart::builder().part_number(1).e_tag(tag).build();
        let parts = CompletedMultipartUpload::builder().parts(part).build();
        let complete = bucket.client.complete_multipart_upload();
        let complete = complete.bucket("tests").key("k").upload_id(id);
        let complete = complete.if_none_match("*").multipart_upload(parts);
        complete.send().await.map(drop).map_err(code)
    };
    let (first, second) = (begin().await, begin().await);
    let list = bucket.client.list_multipart_uploads().bucket("tests");
    let listed = list.prefix("k").send().await.unwrap();
    assert_eq!(listed.uploads().len(), 2);
    assert_eq!(bucket.get("k").await.unwrap_err(), "NoSuchKey");

    end(&first).await.unwrap();
    assert_eq!(end(&first).await.unwrap_err(), "NoSuchUpload");
    assert_eq!(end(&second).await.unwrap_err(), "PreconditionFailed");
    assert_eq!(bucket.server.uploads(), ["k"]);
    let abort = bucket
        .client
        .abort_multipart_upload()
        .bucket("tests")
        .key("k");
    abort.upload_id(&second.0).send().await.unwrap();
    assert_eq!(bucket.server.uploads(), [""; 0]);
    assert_eq!(bucket.get("k").await.unwrap(), "part");
}

#[tokio::test]
async fn requests_go_wrong_as_told() {
    let bucket = Bucket::new();
    let server = &bucket.server;
    let every = |fault: Fault| server.set_rule(move |_: &Call| Some(fault.clone()));

    every(Fault::Refuse(503, "SlowDown"));
    assert_eq!(bucket.put("a", "a").await.unwrap_err(), "SlowDown");
    every(Fault::Cut);
    assert_eq!(bucket.put("a", "a").await.unwrap_err(), "no answer");
    every(Fault::CutBody);
    assert_eq!(bucket.put("a", "aaaa").await.unwrap_err(), "no answer");
    every(Fault::Flip);
    assert_eq!(
        bucket.put("a", "aaaa").await.unwrap_err(),
        "XAmzContentSHA256Mismatch"
    );
    server.heal();
    assert_eq!(bucket.get("a").await.unwrap_err(), "NoSuchKey");
    every(Fault::LoseReply);
    assert_eq!(bucket.put("a", "aaaa").await.unwrap_err(), "no answer");
    every(Fault::CutBody);
    assert_eq!(bucket.get("a").await.unwrap_err(), "body");
    every(Fault::Flip);
    assert_eq!(bucket.get("a").await.unwrap(), "aaqa");
    every(Fault::Slow(Duration::from_millis(10)));
    assert_eq!(bucket.get("a").await.unwrap(), "aaaa");
    every(Fault::Stall);
    let stalled = tokio::time::timeout(Duration::from_millis(100), bucket.get("a"));
    assert!(stalled.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_request_waits_and_a_server_that_was_down_comes_back() {
    let bucket = Arc::new(Bucket::new());
    let server = &bucket.server;
    let begin_put = |key: &'static str| {
        let bucket = bucket.clone();
        tokio::spawn(async move { bucket.put(key, "").await })
    };
    for (stop, stored) in [(Stop::Before, "NoSuchKey"), (Stop::Done, "")] {
        let hold = server.hold(stop, |call| call.verb == Verb::Put);
        let put = begin_put("a");
        hold.wait();
        let got = bucket.get("a").await.map(|_| String::new());
        assert_eq!(got.unwrap_or_else(|code| code), stored);
        drop(hold);
        assert_eq!(put.await.unwrap().unwrap_err(), "no answer");
    }
    let hold = server.hold(Stop::Before, |call| call.verb == Verb::Put);
    let put = begin_put("b");
    hold.wait();
    hold.let_go();
    put.await.unwrap().unwrap();

    server.down();
    assert_eq!(bucket.get("b").await.unwrap_err(), "no answer");
    server.reset();
    server.up();
    bucket.get("b").await.unwrap();
    assert_eq!(server.requests(), 1);
    assert_eq!(server.calls()[0].key, "b");
}
