//! Golden pictures: what Pillow and torchvision made of the same bytes.

use roclip::data::decode::Rgb8;
use roclip::data::transform::CropBox;
use safetensors::SafeTensors;

use super::golden;

/// The tensors of one golden file.
pub struct Pictures(Vec<u8>);

impl Pictures {
    /// Opens `tests/golden/<file>`.
    pub fn open(file: &str) -> Self {
        Self(golden::read(file))
    }

    /// All of them.
    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }

    /// Names that end in `suffix`, without it.
    pub fn names(&self, suffix: &str) -> Vec<String> {
        let tensors = self.tensors();
        let names = tensors.names().into_iter();
        let mut names: Vec<_> =
            names.filter_map(|n| n.strip_suffix(suffix)).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The content of one.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).expect("a tensor of that name").data().to_vec()
    }

    /// A `[H, W, 3]` picture.
    pub fn picture(&self, name: &str) -> Rgb8 {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect("a tensor of that name");
        let &[height, width, 3] = tensor.shape() else { panic!("{name} is no picture") };
        Rgb8 { width: width as u32, height: height as u32, data: tensor.data().to_vec() }
    }
}

/// Largest and mean difference of two pictures, in steps of 1/255.
pub fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = pairs.clone().map(u64::from).sum();
    (pairs.max().unwrap_or(0), sum as f64 / ours.len() as f64)
}

/// `[H, W, 3]` to `[3, H, W]`.
pub fn planes(picture: &Rgb8) -> Vec<u8> {
    let channel = |c| picture.data.iter().skip(c).step_by(3).copied();
    channel(0).chain(channel(1)).chain(channel(2)).collect()
}

/// A part as a picture of its own.
pub fn cut(image: &Rgb8, part: CropBox) -> Rgb8 {
    let row = |y: u32| &image.data[(3 * (y * image.width + part.left)) as usize..];
    let rows = (part.top..part.top + part.height).map(|y| &row(y)[..3 * part.width as usize]);
    Rgb8 { width: part.width, height: part.height, data: rows.collect::<Vec<_>>().concat() }
}
