//! Goal:   buckets are listed and read with the credentials that are given, or with none.
//! Method: the test server plays an S3 endpoint (path-style, `list-type=2`), a Google and an Azure
//!         one; the settings name it, so no environment variable is touched.

use roclip::data::source::StoreSettings;

use super::*;

/// What `files` below `/box/` look like to a client that lists them, two keys a page.
fn list_answer(request: &Request, files: &BTreeMap<String, Vec<u8>>) -> Answer {
    let query: BTreeMap<_, _> = request
        .target
        .split_once('?')
        .unwrap()
        .1
        .split('&')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name, value.replace("%2F", "/")))
        .collect();
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    let flat = query.contains_key("delimiter");
    let keys: Vec<_> = files
        .iter()
        .filter_map(|(path, file)| Some((path.strip_prefix("/box/")?, file.len())))
        .filter(|(key, _)| key.starts_with(&prefix) && **key > *after)
        .filter(|(key, _)| !flat || !key[prefix.len()..].contains('/'))
        .collect();
    let more = keys.len() > 2;
    let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
    for (key, size) in keys.iter().take(2) {
        xml += &format!(
            "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"one\"</ETag>\
             <LastModified>2026-11-02T10:00:00.000Z</LastModified></Contents>"
        );
    }
    xml += &format!("<IsTruncated>{more}</IsTruncated>");
    if more {
        xml += &format!("<NextContinuationToken>{}</NextContinuationToken>", keys[1].0);
    }
    Answer::new(200, xml + "</ListBucketResult>").header("Content-Type", "application/xml")
}

fn bucket(files: &[(&str, Vec<u8>)]) -> Server {
    let files: BTreeMap<String, Vec<u8>> =
        files.iter().map(|(path, bytes)| (format!("/box/{path}"), bytes.clone())).collect();
    Server::new(move |request| match files.get(request.path()) {
        Some(file) => Answer::file(request, file),
        None if request.target.contains("list-type=2") && request.nth == 0 => {
            // A list is as likely to be refused at first as a file.
            Answer::new(503, "SlowDown")
        }
        None if request.target.contains("list-type=2") => list_answer(request, &files),
        None => Answer::new(404, "<Error><Code>NoSuchKey</Code></Error>"),
    })
}

fn with(settings: &[(&str, &str)]) -> SourceOptions {
    let settings = settings.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    SourceOptions { store: StoreSettings(settings.collect()), ..hasty() }
}

fn names(shards: &[Shard]) -> Vec<&str> {
    shards.iter().map(|shard| &*shard.name).collect()
}

#[test]
fn s3_buckets_are_listed_and_read() {
    let (shard, pairs) = noisy_shard(30);
    let other = |bytes: usize| vec![1; bytes];
    let server = bucket(&[
        ("set/00.tar", shard.clone()),
        ("set/01.tar", other(1)),
        ("set/02.tar.gz", other(2)),
        ("set/deep/03.tar", other(3)),
        ("set/note.txt", other(4)),
        ("settings.tar", other(5)),
    ]);
    let options = with(&[("aws_endpoint", &server.url(""))]);
    let list = |pattern: &str| {
        let (pattern, options) = (pattern.to_owned(), options.clone());
        in_time(move || list_shards(&pattern, &options))
    };
    let all = ["s3://box/set/00.tar", "s3://box/set/01.tar", "s3://box/set/02.tar.gz"];
    assert_eq!(names(&list("s3://box/set/").unwrap()), all);
    assert_eq!(names(&list("s3://box/set/*.tar").unwrap()), all[..2]);
    assert_eq!(names(&list("s3://box/set/0[01].tar").unwrap()), all[..2]);
    assert_eq!(names(&list("s3://box/**/03.tar").unwrap()), ["s3://box/set/deep/03.tar"]);
    assert_eq!(names(&list("s3://box/*.tar").unwrap()), ["s3://box/settings.tar"]);
    assert_eq!(names(&list("s3://box/set/{01,00}.tar").unwrap()), [all[1], all[0]]);
    let message = list("s3://box/none/*.tar").unwrap_err().to_string();
    assert!(message.contains("nothing matches"), "{message}");

    let shards = list("s3://box/set/").unwrap();
    let before = server.log().len();
    assert_eq!(fingerprint(&shards), fingerprint(&shards));
    assert_eq!(server.log().len(), before, "the list told the sizes");
    let (got, faults) = in_time(move || read_shard(&shards[0]));
    assert!(got == pairs && faults.is_empty(), "{faults:?}");
    assert!(server.log().iter().all(|request| !request.headers.contains_key("authorization")));
    let gone = list("s3://box/gone.tar").unwrap();
    let (_, faults) = in_time(move || read_shard(&gone[0]));
    assert!(faults[0].detail.contains("404 Not Found"), "{}", faults[0]);
}

