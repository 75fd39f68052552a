//! Goal: files of weights that are damaged or that someone built to harm end in an error that says
//! what is wrong; nothing hangs, is executed or grows beyond the file.
//! Method: golden files cut and altered at every structural place, and archives made by hand.

use super::Files;
use crate::common::golden;
use roclip::interop::Tensors;
use roclip::interop::tensors;

/// A stored archive of these members, as APPNOTE 6.3.10 lays it out.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let len = (data.len() as u32).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        // Version, flags, method, time, date; CRC; sizes; lengths of name and extra field.
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &crc.sum().to_le_bytes(),
            &len,
            &len,
            &name_len,
            &[0, 0],
        ]
        .concat();
        let at = (file.len() as u32).to_le_bytes();
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10], &at].concat());
        directory.extend(name.as_bytes());
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), data].concat());
    }
    let count = (members.len() as u16).to_le_bytes();
    let place = (file.len() as u32).to_le_bytes();
    let size = (directory.len() as u32).to_le_bytes();
    file.extend(directory);
    file.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &place, &[0, 0]].concat());
    file
}

/// `(storage, offset, shape, strides, False, OrderedDict())` under a name of a dictionary.
fn tensor(name: &str, elements: u32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |n: i32| [b"J", &n.to_le_bytes()[..]].concat();
    let tuple = |items: &[i32]| {
        let items: Vec<u8> = items.iter().flat_map(|&n| int(n)).collect();
        [b"(", &items[..], b"t"].concat()
    };
    let storage = [b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")].concat();
    [
        text(name),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        storage,
        int(elements as i32),
        b"tQ".to_vec(),
        int(offset),
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)Rt".to_vec(),
        b"Rs".to_vec(),
    ]
    .concat()
}

fn dictionary(entries: &[Vec<u8>]) -> Vec<u8> {
    [b"\x80\x02}", &entries.concat()[..], b"."].concat()
}

fn read(files: &Files, bytes: &[u8]) -> Result<Tensors<'static>, String> {
    let path = files.write("file.pt", bytes);
    tensors::read(&path).map(|(tensors, _)| tensors).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(files: &Files, bytes: &[u8], words: &str) {
    let error = read(files, bytes).expect_err("it is read");
    assert!(error.contains(words), "{error}\nexpected {words:?}");
    assert!(error.contains("file.pt"), "{error} does not name the file");
}

