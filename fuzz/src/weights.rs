//! Bytes → files of weights.

use roclip::interop::names::{self, Flavour};
use roclip::interop::tensors::{self, Dtype, Format, Tensors};

use super::files::Folder;

/// A file of any kind; what is read of it is what its sizes say, and at most twice the file.
fn read(bytes: &[u8]) -> Option<(Tensors<'static>, Format)> {
    thread_local!(static FOLDER: Folder = Folder::new());
    let path = FOLDER.with(|folder| folder.write("weights", bytes));
    let (tensors, format) = tensors::read(&path).ok()?;
    let mut total = 0;
    for (name, tensor) in &tensors {
        let values = tensor.to_f32();
        assert_eq!(values.is_some(), tensor.is_float(), "{name:?}");
        if let Some(values) = values {
            assert_eq!(values.len(), tensor.len(), "{name:?} is not as large as it says");
        }
        total += tensor.bytes.len();
    }
    assert!(total <= 2 * bytes.len() + 1, "{total} bytes come out of {}", bytes.len());
    Some((tensors, format))
}

/// A safetensors file. What is read is what the `safetensors` crate reads, whatever is refused
/// beside.
pub fn weights_safetensors(bytes: &[u8]) {
    let Some((ours, Format::Safetensors)) = read(bytes) else { return };
    let theirs = safetensors::SafeTensors::deserialize(bytes).expect("the crate refuses less");
    assert_eq!(theirs.len(), ours.len());
    for (name, tensor) in &ours {
        let same = theirs.tensor(name).expect("the same names");
        let (dtype, shape, data) = (same.dtype(), same.shape(), same.data());
        assert!(dtype == tensor.dtype && shape == tensor.shape && data == &*tensor.bytes, "{name}");
    }
    // Names of one library, translated and translated back, are the same tensors.
    if names::flavour(&ours) == Flavour::HuggingFace {
        let Ok(renamed) = names::from_hugging_face(ours.clone()) else { return };
        if let Ok(back) = names::to_hugging_face(&renamed) {
            assert!(back.iter().all(|(name, tensor)| ours.get(name) == Some(tensor)));
        }
    } else if let Ok(renamed) = names::to_hugging_face(&ours) {
        let back = names::from_hugging_face(renamed).expect("what was translated");
        assert!(back == ours, "there and back is not the same");
    }
}

/// An archive whose pickle is `pickle` and whose one storage holds the bytes 0 to 255.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = (0..=255).collect();
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("w/data.pkl", pickle), ("w/data/0", &storage)] {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let (size, at) = (data.len() as u32, file.len() as u32);
        let mut fixed = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fixed.extend([crc.sum(), size, size].map(u32::to_le_bytes).concat());
        fixed.extend([name.len() as u8, 0, 0, 0]);
        directory.extend([b"PK\x01\x02\x14\0", &fixed[..], &[0; 10], &at.to_le_bytes()].concat());
        directory.extend(name.as_bytes());
        file.extend([b"PK\x03\x04", &fixed[..], name.as_bytes(), data].concat());
    }
    let place = [directory.len() as u32, file.len() as u32].map(u32::to_le_bytes).concat();
    file.extend(directory);
    file.extend([b"PK\x05\x06\0\0\0\0\x02\0\x02\0", &place[..], &[0, 0]].concat());
    file
}

/// What `torch.save` writes: an archive, or (where the first byte is odd) the pickle of one that is
/// otherwise whole, so that the checksum does not end every attempt.
pub fn weights_pickle(input: &[u8]) {
    let Some((&choice, bytes)) = input.split_first() else { return };
    if choice % 2 == 0 {
        read(bytes);
        return;
    }
    let Some((tensors, _)) = read(&archive(bytes)) else { return };
    let one_byte = tensors.values().filter(|t| t.dtype == Dtype::U8);
    assert!(one_byte.into_iter().all(|t| t.len() <= 256), "a view is larger than its storage");
}
