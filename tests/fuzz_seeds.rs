//! Goal: what the fuzz targets hold of any bytes (`fuzz/src/lib.rs`) holds on every commit.
//! Method: the same functions, over seeds that other programs wrote, and a few thousand simple
//! mutations of them with a fixed seed. `write_corpora` gives the fuzzer the same seeds.

use std::time::Duration;

#[path = "../fuzz/src/lib.rs"]
mod targets;

use roclip::data::decode;
use roclip::data::tar::{Event, TarReader};
use roclip::rng::{Domain, Rng};
use safetensors::SafeTensors;

use crate::common::{golden, shards};

/// Seeds as files for `cargo fuzz`: `cargo test fuzz_seeds::write_corpora -- --ignored`.
#[test]
#[ignore = "writes files"]
fn write_corpora() {
    for (target, seeds) in [
        ("tar", archives()),
        ("shard", shard_files()),
        ("picture", pictures()),
        ("caption", captions()),
        ("lists", lists()),
        ("weights_safetensors", weights_safetensors()),
        ("weights_pickle", weights_pickle()),
    ] {
        let folder = golden::root().join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (n, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed_{n:03}")), seed).unwrap();
        }
    }
}

#[test]
fn any_archive() {
    run(targets::tar, &archives(), 3000);
}

#[test]
fn any_shard() {
    run(targets::shard, &shard_files(), 500);
}

#[test]
fn any_picture() {
    run(targets::picture, &pictures(), 3000);
}

#[test]
fn any_caption() {
    run(targets::caption, &captions(), 1000);
}

#[test]
fn any_list() {
    run(targets::lists, &lists(), 2000);
}

#[test]
fn any_safetensors() {
    run(targets::weights_safetensors, &weights_safetensors(), 2000);
}

#[test]
fn any_pickle() {
    run(targets::weights_pickle, &weights_pickle(), 3000);
}

/// Inputs on which something did not hold, made short.
#[test]
fn what_the_fuzzer_found() {
    // A reader that was sent to the start of what is no archive took it for one.
    targets::tar(b"\0not an archive");
    targets::shard(b"\0\0not an archive");
    // A name that was given in front of zeros, even of the end of the archive, passed to the member
    // behind them.
    let archives = plain_archives();
    let [plain, pax] = [&archives[0], &archives[3]];
    for zeros in [512, 1024, 2048] {
        let archive = [&[0], &pax[..1024], &vec![0; zeros], &plain[..2048]].concat();
        targets::tar(&archive);
        let mut reader = TarReader::new(&archive[1..], 1 << 20);
        while let Some(event) = reader.next_event().unwrap() {
            let is_member = matches!(event, Event::Member(_));
            assert!(!is_member || reader.name().starts_with("d/"), "{}", reader.name());
        }
    }
    // Four hundred bytes, a million names of as many bytes each, and twice that on the way there.
    targets::lists(format!("\0{{1..999999}}{}", "b{1..3}".repeat(60)).as_bytes());
    targets::lists(format!("\0{}{{0..999999}}", "name".repeat(100)).as_bytes());
    // A rare JPEG of 25 million pixels in a thousand bytes: two seconds, whatever the limit.
    let golden = golden::read("decode.safetensors");
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let mut cmyk = golden.tensor("jpeg_cmyk.file").unwrap().data().to_vec();
    let frame = cmyk.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    cmyk[frame + 5..frame + 9].copy_from_slice(&[0x13, 0x88, 0x13, 0x88]);
    let error = decode::decode(&cmyk, &decode::DecodeLimits::default()).unwrap_err();
    assert!(error.to_string().contains("cannot hold 390625 blocks"), "{error}");
    // Its decoder delivered what it had when time was over.
    let no_time = decode::DecodeLimits { max_time: Duration::ZERO, ..Default::default() };
    for name in ["jpeg_cmyk", "jpeg_ycck", "png_rgb", "webp_lossy"] {
        let file = golden.tensor(&format!("{name}.file")).unwrap();
        let late = decode::decode(file.data(), &no_time);
        assert_eq!(late, Err(decode::DecodeError::TooSlow(Duration::ZERO)), "{name}");
    }
}