#[test]
fn s3_requests_are_signed_where_there_are_keys() {
    let (shard, pairs) = noisy_shard(3);
    let server = bucket(&[("a.tar", shard)]);
    let keys = [
        ("aws_endpoint", &*server.url("")),
        ("aws_access_key_id", "AKID"),
        ("aws_secret_access_key", "hunter2"),
        ("aws_region", "eu-north-1"),
    ];
    let shards = list("s3://box/a.tar", &with(&keys));
    assert!(!format!("{shards:?}").contains("hunter2"));
    let (got, faults) = in_time(move || read_shard(&shards[0]));
    assert!(got == pairs && faults.is_empty(), "{faults:?}");
    for request in server.log() {
        let signature = &request.headers["authorization"];
        assert!(signature.contains("Credential=AKID/") && signature.contains("/eu-north-1/s3/"));
    }
    let error = list_shards("s3://box/a.tar", &with(&[("aws_endpiont", "x")])).unwrap_err();
    assert!(error.to_string().contains("aws_endpiont"), "{error}");
}

#[test]
fn refusals_of_a_bucket_say_what_to_do() {
    let server = Server::new(|request| match request.path() {
        "/box/moved.tar" => Answer::new(301, "").header("x-amz-bucket-region", "eu-north-1"),
        _ => Answer::new(403, "<Error/>"),
    });
    let options = with(&[("aws_endpoint", &server.url(""))]);
    let shards = list("s3://box/{moved,mine}.tar", &options);
    let faults = in_time(move || shards.iter().map(|s| read_shard(s).1.remove(0)).collect());
    let faults: Vec<Fault> = faults;
    assert!(faults[0].detail.contains("set AWS_REGION=eu-north-1"), "{}", faults[0]);
    assert!(faults[1].detail.contains("AWS_ACCESS_KEY_ID"), "{}", faults[1]);
    assert!(server.log().len() == 2);
}

#[test]
fn google_and_azure_are_read_too() {
    let (shard, pairs) = noisy_shard(10);
    let server = Server::new(move |request| {
        let path = request.path().replace("%2E", ".");
        let is_ours = path == "/box/a.tar" || path == "/account/box/a.tar";
        if is_ours { Answer::file(request, &shard) } else { Answer::new(404, "") }
    });
    let url = server.url("");
    for (name, settings) in [
        ("gs://box/a.tar", vec![("google_base_url", &*url)]),
        (
            "az://box/a.tar",
            vec![
                ("azure_storage_account_name", "account"),
                ("azure_storage_endpoint", &*server.url("/account")),
            ],
        ),
    ] {
        let shards = list(name, &with(&settings));
        assert_eq!(*shards[0].name, *name);
        let (got, faults) = in_time(move || read_shard(&shards[0]));
        assert!(got == pairs && faults.is_empty(), "{name} {faults:?}");
    }
}

#[test]
fn a_web_server_is_not_listed() {
    for url in ["http://h/a/", "https://h/*.tar"] {
        let error = list_shards(url, &hasty()).unwrap_err().to_string();
        assert!(error.contains("{000..099}"), "{error}");
    }
    for url in ["http://", "s3://box/a//b.tar", "s3://"] {
        assert!(list_shards(url, &hasty()).is_err(), "{url}");
    }
}
