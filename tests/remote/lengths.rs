//! Goal:   lengths that lie, ranges that are ignored and files that change never shorten or mix
//!         a shard in silence.
//! Method: as in the parent.

use super::*;

#[test]
fn an_answer_that_ends_early_is_gone_on_with() {
    // The length of the body agrees with the header, but not with the part that was asked for.
    all_arrive(|_, mut answer| {
        answer.body.truncate(answer.body.len().div_ceil(2).max(900));
        answer
    });
    it_fails("the answer ended after 0 of", |request, mut answer| {
        if request.range().unwrap().0 > 0 {
            answer.body.clear();
        }
        answer
    });
    // It promises more than it sends.
    all_arrive(|request, answer| match (request.nth % 2, answer.body.len()) {
        (0, bytes) => answer.send(bytes / 2, Then::Close),
        _ => answer,
    });
}

#[test]
fn an_answer_that_goes_on_is_not_believed() {
    let longer = |mut answer: Answer| {
        answer.body.extend([0; 100]);
        answer
    };
    it_fails("the answer is longer than the part it names", move |_, answer| longer(answer));
    let server = all_arrive(move |request, answer| match request.nth % 2 {
        0 => longer(answer),
        _ => answer,
    });
    assert!(server.log().len() > 40);
    // Nor is what came of it before that showed.
    all_arrive(move |request, answer| match request.nth {
        0 => {
            let mut noise = longer(answer);
            noise.body.fill(7);
            noise.send(usize::MAX, Then::Trickle(Duration::ZERO))
        }
        _ => answer,
    });
    // Behind the end that the header names there is another answer, which nobody asked for.
    all_arrive(move |_, answer| {
        let length = answer.body.len();
        longer(answer.header("Content-Length", length))
    });
}

#[test]
fn another_part_than_asked_for_is_refused() {
    let (shard, _) = noisy_shard(30);
    let server = Server::new(move |request| {
        let mut request = request.clone();
        if let Some((first, last)) = request.range().filter(|range| range.0 > 0) {
            let range = format!("bytes={}-{}", first - 512, last - 512);
            request.headers.insert("range".into(), range);
        }
        Answer::file(&request, &shard)
    });
    let (_, faults) = read(&server, hasty());
    assert!(faults[0].detail.contains("gave up after 4 tries"), "{}", faults[0]);
}

fn without_range(request: &Request) -> Request {
    let mut request = request.clone();
    request.headers.remove("range");
    request
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let (shard, pairs) = noisy_shard(30);
    for (chunked, breaks) in [(false, false), (true, false), (false, true), (true, true)] {
        let shard = shard.clone();
        let server = Server::new(move |request| {
            let mut answer = Answer::file(&without_range(request), &shard);
            answer.chunked = chunked;
            match request.nth {
                0 if breaks => answer.send(20_000, Then::Close),
                1 if breaks => answer.send(50_000, Then::Stall),
                2 if breaks => answer.send(9, Then::Close),
                _ => answer,
            }
        });
        let (got, faults) = read(&server, hasty());
        assert!(got == pairs && faults.is_empty(), "{chunked} {breaks} {faults:?}");
        // One to learn it, one to read, and one more for each break.
        assert_eq!(server.log().len(), if breaks { 5 } else { 2 });
    }
    // Skipping works, and reads on instead of asking anew.
    let copy = shard.clone();
    let server = Server::new(move |request| Answer::file(&without_range(request), &shard));
    let url = server.url("/a.tar");
    in_time(move || {
        let shard = &list(&url, &hasty())[0];
        let mut reader = ShardReader::open(shard, &ShardLimits::default(), Arc::default()).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(reader.skip(30_000).unwrap(), 30_000);
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, copy[30_000..30_064]);
        assert_eq!(reader.skip(40_000).unwrap(), 40_000);
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, copy[70_064..70_128]);
    });
    assert!(server.log().len() <= 4, "{}", server.log().len());
}

#[test]
fn a_change_while_reading_is_a_fault() {
    for (name, value) in
        [("ETag", "\"two\""), ("Content-Range", "bytes 4608-8703/99999"), ("ETag", "W/\"one\"")]
    {
        it_fails("it changed while being read", move |request, answer| {
            match request.range().unwrap().0 {
                4608 => answer.header(name, value),
                _ => answer,
            }
        });
    }
    // Without an ETag the date tells.
    it_fails("its Last-Modified is another now", |request, mut answer| {
        answer.headers.retain(|(name, _)| name != "ETag");
        match request.range().unwrap().0 {
            4608 => answer.header("Last-Modified", "Mon, 02 Nov 2026 10:00:01 GMT"),
            _ => answer,
        }
    });
    // Of a file that is only given whole, too.
    let (shard, pairs) = noisy_shard(30);
    let server = Server::new(move |request| {
        let answer = Answer::file(&without_range(request), &shard);
        match request.nth {
            0 => answer.send(30_000, Then::Close),
            _ => answer.header("ETag", "\"two\""),
        }
    });
    let (got, faults) = read(&server, hasty());
    assert!(got == pairs[..got.len()]);
    assert!(faults[0].detail.contains("its ETag is another now"), "{}", faults[0]);
}

#[test]
fn empty_files_and_error_pages_are_told() {
    for (bytes, reason) in [(&b""[..], Reason::EmptyShard), (b"<html>", Reason::NotATar)] {
        for ranges in [true, false] {
            let server = Server::new(move |request| match ranges {
                true => Answer::file(request, bytes),
                false => Answer::file(&without_range(request), bytes),
            });
            let (pairs, faults) = read(&server, hasty());
            assert!(pairs.is_empty() && faults[0].reason == reason, "{faults:?}");
        }
    }
}

#[test]
fn compressed_shards_are_read_and_skipped() {
    let (shard, pairs) = noisy_shard(30);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &shard).unwrap();
    let zstd = zstd::encode_all(&shard[..], 1).unwrap();
    for bytes in [gzip.finish().unwrap(), zstd] {
        let server = Server::files([("/a.tar".into(), bytes)].into());
        let (got, faults) = read(&server, hasty());
        assert!(got == pairs && faults.is_empty());
        let url = server.url("/a.tar");
        let rest = shard[5000..].to_vec();
        in_time(move || {
            let shard = &list(&url, &hasty())[0];
            let limits = ShardLimits::default();
            let mut reader = ShardReader::open(shard, &limits, Arc::default()).unwrap();
            assert_eq!(reader.skip(5000).unwrap(), 5000);
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert!(got == rest);
        });
    }
}

#[test]
fn a_stream_without_end_is_given_up() {
    let (shard, _) = noisy_shard(30);
    let server = Server::new(move |request| Answer::file(request, &shard));
    let limits = ShardLimits { shard_bytes: 20_000, ..ShardLimits::default() };
    let url = server.url("/a.tar");
    let error = in_time(move || {
        let shard = &list(&url, &hasty())[0];
        let mut reader = ShardReader::open(shard, &limits, Arc::default()).unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap_err().to_string()
    });
    assert!(error.contains("more than 20000 bytes"), "{error}");
}

#[test]
fn redirects_are_followed() {
    let (shard, pairs) = noisy_shard(3);
    let server = Server::new(move |request| match request.path() {
        "/a.tar" => Answer::new(302, "").header("Location", "/real.tar"),
        _ => Answer::file(request, &shard),
    });
    let (got, faults) = read(&server, hasty());
    assert!(got == pairs && faults.is_empty(), "{faults:?}");
}