/// Runs a target over its seeds and over this many mutations of them.
fn run(target: fn(&[u8]), seeds: &[Vec<u8>], mutations: usize) {
    let mut rng = Rng::new(23, Domain::SampleOrder, 0, 0);
    let mutated = (0..mutations).map(|_| mutate(seeds, &mut rng));
    for (n, input) in seeds.iter().cloned().chain(mutated).enumerate() {
        let outcome = std::panic::catch_unwind(|| target(&input));
        if let Err(panic) = outcome {
            println!("input {n}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    }
}

fn below(n: usize, rng: &mut Rng) -> usize {
    rng.below(n.max(1) as u64) as usize
}

/// A seed after one to four changes: other bytes, a part gone, twice, or from another seed.
fn mutate(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seeds[below(seeds.len(), rng)].clone();
    for _ in 0..1 + below(4, rng) {
        let (a, b) = (below(bytes.len() + 1, rng), below(bytes.len() + 1, rng));
        let (first, end) = (a.min(b), a.max(b));
        let near = end.min(first + 1 + below(16, rng));
        match below(6, rng) {
            0 => bytes[first..near].iter_mut().for_each(|b| *b = rng.next_u32() as u8),
            1 => bytes[first..near].iter_mut().for_each(|b| *b ^= 1 << (first % 8)),
            2 => bytes[first..near].fill([0, 0xFF, b'9', b'{'][first % 4]),
            3 => drop(bytes.drain(first..if first % 2 == 0 { near } else { end })),
            4 => {
                let part = bytes[first..end].to_vec();
                bytes.splice(first..first, part);
            }
            _ => {
                let other = &seeds[below(seeds.len(), rng)];
                let from = below(other.len(), rng);
                bytes.splice(first..end, other[from..].iter().copied());
            }
        }
        bytes.truncate(16_384);
    }
    bytes
}

/// The same content under each of these first bytes.
fn with_heads(heads: &[&[u8]], contents: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let with = |content: &Vec<u8>| heads.iter().map(|head| [*head, content].concat()).collect();
    contents.iter().flat_map(|content| -> Vec<Vec<u8>> { with(content) }).collect()
}

fn plain_archives() -> Vec<Vec<u8>> {
    let pair = |n: u32| {
        let json = format!(r#"{{"caption": "number {n}", "cls": {n}}}"#).into_bytes();
        let members = [
            ("jpg", vec![n as u8; 9]),
            ("txt", b"a caption".to_vec()),
            ("json", json),
            ("cls", n.to_string().into_bytes()),
        ];
        members.map(|(extension, data)| (format!("d/{n}.{extension}"), data))
    };
    let members: Vec<_> = (0..3).flat_map(pair).collect();
    let long = "a".repeat(120);
    let mut gnu = tar::Builder::new(Vec::new());
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("path", b"pax.jpg".as_slice()), ("size", b"7")]).unwrap();
    for (builder, name) in [(&mut gnu, format!("{long}.jpg")), (&mut pax, "short.jpg".into())] {
        for name in [name, "link.txt".into(), "k.txt".into()] {
            let mut header = tar::Header::new_gnu();
            let data: &[u8] = if name == "link.txt" { b"" } else { b"content" };
            if data.is_empty() {
                header.set_entry_type(tar::EntryType::Symlink);
            }
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, &name, data).unwrap();
        }
    }
    let end = vec![0; 1024];
    let twice = [shards::tar(&members[..4]), shards::tar(&members[4..])].concat();
    let doubled = [members[0].clone(), members[0].clone(), members[1].clone()];
    vec![
        shards::tar(&members),
        shards::tar(&doubled),
        gnu.into_inner().unwrap(),
        pax.into_inner().unwrap(),
        twice,
        end,
    ]
}

fn archives() -> Vec<Vec<u8>> {
    with_heads(&[&[0], &[0x81], &[0x92], &[0x83], &[0xA0]], &plain_archives())
}

fn shard_files() -> Vec<Vec<u8>> {
    use std::io::Write;
    let archives = plain_archives();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut files = archives.clone();
    files.push([gzip(&archives[0][..1000]), gzip(&archives[0][1000..])].concat());
    files.push(gzip(&vec![0; 4 << 20]));
    files.push(zstd::encode_all(&archives[1][..], 19).unwrap());
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.window_log(27).unwrap();
    bomb.write_all(&vec![7; 1 << 20]).unwrap();
    files.push(bomb.finish().unwrap());
    with_heads(&[&[0, 100], &[0x89, 0], &[0x8C, 200]], &files)
}

fn pictures() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for file in ["decode", "jpeg_progressive", "jpeg_sequential"] {
        let bytes = golden::read(&format!("{file}.safetensors"));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = tensors.names();
        names.sort_unstable();
        let is_file = |name: &&str| name.ends_with(".file");
        let chosen = names.into_iter().filter(is_file);
        files.extend(chosen.map(|name| tensors.tensor(name).unwrap().data().to_vec()));
    }
    let head = |n: usize| (n as u32).wrapping_mul(0x9E37_79B9).to_le_bytes();
    files.iter().enumerate().map(|(n, file)| [&head(n), &file[..]].concat()).collect()
}