#[test]
fn an_archive_made_by_hand_is_read() {
    let files = Files::new();
    let values: Vec<u8> = (0..6u32).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let two = [tensor("a", 6, 1, &[2], &[3]), tensor("b", 6, 0, &[3, 2], &[1, 3])];
    let bytes = archive(&[("m/data.pkl", &dictionary(&two)), ("m/data/0", &values)]);
    let tensors = read(&files, &bytes).unwrap();
    assert_eq!(tensors["a"].to_f32().unwrap(), [1.0, 4.0]);
    assert_eq!(tensors["b"].to_f32().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    let files = Files::new();
    let with = |pickle: &[u8]| archive(&[("m/data.pkl", pickle), ("m/data/0", &[0; 24])]);
    for (offset, shape, strides, words) in [
        (0, vec![7], vec![1], "do not lie in 6 elements"),
        (6, vec![1], vec![1], "do not lie in 6 elements"),
        (0, vec![2, 2], vec![5, 1], "do not lie in 6 elements"),
        (0, vec![1 << 30], vec![0], "do not lie in 6 elements"),
        (-1, vec![1], vec![1], "begins at -1"),
        (0, vec![-2], vec![1], "negative extent, -2"),
        (0, vec![2], vec![-1], "negative extent, -1"),
        (0, vec![2, 1], vec![1], "has strides [1]"),
        (0, vec![i32::MAX; 3], vec![i32::MAX; 3], "do not lie in 6 elements"),
    ] {
        let pickle = dictionary(&[tensor("a", 6, offset, &shape, &strides)]);
        refused(&files, &with(&pickle), words);
    }
    let lies = dictionary(&[tensor("a", 7, 0, &[7], &[1])]);
    refused(&files, &with(&lies), "24 bytes and says 7");
    let negative = dictionary(&[tensor("a", u32::MAX, 0, &[1], &[1])]);
    refused(&files, &with(&negative), "no sensible size");
    let twice = [tensor("a", 6, 0, &[6], &[1]), tensor("a", 6, 0, &[6], &[1])];
    refused(&files, &with(&dictionary(&twice)), "\"a\" stands there twice");
    // Each of a thousand tensors is the whole of one storage.
    let many: Vec<_> = (0..1000).map(|n| tensor(&n.to_string(), 6, 0, &[6], &[1])).collect();
    let big = vec![0; 24];
    assert!(
        read(&files, &archive(&[("m/data.pkl", &dictionary(&many)), ("m/data/0", &big)])).is_ok()
    );
    let elements = 1 << 20;
    let many: Vec<_> =
        (0..9).map(|n| tensor(&n.to_string(), elements, 0, &[elements as i32], &[1])).collect();
    let big = vec![0; 4 * elements as usize];
    let bomb = archive(&[("m/data.pkl", &dictionary(&many)), ("m/data/0", &big)]);
    refused(&files, &bomb, "larger than twice the file");
}

#[test]
fn what_is_no_state_dict_is_refused() {
    let files = Files::new();
    let with = |pickle: &[u8]| archive(&[("m/data.pkl", pickle), ("m/data/0", &[0; 24])]);
    refused(&files, &with(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."), "\"os\" \"system\"");
    refused(&files, &with(b"\x80\x02]."), "neither a state dict nor modules");
    refused(&files, &with(b"\x80\x02}X\x01\0\0\0aK\x01s."), "entry \"a\" is not a tensor");
    let whole = dictionary(&[tensor("a", 6, 0, &[6], &[1])]);
    refused(&files, &with(&whole[..whole.len() - 1]), "cut short");
    let nested = |depth: usize| {
        let mut pickle = b"\x80\x02".to_vec();
        pickle.extend(b"c__torch__\nM\n)\x81}X\x01\0\0\0a".repeat(depth));
        pickle.extend(b"N");
        pickle.extend(b"sb".repeat(depth));
        pickle.push(b'.');
        pickle
    };
    assert!(read(&files, &with(&nested(5))).unwrap().is_empty());
    refused(&files, &with(&nested(1000)), "nested without end");
    // A module that holds itself, and modules that each hold the one before twice.
    refused(&files, &with(b"\x80\x02c__torch__\nM\n)\x81q\0}X\x01\0\0\0ah\0sb."), "without end");
    let mut twice = b"\x80\x02c__torch__\nM\n)\x81q\0".to_vec();
    for level in 0..40u8 {
        twice.extend(b"c__torch__\nM\n)\x81}(X\x01\0\0\0a");
        twice.extend([b'h', level, b'X', 1, 0, 0, 0, b'b', b'h', level]);
        twice.extend([b'u', b'b', b'q', level + 1]);
    }
    twice.push(b'.');
    refused(&files, &with(&twice), "without end");
}

#[test]
fn archives_that_lie_are_refused() {
    let files = Files::new();
    let pickle = dictionary(&[tensor("a", 6, 0, &[6], &[1])]);
    let data = [7; 24];
    let members: [(&str, &[u8]); 2] = [("m/data.pkl", &pickle), ("m/data/0", &data)];
    let good = archive(&members);
    assert!(read(&files, &good).is_ok());
    refused(&files, &archive(&[members[0], members[1], members[1]]), "stands there twice");
    refused(&files, &archive(&members[..1]), "\"m/data/0\" of the archive is missing");
    refused(&files, &archive(&members[1..]), "with 0 members data.pkl");
    let two = archive(&[members[0], ("n/data.pkl", &pickle), members[1]]);
    refused(&files, &two, "with 2 members data.pkl");
    let big_endian = archive(&[members[0], members[1], ("m/byteorder", b"big")]);
    refused(&files, &big_endian, "big-endian");
    // The directory's second entry, where its fields stand.
    let entry = good.len() - 22 - 46 - "m/data/0".len();
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let big = 0x7FFF_FFFFu32.to_le_bytes();
    let sizes = [big, big].concat();
    refused(&files, &changed(entry + 20, &sizes), "beyond its place");
    refused(&files, &changed(entry + 20, &[0xFF; 8]), "entry 1 of its directory");
    refused(&files, &changed(entry + 20, &big), "compressed or encrypted");
    refused(&files, &changed(entry + 10, &[8]), "compressed or encrypted");
    refused(&files, &changed(entry + 8, &[1]), "compressed or encrypted");
    refused(&files, &changed(entry + 16, &[1]), "CRC-32");
    refused(&files, &changed(entry + 42, &[0; 4]), "does not lie where");
    refused(&files, &changed(entry + 42, &big), "beyond its place");
    refused(&files, &changed(entry + 28, &[0xFF]), "entry 1 of its directory");
    let end = good.len() - 22;
    refused(&files, &changed(end + 10, &[0xFF, 0xFF]), "65535 members");
    refused(&files, &changed(end + 10, &[3]), "3 members");
    refused(&files, &changed(end + 12, &big), "its directory says");
    refused(&files, &changed(end + 16, &big), "its directory says");
    refused(&files, &good[..good.len() - 1], "without the directory at its end");
    refused(&files, b"PK\x03\x04", "without the directory");
    // A legacy file, and none at all.
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    refused(&files, legacy, "before torch 1.6");
    refused(&files, b"", "shorter than 8 bytes");
    refused(&files, &[b'x'; 100], "a header of");
}

/// Whatever is cut off or altered in what torch wrote: an error, or the very same tensors.
#[test]
fn every_cut_and_every_change_is_noticed() {
    let files = Files::new();
    for name in ["interop_bare.pt", "interop_checkpoint.pt", "interop_torchscript.pt"] {
        let good = golden::read(name);
        let whole = read(&files, &good).unwrap();
        let pickle = good.windows(2).position(|w| w == [0x80, 2]).unwrap();
        let directory = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        let places = (0..good.len()).filter(|at| {
            at % 211 == 0
                || (pickle..pickle + 200).contains(at)
                || *at >= good.len() - 150
                || (directory..directory + 120).contains(at)
        });
        for at in places {
            assert!(read(&files, &good[..at]).is_err(), "{name} cut to {at} bytes is read");
            for bit in [1, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                let outcome = read(&files, &bad);
                assert!(outcome.is_err() || outcome == Ok(whole.clone()), "{name}: byte {at}");
            }
        }
    }
}
