use super::*;
use crate::config::location::Location;
use crate::config::parse_duration;
use crate::config::print::{as_json, as_toml};

fn environment(name: &str) -> Option<String> {
    match name {
        "SECRET" => Some("hunter2".to_owned()),
        "DATA" => Some("/data".to_owned()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Settings> {
    parse(
        text,
        Path::new("/etc/s.toml"),
        Path::new("/etc"),
        &environment,
    )
}

/// The settings of a file with one database that has one replica.
#[track_caller]
fn one(text: &str) -> (Settings, ReplicaSettings) {
    let settings = read(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let replica = settings.databases[0].replicas[0].clone();
    (settings, replica)
}

#[track_caller]
fn refused(text: &str, sentence: &str) {
    match read(text) {
        Ok(_) => panic!("read as a config file: {text}"),
        Err(e) => {
            assert_eq!(e.kind(), crate::error::ErrorKind::Invalid);
            assert_eq!(e.to_string(), sentence, "{text}");
            assert!(!e.to_string().contains("hunter2"), "{e}");
        }
    }
}

/// A database with a replica of which all but the place is default.
fn database(path: &str, replica: &str) -> String {
    format!("[[db]]\npath = \"{path}\"\n[[db.replica]]\n{replica}\n")
}

#[test]
fn the_least_file_has_a_database_and_a_place() {
    let (settings, replica) = one(&database("/data/app.db", "path = \"/backup/app/\""));
    assert_eq!(settings.file.as_deref(), Some(Path::new("/etc/s.toml")));
    assert_eq!(settings.log, LogSettings::default());
    assert_eq!((settings.addr, settings.max_spool_size), (None, None));
    let database = &settings.databases[0];
    assert_eq!(database.name, "app");
    assert_eq!(database.capture.database, Path::new("/data/app.db"));
    assert_eq!(
        database.capture.meta_path,
        Path::new("/data/.app.db-sqlrepl")
    );
    assert_eq!(database.capture.wal_size, 4 << 20);
    assert!(database.capture.writer_lock);
    assert_eq!(database.capture.monitor_interval, Duration::from_secs(1));
    assert_eq!(replica.name, "/backup/app");
    assert_eq!(replica.location, Location::Directory("/backup/app".into()));
    assert_eq!(replica.sync_interval, Duration::from_secs(1));
    assert_eq!(replica.retention, Retention::WEEK);
    assert_eq!(replica.retention_check_interval, HOUR);
    assert_eq!(replica.snapshot_interval, 24 * HOUR);
    assert_eq!(replica.validation_interval, None);
    assert!(read("").unwrap().databases.is_empty());
}

#[test]
fn every_key_is_understood() {
    let settings = read(EVERY_KEY).unwrap();
    assert_eq!(settings.addr.as_deref(), Some(":9090"));
    assert_eq!(settings.max_spool_size, Some(2 << 30));
    assert_eq!(settings.log.level, "debug");
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(
        settings.log.target,
        LogTarget::File("/etc/log/s.log".into())
    );
    let database = &settings.databases[0];
    assert_eq!(database.name, "shop");
    assert_eq!(database.capture.database, Path::new("/data/app.db"));
    assert_eq!(database.capture.meta_path, Path::new("/data/spool"));
    assert_eq!(database.capture.wal_size, 8 << 20);
    assert!(!database.capture.writer_lock);
    assert_eq!(database.capture.monitor_interval, Duration::from_secs(5));
    let [url, bucket, file] = database.replicas.as_slice() else {
        panic!("not three replicas: {settings:?}");
    };
    let Location::S3(place) = &url.location else {
        panic!("{url:?}");
    };
    assert_eq!(place.to_string(), "s3://backup/app");
    assert_eq!(place.region.as_deref(), Some("eu-central-1"));
    assert_eq!(place.credentials, settings.credentials);
    assert_eq!(url.name, "s3");
    assert_eq!(url.sync_interval, Duration::ZERO);
    assert_eq!(
        url.retention,
        Retention {
            all: Some(parse_duration("7d").unwrap()),
            hourly: None,
            daily: Some(parse_duration("1y").unwrap()),
        }
    );
    let Location::S3(place) = &bucket.location else {
        panic!("{bucket:?}");
    };
    assert_eq!(bucket.name, "s3://backup2/a/b");
    assert_eq!(place.endpoint.as_deref(), Some("http://localhost:9000"));
    assert_eq!(place.force_path_style, Some(true));
    assert!(!place.checksums);
    let own = place.credentials.as_ref().unwrap();
    assert_eq!(own.access_key_id, "other$");
    assert_eq!(own.secret_access_key.reveal(), "a-hunter2");
    assert_eq!(file.location, Location::Directory("/etc/beside".into()));
    assert_eq!(file.retention.all, Some(24 * HOUR));
    assert_eq!(file.validation_interval, Some(6 * HOUR));
}

const EVERY_KEY: &str = r#"
access-key-id = "id"
secret-access-key = "${SECRET}"
addr = ":9090"
max-spool-size = "2GiB"
[log]
level = "debug"
format = "json"
target = "log/s.log"
[[db]]
path = "${DATA}/app.db"
name = "shop"
monitor-interval = "5s"
wal-size = 8388608
writer-lock = false
meta-path = "${DATA}/spool"
[[db.replica]]
name = "s3"
url = "s3://backup/app?region=eu-central-1"
sync-interval = 0
retention = { all = "7d", daily = "1y" }
[[db.replica]]
type = "s3"
bucket = "backup2"
path = "/a/b/"
region = "x"
endpoint = "http://localhost:9000"
force-path-style = true
checksums = false
access-key-id = "other$$"
secret-access-key = "a-${SECRET}"
[[db.replica]]
type = "file"
path = "beside"
sync-interval = "10s"
retention = "24h"
retention-check-interval = "10m"
snapshot-interval = "12h"
validation-interval = "6h"
"#;

#[test]
fn what_is_printed_reads_as_the_same_and_hides_secrets() {
    for text in [
        EVERY_KEY,
        "",
        &database("/a$$/b.db", "url = \"s3://bucket/a%25$$\""),
    ] {
        let settings = read(text).unwrap();
        let printed = as_toml(&settings);
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(!as_json(&settings).to_string().contains("hunter2"));
        let again = read(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(as_toml(&again), printed);
        assert_eq!(as_json(&again), as_json(&settings));
        assert_eq!(again.log, settings.log);
        for (one, other) in again.databases.iter().zip(&settings.databases) {
            assert_eq!(one.capture.database, other.capture.database);
            assert_eq!(one.replicas.len(), other.replicas.len());
        }
    }
    let printed = as_toml(&read(EVERY_KEY).unwrap());
    assert_eq!(printed.matches("secret-access-key = \"***\"").count(), 2);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_or_the_table_that_knows_them() {
    let before = "the part before all [tables]";
    for (text, sentence) in [
        (
            "\nadrr = \"x\"",
            format!("/etc/s.toml:2: {before} has no key \"adrr\"; did you mean addr?"),
        ),
        (
            "[log]\nlevle = \"x\"",
            "/etc/s.toml:2: [log] has no key \"levle\"; did you mean level?".into(),
        ),
        (
            "[log]\naddr = \"x\"",
            format!("/etc/s.toml:2: [log] has no key \"addr\"; it belongs into {before}"),
        ),
        (
            "[[db]]\npath = \"/a\"\n\nsync-interval = \"1s\"",
            "/etc/s.toml:4: [[db]] has no key \"sync-interval\"; it belongs into [[db.replica]]"
                .into(),
        ),
        (
            &database("/a", "pth = \"x\""),
            "/etc/s.toml:4: [[db.replica]] has no key \"pth\"; did you mean path?".into(),
        ),
        (
            &database("/a", "path = \"/b\"\nretention = { weekly = \"1y\" }"),
            "/etc/s.toml:5: retention has no key \"weekly\"; known are all, hourly, daily".into(),
        ),
        (
            "[logging]\nx = 1",
            format!(
                "/etc/s.toml:1: {before} has no key \"logging\"; known are access-key-id, \
                     secret-access-key, addr, max-spool-size, log, db"
            ),
        ),
    ] {
        refused(text, &sentence);
    }
}

#[test]
fn values_of_another_type_are_refused_and_never_shown() {
    for (text, sentence) in [
        (
            "addr = 9090",
            "/etc/s.toml:1: addr is a number, expected text in quotes",
        ),
        (
            "access-key-id = \"a\"\nsecret-access-key = [\"hunter2\"]",
            "/etc/s.toml:2: secret-access-key is an array, expected text in quotes",
        ),
        (
            "log = \"debug\"",
            "/etc/s.toml:1: log is text, expected a table [log]",
        ),
        (
            "[db]\npath = \"/a\"",
            "/etc/s.toml:1: db is a table, expected tables, each with the heading [[db]]",
        ),
        (
            "[[db]]\npath = \"/a\"\n[db.replica]\npath = \"/b\"",
            "/etc/s.toml:3: replica is a table, expected tables, each with the heading \
             [[db.replica]]",
        ),
        (
            "[[db]]\npath = \"/a\"\nwriter-lock = \"no\"",
            "/etc/s.toml:3: writer-lock is text, expected true or false, without quotes",
        ),
        (
            &database("/a", "path = \"/b\"\nsync-interval = 10"),
            "/etc/s.toml:5: sync-interval is a number, expected a duration in quotes, such as \
             \"10s\"",
        ),
        (
            "max-spool-size = true",
            "/etc/s.toml:1: max-spool-size is true or false, expected text in quotes",
        ),
    ] {
        refused(text, sentence);
    }
}

#[test]
fn values_that_mean_nothing_are_refused_with_what_would_do() {
    for (text, sentence) in [
        (
            "max-spool-size = \"4M\"",
            "/etc/s.toml:1: max-spool-size: \"4M\" is no size: say 4MiB, 64KiB, 1GiB, 500MB or \
             4096",
        ),
        (
            "max-spool-size = -1",
            "/etc/s.toml:1: max-spool-size: \"-1\" is no size: say 4MiB, 64KiB, 1GiB, 500MB or \
             4096",
        ),
        (
            &database("/a", "path = \"/b\"\nsync-interval = \"soon\""),
            "/etc/s.toml:5: sync-interval: \"soon\" is no duration: say 10s, 500ms, 1h30m, 7d, \
             1y or 0",
        ),
        (
            &database("/a", "path = \"/b\"\nsnapshot-interval = \"0\""),
            "/etc/s.toml:5: snapshot-interval: \"0\" must be longer than 0",
        ),
        (
            &database("/a", "path = \"/b\"\nretention = {}"),
            "/etc/s.toml:5: retention keeps nothing; say all, hourly or daily, or leave it out",
        ),
        (
            &database("/a", "path = \"/b\"\nname = \"\""),
            "/etc/s.toml:5: name: a name has at least one letter",
        ),
        (
            "addr = \"somewhere\"",
            "/etc/s.toml:1: addr: \"somewhere\" is no address: say 127.0.0.1:9090 or :9090",
        ),
        (
            "[log]\nlevel = \"inof\"",
            "/etc/s.toml:2: level: \"inof\" is no level: say one of off, error, warn, info, \
             debug, trace",
        ),
        (
            "[log]\nformat = \"xml\"",
            "/etc/s.toml:2: format: \"xml\" is neither text nor json",
        ),
        (
            "[log]\ntarget = \"stdrr\"",
            "/etc/s.toml:2: target: \"stdrr\" is neither stderr nor stdout nor a path with a /",
        ),
        (
            "secret-access-key = \"hunter2\"",
            "/etc/s.toml:1: secret-access-key without access-key-id; give both or neither",
        ),
        (
            "access-key-id = \"\"\nsecret-access-key = \"hunter2\"",
            "/etc/s.toml:1: access-key-id is empty",
        ),
        (
            "secret-access-key = \"${SECRET}-${NO_SUCH}\"",
            "/etc/s.toml:1: secret-access-key: ${NO_SUCH} is not set in the environment, or is \
             no text",
        ),
        (
            "secret-access-key = \"hunter2$\"",
            "/etc/s.toml:1: secret-access-key: a $ begins ${NAME}, which the environment fills \
             in; write $$ for a dollar",
        ),
    ] {
        refused(text, sentence);
    }
}

#[test]
fn databases_and_replicas_need_what_they_cannot_do_without() {
    for (text, sentence) in [
        (
            "[[db]]\nname = \"a\"",
            "/etc/s.toml:1: [[db]] needs the path of its database file",
        ),
        (
            "[[db]]\npath = \"/a.db\"",
            "/etc/s.toml:1: database a needs a [[db.replica]]",
        ),
        (
            "[[db]]\npath = \"/a/\"",
            "/etc/s.toml:2: path: \"/a/\": not the path of a database file",
        ),
        (
            "[[db]]\npath = \"/\"",
            "/etc/s.toml:2: path: \"/\": not the path of a database file",
        ),
        (
            "[[db]]\npath = \"/tmp\"",
            "/etc/s.toml:2: path: \"/tmp\": a directory, expected a database file",
        ),
        (
            "[[db]]\npath = \"/a\"\nmeta-path = \"\"",
            "/etc/s.toml:3: meta-path: the path of a directory is empty",
        ),
        (
            "[[db]]\npath = \"/a\"\nname = \"a/b\"",
            "/etc/s.toml:3: name: \"a/b\" cannot name a directory in the mount: 1 to 255 bytes, \
             no / and no control characters, neither . nor ..",
        ),
        (
            &database("/a", "name = \"b\""),
            "/etc/s.toml:3: [[db.replica]] needs a place: url = \"s3://bucket/prefix\", or path \
             for a directory, or bucket",
        ),
    ] {
        refused(text, sentence);
    }
}

#[test]
fn a_place_that_contradicts_itself_is_refused() {
    for (replica, sentence) in [
        (
            "url = \"s3://bucket\"\npath = \"/b\"",
            "5: path beside url: give one of them",
        ),
        (
            "url = \"s3://bucket\"\nbucket = \"b\"",
            "5: bucket beside url: give one of them",
        ),
        (
            "path = \"/b\"\ntype = \"s3\"",
            "5: type is \"s3\", but url or bucket is missing",
        ),
        (
            "url = \"s3://bucket\"\ntype = \"file\"",
            "5: type is \"file\", but url and bucket are for s3; give path alone",
        ),
        (
            "path = \"/b\"\ntype = \"gs\"",
            "5: type: \"gs\" is neither s3 nor file",
        ),
        (
            "path = \"/b\"\nregion = \"x\"",
            "5: region is for buckets, but path alone is a directory; give url or bucket",
        ),
        (
            "path = \"s3://bucket/a?x=hunter2\"",
            "4: path is the URL s3://bucket/a; give it as url",
        ),
        (
            "url = \"/b\"",
            "4: url is none such as s3://bucket/prefix; give a directory as path",
        ),
        (
            "url = \"s3://bucket?region=a\"\nregion = \"b\"",
            "5: region is given here and in the url; give it once",
        ),
        (
            "bucket = \"b\"",
            "4: bucket: \"b\" is no name of a bucket: 3 to 63 lower case letters, digits, - and \
             ., with a letter or digit at each end",
        ),
        (
            "bucket = \"bucket\"\nendpoint = \"localhost:9000\"",
            "5: endpoint: localhost:9000: no endpoint: say http://host:port or https://host",
        ),
        (
            "bucket = \"bucket\"\naccess-key-id = \"a\"",
            "5: access-key-id without secret-access-key; give both or neither",
        ),
    ] {
        refused(&database("/a", replica), &format!("/etc/s.toml:{sentence}"));
    }
}

#[test]
fn a_place_with_credentials_in_it_is_refused_without_showing_them() {
    for (replica, sentence) in [
        (
            "url = \"s3://me:hunter2@bucket\"",
            "4: url: s3://***@bucket: a URL holds no credentials; set access-key-id and \
             secret-access-key in the config file, or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY in the environment",
        ),
        (
            "url = \"s3://AKIA:hun/ter2@bucket/a\"",
            "4: url: s3://***@bucket/a: a URL holds no credentials; set access-key-id and \
             secret-access-key in the config file, or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY in the environment",
        ),
        (
            "bucket = \"bucket\"\nendpoint = \"http://AKIA:hun/ter2@host\"",
            "5: endpoint: http://***@host: an endpoint holds no credentials; set access-key-id \
             and secret-access-key in the config file, or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY in the environment",
        ),
    ] {
        refused(&database("/a", replica), &format!("/etc/s.toml:{sentence}"));
    }
}

#[test]
fn two_databases_never_share_a_file_a_name_or_a_spool() {
    let file = |path: &str| format!("path = \"{path}\"");
    refused(
        &(database("/a.db", &file("/x")) + &database("/./a.db", &file("/y"))),
        "/etc/s.toml: the databases a and a are one file: /a.db",
    );
    refused(
        &(database("/1/a.db", &file("/x")) + &database("/2/a.sqlite", &file("/y"))),
        "/etc/s.toml: two databases have the name \"a\": /1/a.db and /2/a.sqlite; give one of them \
         a name of its own",
    );
    refused(
        "[[db]]\npath = \"/a.db\"\nmeta-path = \"/m\"\n[[db.replica]]\npath = \"/x\"\n\
         [[db]]\npath = \"/b.db\"\nmeta-path = \"/m/\"\n[[db.replica]]\npath = \"/y\"\n",
        "/etc/s.toml: the databases a and b have one meta-path: /m",
    );
    refused(
        &database(
            "/a.db",
            "path = \"/x\"\n[[db.replica]]\nname = \"/x\"\npath = \"/y\"",
        ),
        "/etc/s.toml: database a has two replicas with the name \"/x\"; give one of them another \
         in the config file",
    );
}

#[test]
fn no_replica_lies_where_another_one_does_or_within() {
    let two = |one: &str, other: &str| {
        let key = if one.contains("://") { "url" } else { "path" };
        database("/a.db", &format!("{key} = \"{one}\""))
            + &database("/b.db", &format!("{key} = \"{other}\""))
    };
    for (one, other, how, names, places) in [
        (
            "/x",
            "/x/",
            "lies in the place of",
            ["/x", "/x"],
            "/x and /x",
        ),
        ("/x", "/x/y", "lies around", ["/x", "/x/y"], "/x and /x/y"),
        (
            "s3://bucket/x/y",
            "s3://bucket/x?region=a",
            "lies within",
            ["s3://bucket/x/y", "s3://bucket/x"],
            "s3://bucket/x/y and s3://bucket/x",
        ),
        (
            "s3://bucket",
            "s3://bucket/x",
            "lies around",
            ["s3://bucket", "s3://bucket/x"],
            "s3://bucket and s3://bucket/x",
        ),
        (
            "s3://bucket/x?endpoint=http://a",
            "s3://bucket/x/?endpoint=http://a&region=b",
            "lies in the place of",
            ["s3://bucket/x", "s3://bucket/x"],
            "s3://bucket/x and s3://bucket/x",
        ),
    ] {
        let [name, other_name] = names;
        let sentence = format!(
            "/etc/s.toml: replica \"{name}\" of database a {how} replica \"{other_name}\" of \
             database b: {places}; each replica needs a place of its own"
        );
        refused(&two(one, other), &sentence);
    }
    let said = |text: &str| {
        let environment =
            |name: &str| Some("http://a".to_owned()).filter(|_| name == "AWS_ENDPOINT_URL");
        let file = Path::new("/etc/s.toml");
        parse(text, file, Path::new("/etc"), &environment).map_err(|e| e.to_string())
    };
    let one_server = said(&two("s3://bucket/x", "s3://bucket/x?endpoint=http://a/"));
    assert!(one_server.unwrap_err().contains("lies in the place of"));
    said(&two("s3://bucket/x", "s3://bucket/x?endpoint=http://b")).unwrap();
    for (one, other) in [
        ("/x", "/x2"),
        ("s3://bucket/x", "s3://bucket/x2"),
        (
            "s3://bucket/x?endpoint=http://a",
            "s3://bucket/x?endpoint=http://b",
        ),
    ] {
        read(&two(one, other)).unwrap();
    }
}

#[test]
fn what_is_no_toml_is_refused_with_its_line_but_not_with_its_words() {
    let said = read("a = 1\nsecret-access-key = \"hunter2\n")
        .unwrap_err()
        .to_string();
    assert!(said.starts_with("/etc/s.toml:2: no TOML: "), "{said}");
    assert!(!said.contains("hunter2") && !said.contains('\n'), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let said = load(Path::new("/nowhere/s.toml"), &environment).unwrap_err();
    assert_eq!(
        said.to_string(),
        "read config file /nowhere/s.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn a_replica_is_called_what_the_user_calls_it() {
    for (place, name) in [
        ("r", "r"),
        ("r/", "r"),
        ("./r//", "./r"),
        ("/", "/"),
        ("s3://bucket/a/?region=x", "s3://bucket/a"),
        ("s3://bucket/a@host", "s3://bucket/a@host"),
        ("/backup/a@host?", "/backup/a@host?"),
        // What is no place may hold a secret.
        ("s3://AKIA:hun/ter2@bucket/a", "s3://***@bucket/a"),
    ] {
        assert_eq!(replica_name(place), name);
    }
    // One whose name ends in a slash can be meant, too.
    assert!(is_named("disk/", "disk/") && is_named("disk", "disk/"));
    assert!(!is_named("disk/", "disk"));
}

#[test]
fn the_example_is_right_and_shows_every_key() {
    const EXAMPLE: &str = include_str!("../../../contrib/sqlrepl.toml");
    let environment = |name: &str| (!name.starts_with("AWS_")).then(|| "word".to_owned());
    let file = Path::new("/etc/sqlrepl.toml");
    let settings = parse(EXAMPLE, file, Path::new("/etc"), &environment).unwrap();
    assert_eq!(settings.databases[0].replicas.len(), 3);
    // What it calls defaults are the defaults.
    let least = read(&database("/var/lib/app/app.db", "path = \"/backup/app\"")).unwrap();
    let (shown, least) = (&settings.databases[0], &least.databases[0]);
    assert_eq!(settings.log, LogSettings::default());
    assert_eq!(shown.name, least.name);
    assert_eq!(shown.capture.meta_path, least.capture.meta_path);
    assert_eq!(
        shown.capture.monitor_interval,
        least.capture.monitor_interval
    );
    assert_eq!(shown.capture.wal_size, least.capture.wal_size);
    assert_eq!(
        shown.replicas[0].sync_interval,
        least.replicas[0].sync_interval
    );
    assert_eq!(
        shown.replicas[0].snapshot_interval,
        least.replicas[0].snapshot_interval
    );
    for kind in table::KINDS {
        for key in kind.keys {
            let is_shown = ["\n", "{ ", ", "]
                .iter()
                .any(|before| EXAMPLE.contains(&format!("{before}{key} = ")));
            let heads = ["\n[", "\n[[", "\n[[db."];
            let is_table = heads
                .iter()
                .any(|before| EXAMPLE.contains(&format!("{before}{key}]")));
            assert!(is_shown || is_table, "the example lacks {key}");
        }
    }
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(EXAMPLE), "the README shows another example");
}