fn captions() -> Vec<Vec<u8>> {
    let captions = [
        "a photo of a cat, it's 3 o'clock!",
        "The <b>quick</b> brown fox&#39;s &amp;amp; &lt;end_of_text&gt; <|startoftext|>",
        "cafÃ© â€œquotedâ€\u{9d} ÃƒÂ© \u{1b}[31mred\u{1b}[0m ＡＢＣ ﬁ ſ's ﷺ",
        "北京 👩\u{200d}🚀 Zürich — e\u{301} İ ẞ \u{345} \u{feff} \u{85}x",
        "dogs running children better geese mice were happily going",
        "&&&&amp;&notit;&#x1F600;&#xD800;&#0;&#1114112;&nGt;",
    ];
    let captions = captions.map(|caption| caption.as_bytes().to_vec());
    let mut heads = with_heads(&[&[77, 0], &[5, 2], &[16, 4]], &captions);
    heads.extend(with_heads(&[&[77, 7]], &captions[..2]));
    heads
}

fn lists() -> Vec<Vec<u8>> {
    let text = |head: u8, text: &str| [&[head], text.as_bytes()].concat();
    let header = r#"{"format":"roclip-shard-index","version":1,"shard":"shard.tar","bytes":8192,"#;
    let sum = |bytes: &[u8]| roclip::data::index::Checksum::of(bytes);
    let fields = r#""fields":{"image_key":"jpg","captions":{"text":"txt"},"labels":"none"}"#;
    let mut index =
        format!("{header}\"sha256\":\"{}\",{fields},\"pairs\":2,\"seen\":3}}\n", sum(b"x"));
    for (n, (image, caption)) in [([0; 5], "aaaaaaa"), ([1; 5], "bbbbbbb")].iter().enumerate() {
        let (image, caption) = (sum(image), sum(caption.as_bytes()));
        let place = format!("\"key\":\"{n}\",\"offset\":{},\"length\":2048", n * 2048);
        let sums = format!("\"image\":\"{image}\",\"caption\":\"{caption}\"");
        index += &format!("{{{place},{sums}}}\n");
    }
    index += "{\"key\":\"2\",\"offset\":4096,\"length\":9,\"reason\":\"missing-image\"}\n";
    let pairs = "\"a\"\n{\"key\":\"b\"}\n{\"shard\":\"d/a.tar\",\"key\":\"c\",\"epoch\":3}\n";
    vec![
        text(0, "a/{00..09}.tar"),
        text(0, "{a,b{1..3},{c..e}}\\{x\\}{01..7..2}{z..a..-3}"),
        text(1, "\u{feff}one\r\ntwo\n\n\"three\"\n"),
        text(2, pairs),
        text(3, &index),
        text(4, "id,title,filepath\r\n1,\"a \"\"dog\"\"\",a.jpg\n2,\"two\nlines\",../secret.jpg\n"),
        text(5, "filepath\ttitle\na.jpg\tx\n./a.jpg\ty\n/etc/passwd\tz\nb.png\t\nshort\n"),
    ]
}

/// Files with the names of both libraries, of tensors small enough to be mutated.
fn weights_safetensors() -> Vec<Vec<u8>> {
    let file = |tensors: &[(&str, &str, &[usize], usize)]| {
        let (mut header, mut end) = (String::from("{"), 0);
        for (name, dtype, shape, bytes) in tensors {
            let first = end;
            end += bytes;
            let place = format!("\"shape\":{shape:?},\"data_offsets\":[{first},{end}]");
            header += &format!("\"{name}\":{{\"dtype\":\"{dtype}\",{place}}},");
        }
        header += "\"__metadata__\":{\"format\":\"pt\"}}";
        let data: Vec<u8> = (0..end).map(|n| n as u8).collect();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    };
    vec![
        file(&[]),
        file(&[("logit_scale", "F32", &[], 4), ("visual.proj", "F16", &[2, 3], 12)]),
        file(&[
            ("transformer.resblocks.0.attn.in_proj_weight", "F32", &[6, 2], 48),
            ("transformer.resblocks.0.ln_1.bias", "BF16", &[2], 4),
            ("visual.bn1.num_batches_tracked", "I64", &[], 8),
        ]),
        file(&[
            ("text_model.encoder.layers.0.self_attn.q_proj.bias", "F32", &[2], 8),
            ("text_model.encoder.layers.0.self_attn.k_proj.bias", "F32", &[2], 8),
            ("text_model.encoder.layers.0.self_attn.v_proj.bias", "F32", &[2], 8),
            ("text_projection.weight", "U8", &[3, 2], 6),
            ("text_model.embeddings.position_ids", "I64", &[1, 0], 0),
        ]),
    ]
}

/// What torch wrote, whole (cut to what is mutated) and its pickles alone.
fn weights_pickle() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for name in ["interop_bare.pt", "interop_checkpoint.pt", "interop_torchscript.pt"] {
        let file = golden::read(name);
        seeds.push([&[0], &file[file.len().saturating_sub(12_000)..]].concat());
        let first = file.windows(3).position(|bytes| bytes == [0x80, 2, b'}']);
        let first = first.or_else(|| file.windows(3).position(|bytes| bytes == [0x80, 2, b'c']));
        let pickle = &file[first.expect("a pickle")..];
        seeds.push([&[1], &pickle[..pickle.len().min(6000)]].concat());
    }
    let storage = b"X\x07\0\0\0storagectorch\nByteStorage\nX\x01\0\0\x000X\x03\0\0\0cpuM\0\x01";
    let arguments = [b"((", &storage[..], b"tQK\x03(K\x02K\x04t(K\x04K\x01t\x89}t"].concat();
    let tensor = [b"ctorch._utils\n_rebuild_tensor_v2\n".as_slice(), &arguments, b"R"].concat();
    seeds.push([b"\x01\x80\x02}X\x01\0\0\0a", &tensor[..], b"s."].concat());
    let module = [b"\x01\x80\x02c__torch__\nM\n)\x81}X\x01\0\0\0a", &tensor[..], b"sb."].concat();
    seeds.push(module);
    seeds
}
